//! Claims, volumes and tokens of service accounts.

use serde_json::{Value, json};
use wire::message::{Content, Message, Operation};

use crate::harness::{TestHub, TestNode};

const ALL: &str = "batch, inventory, ping";
const PODS: &str = "/api/v1/namespaces/default/pods";
const CLAIMS: &str = "/api/v1/namespaces/default/persistentvolumeclaims";
const VOLUMES: &str = "/api/v1/persistentvolumes";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

fn claim(name: &str, class: Option<&str>) -> Value {
    let mut claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    });
    if let Some(class) = class {
        claim["spec"]["storageClassName"] = class.into();
    }
    claim
}

fn pod(name: &str, claim: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i"}],
                 "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]},
    });
    if let Some(node) = node {
        pod["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    pod
}

fn object(message: &Message) -> Value {
    serde_json::from_str(&message.content.document()).unwrap()
}

async fn node(hub: &TestHub, name: &str) -> TestNode {
    let identity = hub.join(name).await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    node.send(&wire::extension::Inventory::default().into_message("i1".into(), 1))
        .await;
    node.register(true).await;
    hub.wait(&format!("/api/v1/nodes/{name}"), |n| {
        n.pointer("/spec/taints").is_none()
    })
    .await;
    node
}

fn waits_for(text: &str) -> impl Fn(&Value) -> bool {
    move |pod: &Value| {
        let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|c| {
            c["type"] == "PodScheduled" && c["message"].as_str().is_some_and(|m| m.contains(text))
        })
    }
}

/// The node reports that it has ended the pod.
async fn end(node: &mut TestNode, hub: &TestHub, name: &str) {
    let uid = hub.get(&format!("{PODS}/{name}")).await.unwrap()["metadata"]["uid"].clone();
    hub.delete(&format!("{PODS}/{name}")).await;
    let body = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    let path = format!("default/pod/{name}");
    let content = Content::json(&body).unwrap();
    node.request(Operation::Delete, &path, content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_bound_where_its_pod_goes_and_its_data_is_told_away() {
    let hub = TestHub::start().await;
    let mut e1 = node(&hub, "e1").await;
    let mut e2 = node(&hub, "e2").await;
    let made = hub.post(CLAIMS, &claim("data", None)).await;
    assert_eq!(
        made["spec"]["storageClassName"], "local-path",
        "the default class"
    );
    assert_eq!(made["status"]["phase"], "Pending");

    hub.post(PODS, &pod("p1", "data", Some("e1"))).await;
    let volume = e1
        .until(|m| m.route.resource.starts_with("null/persistentvolume/"))
        .await;
    let bound = e1
        .until(|m| m.route.resource == "default/persistentvolumeclaim/data")
        .await;
    let bound = object(&bound);
    assert_eq!(bound["status"]["phase"], "Bound");
    let name = bound["spec"]["volumeName"].as_str().unwrap().to_owned();
    assert_eq!(object(&volume)["metadata"]["name"], name.as_str());
    e1.push("insert", "default/pod/p1").await;
    let volume = hub.get(&format!("{VOLUMES}/{name}")).await.unwrap();
    assert_eq!(volume["status"]["phase"], "Bound");
    assert_eq!(volume["spec"]["claimRef"]["uid"], made["metadata"]["uid"]);

    // The volume stays with its node.
    hub.post(PODS, &pod("p2", "data", Some("e2"))).await;
    let path = format!("{PODS}/p2");
    hub.wait(
        &path,
        waits_for("1 node(s) had volume node affinity conflict"),
    )
    .await;
    hub.delete(&path).await;

    // In use, the claim stays; then the volume waits for its node.
    hub.delete(&format!("{CLAIMS}/data")).await;
    hub.wait(&format!("{CLAIMS}/data"), |c| {
        c["metadata"]["deletionTimestamp"].is_string()
    })
    .await;
    end(&mut e1, &hub, "p1").await;
    let path = format!("{VOLUMES}/{name}");
    let doomed = hub
        .wait(&path, |v| v["metadata"]["deletionTimestamp"].is_string())
        .await;
    assert!(hub.get(&format!("{CLAIMS}/data")).await.is_none());
    let resource = format!("null/persistentvolume/{name}");
    let told = e1
        .until(|m| {
            m.route.resource == resource
                && m.route.operation == "update"
                && object(m)["metadata"]["deletionTimestamp"].is_string()
        })
        .await;
    assert_eq!(
        object(&told)["spec"]["persistentVolumeReclaimPolicy"],
        "Delete"
    );
    let gone = json!({"preconditions": {"uid": doomed["metadata"]["uid"]}});
    let gone = Content::json(&gone).unwrap();
    let refused = e2.request(Operation::Delete, &resource, gone.clone()).await;
    assert!(refused.content.raw().contains("does not lie on node"));
    assert!(hub.get(&path).await.is_some());
    let answer = e1.request(Operation::Delete, &resource, gone).await;
    assert_eq!(answer.content.text().as_deref(), Some("OK"));
    e1.push("delete", &resource).await;
    assert!(hub.get(&path).await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_made_by_hand_is_bound_and_kept() {
    let hub = TestHub::start().await;
    let mut e1 = node(&hub, "e1").await;
    hub.post(PODS, &pod("p", "shared", None)).await;
    let path = format!("{PODS}/p");
    hub.wait(
        &path,
        waits_for("persistentvolumeclaim \"shared\" not found"),
    )
    .await;
    hub.post(CLAIMS, &claim("shared", Some("by-hand"))).await;
    hub.wait(
        &path,
        waits_for("pod has unbound immediate PersistentVolumeClaims"),
    )
    .await;
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "disk"},
        "spec": {"storageClassName": "by-hand", "capacity": {"storage": "2Gi"},
                 "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/srv/disk"}},
    });
    hub.post(VOLUMES, &volume).await;
    let sent = e1
        .until(|m| m.route.resource == "null/persistentvolume/disk")
        .await;
    assert_eq!(object(&sent)["spec"]["hostPath"]["path"], "/srv/disk");
    e1.push("insert", "default/pod/p").await;
    end(&mut e1, &hub, "p").await;
    // Nobody on the node needs it any more.
    e1.push("delete", "null/persistentvolume/disk").await;
    hub.delete(&format!("{CLAIMS}/shared")).await;
    let path = format!("{VOLUMES}/disk");
    hub.wait(&path, |v| v["status"]["phase"] == "Released")
        .await;
    hub.delete(&path).await;
    let gone = async {
        while hub.get(&path).await.is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::harness::PATIENCE, gone)
        .await
        .unwrap();
}

