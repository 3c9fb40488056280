//! The rules of reading and writing, over HTTP without a socket and through the in-process API.
//! Expected texts are those of a reference server (docs of the API's rules are in the modules).

use std::sync::Arc;
use std::time::Duration;

use apiserver::authn::{AllowMasters, MASTERS, User};
use apiserver::http::Service;
use apiserver::store::{MemoryStore, Require, Txn};
use apiserver::{
    Api, DeleteOptions, Gvr, Options, Patch, PatchKind, WatchEvent, WatchOptions, WriteOptions,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

struct Place {
    api: Api,
    service: Service,
}

async fn place() -> Place {
    let api = Api::open(Arc::new(MemoryStore::new()), Options::default())
        .await
        .unwrap();
    let service = Service::new(api.clone(), Arc::new(AllowMasters));
    Place { api, service }
}

impl Place {
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<apiserver::http::Body> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request
            .body(Full::new(Bytes::from(body.to_owned())))
            .unwrap();
        request.extensions_mut().insert(User {
            name: "admin".into(),
            groups: vec![MASTERS.into()],
            uid: String::new(),
        });
        self.service.handle(request).await
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let response = self
            .raw(method, path, &[("content-type", content_type)], &text)
            .await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (code, answer) = self.ask(method, path, body).await;
        assert!((200..300).contains(&code), "{method} {path}: {answer}");
        answer
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
           "data": {"k": "v"}})
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

fn rv(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("did not happen")
}

#[tokio::test]
async fn refusals_have_the_codes_and_words_that_clients_match() {
    let place = place().await;
    place.ok("POST", MAPS, map("a")).await;
    let mut stale = map("a");
    stale["metadata"]["resourceVersion"] = "1".into();
    let mut versioned = map("b");
    versioned["metadata"]["resourceVersion"] = "5".into();
    let a = format!("{MAPS}/a");
    let b = format!("{MAPS}/b");
    let typo = json!({"metadata": {"name": "t"}, "dota": {}});
    let strict = format!("{MAPS}?fieldValidation=Strict");
    for (method, path, body, code, reason, message) in [
        (
            "POST",
            MAPS,
            map("a"),
            409,
            "AlreadyExists",
            "configmaps \"a\" already exists",
        ),
        (
            "GET",
            &*b,
            Value::Null,
            404,
            "NotFound",
            "configmaps \"b\" not found",
        ),
        (
            "PUT",
            &*b,
            map("b"),
            404,
            "NotFound",
            "configmaps \"b\" not found",
        ),
        (
            "PUT",
            &*a,
            map("b"),
            400,
            "BadRequest",
            "the name of the object (b) does not match the name on the URL (a)",
        ),
        (
            "PUT",
            &*a,
            stale,
            409,
            "Conflict",
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please \
          apply your changes to the latest version and try again",
        ),
        (
            "POST",
            &*a,
            map("a"),
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/nopes",
            Value::Null,
            404,
            "NotFound",
            "the server could not find the requested resource",
        ),
        (
            "POST",
            "/api/v1/namespaces/nons/configmaps",
            map("a"),
            404,
            "NotFound",
            "namespaces \"nons\" not found",
        ),
        (
            "POST",
            &*strict,
            typo,
            400,
            "BadRequest",
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: \
          unknown field \"dota\"",
        ),
        (
            "DELETE",
            "/api/v1/namespaces/default",
            Value::Null,
            403,
            "Forbidden",
            "namespaces \"default\" is forbidden: this namespace may not be deleted",
        ),
        (
            "POST",
            MAPS,
            json!({"metadata": {}}),
            422,
            "Invalid",
            "ConfigMap \"\" is invalid: metadata.name: Required value: name or generateName is required",
        ),
    ] {
        let (got, status) = place.ask(method, path, body).await;
        assert_eq!(
            (got, status["reason"].as_str(), status["message"].as_str()),
            (code, Some(reason), Some(message)),
            "{method} {path}"
        );
    }
    let (code, status) = place.ask("POST", MAPS, versioned).await;
    assert_eq!(code, 500, "{status}");
}

