//! An acknowledgement means that the storage has committed, and nothing else does.

use std::time::Duration;

use crate::protocol::connect_with_will;
use crate::support::{GatedStorage, Harness, Raw, connect_v5, publish, read_publish, wait_until};
use broker::{Limits, MemoryStorage, StorageError};

const PUBACK: u8 = 0x40;
const PUBREC: u8 = 0x50;

#[tokio::test]
async fn qos1_is_acknowledged_after_the_commit_and_in_order() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for id in 1..=3 {
        device
            .send(&publish("app/x", b"v", 1, false, id, false))
            .await;
    }
    storage.wait_held(3).await;
    device.assert_silent().await;
    for id in 1..=3 {
        storage.release_one(Ok(()));
        assert_eq!(device.packet().await, (PUBACK, vec![0, id]));
    }
    assert_eq!(storage.seen.lock().unwrap().len(), 3);
    harness.stop().await;
}

#[tokio::test]
async fn a_publish_that_needs_no_commit_waits_for_its_turn() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    device
        .send(&publish("app/x", b"v", 1, false, 1, false))
        .await;
    device
        .send(&publish("chat", b"v", 1, false, 2, false))
        .await;
    storage.wait_held(1).await;
    device.assert_silent().await;
    storage.release_one(Ok(()));
    assert_eq!(device.packet().await, (PUBACK, vec![0, 1]));
    assert_eq!(device.packet().await, (PUBACK, vec![0, 2]));
    harness.stop().await;
}

#[tokio::test]
async fn nobody_sees_a_message_before_it_is_committed() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", true).await;
    assert_eq!(reader.subscribe_v311("app/#", 1).await, 1);
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    device
        .send(&publish("app/x", b"v", 1, false, 1, false))
        .await;
    storage.wait_held(1).await;
    reader.assert_silent().await;
    storage.release_one(Ok(()));
    let (kind, body) = reader.packet().await;
    assert_eq!(read_publish(kind, &body, false).0, "app/x");
    harness.stop().await;
}

#[tokio::test]
async fn a_failed_commit_closes_a_v311_client_without_an_acknowledgement() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    device
        .send(&publish("app/x", b"v", 1, false, 1, false))
        .await;
    storage.wait_held(1).await;
    storage.release_one(Err(StorageError::Full));
    device.assert_closed().await;
    assert_eq!(harness.handle.stats().commits_failed, 1);
    harness.stop().await;
}

