//! Sessions, wills, retained messages, limits and bad input, byte by byte.

use std::sync::Arc;
use std::time::Duration;

use crate::support::{
    Harness, PATIENCE, Raw, connect_v5, packet, publish, read_publish, text, wait_until,
};
use broker::{
    Access, AllowAll, ConnectRequest, Grant, Limits, MemoryStorage, Qos, Refused, Rights,
};
use tokio::time::timeout;

const PUBACK: u8 = 0x40;
const DISCONNECT: u8 = 0xe0;

async fn memory() -> Harness {
    Harness::start(MemoryStorage::default()).await
}

#[tokio::test]
async fn a_second_client_of_the_same_name_takes_over() {
    let harness = memory().await;
    let mut first = Raw::connect_v5(harness.addr, "c", true, 0).await;
    let _second = Raw::connect_v5(harness.addr, "c", true, 0).await;
    assert_eq!(first.packet().await, (DISCONNECT, vec![0x8e, 0]));
    first.assert_closed().await;
    let (first, _) = Raw::connect_v311(harness.addr, "d", false).await;
    let (_second, was) = Raw::connect_v311(harness.addr, "d", false).await;
    assert!(was);
    first.assert_closed().await;
    harness.stop().await;
}

pub(crate) fn connect_with_will(client: &str, topic: &str, delay: u32, expiry: u32) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([5, 0b0000_1110, 0, 0, 5, 0x11]);
    body.extend(expiry.to_be_bytes());
    body.extend(text(client));
    body.extend([5, 0x18]);
    body.extend(delay.to_be_bytes());
    body.extend(text(topic));
    body.extend(text("gone"));
    packet(0x10, &body)
}

#[tokio::test]
async fn a_will_is_left_unless_the_client_says_goodbye() {
    let harness = memory().await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", true).await;
    reader.subscribe_v311("will/#", 1).await;
    for (topic, farewell) in [
        ("will/a", None),
        ("will/b", Some(packet(DISCONNECT, &[]))),
        ("will/c", Some(packet(DISCONNECT, &[4, 0]))),
    ] {
        let mut device = Raw::open(harness.addr).await;
        device.send(&connect_with_will("w", topic, 0, 0)).await;
        assert_eq!(device.packet().await.0, 0x20);
        match farewell {
            Some(farewell) => {
                device.send(&farewell).await;
                device.assert_closed().await;
            }
            None => drop(device),
        }
        wait_until("device gone", || harness.handle.stats().clients == 1).await;
    }
    for expected in ["will/a", "will/c"] {
        let (kind, body) = reader.packet().await;
        assert_eq!(read_publish(kind, &body, false).0, expected);
        reader.send(&[PUBACK, 2, body[8], body[9]]).await;
    }
    reader.assert_silent().await;
    harness.stop().await;
}

#[tokio::test]
async fn a_delayed_will_comes_late_or_not_at_all() {
    let harness = memory().await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", true).await;
    reader.subscribe_v311("will/#", 0).await;
    let mut device = Raw::open(harness.addr).await;
    device
        .send(&connect_with_will("w", "will/a", 600, 600))
        .await;
    device.packet().await;
    drop(device);
    wait_until("device gone", || harness.handle.stats().clients == 1).await;
    let back = Raw::connect_v5(harness.addr, "w", false, 600).await;
    reader.assert_silent().await;
    drop(back);

    let mut device = Raw::open(harness.addr).await;
    device.send(&connect_with_will("x", "will/b", 1, 600)).await;
    device.packet().await;
    drop(device);
    let (kind, body) = reader.packet().await;
    assert_eq!(read_publish(kind, &body, false).0, "will/b");
    harness.stop().await;
}

