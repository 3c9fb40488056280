//! Registration, changes and restarts.

use std::time::Duration;

use ::dmi::v1beta1 as pb;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;
use wire::message::Operation;

use super::world::{Mapper, Node, Served, device, directory, info, model, reading, said};
use crate::outbox;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapper_gets_its_devices_hears_of_changes_and_reports() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    node.put_model(model("")).await;
    node.put_device(device("a", "1")).await;
    let mut foreign = device("foreign", "1");
    foreign["spec"]["protocol"]["protocolName"] = json!("other");
    node.put_device(foreign).await;
    let mapper = Mapper::start(&dir.path().join("m.sock"));
    let answer = node.register("one", &mapper.socket).await.unwrap();
    assert_eq!(answer.model_list.len(), 1);
    assert_eq!(answer.device_list.len(), 1);
    assert_eq!(answer.device_list[0].name, "a");
    // A change, a new device, a changed model, a removal; what does not change the message is no
    // call.
    node.put_device(device("a", "2")).await;
    mapper.script.called("update a=2").await;
    let mut labelled = device("a", "2");
    labelled["metadata"]["labels"] = json!({"x": "y"});
    node.put_device(labelled).await;
    node.put_device(device("b", "3")).await;
    mapper.script.called("register b=3").await;
    node.put_model(model("degC")).await;
    mapper.script.called("update model m").await;
    node.delete_device("b").await;
    mapper.script.called("remove b").await;
    node.delete_device("a").await;
    mapper.script.called("remove model m").await;
    let expected = [
        "update a=2",
        "register b=3",
        "update model m",
        "remove b",
        "remove a",
        "remove model m",
    ];
    assert_eq!(mapper.script.calls(), expected);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_is_on_disk_and_on_its_way_when_it_is_answered() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    node.put_device(device("d", "5")).await;
    node.report("d", vec![reading("level", "4"), reading("x", "y")])
        .await
        .unwrap();
    assert_eq!(node.reported("d", "level").await.as_deref(), Some("4"));
    let rows = node.reports().await;
    assert_eq!(
        rows.len(),
        2,
        "one report, one row; the other is the wish's echo"
    );
    assert_eq!(rows[1]["twin"]["level"]["actual"]["value"], "4");
    tokio::time::timeout(Duration::from_secs(5), node.link_wake.notified())
        .await
        .expect("the link is woken");
    // All that the stock framework says, `disconnected` too, which KubeEdge drops.
    for (said, told) in [
        ("online", "online"),
        ("ok", "ok"),
        ("disconnected", "offline"),
        ("unhealthy", "unhealthy"),
        ("unknown", "unknown"),
        ("offline", "offline"),
    ] {
        let state = pb::ReportDeviceStatesRequest {
            device_name: "d".into(),
            device_namespace: "dev".into(),
            state: said.into(),
        };
        let mut client = node.client().await;
        client.report_device_states(state).await.unwrap();
        let state = node.reports().await.pop().unwrap();
        assert_eq!(state["device"]["state"], told, "{said}");
    }
    // A mapper that has not heard of the newest wish does not take it back.
    let mut late = reading("level", "4");
    late.observed_desired = Some(pb::TwinProperty {
        value: "1".into(),
        ..pb::TwinProperty::default()
    });
    node.report("d", vec![late]).await.unwrap();
    let read = node.store.read(|tx| crate::twin::document(tx, "dev", "d"));
    let twin = read.await.unwrap().unwrap();
    assert_eq!(
        twin.properties["level"].desired.as_ref().unwrap().value,
        "5"
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_side_restarts_and_nothing_is_missed() {
    let Served { dir, node, mapper } = Served::start(&["a", "b"]).await;
    node.stop().await;
    // The node comes back with a change that a resync brought, from another source, and tells it
    // although the mapper has not registered again; what did not change is not told.
    let node = Node::start(dir.path()).await;
    let path = "dev/device/a";
    node.push("edgecontroller", Operation::Update, path, device("a", "2"))
        .await;
    mapper.script.called("update a=2").await;
    assert_eq!(mapper.script.calls(), ["update a=2"]);
    // Changes while the mapper is away are in the answer when it registers, and only there. A
    // mapper that listens before it registers may be told the same by calls first: this one
    // listens after, as those of KubeEdge's framework do.
    let socket = mapper.socket.clone();
    mapper.kill().await;
    node.put_device(device("a", "3")).await;
    node.delete_device("b").await;
    node.mapper("one", |one| {
        one.reachable == Some(false) && one.pending == 2
    })
    .await;
    let answer = node.register("one", &socket).await.unwrap();
    assert_eq!(answer.device_list.len(), 1);
    node.mapper("one", |one| one.pending == 0).await;
    let mapper = Mapper::start(&socket);
    node.put_device(device("a", "4")).await;
    mapper.script.called("update a=4").await;
    assert_eq!(mapper.script.calls(), ["update a=4"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_a_registration_overtakes_is_made_good() {
    let Served { dir, node, mapper } = Served::start(&["a"]).await;
    mapper.script.busy(true);
    node.put_device(device("a", "2")).await;
    mapper.script.called("update a=2").await;
    // The answer holds 3, and then the mapper is done with 2.
    node.put_device(device("a", "3")).await;
    let answer = node.register("one", &mapper.socket).await.unwrap();
    assert_eq!(said(answer.device_list.into_iter().next()), "a=3");
    mapper.script.busy(false);
    mapper.script.called("update a=3").await;
    node.mapper("one", |one| one.pending == 0).await;
    node.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_mapper_saw_as_desired_is_no_wish() {
    let Served { dir, node, .. } = Served::start(&["a"]).await;
    let mut seen = reading("free", "8");
    seen.observed_desired = Some(pb::TwinProperty {
        value: "9".into(),
        ..pb::TwinProperty::default()
    });
    node.report("a", vec![seen]).await.unwrap();
    let read = node.store.read(|tx| crate::twin::document(tx, "dev", "a"));
    let free = read.await.unwrap().unwrap().properties["free"].clone();
    assert_eq!(free.reported.unwrap().value, "8");
    assert_eq!(
        (free.desired, free.set_here_at),
        (None, None),
        "nobody wished it"
    );
    let told = node.reports().await.pop().unwrap();
    assert_eq!(told["twin"]["free"]["expected"], json!(null), "{told}");
    node.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_ledger_is_told_and_nothing_is_lost() {
    let Served { dir, node, .. } = Served::start(&["a"]).await;
    let policy = outbox::Policy::parse("bytes=4Ki,whenFull=refuse").unwrap();
    let rule = outbox::Rule::new("twin/#", policy).unwrap();
    let ruled = node.store.write(move |tx| outbox::set_rules(tx, &[rule]));
    ruled.await.unwrap();
    let mut taken = 0;
    let refused = loop {
        let value = (taken + 1).to_string();
        match node.report("a", vec![reading("level", &value)]).await {
            Ok(()) => taken += 1,
            Err(status) => break status,
        }
        assert!(taken < 100, "there is a bound");
    };
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert_eq!(
        refused.message(),
        "the ledger has no room left for twin/dev/a; report it again"
    );
    // What was taken waits for the hub; of what was refused there is no trace but the count.
    let last = taken.to_string();
    assert_eq!(node.reported("a", "level").await, Some(last));
    let told: Vec<Value> = node.reports().await;
    let values = told
        .iter()
        .map(|one| &one["twin"]["level"]["actual"]["value"]);
    let values: Vec<_> = values.filter_map(Value::as_str).collect();
    let expected: Vec<String> = (1..=taken).map(|n| n.to_string()).collect();
    assert_eq!(values, expected);
    // With room again the same report is taken.
    let made = node.store.write(|tx| {
        let last = outbox::pending(tx, 0, 1000)?.pop().map_or(0, |row| row.seq);
        outbox::delivered_up_to(tx, last)?;
        outbox::ledger(tx)
    });
    let ledger = made.await.unwrap();
    assert!(
        ledger.iter().all(outbox::Balance::is_balanced),
        "{ledger:?}"
    );
    assert_eq!(ledger.iter().map(|one| one.refused).sum::<u64>(), 1);
    let again = (taken + 1).to_string();
    node.report("a", vec![reading("level", &again)])
        .await
        .unwrap();
    assert_eq!(node.reported("a", "level").await, Some(again));
    node.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wish_of_the_node_itself_reaches_the_mapper() {
    let Served { dir, node, mapper } = Served::start(&["a"]).await;
    // As local staff do it, over MQTT.
    let body = br#"{"event_id":"e","twin":{"level":{"expected":{"value":"8"}}}}"#;
    let topic = "$hw/events/device/dev/a/twin/update";
    let told = node.publish(topic, body).await;
    let is_delta = |topic: &str| topic.ends_with("/twin/update/delta");
    assert!(told.publishes.iter().any(|one| is_delta(&one.topic)));
    node.deltas.send_modify(|deltas| *deltas += 1);
    mapper.script.called("update a=8").await;
    node.stop().await;
    drop(dir);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mapper_that_wants_no_data_is_told_by_calls() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    node.put_model(model("")).await;
    node.put_device(device("a", "1")).await;
    let mapper = Mapper::start(&dir.path().join("m.sock"));
    let request = pb::MapperRegisterRequest {
        with_data: false,
        mapper: Some(info("one", &mapper.socket)),
    };
    let answer = node.client().await.mapper_register(request).await.unwrap();
    assert_eq!(answer.into_inner(), pb::MapperRegisterResponse::default());
    mapper.script.called("register a=1").await;
    assert_eq!(mapper.script.calls()[0], "create model m");
    node.stop().await;
}

/// What gRPC in Go sends on a unix socket: the path as the authority.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_names_its_sockets_path_is_understood() {
    let dir = directory();
    let node = Node::start(dir.path()).await;
    let literal = |index: u8, value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [&[0x40 | index, length], value.as_bytes()].concat()
    };
    let service = "/v1beta1.DeviceManagerService/MapperRegister";
    let block = [
        vec![0x83, 0x86],
        literal(4, service),
        literal(1, "%2Fetc%2Fkubeedge%2Fdmi.sock"),
        literal(31, "application/grpc"),
    ]
    .concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &block),
        frame(0, 1, 1, &[0; 5]),
    ]
    .concat();
    let mut stream = tokio::net::UnixStream::connect(dir.path().join("dmi.sock"))
        .await
        .unwrap();
    stream.write_all(&sent).await.unwrap();
    // The answer to stream 1: headers, not a reset.
    let answer = async {
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
            let mut payload = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut payload).await.unwrap();
            if header[8] == 1 && header[3] != 8 {
                return header[3];
            }
        }
    };
    let kind = tokio::time::timeout(Duration::from_secs(10), answer).await;
    assert_eq!(kind.unwrap(), 1, "3 is a reset");
    // The connection is open, and nobody answers on it: that holds up no stop.
    let stopped = tokio::time::timeout(Duration::from_secs(10), node.stop()).await;
    stopped.expect("a frozen mapper holds up nobody");
    drop(stream);
}