#[tokio::test]
async fn a_failed_commit_is_told_to_a_v5_client_which_has_to_connect_again() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    for (id, qos, error, kind, code) in [
        (1, 1, StorageError::Full, PUBACK, 0x97),
        (2, 2, StorageError::Failed("io".into()), PUBREC, 0x80),
    ] {
        let mut device = Raw::connect_v5(harness.addr, "d", true, 0).await;
        device
            .send(&publish("app/x", b"v", qos, false, id, true))
            .await;
        storage.wait_held(1).await;
        storage.release_one(Err(error));
        assert_eq!(
            device.packet().await,
            (kind, vec![0, u8::try_from(id).unwrap(), code])
        );
        assert_eq!(device.packet().await, (0xe0, vec![code, 0]));
        device.assert_closed().await;
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_refused_message_is_told_to_a_v5_client_which_goes_on() {
    let storage = GatedStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let mut device = Raw::connect_v5(harness.addr, "d", true, 0).await;
    for (topic, qos, id) in [("app/1", 1, 1), ("app/2", 2, 2), ("app/3", 1, 3)] {
        device
            .send(&publish(topic, b"v", qos, false, id, true))
            .await;
    }
    storage.wait_held(3).await;
    storage.release_one(Err(StorageError::Refused));
    storage.release_one(Err(StorageError::Refused));
    storage.release_one(Ok(()));
    assert_eq!(device.packet().await, (PUBACK, vec![0, 1, 0x97]));
    assert_eq!(device.packet().await, (PUBREC, vec![0, 2, 0x97]));
    assert_eq!(device.packet().await, (PUBACK, vec![0, 3]));
    device.assert_silent().await;
    assert_eq!(*storage.seen.lock().unwrap(), ["app/3"]);

    // 3.1.1 has no word for it.
    let (mut old, _) = Raw::connect_v311(harness.addr, "o", true).await;
    for (topic, id) in [("app/4", 1), ("app/5", 2)] {
        old.send(&publish(topic, b"v", 1, false, id, false)).await;
    }
    storage.wait_held(2).await;
    storage.release_one(Err(StorageError::Refused));
    storage.release_one(Ok(()));
    old.assert_closed().await;
    assert_eq!(*storage.seen.lock().unwrap(), ["app/3"]);
    harness.stop().await;
}

#[tokio::test]
async fn a_will_outlives_the_broker_unless_its_client_comes_back() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    reader.subscribe_v311("will/#", 1).await;
    let mut devices = Vec::new();
    // With a session and without.
    for (client, expiry) in [
        ("gone", 0),
        ("gone-too", 100),
        ("back", 0),
        ("back-too", 100),
    ] {
        let mut device = Raw::open(harness.addr).await;
        let topic = format!("will/{client}");
        device
            .send(&connect_with_will(client, &topic, 0, expiry))
            .await;
        assert_eq!(device.packet().await.0, 0x20);
        devices.push(device);
    }
    let mut polite = Raw::open(harness.addr).await;
    let connect = connect_with_will("polite", "will/polite", 0, 0);
    polite.send(&connect).await;
    assert_eq!(polite.packet().await.0, 0x20);
    polite.send(&[0xe0, 0]).await;
    polite.assert_closed().await;
    wait_until("its will is void", || storage.wills() == 4).await;
    harness.stop().await;
    assert_eq!(storage.wills(), 4);

    let limits = Limits {
        return_within: Duration::from_millis(500),
        ..Limits::default()
    };
    let harness = Harness::with(storage.clone(), limits, broker::AllowAll).await;
    let back = Raw::connect_v5(harness.addr, "back", false, 0).await;
    let back_too = Raw::connect_v5(harness.addr, "back-too", false, 100).await;
    let (mut reader, is_present) = Raw::connect_v311(harness.addr, "r", false).await;
    assert!(is_present);
    let mut told = Vec::new();
    for _ in 0..2 {
        let (kind, body) = reader.packet().await;
        let (topic, id, _) = read_publish(kind, &body, false);
        let [high, low] = id.to_be_bytes();
        reader.send(&[PUBACK, 2, high, low]).await;
        told.push(topic);
    }
    told.sort();
    assert_eq!(told, ["will/gone", "will/gone-too"]);
    reader.assert_silent().await;
    wait_until("no will is left", || storage.wills() == 0).await;
    drop((back, back_too));
    harness.stop().await;
}

#[tokio::test]
async fn the_life_of_an_absent_session_goes_on_while_the_broker_is_away() {
    let storage = MemoryStorage::default();
    let limits = Limits {
        return_within: Duration::ZERO,
        ..Limits::default()
    };
    let harness = Harness::with(storage.clone(), limits.clone(), broker::AllowAll).await;
    for (client, secs) in [("short", 1), ("long", 1000), ("back", 1)] {
        let mut device = Raw::connect_v5(harness.addr, client, false, secs).await;
        device.send(&[0xe0, 0]).await;
        device.assert_closed().await;
    }
    wait_until("who left is gone", || harness.handle.stats().clients == 0).await;
    let left = std::time::Instant::now();
    let _back = Raw::connect_v5(harness.addr, "back", false, 1).await;
    // As a death leaves it: who is connected is not taken for absent since it last left.
    let kept = storage.copy();
    wait_until("a second is over", || {
        left.elapsed() > Duration::from_millis(1100)
    })
    .await;

    let again = Harness::with(kept, limits, broker::AllowAll).await;
    for (client, expected) in [("short", false), ("long", true), ("back", true)] {
        let (_, is_present) = Raw::connect_v311(again.addr, client, false).await;
        assert_eq!(is_present, expected, "{client}");
    }
    again.stop().await;
    harness.stop().await;
}