#[tokio::test]
async fn a_write_that_changes_nothing_is_not_a_write() {
    let place = place().await;
    let created = place.ok("POST", MAPS, map("a")).await;
    let path = format!("{MAPS}/a");
    let put = place.ok("PUT", &path, map("a")).await;
    let patched = place.ok("PATCH", &path, json!({"data": {"k": "v"}})).await;
    assert_eq!((rv(&put), rv(&patched)), (rv(&created), rv(&created)));
    let changed = place.ok("PATCH", &path, json!({"data": {"k": null}})).await;
    assert!(rv(&changed) > rv(&created));
    assert_eq!(changed["metadata"]["uid"], created["metadata"]["uid"]);
}

#[tokio::test]
async fn dry_runs_answer_and_store_nothing() {
    let place = place().await;
    let dry = place
        .ok("POST", &format!("{MAPS}?dryRun=All"), map("a"))
        .await;
    assert!(dry["metadata"]["uid"].is_string());
    assert!(dry["metadata"]["resourceVersion"].is_null());
    assert_eq!(
        place.ask("GET", &format!("{MAPS}/a"), Value::Null).await.0,
        404
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let place = place().await;
    let mut object = map("f");
    object["metadata"]["finalizers"] = json!(["ex.io/f"]);
    place.ok("POST", MAPS, object).await;
    let path = format!("{MAPS}/f");
    let deleted = place.ok("DELETE", &path, Value::Null).await;
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let again = place.ok("DELETE", &path, Value::Null).await;
    assert_eq!(rv(&again), rv(&deleted), "deleting again changes nothing");
    let more = json!({"metadata": {"finalizers": ["ex.io/f", "ex.io/g"]}});
    assert_eq!(place.ask("PATCH", &path, more).await.0, 422);
    let (_, taken) = place.ask("POST", MAPS, map("f")).await;
    assert_eq!(
        taken["message"],
        "object is being deleted: configmaps \"f\" already exists"
    );
    let none = json!({"metadata": {"finalizers": null}});
    place.ok("PATCH", &path, none).await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let place = place().await;
    let created = place.ok("POST", PODS, pod("p", "n1")).await;
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["metadata"]["generation"], 1);
    let path = format!("{PODS}/p");
    let both = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}});
    let main = place.ok("PATCH", &path, both.clone()).await;
    assert_eq!(main["status"]["phase"], "Pending");
    assert_eq!(main["metadata"]["labels"]["a"], "b");
    let other = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "c"}},
                       "spec": {"nodeName": "n2"}});
    let status = place.ok("PATCH", &format!("{path}/status"), other).await;
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(status["metadata"]["labels"]["a"], "b");
    assert_eq!(status["spec"]["nodeName"], "n1");
    assert_eq!(status["metadata"]["generation"], 1);
    assert_eq!(
        place
            .ask("GET", &format!("{MAPS}/p/status"), Value::Null)
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_pod_on_a_node_gets_time_to_stop() {
    let place = place().await;
    place.ok("POST", PODS, pod("free", "")).await;
    let gone = place
        .ok("DELETE", &format!("{PODS}/free"), Value::Null)
        .await;
    assert_eq!(gone["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(
        place
            .ask("GET", &format!("{PODS}/free"), Value::Null)
            .await
            .0,
        404
    );

    let path = format!("{PODS}/p");
    let created = place.ok("POST", PODS, pod("p", "n1")).await;
    let stopping = place.ok("DELETE", &path, Value::Null).await;
    assert_eq!(stopping["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(stopping["metadata"]["generation"], 2);
    let longer = place
        .ok("DELETE", &path, json!({"gracePeriodSeconds": 60}))
        .await;
    assert_eq!(rv(&longer), rv(&stopping), "longer is ignored");
    let shorter = place
        .ok("DELETE", &path, json!({"gracePeriodSeconds": 5}))
        .await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    assert_eq!(place.ask("DELETE", &path, wrong).await.0, 409);
    let right = json!({"gracePeriodSeconds": 0,
                       "preconditions": {"uid": created["metadata"]["uid"]}});
    place.ok("DELETE", &path, right).await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn binding_happens_once() {
    let place = place().await;
    place.ok("POST", PODS, pod("p", "")).await;
    let binding = |node: &str| json!({"metadata": {"name": "p"}, "target": {"name": node}});
    let path = format!("{PODS}/p/binding");
    let status = place.ok("POST", &path, binding("n1")).await;
    assert_eq!(
        (&status["status"], &status["code"]),
        (&json!("Success"), &json!(201))
    );
    let bound = place.ok("GET", &format!("{PODS}/p"), Value::Null).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(place.ask("POST", &path, binding("n2")).await.0, 409);
}

#[tokio::test]
async fn namespaces_are_born_with_contents_and_take_theirs_along() {
    let place = place().await;
    let made = place
        .ok(
            "POST",
            "/api/v1/namespaces",
            json!({"metadata": {"name": "x"}}),
        )
        .await;
    assert_eq!(made["status"]["phase"], "Active");
    let maps = "/api/v1/namespaces/x/configmaps";
    place
        .ok("GET", &format!("{maps}/kube-root-ca.crt"), Value::Null)
        .await;
    place
        .ok(
            "GET",
            "/api/v1/namespaces/x/serviceaccounts/default",
            Value::Null,
        )
        .await;
    place.ok("POST", maps, map("a")).await;
    place
        .ok("POST", "/api/v1/namespaces/x/pods", pod("p", "n1"))
        .await;
    let follower = place.api.clone();
    let follower = tokio::spawn(async move { follower.run().await });
    let ending = place
        .ok("DELETE", "/api/v1/namespaces/x", Value::Null)
        .await;
    assert_eq!(ending["status"]["phase"], "Terminating");
    let (code, refused) = place.ask("POST", maps, map("late")).await;
    assert_eq!(code, 403, "{refused}");
    assert_eq!(
        refused["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let namespaces = Gvr::core("namespaces");
    let mut watch = place
        .api
        .watch(&namespaces, "", &WatchOptions::default())
        .await
        .unwrap();
    // The node reports that the pod has stopped; the namespace goes with it.
    let now = json!({"gracePeriodSeconds": 0});
    place.ok("DELETE", "/api/v1/namespaces/x/pods/p", now).await;
    loop {
        if let WatchEvent::Deleted(object) = soon(watch.next()).await.unwrap() {
            assert_eq!(object["metadata"]["name"], "x");
            break;
        }
    }
    assert_eq!(
        place.ask("GET", &format!("{maps}/a"), Value::Null).await.0,
        404
    );
    follower.abort();
}

#[tokio::test]
async fn definitions_serve_their_kind_at_once() {
    let place = place().await;
    let definition = json!({"metadata": {"name": "things.ex.io"},
        "spec": {"group": "ex.io", "scope": "Namespaced",
            "names": {"plural": "things", "kind": "Thing"},
            "versions": [
                {"name": "v2", "served": true, "storage": true, "subresources": {"status": {}},
                 "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "properties": {
                        "size": {"type": "integer", "minimum": 1, "default": 3}}},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}}},
                {"name": "v1", "served": true, "storage": false,
                 "schema": {"openAPIV3Schema": {"type": "object",
                    "x-kubernetes-preserve-unknown-fields": true}}}]}});
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let made = place.ok("POST", definitions, definition).await;
    assert_eq!(made["status"]["conditions"][1]["type"], "Established");
    let things = "/apis/ex.io/v2/namespaces/default/things";
    let thing = json!({"metadata": {"name": "t"}, "spec": {"odd": 1}, "status": {"x": 1}});
    let thing = place.ok("POST", things, thing).await;
    assert_eq!(thing["spec"], json!({"size": 3}));
    assert!(thing["status"].is_null());
    let path = format!("{things}/t");
    let (code, status) = place
        .ask("PATCH", &path, json!({"spec": {"size": 0}}))
        .await;
    assert_eq!(code, 422, "{status}");
    let older = "/apis/ex.io/v1/namespaces/default/things/t";
    let older = place.ok("GET", older, Value::Null).await;
    assert_eq!(older["apiVersion"], "ex.io/v1");
    let groups = place.ok("GET", "/apis/ex.io", Value::Null).await;
    assert_eq!(groups["preferredVersion"]["version"], "v2");
    let (code, _) = place
        .ask("PUT", &path, json!({"metadata": {"name": "t"}}))
        .await;
    assert_eq!(code, 422, "custom kinds need a resourceVersion");
    place
        .ok(
            "DELETE",
            &format!("{definitions}/things.ex.io"),
            Value::Null,
        )
        .await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
    let left = place.api.store().list(apiserver::store::ListQuery {
        prefix: "/registry/ex.io/".into(),
        ..Default::default()
    });
    assert!(left.await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn lists_are_paged_on_one_state() {
    let place = place().await;
    for n in 0..5 {
        place.ok("POST", MAPS, map(&format!("m{n}"))).await;
    }
    let first = place
        .ok("GET", &format!("{MAPS}?limit=2"), Value::Null)
        .await;
    assert_eq!(first["items"].as_array().unwrap().len(), 2);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    assert!(first["items"][0]["kind"].is_null(), "items have no type");
    place.ok("DELETE", &format!("{MAPS}/m4"), Value::Null).await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    let rest = format!("{MAPS}?limit=9&continue={token}");
    let rest = place.ok("GET", &rest, Value::Null).await;
    let names: Vec<&str> = rest["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|i| i["metadata"]["name"].as_str())
        .collect();
    assert_eq!(
        names,
        ["m1", "m2", "m3", "m4"],
        "as it was at the first page"
    );
    let now = format!("{MAPS}?labelSelector=none&limit=1");
    let now = place.ok("GET", &now, Value::Null).await;
    assert_eq!(now["items"], json!([]));
    let future = format!("{MAPS}?resourceVersion=99999");
    assert_eq!(place.ask("GET", &future, Value::Null).await.0, 504);
}

async fn next_line(body: &mut apiserver::http::Body) -> Value {
    let frame = soon(body.frame()).await.unwrap().unwrap();
    serde_json::from_slice(frame.data_ref().unwrap()).unwrap()
}

#[tokio::test]
async fn watches_show_selectors_being_entered_and_left() {
    let place = place().await;
    let list = place.ok("GET", MAPS, Value::Null).await;
    let path = format!(
        "{MAPS}?watch=1&labelSelector=a%3Db&resourceVersion={}",
        rv(&list)
    );
    let mut body = place.raw("GET", &path, &[], "").await.into_body();
    place.ok("POST", MAPS, map("m")).await;
    let labelled = json!({"metadata": {"labels": {"a": "b"}}});
    let path = format!("{MAPS}/m");
    let labelled = place.ok("PATCH", &path, labelled).await;
    let event = next_line(&mut body).await;
    assert_eq!(
        (&event["type"], rv(&event["object"])),
        (&json!("ADDED"), rv(&labelled))
    );
    let left = json!({"metadata": {"labels": null}});
    let left = place.ok("PATCH", &path, left).await;
    let event = next_line(&mut body).await;
    assert_eq!(
        (&event["type"], rv(&event["object"])),
        (&json!("DELETED"), rv(&left))
    );
    assert_eq!(
        event["object"]["metadata"]["labels"]["a"], "b",
        "as it was before"
    );
}

#[tokio::test(start_paused = true)]
async fn watches_end_with_a_bookmark() {
    let place = place().await;
    let path =
        format!("{MAPS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=70&resourceVersion=1");
    let started = tokio::time::Instant::now();
    let body = place.raw("GET", &path, &[], "").await.into_body();
    let bytes = body.collect().await.unwrap().to_bytes();
    let lines: Vec<Value> = String::from_utf8(bytes.to_vec())
        .unwrap()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let bookmarks: Vec<&Value> = lines.iter().filter(|l| l["type"] == "BOOKMARK").collect();
    assert_eq!(
        bookmarks.len(),
        2,
        "after a minute and before the end: {lines:?}"
    );
    assert_eq!(
        bookmarks[0]["object"],
        json!({"kind": "ConfigMap", "apiVersion": "v1",
               "metadata": {"resourceVersion": place.api.store().revision().await.unwrap().to_string()}})
    );
    assert_eq!(started.elapsed().as_secs(), 70);
}

#[tokio::test]
async fn initial_events_end_with_a_mark() {
    let place = place().await;
    let path = format!(
        "{MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&\
         allowWatchBookmarks=true"
    );
    let mut body = place.raw("GET", &path, &[], "").await.into_body();
    let frame = soon(body.frame()).await.unwrap().unwrap();
    let text = String::from_utf8(frame.data_ref().unwrap().to_vec()).unwrap();
    let lines: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines[0]["type"], "ADDED");
    let mark = &lines.last().unwrap()["object"]["metadata"]["annotations"];
    assert_eq!(mark["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn facts_commit_with_the_object_or_not_at_all() {
    let place = place().await;
    place.ok("POST", PODS, pod("p", "n1")).await;
    let pods = Gvr::core("pods");
    let patch = |phase: &str| Patch {
        kind: PatchKind::Merge,
        body: json!({"status": {"phase": phase}}),
    };
    let options = |facts: Txn| WriteOptions {
        facts,
        ..WriteOptions::default()
    };
    let first = Txn::new()
        .require(Require::Absent("/ledger/n1".into()))
        .put("/ledger/n1", "1");
    place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Running"),
            options(first.clone()),
        )
        .await
        .unwrap();
    let ledger = place.api.store().get("/ledger/n1").await.unwrap().unwrap();
    let object = place.api.get(&pods, "default", "p").await.unwrap();
    assert_eq!(rv(&object), ledger.revision, "one transaction");

    let again = place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Failed"),
            options(first),
        )
        .await
        .unwrap_err();
    assert!(again.is_fact_conflict(), "{again}");
    let object = place.api.get(&pods, "default", "p").await.unwrap();
    assert_eq!(object["status"]["phase"], "Running", "nothing was changed");

    let second = Txn::new()
        .require(Require::At("/ledger/n1".into(), ledger.revision))
        .put("/ledger/n1", "2");
    let same = place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Running"),
            options(second),
        )
        .await
        .unwrap();
    assert_eq!(
        rv(&same.object),
        ledger.revision,
        "an unchanged object is not written"
    );
    let ledger = place.api.store().get("/ledger/n1").await.unwrap().unwrap();
    assert_eq!(ledger.value, "2", "its facts are");
}

#[tokio::test]
async fn concurrent_changes_all_happen() {
    let place = place().await;
    place.ok("POST", MAPS, map("n")).await;
    let maps = Gvr::core("configmaps");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (api, maps) = (place.api.clone(), maps.clone());
        tasks.spawn(async move {
            api.change(&maps, "default", "n", WriteOptions::default(), |object| {
                let mut object = object.clone();
                object["data"][format!("k{n}")] = "1".into();
                Ok(object)
            })
            .await
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap().unwrap();
    }
    let object = place.api.get(&maps, "default", "n").await.unwrap();
    assert_eq!(object["data"].as_object().unwrap().len(), 11);
    let deleted = place
        .api
        .delete(&maps, "default", "n", DeleteOptions::default())
        .await
        .unwrap();
    assert!(deleted.removed);
}

#[tokio::test]
async fn bodies_are_bounded_and_strangers_are_refused() {
    let place = place().await;
    let huge = format!("{{\"a\":\"{}\"}}", "x".repeat(3_145_728));
    let response = place.raw("POST", MAPS, &[], &huge).await;
    assert_eq!(response.status(), 413);
    let apply = [("content-type", "application/apply-patch+yaml")];
    let response = place
        .raw("PATCH", &format!("{MAPS}/a?force=true"), &apply, "a: b")
        .await;
    assert_eq!(response.status(), 415);
    let yaml = [("content-type", "application/yaml")];
    let response = place
        .raw("POST", MAPS, &yaml, "metadata: {name: yam}\ndata: {a: b}")
        .await;
    assert_eq!(response.status(), 201);

    let stranger = |path: &str| {
        http::Request::builder()
            .uri(path)
            .body(Full::<Bytes>::default())
    };
    for (path, code) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api", 403),
        (MAPS, 403),
    ] {
        let response = place.service.handle(stranger(path).unwrap()).await;
        assert_eq!(response.status(), code, "{path}");
    }
}

#[tokio::test]
async fn discovery_is_not_sent_twice() {
    let place = place().await;
    let accept = (
        "accept",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
    );
    let first = place.raw("GET", "/apis", &[accept], "").await;
    let tag = first.headers()["etag"].to_str().unwrap().to_owned();
    assert!(
        first.headers()["content-type"]
            .to_str()
            .unwrap()
            .contains("as=APIGroupDiscoveryList")
    );
    let second = place
        .raw("GET", "/apis", &[accept, ("if-none-match", &tag)], "")
        .await;
    assert_eq!(second.status(), 304);
}