#[tokio::test]
async fn retained_messages_are_given_to_new_subscriptions_and_survive_a_restart() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for (topic, payload, id) in [
        ("r/a", "1", 1),
        ("r/b", "2", 2),
        ("r/a", "3", 3),
        ("r/b", "", 4),
    ] {
        device
            .send(&publish(topic, payload.as_bytes(), 1, true, id, false))
            .await;
        assert_eq!(device.packet().await.0, PUBACK);
    }
    let commits = storage.commits();
    device.send(&publish("r/a", b"3", 1, true, 5, false)).await;
    assert_eq!(device.packet().await.0, PUBACK);
    assert_eq!(
        storage.commits(),
        commits,
        "the same value again is no write"
    );
    harness.stop().await;

    let harness = Harness::start(storage).await;
    let mut reader = Raw::connect_v5(harness.addr, "r", true, 0).await;
    reader.subscribe_v5("r/+", 0).await;
    let (kind, body) = reader.packet().await;
    assert_eq!(kind & 1, 1, "the retain flag is set");
    assert_eq!(
        read_publish(kind, &body, true),
        ("r/a".into(), 0, b"3".to_vec())
    );
    reader.subscribe_v5("r/+", 0b01_0000).await; // only if new: it is not
    reader.assert_silent().await;
    reader.subscribe_v5("r/a", 0b10_0000).await; // never
    reader.assert_silent().await;
    harness.stop().await;
}