#[tokio::test]
async fn nothing_is_kept_or_acknowledged_after_a_gap_until_the_device_connects_again() {
    for is_v5 in [false, true] {
        let storage = GatedStorage::default();
        let harness = Harness::start(storage.clone()).await;
        let mut device = if is_v5 {
            Raw::connect_v5(harness.addr, "d", true, 0).await
        } else {
            Raw::connect_v311(harness.addr, "d", true).await.0
        };
        for (topic, id) in [("app/1", 1), ("app/2", 2), ("chat", 3), ("app/4", 4)] {
            device
                .send(&publish(topic, b"v", 1, false, id, is_v5))
                .await;
        }
        storage.wait_held(3).await;
        storage.release_one(Ok(()));
        storage.release_one(Err(StorageError::Full));
        storage.release_one(Ok(()));
        let mut first = vec![0, 1];
        if is_v5 {
            assert_eq!(device.packet().await, (PUBACK, first));
            first = vec![0, 2, 0x97];
        }
        assert_eq!(device.packet().await, (PUBACK, first));
        if is_v5 {
            assert_eq!(device.packet().await, (0xe0, vec![0x97, 0]));
        }
        device.assert_closed().await;
        assert_eq!(*storage.seen.lock().unwrap(), ["app/1"]);

        storage.open_gate();
        let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
        for (topic, id) in [("app/2", 2), ("app/4", 4)] {
            device
                .send(&publish(topic, b"v", 1, false, id, false))
                .await;
            assert_eq!(device.packet().await.0, PUBACK);
        }
        assert_eq!(*storage.seen.lock().unwrap(), ["app/1", "app/2", "app/4"]);
        harness.stop().await;
    }
}

#[tokio::test]
async fn qos2_is_stored_before_pubrec_and_a_repetition_is_not_handled_twice() {
    let storage = GatedStorage::open();
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", false).await;
    storage.close_gate();
    device
        .send(&publish("app/x", b"v", 2, false, 7, false))
        .await;
    storage.wait_held(1).await;
    device.assert_silent().await;
    storage.open_gate();
    assert_eq!(device.packet().await, (PUBREC, vec![0, 7]));
    harness.stop().await;

    // The broker restarts before PUBREL; the device repeats.
    let harness = Harness::start(storage.clone()).await;
    let (mut device, is_present) = Raw::connect_v311(harness.addr, "d", false).await;
    assert!(is_present);
    let mut again = publish("app/x", b"v", 2, false, 7, false);
    again[0] |= 8;
    device.send(&again).await;
    assert_eq!(device.packet().await, (PUBREC, vec![0, 7]));
    device.send(&[0x62, 2, 0, 7]).await;
    assert_eq!(device.packet().await, (0x70, vec![0, 7]));
    assert_eq!(storage.seen.lock().unwrap().len(), 1);
    device
        .send(&publish("app/x", b"w", 2, false, 7, false))
        .await;
    assert_eq!(device.packet().await, (PUBREC, vec![0, 7]));
    assert_eq!(
        storage.seen.lock().unwrap().len(),
        2,
        "the id is free again after PUBREL"
    );
    harness.stop().await;
}

#[tokio::test]
async fn a_busy_storage_stops_the_reading_and_loses_nothing() {
    let storage = GatedStorage::default();
    storage.set_room(Some(4));
    let harness = Harness::start(storage.clone()).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for id in 1..=40 {
        device
            .send(&publish("app/x", b"v", 1, false, id, false))
            .await;
    }
    storage.wait_held(4).await;
    storage.set_room(None);
    storage.wait_held(40).await;
    storage.open_gate();
    for id in 1..=40 {
        assert_eq!(device.packet().await, (PUBACK, vec![0, id]));
    }
    harness.stop().await;
}

#[tokio::test]
async fn what_needs_no_row_writes_none() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", true).await;
    reader.subscribe_v311("#", 1).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for (qos, id) in [(0, 0), (1, 1)] {
        device
            .send(&publish("chat", b"v", qos, false, id, false))
            .await;
        let (kind, body) = reader.packet().await;
        assert_eq!(read_publish(kind, &body, false).0, "chat");
    }
    device.send(&[0xe0, 0]).await;
    drop(reader);
    wait_until("all gone", || harness.handle.stats().sessions == 0).await;
    harness.stop().await;
    assert_eq!(storage.commits(), 0);
}

#[tokio::test]
async fn a_persistent_session_gets_its_messages_after_a_restart_of_the_broker() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, was) = Raw::connect_v311(harness.addr, "r", false).await;
    assert!(!was);
    reader.subscribe_v311("t/#", 1).await;
    drop(reader);
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for id in 1..=3_u8 {
        device
            .send(&publish("t/x", &[id], 1, false, id.into(), false))
            .await;
        assert_eq!(device.packet().await, (PUBACK, vec![0, id]));
    }
    harness.stop().await;
    assert_eq!(storage.queued(), 3);

    let harness = Harness::start(storage.clone()).await;
    let (mut reader, was) = Raw::connect_v311(harness.addr, "r", false).await;
    assert!(was);
    for id in 1..=3_u8 {
        let (kind, body) = reader.packet().await;
        let (topic, packet_id, payload) = read_publish(kind, &body, false);
        assert_eq!((topic.as_str(), payload), ("t/x", vec![id]));
        let [high, low] = packet_id.to_be_bytes();
        reader.send(&[PUBACK, 2, high, low]).await;
    }
    reader.send(&[0xe0, 0]).await;
    reader.assert_closed().await;
    harness.stop().await;
    assert_eq!(storage.queued(), 0, "acknowledged rows are gone");
}

