//! Readings at the hub, and devices by the real kubectl.

use std::sync::Arc;

use cloudhub::config::Forward;
use http::Method;
use serde_json::{Value, json};
use wire::{
    extension::{Batch, BatchAck, Entry},
    message::{Content, Message, Operation, Route},
};

use crate::{
    harness::{PATIENCE, TestHub, TestNode},
    neighbours::{Endpoint, Mosquitto},
    wait,
};

const ALL: &str = "batch, inventory, ping";
pub(crate) const DEVICES: &str = "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devices";
pub(crate) const READINGS: &str =
    "/apis/telemetry.outpost.dev/v1/namespaces/default/devices/t1/readings";

/// The real kubectl, as the administrator.
pub(crate) async fn kubectl(hub: &TestHub, args: &[&str]) -> String {
    let output = tokio::process::Command::new("kubectl")
        .arg("--kubeconfig")
        .arg(hub.dir.path().join("admin.kubeconfig"))
        .args(args)
        .env("HOME", hub.dir.path())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn device(name: &str) -> Value {
    json!({
        "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device", "metadata": {"name": name},
        "spec": {"nodeName": "e1", "deviceModelRef": {"name": "thermo"},
                 "properties": [{"name": "celsius"}, {"name": "rate", "desired": {"value": "5"}}]},
    })
}

pub(crate) fn message(seq: u64, resource: &str, operation: Operation, body: Content) -> Entry {
    let route = Route::new("twin", "resource", &operation, resource);
    Entry {
        seq,
        stream: "s".to_owned(),
        message: Message::new(format!("m-{seq}"), 5, route, body),
        history: false,
    }
}

pub(crate) fn report(seq: u64, device: &str, value: u64) -> Entry {
    let at = 1_000_000 + value;
    let body = json!({"event_id": format!("e-{seq}"), "timestamp": 5, "twin": {"celsius": {
        "actual": {"value": value.to_string(), "metadata": {"timestamp": at}},
        "metadata": {"type": "float"}}}});
    let resource = format!("device/default/{device}/twin/edge_updated");
    message(
        seq,
        &resource,
        Operation::Update,
        Content::json(&body).unwrap(),
    )
}

pub(crate) fn state(seq: u64, state: &str) -> Entry {
    let body = json!({"event_id": "s", "timestamp": 7, "device": {
        "name": "t1", "state": state, "lastOnlineTime": "2026-01-01T00:00:00Z"}});
    let body = Content::json(&body).unwrap();
    message(
        seq,
        "device/default/t1/state/update",
        Operation::Update,
        body,
    )
}

pub(crate) async fn send(node: &mut TestNode, after: u64, entries: Vec<Entry>) {
    let last = entries.last().unwrap().seq;
    let batch = Batch {
        epoch: "epoch-1".to_owned(),
        after,
        entries,
    };
    node.send(&batch.into_message(format!("b-{after}"), 1))
        .await;
    node.until(|m| {
        let ack = m.content.decode::<BatchAck>();
        m.route.resource == "outbox" && ack.is_ok_and(|ack| ack.acked == last)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_shows_devices_with_what_they_say_and_their_readings() {
    let hub = TestHub::start().await;
    hub.post(DEVICES, &device("t1")).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    let mut entries: Vec<Entry> = (1..=50).map(|n| report(n, "t1", n)).collect();
    entries.push(state(51, "online"));
    // Somebody else's device, and one that is nobody's.
    entries.push(report(52, "other", 7));
    let upload = Content::string("raw text");
    entries.push(message(53, "plant/user/line", Operation::Upload, upload));
    send(&mut node, 0, entries).await;

    let shown = kubectl(&hub, &["get", "devices"]).await;
    let lines: Vec<Vec<&str>> = shown
        .lines()
        .map(|l| l.split_whitespace().collect())
        .collect();
    assert_eq!(
        lines[0].join(" "),
        "NAME NODE STATE LAST ONLINE REPORTED DESIRED AGE"
    );
    assert_eq!(lines[1][..3], ["t1", "e1", "online"]);
    assert_eq!(lines[1][4..6], ["celsius=50", "rate=5"]);
    let shown = kubectl(&hub, &["get", "devicestatus", "t1", "-o", "wide"]).await;
    assert!(
        shown.contains("online") && shown.contains("celsius=50"),
        "{shown}"
    );
    assert!(
        kubectl(&hub, &["get", "device", "t1", "-o", "json"])
            .await
            .contains("\"rate\"")
    );

    // A state that changes is told at the device.
    send(&mut node, 53, vec![state(54, "offline")]).await;
    let describe = async || {
        let text = kubectl(&hub, &["describe", "device", "t1"]).await;
        Ok(text.contains("StateChanged").then_some(text))
    };
    let text = wait::until("the event", PATIENCE, describe).await.unwrap();
    assert!(text.contains("state changed from"), "{text}");

    // The session breaks before the acknowledgement arrives, and everything comes again.
    drop(node);
    let hub = hub.restart().await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    let again = (40..=60).map(|n| report(n, "t1", n)).collect();
    send(&mut node, 39, again).await;
    let all = format!("{READINGS}?property=celsius");
    let list: Value = serde_json::from_str(&kubectl(&hub, &["get", "--raw", &all]).await).unwrap();
    let items = list["items"].as_array().unwrap();
    let values = |items: &[Value]| -> Vec<u64> {
        items
            .iter()
            .map(|i| i["value"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    // 51 to 54 were taken by other messages the first time.
    let wanted: Vec<u64> = (1..=50).chain(55..=60).collect();
    assert_eq!(values(items), wanted, "none lost, none twice, in order");
    assert_eq!(items[0]["node"], "e1");
    assert_eq!(items[0]["time"], "1970-01-01T00:16:40.001Z");
    let get = async |query: &str| hub.get(&format!("{READINGS}?{query}")).await.unwrap();
    let last = get("property=celsius&last=3").await;
    assert_eq!(values(last["items"].as_array().unwrap()), [58, 59, 60]);
    let page = get("property=celsius&limit=2&since=1000010&until=1970-01-01T00:16:40.020Z").await;
    assert_eq!(values(page["items"].as_array().unwrap()), [10, 11]);
    let next = page["metadata"]["continue"].as_str().unwrap();
    let page = get(&format!("property=celsius&limit=2&continue={next}")).await;
    assert_eq!(values(page["items"].as_array().unwrap()), [12, 13]);
    let uploads = "/apis/telemetry.outpost.dev/v1/uploads?topic=plant%2Fuser%2Fline";
    assert_eq!(
        hub.get(uploads).await.unwrap()["items"][0]["value"],
        "raw text"
    );
    let others = READINGS.replace("/t1/", "/other/");
    assert_eq!(hub.get(&others).await.unwrap()["items"], json!([]));

    // What is not allowed, and what is not there.
    let call = |method, path: &'static str| hub.admin.call(method, path, None);
    assert!(
        call(Method::GET, "/apis/telemetry.outpost.dev/v1/nothing")
            .await
            .is_err()
    );
    assert!(call(Method::DELETE, READINGS).await.is_err());
    let stranger = reqwest::Client::builder()
        .tls_backend_preconfigured(rustls::ClientConfig::clone(
            &cloudhub::outward::tls(Some(
                &std::fs::read_to_string(hub.dir.path().join("ca.crt")).unwrap(),
            ))
            .unwrap(),
        ))
        .build()
        .unwrap();
    let url = format!("https://127.0.0.1:{}{READINGS}", hub.ports.api);
    assert_eq!(stranger.get(url).send().await.unwrap().status(), 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_29_pushes_survive_errors_and_outages_and_their_ledger_balances() {
    let endpoint = Endpoint::start(&[500, 404]).await;
    let broker_port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let forward = vec![
        Forward {
            name: "lake".into(),
            url: format!("http://{}/in", endpoint.address),
            ..Forward::default()
        },
        Forward {
            name: "site".into(),
            broker: format!("127.0.0.1:{broker_port}"),
            topic_prefix: "from/hub".into(),
            ..Forward::default()
        },
    ];
    let dir = tempfile::tempdir().unwrap();
    let hub = TestHub::start_with(dir, |config| config.telemetry.forward = forward.clone()).await;
    hub.post(DEVICES, &device("t1")).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    send(
        &mut node,
        0,
        (1..=200).map(|n| report(n, "t1", n)).collect(),
    )
    .await;
    send(
        &mut node,
        200,
        (201..=300).map(|n| report(n, "t1", n)).collect(),
    )
    .await;
    let forwards = "/apis/telemetry.outpost.dev/v1/forwards";
    let is = |list: &Value, name: &str, delivered: u64| {
        let items = list["items"].as_array().unwrap();
        items
            .iter()
            .any(|f| f["name"] == name && f["delivered"] == delivered)
    };
    // HTTP: refused twice, tried again, all taken.
    hub.wait(forwards, |list| is(list, "lake", 300)).await;
    // MQTT: nobody there yet; the reason is told, nothing is lost, also across a restart.
    let list = hub
        .wait(forwards, |list| list["items"][1]["lastError"] != "")
        .await;
    assert_eq!(list["items"][1]["pending"], 300, "{list:#}");
    drop(node);
    let hub = TestHub::start_with(hub.halt().await, |config| {
        config.telemetry.forward = forward;
    })
    .await;
    let mut broker = Mosquitto::start(broker_port);
    let mut subscriber = broker.subscribe("from/hub/e1/default/t1/celsius").await;
    let list = hub.wait(forwards, |list| is(list, "site", 300)).await;
    for item in list["items"].as_array().unwrap() {
        let n = |name: &str| item[name].as_u64().unwrap();
        let sum = n("delivered") + n("pending") + n("expired") + n("evicted");
        assert_eq!((n("accepted"), n("delivered")), (sum, 300), "{item}");
    }
    let seen = Arc::clone(&endpoint.bodies);
    let values = |text: &str| -> Vec<u64> {
        let items: Vec<Value> = serde_json::from_str(text).unwrap();
        items
            .iter()
            .map(|i| i["value"].as_str().unwrap().parse().unwrap())
            .collect()
    };
    // The first two posts were refused, and are what came again.
    let taken: Vec<u64> = seen
        .lock()
        .unwrap()
        .iter()
        .skip(2)
        .flat_map(|b| values(b))
        .collect();
    assert_eq!(taken, (1..=300).collect::<Vec<_>>());
    let first = subscriber.next().await;
    assert_eq!(values(&format!("[{first}]")), [1]);
    broker.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forwarder_with_bad_settings_says_so_and_goes_on_when_they_are_mended() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let endpoint = Endpoint::start(&[]).await;
    let forward = |name: &str, change: &dyn Fn(&mut Forward)| {
        let mut made = Forward {
            name: name.into(),
            ..Forward::default()
        };
        change(&mut made);
        made
    };
    let url = format!("http://{}/in", endpoint.address);
    let all = vec![
        forward("broker", &|f| f.broker = "no port".into()),
        forward("file", &|f| {
            f.url.clone_from(&url);
            f.token_file.clone_from(&token);
        }),
        forward("nowhere", &|_| {}),
        // Not one of its own: left out.
        forward("file", &|f| f.url.clone_from(&url)),
    ];
    let hub = TestHub::start_with(dir, |config| config.telemetry.forward = all).await;
    let forwards = "/apis/telemetry.outpost.dev/v1/forwards";
    let error =
        |list: &Value, at: usize| list["items"][at]["lastError"].as_str().unwrap().to_owned();
    let list = hub
        .wait(forwards, |list| {
            let items = list["items"].as_array();
            items.is_some_and(|i| i.len() == 3 && i.iter().all(|f| f["lastError"] != ""))
        })
        .await;
    assert!(
        error(&list, 0).contains("`no port` is not host:port"),
        "{list:#}"
    );
    assert!(
        error(&list, 1).contains("token` could not be read"),
        "{list:#}"
    );
    assert!(error(&list, 2).contains("`url` or `broker`"), "{list:#}");
    // The hub works, and what comes waits.
    hub.post(DEVICES, &device("t1")).await;
    let mut node = hub.joined("e1", Some(ALL)).await;
    let mut entries: Vec<Entry> = (1..=3).map(|n| report(n, "t1", n)).collect();
    entries[2].history = true;
    send(&mut node, 0, entries).await;
    let kept = hub.get(READINGS).await.unwrap();
    let history: Vec<&Value> = kept["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| &i["history"])
        .collect();
    assert_eq!(history, [false, false, true]);
    hub.wait(forwards, |list| list["items"][1]["pending"] == 3)
        .await;
    std::fs::write(&token, "secret").unwrap();
    hub.wait(forwards, |list| {
        let file = &list["items"][1];
        file["delivered"] == 3 && file["lastError"] == ""
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readings_are_forwarded_to_a_mosquitto_with_tls_that_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let mut broker = Mosquitto::start_tls(port, dir.path());
    let forward = |name: &str, ca: &str| Forward {
        name: name.into(),
        broker: format!("localhost:{port}"),
        tls: true,
        topic_prefix: name.into(),
        ca_file: if ca.is_empty() {
            std::path::PathBuf::new()
        } else {
            dir.path().join(ca)
        },
        ..Forward::default()
    };
    let all = vec![forward("blind", ""), forward("known", "site-ca.crt")];
    let data = tempfile::tempdir().unwrap();
    let hub = TestHub::start_with(data, |config| config.telemetry.forward = all).await;
    hub.post(DEVICES, &device("t1")).await;
    let heard = broker
        .listen_tls("known/e1/default/t1/celsius", dir.path())
        .await;
    let mut node = hub.joined("e1", Some(ALL)).await;
    send(&mut node, 0, (1..=20).map(|n| report(n, "t1", n)).collect()).await;
    let forwards = "/apis/telemetry.outpost.dev/v1/forwards";
    let list = hub
        .wait(forwards, |list| {
            let items = &list["items"];
            items[1]["delivered"] == 20 && items[0]["lastError"] != ""
        })
        .await;
    // A certificate that nobody vouches for is not talked to.
    assert_eq!(list["items"][0]["delivered"], 0, "{list:#}");
    let error = list["items"][0]["lastError"].as_str().unwrap();
    assert!(error.to_lowercase().contains("certificate"), "{error}");
    wait::until("all readings at mosquitto", PATIENCE, async || {
        let text = std::fs::read_to_string(&heard)?;
        Ok((text.lines().filter(|l| l.starts_with('{')).count() == 20).then_some(()))
    })
    .await
    .unwrap();
    broker.stop();
}