#[tokio::test]
async fn a_live_message_has_no_retain_flag_unless_asked_for() {
    let harness = memory().await;
    let mut plain = Raw::connect_v5(harness.addr, "p", true, 0).await;
    plain.subscribe_v5("t", 0).await;
    let mut as_published = Raw::connect_v5(harness.addr, "q", true, 0).await;
    as_published.subscribe_v5("t", 0b1000).await;
    let mut no_local = Raw::connect_v5(harness.addr, "n", true, 0).await;
    no_local.subscribe_v5("t", 0b100).await;
    no_local.send(&publish("t", b"v", 0, true, 0, true)).await;
    assert_eq!(plain.packet().await.0, 0x30);
    assert_eq!(as_published.packet().await.0, 0x31);
    no_local.assert_silent().await;
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_hurts_nobody() {
    let limits = Limits {
        queue_messages_max: 50,
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let (mut deaf, _) = Raw::connect_v311(harness.addr, "deaf", true).await;
    deaf.subscribe_v311("t0", 0).await;
    let (mut worse, _) = Raw::connect_v311(harness.addr, "worse", true).await;
    worse.subscribe_v311("t1", 1).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "reader", true).await;
    reader.subscribe_v311("+", 0).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    let payload = vec![7_u8; 100_000];
    for id in 1..=400 {
        device
            .send(&publish("t0", &payload, 1, false, id, false))
            .await;
        assert_eq!(device.packet().await.0, PUBACK);
        assert_eq!(reader.packet().await.0, 0x30);
    }
    assert!(harness.handle.stats().messages_dropped > 100);
    for id in 1..=200 {
        device
            .send(&publish("t1", &payload, 1, false, id, false))
            .await;
        assert_eq!(device.packet().await.0, PUBACK);
        assert_eq!(reader.packet().await.0, 0x30);
    }
    // What cannot be dropped silently ends the connection that does not take it.
    wait_until("closed", || harness.handle.stats().clients == 3).await;
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_take_its_bytes_is_closed() {
    let limits = Limits {
        write_stall_max: Duration::from_millis(300),
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let (mut deaf, _) = Raw::connect_v311(harness.addr, "deaf", false).await;
    deaf.subscribe_v311("t", 0).await;
    let payload = vec![7_u8; 200_000];
    let handle = harness.handle.clone();
    for _ in 0..200 {
        handle
            .publish("t", payload.clone(), Qos::AtMostOnce, false)
            .unwrap();
        tokio::task::yield_now().await;
    }
    wait_until("closed", || harness.handle.stats().clients == 0).await;
    drop(deaf);
    harness.stop().await;
}

#[tokio::test]
async fn a_session_expires() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let mut reader = Raw::connect_v5(harness.addr, "r", false, 1).await;
    reader.subscribe_v5("t", 1).await;
    drop(reader);
    wait_until("expired", || harness.handle.stats().sessions == 0).await;
    harness.stop().await;
    let harness = Harness::start(storage).await;
    assert_eq!(harness.handle.stats().sessions, 0, "its row is gone too");
    harness.stop().await;
}

#[tokio::test]
async fn a_shared_subscription_is_served_once() {
    let harness = memory().await;
    let mut workers = Vec::new();
    for name in ["a", "b"] {
        let (mut worker, _) = Raw::connect_v311(harness.addr, name, true).await;
        assert_eq!(worker.subscribe_v311("$share/g/t", 0).await, 0);
        workers.push(worker);
    }
    for _ in 0..2 {
        harness
            .handle
            .publish("t", "v", Qos::AtMostOnce, false)
            .unwrap();
    }
    for worker in &mut workers {
        assert_eq!(worker.packet().await.0, 0x30);
        worker.assert_silent().await;
    }
    harness.stop().await;
}

#[derive(Debug)]
struct Closed;

impl Access for Closed {
    fn connect(&self, request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        match (request.client, request.username, request.password) {
            ("stranger", _, _) => Err(Refused::NotAuthorized),
            (_, None, _) => Ok(Grant::anonymous(Arc::new(Self))),
            (_, Some(user), Some(b"right")) => Ok(Grant {
                user: Some(user.into()),
                rights: Arc::new(Self),
            }),
            _ => Err(Refused::Credentials),
        }
    }
}

impl Rights for Closed {
    fn may_publish(&self, topic: &str) -> bool {
        !topic.starts_with("secret")
    }
    fn may_subscribe(&self, filter: &str) -> bool {
        !filter.starts_with("secret")
    }
}

#[tokio::test]
async fn access_rules_are_told_where_the_protocol_can() {
    let harness = Harness::with(MemoryStorage::default(), Limits::default(), Closed).await;
    let mut stranger = Raw::open(harness.addr).await;
    stranger.send(&connect_v5("stranger", true, 0)).await;
    assert_eq!(stranger.packet().await, (0x20, vec![0, 0x87, 0]));
    stranger.assert_closed().await;

    let mut device = Raw::connect_v5(harness.addr, "d", true, 0).await;
    assert_eq!(device.subscribe_v5("secret/#", 1).await, 0x87);
    device
        .send(&publish("secret", b"v", 1, false, 1, true))
        .await;
    assert_eq!(device.packet().await, (PUBACK, vec![0, 1, 0x87]));
    device
        .send(&publish("secret", b"v", 0, false, 0, true))
        .await;
    device.assert_silent().await;

    assert_eq!(device.subscribe_v5("$share/g/secret/#", 1).await, 0x87);

    let (mut old, _) = Raw::connect_v311(harness.addr, "o", true).await;
    assert_eq!(old.subscribe_v311("secret/#", 1).await, 0x80);
    old.send(&publish("secret", b"v", 1, false, 1, false)).await;
    old.assert_closed().await;
    harness.stop().await;
}

#[tokio::test]
async fn bad_input_ends_its_connection_only() {
    let limits = Limits {
        connect_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let mut witness = Raw::connect_v5(harness.addr, "witness", true, 0).await;
    for bytes in [
        vec![0x10, 2, 0, 9],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![0xff; 64],
        publish("a", b"", 0, false, 0, false),
        Vec::new(), // says nothing: the connect timeout
    ] {
        let mut bad = Raw::open(harness.addr).await;
        bad.send(&bytes).await;
        bad.assert_closed().await;
    }
    for (bytes, code) in [
        (publish("a/#", b"", 0, false, 0, true), 0x90),
        (publish("a", b"", 1, false, 0, true), 0x81),
        (vec![0x36, 0], 0x81),
        (vec![0x30, 0xff, 0xff, 0xff, 0x7f], 0x95),
        (connect_v5("again", true, 0), 0x82),
        (packet(0x30, &[0, 1, b'a', 3, 0x23, 0, 17]), 0x94),
        (vec![0xf0, 0], 0x8c),
        (vec![0x00, 0], 0x82),
    ] {
        let mut bad = Raw::connect_v5(harness.addr, "bad", true, 0).await;
        bad.send(&bytes).await;
        assert_eq!(bad.packet().await, (DISCONNECT, vec![code, 0]), "{bytes:?}");
        bad.assert_closed().await;
    }
    witness.assert_silent().await;
    assert_eq!(witness.subscribe_v5("a/#/b", 0).await, 0x8f);
    harness.stop().await;
}

#[tokio::test]
async fn an_unknown_protocol_level_is_refused_in_its_own_words() {
    let harness = memory().await;
    for (level, answer) in [(3, vec![0, 1]), (6, vec![0, 0x84, 0])] {
        let mut client = Raw::open(harness.addr).await;
        let mut body = text("MQTT");
        body.extend([level, 2, 0, 0, 0, 0]);
        client.send(&packet(0x10, &body)).await;
        assert_eq!(client.packet().await, (0x20, answer));
        client.assert_closed().await;
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_silent_client_is_closed_after_its_keep_alive() {
    let harness = memory().await;
    let mut body = text("MQTT");
    body.extend([5, 2, 0, 1, 0]);
    body.extend(text(""));
    let mut client = Raw::open(harness.addr).await;
    client.send(&packet(0x10, &body)).await;
    let (_, connack) = client.packet().await;
    assert!(
        connack.contains(&0x12),
        "an identifier is assigned: {connack:?}"
    );
    assert_eq!(client.packet().await, (DISCONNECT, vec![0x8d, 0]));
    harness.stop().await;
}

#[tokio::test]
async fn limits_of_clients_and_subscriptions_hold() {
    let limits = Limits {
        clients_max: 1,
        subscriptions_max: 2,
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let mut client = Raw::connect_v5(harness.addr, "c", true, 0).await;
    for (filter, code) in [("a", 0), ("b", 0), ("c", 0x97), ("a", 0)] {
        assert_eq!(client.subscribe_v5(filter, 0).await, code, "{filter}");
    }
    Raw::open(harness.addr).await.assert_closed().await;
    client.assert_silent().await;
    harness.stop().await;
}

#[tokio::test]
async fn stopping_tells_v5_clients_and_leaves_no_will() {
    let harness = memory().await;
    let mut device = Raw::open(harness.addr).await;
    device.send(&connect_with_will("w", "will", 0, 0)).await;
    device.packet().await;
    let mut reader = Raw::connect_v5(harness.addr, "r", true, 0).await;
    reader.subscribe_v5("will", 0).await;
    let stopping = tokio::spawn(harness.stop());
    assert_eq!(reader.packet().await, (DISCONNECT, vec![0x8b, 0]));
    assert_eq!(device.packet().await, (DISCONNECT, vec![0x8b, 0]));
    timeout(PATIENCE, stopping).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_publish_of_the_program_reaches_persistent_sessions() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    reader.subscribe_v311("t", 1).await;
    reader.send(&packet(DISCONNECT, &[])).await;
    reader.assert_closed().await;
    for n in 0..5_u8 {
        harness
            .handle
            .publish("t", vec![n], Qos::AtLeastOnce, false)
            .unwrap();
    }
    wait_until("stored", || storage.queued() == 5).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    for n in 0..5 {
        let (kind, body) = reader.packet().await;
        assert_eq!(read_publish(kind, &body, false).2, [n]);
    }
    assert_eq!(
        harness.handle.publish("a/#", "", Qos::AtMostOnce, false),
        Err(broker::PublishError::Topic)
    );
    harness.stop().await;
}