#[tokio::test]
async fn qos2_to_a_subscriber_survives_a_restart_in_the_middle() {
    let storage = MemoryStorage::default();
    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    reader.subscribe_v311("t", 2).await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    device.send(&publish("t", b"v", 2, false, 1, false)).await;
    assert_eq!(device.packet().await.0, PUBREC);
    let (kind, body) = reader.packet().await;
    let (_, id, _) = read_publish(kind, &body, false);
    let [high, low] = id.to_be_bytes();
    reader.send(&[PUBREC, 2, high, low]).await;
    assert_eq!(reader.packet().await, (0x62, vec![high, low]));
    harness.stop().await;

    let harness = Harness::start(storage.clone()).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    assert_eq!(
        reader.packet().await,
        (0x62, vec![high, low]),
        "PUBREL again, no PUBLISH"
    );
    reader.send(&[0x70, 2, high, low]).await;
    reader.assert_silent().await;
    harness.stop().await;
    assert_eq!(storage.queued(), 0);
}

#[tokio::test]
async fn a_full_queue_of_an_absent_session_is_bounded_and_counted() {
    let storage = MemoryStorage::default();
    let limits = Limits {
        queue_messages_max: 2,
        ..Limits::default()
    };
    let harness = Harness::with(storage.clone(), limits, broker::AllowAll).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "r", false).await;
    reader.subscribe_v311("t", 1).await;
    reader.send(&[0xe0, 0]).await;
    reader.assert_closed().await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    for id in 1..=5 {
        device.send(&publish("t", b"v", 1, false, id, false)).await;
        assert_eq!(device.packet().await.0, PUBACK);
    }
    assert_eq!(storage.queued(), 2);
    assert_eq!(harness.handle.stats().messages_dropped, 3);
    harness.stop().await;
}

#[tokio::test]
async fn rows_that_cannot_be_read_are_left_out_and_stand_in_nobodys_way() {
    let storage = MemoryStorage::default();
    storage.apply(broker::Batch {
        ops: vec![
            broker::Op::SessionPut {
                client: "r".into(),
                state: vec![0xfe; 30],
            },
            broker::Op::QueuePut {
                id: 7,
                client: "r".into(),
                message: vec![0xfe; 9],
            },
        ],
        ..broker::Batch::default()
    });
    for was_present in [false, true] {
        let harness = Harness::start(storage.clone()).await;
        let (mut reader, is_present) = Raw::connect_v311(harness.addr, "r", false).await;
        assert_eq!(is_present, was_present);
        reader.assert_silent().await;
        harness.stop().await;
    }
    assert_eq!(storage.queued(), 0);
}

/// MQTT 5 §3.2: the first packet to the client is CONNACK. That its session ends later than its row
/// says has to be committed first; messages that wait for it are there at once.
#[tokio::test]
async fn nothing_goes_to_a_client_before_its_connack() {
    let storage = GatedStorage::open();
    let harness = Harness::start(storage.clone()).await;
    let mut reader = Raw::connect_v5(harness.addr, "r", false, 600).await;
    assert_eq!(reader.subscribe_v5("app/#", 1).await, 1);
    reader.send(&[0xe0, 0]).await;
    reader.assert_closed().await;
    let (mut device, _) = Raw::connect_v311(harness.addr, "d", true).await;
    device
        .send(&publish("app/x", b"v", 1, false, 1, false))
        .await;
    assert_eq!(device.packet().await, (PUBACK, vec![0, 1]));
    storage.close_gate();
    let mut reader = Raw::open(harness.addr).await;
    reader.send(&connect_v5("r", false, 600)).await;
    storage.wait_held(1).await;
    reader.assert_silent().await;
    storage.open_gate();
    assert_eq!(reader.packet().await.0, 0x20);
    let (kind, body) = reader.packet().await;
    assert_eq!(read_publish(kind, &body, true).0, "app/x");
    harness.stop().await;
}
