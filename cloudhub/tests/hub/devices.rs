//! Devices as the administrator sees them, by the real kubectl.

use std::process::Stdio;

use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use wire::message::{Content, Operation};

use crate::{
    harness::{PATIENCE, TestHub},
    telemetry::{DEVICES, device, kubectl, message, send, state},
    wait,
};

const ALL: &str = "batch, inventory, ping";
const DEFINITION: &str =
    "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/devices.devices.kubeedge.io";

fn by(hub: &TestHub, args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new("kubectl");
    command
        .arg("--kubeconfig")
        .arg(hub.dir.path().join("admin.kubeconfig"))
        .args(args)
        .env("HOME", hub.dir.path())
        .kill_on_drop(true);
    command
}

/// What kubectl says on its standard error.
async fn said(hub: &TestHub, args: &[&str]) -> String {
    let output = by(hub, args).output().await.unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_explains_warns_and_refuses() {
    let hub = TestHub::start().await;
    let text = kubectl(&hub, &["explain", "device.spec.properties"]).await;
    assert!(
        text.contains("once in a device") && text.contains("-required-"),
        "{text}"
    );
    let model = json!({"apiVersion": "devices.kubeedge.io/v1beta1", "kind": "DeviceModel",
        "metadata": {"name": "thermo"},
        "spec": {"properties": [{"name": "rate", "type": "INT", "maximum": "60"}]}});
    let apply = async |object: &Value| {
        let file = hub.dir.path().join("device.json");
        std::fs::write(&file, object.to_string()).unwrap();
        said(&hub, &["apply", "-f", &file.to_string_lossy()]).await
    };
    // Neither node nor model are there: they may come later.
    let told = apply(&device("t1")).await;
    for sentence in [
        "Warning: spec.nodeName: there is no node \"e1\" (yet)",
        "Warning: spec.deviceModelRef.name: there is no devicemodel \"thermo\" in the namespace",
    ] {
        assert!(told.contains(sentence), "{told}");
    }
    assert_eq!(apply(&model).await, "");
    hub.join("e1").await;
    let mut changed = device("t1");
    changed["spec"]["properties"][1]["desired"]["value"] = "61".into();
    let told = apply(&changed).await;
    assert!(!told.contains("nodeName"), "{told}");
    for sentence in [
        "spec.properties[0].name: devicemodel \"thermo\" has no property \"celsius\"",
        "spec.properties[1].desired.value: \"61\" is more than 60",
    ] {
        assert!(told.contains(sentence), "{told}");
    }
    let field = |path: &str, value: Value| {
        let mut object = device("t1");
        *object.pointer_mut(path).unwrap() = value;
        object
    };
    for (object, why) in [
        (
            field("/spec/nodeName", json!(5)),
            "spec.nodeName in body must be of type string",
        ),
        (
            field("/spec/properties/0", json!({"name": "rate"})),
            "spec.properties[1]: Duplicate value",
        ),
        (
            field("/spec/properties/0", json!({})),
            "spec.properties[0].name: Required value",
        ),
        (
            field("/spec/deviceModelRef", json!({"nam": "thermo"})),
            "unknown field \"spec.deviceModelRef.nam\"",
        ),
    ] {
        let told = apply(&object).await;
        assert!(told.contains(why), "{told}");
    }
    let mine = kubectl(
        &hub,
        &["get", "devices", "--field-selector", "spec.nodeName=e1"],
    )
    .await;
    assert!(mine.contains("t1"), "{mine}");
    let others = said(
        &hub,
        &["get", "devices", "--field-selector", "spec.nodeName=e2"],
    )
    .await;
    assert!(others.contains("No resources found"), "{others}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_follow_what_devices_say_and_refusals_are_told() {
    let hub = TestHub::start().await;
    hub.post(DEVICES, &device("t1")).await;
    hub.post(DEVICES, &device("t2")).await;
    let identity = hub.join("e1").await;
    let mut node = hub.connect(&identity, Some(ALL)).await;
    let watching = ["get", "devices", "t1", "--watch", "--no-headers"];
    let mut child = by(&hub, &watching).stdout(Stdio::piped()).spawn().unwrap();
    let mut rows = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut row = async |holds: &str| {
        let until = async {
            loop {
                let row = rows.next_line().await.unwrap().expect("the watch goes on");
                assert!(row.starts_with("t1 "), "nobody asked for {row}");
                if row.contains(holds) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, until).await.expect(holds);
    };
    row("rate=5").await;
    let twin = json!({"event_id": "e", "timestamp": 5, "twin": {"rate": {
        "actual": {"value": "1", "metadata": {"timestamp": 7}},
        "expected": {"value": "5", "metadata": {"timestamp": 6}},
        "sync": {"state": "refused", "value": "5", "reason": "stuck"}}}});
    let report = |seq, device: &str| {
        let resource = format!("device/default/{device}/twin/edge_updated");
        message(
            seq,
            &resource,
            Operation::Update,
            Content::json(&twin).unwrap(),
        )
    };
    send(&mut node, 0, vec![report(1, "t2"), state(2, "online")]).await;
    row(" online ").await;
    send(&mut node, 2, vec![report(3, "t1")]).await;
    row("rate=5(refused)").await;
    child.kill().await.unwrap();
    let describe = async || {
        let text = kubectl(&hub, &["describe", "device", "t2"]).await;
        Ok(text.contains("DesiredRefused").then_some(text))
    };
    let text = wait::until("the event", PATIENCE, describe).await.unwrap();
    let sentence = "desired value \"5\" of rate is refused: stuck";
    assert!(text.contains(sentence), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn definitions_of_an_older_hub_are_renewed_and_those_of_others_are_not() {
    let hub = TestHub::start().await;
    let change = async |hub: &TestHub, mark: bool| {
        let mut object = hub.get(DEFINITION).await.unwrap();
        let column = &mut object["spec"]["versions"][0]["additionalPrinterColumns"][0];
        column["description"] = "changed".into();
        if mark {
            // As an older hub would have left it.
            let next = object["metadata"]["generation"].as_i64().unwrap() + 1;
            let annotations = &mut object["metadata"]["annotations"];
            annotations["outpost.dev/definition"] = "older".into();
            annotations["outpost.dev/generation"] = next.to_string().into();
        }
        let put = hub.admin.call(Method::PUT, DEFINITION, Some(&object)).await;
        put.unwrap();
    };
    let column = async |hub: &TestHub| {
        let object = hub.get(DEFINITION).await.unwrap();
        object["spec"]["versions"][0]["additionalPrinterColumns"][0]["description"].clone()
    };
    change(&hub, true).await;
    let hub = hub.restart().await;
    assert_eq!(column(&hub).await, Value::Null, "renewed");
    change(&hub, false).await;
    let hub = hub.restart().await;
    assert_eq!(column(&hub).await, "changed", "somebody's own");
}
