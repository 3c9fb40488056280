//! The faults of KubeEdge (device plane §9.1) that this interface must not have.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use ::dmi::v1beta1 as pb;
use serde_json::json;
use tonic::Code;

use super::world::{Mapper, Node, Served, device, directory, info, model, reading, report};
use crate::dmi::Admission;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_16_a_report_with_missing_parts_is_taken() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    node.put_model(model("")).await;
    node.put_device(device("d", "5")).await;
    let bare = |name: &str| pb::Twin {
        property_name: name.to_owned(),
        ..pb::Twin::default()
    };
    let wish = pb::Twin {
        observed_desired: Some(pb::TwinProperty::default()),
        ..bare("level")
    };
    // Neither part; only one; and one of each.
    for twins in [
        vec![bare("level")],
        vec![wish.clone()],
        vec![reading("level", "7")],
        vec![bare("level"), wish, reading("other", "1")],
    ] {
        node.report("d", twins.clone())
            .await
            .unwrap_or_else(|status| panic!("{twins:?}: {status}"));
    }
    assert_eq!(node.reported("d", "level").await.as_deref(), Some("7"));
    assert_eq!(node.reported("d", "other").await.as_deref(), Some("1"));
    // No twins at all is an error with KubeEdge's words, and no more than that.
    for reported_device in [None, Some(pb::DeviceStatus::default())] {
        let request = pb::ReportDeviceStatusRequest {
            reported_device,
            ..report("d", Vec::new())
        };
        let refused = node.client().await.report_device_status(request).await;
        assert_eq!(
            refused.unwrap_err().message(),
            "ReportDeviceStatusRequest does not have twin data"
        );
    }
    let empty = pb::ReportDeviceStatesRequest::default();
    let refused = node.client().await.report_device_states(empty).await;
    assert_eq!(
        refused.unwrap_err().message(),
        "ReportDeviceStatesRequest is invalid data"
    );
    let empty = pb::MapperRegisterRequest::default();
    let refused = node.client().await.mapper_register(empty).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_18_a_device_without_a_model_holds_up_nobody() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    let mapper = Mapper::start(&dir.path().join("m.sock"));
    let mut bare = device("bare", "1");
    bare["spec"]
        .as_object_mut()
        .unwrap()
        .remove("deviceModelRef");
    let mut early = device("early", "2");
    early["spec"]["deviceModelRef"]["name"] = json!("later");
    node.put_device(bare).await;
    node.put_device(early).await;
    node.put_device(json!({"metadata": {"name": "empty"}}))
        .await;
    node.put_model(model("")).await;
    node.put_device(device("whole", "3")).await;
    let answer = node.register("one", &mapper.socket).await.unwrap();
    let named: Vec<_> = answer.device_list.iter().map(|d| &d.name).collect();
    assert_eq!(named, ["whole"], "what the stock framework can take");
    mapper.script.called("register bare=1").await;
    node.mapper("one", |mapper| {
        mapper.pending == 1 && mapper.reason == "1 devices wait for their model"
    })
    .await;
    let mut late = model("");
    late["metadata"]["name"] = json!("later");
    node.put_model(late).await;
    mapper.script.called("register early=2").await;
    let calls = mapper.script.calls();
    let at = |call: &str| calls.iter().position(|one| one == call);
    assert!(
        at("create model later") < at("register early=2"),
        "{calls:?}"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_19_a_mapper_may_call_a_hundred_times_a_second() {
    let dir = directory();
    let node = Node::start_with(dir.path(), Admission::default(), 100).await;
    node.put_device(device("d", "5")).await;
    let mut client = node.client().await;
    // Ten properties at 1 Hz, ten seconds' worth at once.
    for n in 0..100 {
        let property = format!("p{}", n % 10);
        let request = report("d", vec![reading(&property, &n.to_string())]);
        client.report_device_status(request).await.unwrap();
    }
    assert_eq!(node.reports().await.len(), 100 + 1, "and the wish's echo");
    assert_eq!(node.reported("d", "p9").await.as_deref(), Some("99"));
    // Beyond that the answer is KubeEdge's, at once, and nothing is stored.
    let mut refused = None;
    for n in 0..1000 {
        let request = report("d", vec![reading("p0", &n.to_string())]);
        if let Err(status) = client.report_device_status(request).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.expect("there is a limit");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "fail to report device status because of too many request: d"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_20_calls_are_repeated_until_the_mapper_knows() {
    let Served { dir, node, mapper } = Served::start(&["a", "b"]).await;
    // A refusal is repeated, and others do not wait for it.
    mapper.script.refuse("update a");
    node.put_device(device("a", "2")).await;
    node.put_device(device("b", "2")).await;
    mapper.script.called("refused update a=2").await;
    mapper.script.called("update b=2").await;
    node.mapper("one", |one| one.reason.contains("the device is busy"))
        .await;
    mapper.script.refuse("");
    mapper.script.called("update a=2").await;
    // So is a removal.
    mapper.script.refuse("remove");
    node.delete_device("b").await;
    mapper.script.called("refused remove b").await;
    mapper.script.refuse("");
    mapper.script.called("remove b").await;
    // A mapper that is away is called when it is back, on whatever socket it names.
    mapper.kill().await;
    node.put_device(device("a", "3")).await;
    node.mapper("one", |one| one.reachable == Some(false)).await;
    let elsewhere = Mapper::start(&dir.path().join("elsewhere.sock"));
    let answer = node.register("one", &elsewhere.socket).await.unwrap();
    assert_eq!(answer.device_list.len(), 1, "b is gone");
    node.put_device(device("a", "4")).await;
    elsewhere.script.called("update a=4").await;
    // A second mapper of the protocol takes over, and the first is told.
    let second = Mapper::start(&dir.path().join("second.sock"));
    let answer = node.register("two", &second.socket).await.unwrap();
    assert_eq!(answer.device_list.len(), 1);
    elsewhere.script.called("remove a").await;
    let mut mine = device("c", "9");
    mine["metadata"]["annotations"] = json!({crate::dmi::MAPPER_ANNOTATION: "one"});
    node.put_device(mine).await;
    elsewhere.script.called("register c=9").await;
    node.put_device(device("a", "5")).await;
    second.script.called("update a=5").await;
    assert!(
        !second
            .script
            .calls()
            .iter()
            .any(|call| call.contains(" c="))
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_21_types_and_times_of_mappers_are_kept() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    node.put_device(device("d", "5")).await;
    let mut typed = reading("celsius", "21");
    let metadata = &mut typed.reported.as_mut().unwrap().metadata;
    metadata.insert("type".to_owned(), "INT".to_owned());
    metadata.insert("timestamp".to_owned(), "1700000000123".to_owned());
    node.report("d", vec![typed]).await.unwrap();
    let last = node.reports().await.pop().unwrap();
    let told = &last["twin"]["celsius"];
    assert_eq!(told["metadata"]["type"], "int", "{last}");
    let of_value = &told["actual"]["metadata"];
    assert_eq!(of_value["deviceTimestamp"], 1_700_000_000_123_i64, "{last}");
    assert_eq!(of_value["timestamp"], last["timestamp"], "the node's clock");
    // One that is no time is none, and the next value has none of the last.
    for (time, expected) in [("soon", json!(null)), ("-5", json!(null)), ("7", json!(7))] {
        let mut timed = reading("celsius", "21");
        let metadata = &mut timed.reported.as_mut().unwrap().metadata;
        metadata.insert("timestamp".to_owned(), time.to_owned());
        node.report("d", vec![timed]).await.unwrap();
        let last = node.reports().await.pop().unwrap();
        let of_value = &last["twin"]["celsius"]["actual"]["metadata"];
        assert_eq!(of_value["deviceTimestamp"], expected, "{last}");
    }
    // The type counts: the next value has to fit it, and the mapper is told when it does not.
    let refused = node.report("d", vec![reading("celsius", "warm")]).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "the value is not int or integer");
    // One that does not fit takes no others with it.
    let mixed = vec![reading("celsius", "warm"), reading("state", "ok")];
    let refused = node.report("d", mixed).await.unwrap_err();
    assert_eq!(
        refused.message(),
        "celsius: the value is not int or integer"
    );
    assert_eq!(node.reported("d", "state").await.as_deref(), Some("ok"));
    assert_eq!(node.reported("d", "celsius").await.as_deref(), Some("21"));
    let unknown = node.report("nobody", vec![reading("x", "1")]).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    node.stop().await;
}

/// Not a test: what the next one runs as another user.
#[test]
#[ignore = "run by fault_25"]
fn knock() {
    let socket = std::env::var("KNOCK").unwrap();
    let answer = match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) => format!("{:?}", error.kind()),
        Ok(mut stream) => {
            stream
                .set_read_timeout(Some(Duration::from_secs(10)))
                .unwrap();
            // A server that serves speaks first: its settings.
            match stream.read(&mut [0; 9]) {
                Ok(0) | Err(_) => "closed".to_owned(),
                Ok(_) => "served".to_owned(),
            }
        }
    };
    eprintln!("knock: {answer}");
}

fn knock_as(uid: u32, socket: &std::path::Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "dmi::tests::faults::knock",
            "--ignored",
            "--nocapture",
        ])
        .env("KNOCK", socket)
        .uid(uid)
        .gid(uid)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let line = said.lines().find_map(|line| line.split_once("knock: "));
    line.map_or(said.clone(), |(_, answer)| answer.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_25_the_socket_is_for_mappers_alone() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    let socket = dir.path().join("dmi.sock");
    assert_eq!(knock_as(65_534, &socket), "PermissionDenied");
    // Not only the mode protects it.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(knock_as(65_534, &socket), "closed");
    node.report("nobody", vec![reading("x", "1")])
        .await
        .expect_err("root is served: there is no such device");
    node.stop().await;
    let named = Admission {
        uids: vec![65_533],
        gids: Vec::new(),
    };
    let node = Node::start_with(dir.path(), named, 200).await;
    assert_eq!(knock_as(65_533, &socket), "served");
    assert_eq!(knock_as(65_534, &socket), "closed");
    // A registration cannot make edgecore speak to anything but a socket.
    for address in ["relative.sock", "/a\0b", &"/x".repeat(80)] {
        let mapper = Some(pb::MapperInfo {
            address: address.as_bytes().to_vec(),
            ..info("odd", std::path::Path::new("/"))
        });
        let request = pb::MapperRegisterRequest {
            with_data: true,
            mapper,
        };
        let refused = node.client().await.mapper_register(request).await;
        assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
    }
    node.stop().await;
}