async fn review(hub: &TestHub, token: &str, audiences: &Value) -> Value {
    let review = json!({"spec": {"token": token, "audiences": audiences}});
    hub.post(REVIEWS, &review).await["status"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_gets_tokens_of_its_own_pods_only() {
    let hub = TestHub::start().await;
    let mut e1 = node(&hub, "e1").await;
    let mut e2 = node(&hub, "e2").await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"nodeSelector": {"kubernetes.io/hostname": "e1"},
                 "automountServiceAccountToken": true,
                 "containers": [{"name": "c", "image": "i"}],
                 "volumes": [{"name": "t", "projected": {"sources": [
                    {"serviceAccountToken": {"path": "t", "audience": "vault"}}]}}]},
    });
    hub.post(PODS, &pod).await;
    let pushed = object(&e1.push("insert", "default/pod/p").await);
    let uid = pushed["metadata"]["uid"].as_str().unwrap().to_owned();
    e1.push("update", "default/configmap/kube-root-ca.crt")
        .await;

    let wish = |kind: &str, uid: &str, audience: Option<&str>| {
        Content::json(&json!({"spec": {
            "audiences": audience.into_iter().collect::<Vec<_>>(), "expirationSeconds": 3607,
            "boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": "p", "uid": uid},
        }}))
        .unwrap()
    };
    let path = "default/serviceaccounttoken/default";
    let issued = e1
        .request(Operation::Query, path, wish("Pod", &uid, None))
        .await;
    let issued = object(&issued);
    let token = issued["status"]["token"].as_str().unwrap().to_owned();
    let status = review(&hub, &token, &json!([])).await;
    assert_eq!(
        status["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert!(
        status["user"]["groups"]
            .as_array()
            .unwrap()
            .contains(&json!("system:serviceaccounts:default"))
    );
    assert_eq!(
        review(&hub, &token, &json!(["vault"])).await["authenticated"],
        json!(null)
    );
    let other = e1
        .request(Operation::Query, path, wish("Pod", &uid, Some("vault")))
        .await;
    let other = object(&other)["status"]["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        review(&hub, &other, &json!(["vault", "x"])).await["audiences"],
        json!(["vault"])
    );

    for (name, wish, from) in [
        ("another node", wish("Pod", &uid, None), &mut e2),
        ("not of a pod", wish("Secret", &uid, None), &mut e1),
    ] {
        let refused = from.request(Operation::Query, path, wish).await;
        assert!(refused.content.raw().contains("Forbidden"), "{name}");
    }
    for (name, wish) in [
        ("another audience", wish("Pod", &uid, Some("bank"))),
        ("another pod of that name", wish("Pod", "u-0", None)),
        ("no uid", wish("Pod", "", None)),
    ] {
        let refused = e1.request(Operation::Query, path, wish).await;
        assert!(!refused.content.raw().contains("\"token\""), "{name}");
        assert!(refused.content.raw().contains("ErrStatus"), "{name}");
    }

    end(&mut e1, &hub, "p").await;
    e1.push("delete", "default/pod/p").await;
    assert_eq!(
        review(&hub, &token, &json!([])).await["error"],
        "invalid bearer token",
        "the pod is gone"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_gets_a_token_with_limits() {
    let hub = TestHub::start().await;
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let issued = hub.post(path, &json!({"spec": {}})).await;
    assert_eq!(issued["spec"]["expirationSeconds"], 3600);
    let token = issued["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(
        review(&hub, &token, &json!([])).await["authenticated"],
        true
    );
    assert_eq!(
        review(&hub, &format!("{token}x"), &json!([])).await["user"],
        json!({})
    );
    let short = json!({"spec": {"expirationSeconds": 60}});
    let refused = hub.admin.call(http::Method::POST, path, Some(&short)).await;
    let refused = format!("{:?}", refused.unwrap_err());
    assert!(refused.contains("less than 10 minutes"), "{refused}");
    let absent = path.replace("/default/token", "/nobody/token");
    let refused = hub
        .admin
        .call(http::Method::POST, &absent, Some(&json!({})))
        .await;
    assert!(refused.is_err());
    // The key outlives a restart, and with it what was signed.
    let hub = hub.restart().await;
    assert_eq!(
        review(&hub, &token, &json!([])).await["authenticated"],
        true
    );
    // An account made anew is another one.
    hub.delete("/api/v1/namespaces/default/serviceaccounts/default")
        .await;
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    hub.post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await;
    assert_eq!(
        review(&hub, &token, &json!([])).await["error"],
        "invalid bearer token"
    );
}
