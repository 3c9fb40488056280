use apiserver::store::MemoryStore;
use serde_json::{Value, json};
use wire::message::{Content, Message, Operation, Route};

use super::*;

fn report(device: &str, id: &str, value: &str) -> Message {
    let resource = format!("device/plant/{device}/twin/edge_updated");
    let route = Route::new("twin", "resource", &Operation::Update, resource);
    let body = json!({"event_id": id, "timestamp": 5, "twin": {"celsius": {
        "actual": {"value": value, "metadata": {"timestamp": 7}}, "metadata": {"type": "float"}}}});
    Message::new(id, 5, route, Content::json(&body).unwrap())
}

fn batch(epoch: &str, entries: &[(u64, &str, &str)]) -> Batch {
    let entry = |&(seq, device, value): &(u64, &str, &str)| Entry {
        seq,
        stream: format!("twin/plant/{device}"),
        message: report(device, &format!("{device}-{seq}"), value),
        history: false,
    };
    Batch {
        epoch: epoch.to_owned(),
        after: 0,
        entries: entries.iter().map(entry).collect(),
    }
}

async fn ledger(readings_max: usize) -> (Arc<MemoryStore>, Ledger) {
    let store = Arc::new(MemoryStore::new());
    for (name, node) in [("t1", "e1"), ("t2", "e1"), ("other", "e2")] {
        let device = json!({"metadata": {"name": name, "uid": "u"}, "spec": {"nodeName": node}});
        let txn = Txn::new().put(crate::keys::device("plant", name), device.to_string());
        store.txn(txn).await.unwrap();
    }
    let ledger = Ledger::new(store.clone(), readings_max);
    (store, ledger)
}

async fn status(store: &MemoryStore, name: &str) -> Option<Value> {
    let entry = store
        .get(&crate::keys::device_status("plant", name))
        .await
        .unwrap()?;
    serde_json::from_slice(&entry.value).ok()
}

#[tokio::test]
async fn a_batch_counts_once_however_often_it_comes() {
    let (store, ledger) = ledger(100).await;
    let first = batch("a", &[(1, "t1", "20"), (2, "t2", "5"), (3, "t1", "21")]);
    assert_eq!(ledger.acked("e1").await.unwrap(), None);
    assert_eq!(ledger.commit("e1", &first).await.unwrap(), 3);
    let before = store.revision().await.unwrap();
    assert_eq!(ledger.commit("e1", &first).await.unwrap(), 3);
    assert_eq!(
        store.revision().await.unwrap(),
        before,
        "a repeat writes nothing"
    );
    // Overlap: 3 is a repeat, 5 is new (4 was dropped at the edge by policy).
    let next = batch("a", &[(3, "t1", "21"), (5, "t1", "22")]);
    assert_eq!(ledger.commit("e1", &next).await.unwrap(), 5);
    let object = status(&store, "t1").await.unwrap();
    assert_eq!(object["status"]["twins"][0]["reported"]["value"], "22");
    assert_eq!(
        object["status"]["twins"][0]["reported"]["metadata"]["timestamp"],
        "7"
    );
    assert_eq!(
        object["status"]["extensions"]["outpost"],
        json!({"received": 3, "lastSequence": 5, "lastEventId": "t1-5", "epoch": "a"})
    );
    assert_eq!(object["metadata"]["ownerReferences"][0]["uid"], "u");
    let (record, entries) = ledger.read("e1", 100).await.unwrap().unwrap();
    assert_eq!(
        (record.received, record.sequence, record.repeated),
        (4, 5, 1)
    );
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e.seq, e.id.as_str(), e.value["celsius"].clone()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, "t1-1", json!("20")),
            (2, "t2-2", json!("5")),
            (3, "t1-3", json!("21")),
            (5, "t1-5", json!("22"))
        ]
    );
    assert_eq!(ledger.acked("e1").await.unwrap(), Some(("a".to_owned(), 5)));
}

#[tokio::test]
async fn a_new_epoch_starts_again_and_counts_go_on() {
    let (_store, ledger) = ledger(100).await;
    ledger
        .commit("e1", &batch("a", &[(7, "t1", "1")]))
        .await
        .unwrap();
    assert_eq!(
        ledger
            .commit("e1", &batch("b", &[(1, "t1", "2")]))
            .await
            .unwrap(),
        1
    );
    let (record, _) = ledger.read("e1", 10).await.unwrap().unwrap();
    assert_eq!((record.streams["twin/plant/t1"], record.sequence), (2, 1));
}

#[tokio::test]
async fn a_device_of_another_node_is_counted_and_not_applied() {
    let (store, ledger) = ledger(100).await;
    let entries = batch("a", &[(1, "other", "9"), (2, "unknown", "9")]);
    assert_eq!(ledger.commit("e1", &entries).await.unwrap(), 2);
    assert!(status(&store, "other").await.is_none());
}

#[tokio::test]
async fn the_log_is_bounded_and_survives_a_restart_of_the_hub() {
    let (store, ledger) = ledger(100).await;
    let all: Vec<(u64, &str, &str)> = (1..=300).map(|seq| (seq, "t1", "1")).collect();
    for part in all.chunks(10) {
        ledger.commit("e1", &batch("a", part)).await.unwrap();
    }
    let again = Ledger::new(store, 100);
    again
        .commit("e1", &batch("a", &[(301, "t1", "1")]))
        .await
        .unwrap();
    let (record, entries) = again.read("e1", 1000).await.unwrap().unwrap();
    assert_eq!(record.received, 301);
    assert!((100..=110).contains(&entries.len()), "{}", entries.len());
    assert_eq!(entries.last().unwrap().seq, 301);
}

#[tokio::test]
async fn a_plain_report_gets_a_number_from_the_hub() {
    let (store, ledger) = ledger(100).await;
    for value in ["1", "2"] {
        let message = report("t1", "x", value);
        ledger
            .commit_plain("e1", "twin/plant/t1".into(), &message)
            .await
            .unwrap();
    }
    let (record, entries) = ledger.read("e1", 10).await.unwrap().unwrap();
    assert_eq!(
        (record.plain_sequence, record.received, entries.len()),
        (2, 2, 2)
    );
    assert_eq!(ledger.acked("e1").await.unwrap(), None);
    // Mixed with batches it leaves their position alone.
    ledger
        .commit("e1", &batch("a", &[(7, "t1", "2")]))
        .await
        .unwrap();
    let message = report("t1", "x", "2");
    ledger
        .commit_plain("e1", "twin/plant/t1".into(), &message)
        .await
        .unwrap();
    let position = Some(("a".to_owned(), 7));
    assert_eq!(ledger.acked("e1").await.unwrap(), position);
    let object = status(&store, "t1").await.unwrap();
    assert_eq!(object["status"]["twins"][0]["reported"]["value"], "2");
}

#[test]
fn a_node_that_invents_streams_does_not_grow_its_record() {
    let mut record = NodeRecord::default();
    let n = 3 * record::STREAMS_MAX as u64;
    for name in 0..n {
        record.count(&format!("upload/{name}"));
    }
    assert_eq!(
        record.count("upload/0"),
        2,
        "one that is known is counted on"
    );
    record.count(&"x".repeat(record::STREAM_BYTES_MAX + 1));
    assert_eq!(record.streams.len(), record::STREAMS_MAX + 1);
    assert_eq!(record.streams.values().sum::<u64>(), n + 2, "none is lost");
}

#[tokio::test]
async fn history_counts_and_never_touches_the_status() {
    let (store, ledger) = ledger(100).await;
    ledger
        .commit("e1", &batch("a", &[(10, "t1", "99")]))
        .await
        .unwrap();
    let before = status(&store, "t1").await.unwrap();
    let mut late = batch("a", &[(11, "t1", "1"), (12, "t2", "2")]);
    for entry in &mut late.entries {
        entry.history = true;
    }
    assert_eq!(ledger.commit("e1", &late).await.unwrap(), 12);
    assert_eq!(status(&store, "t1").await.unwrap(), before);
    assert!(status(&store, "t2").await.is_none());
    let (record, entries) = ledger.read("e1", 10).await.unwrap().unwrap();
    assert_eq!((record.received, record.history), (3, 2));
    assert_eq!(record.streams["twin/plant/t1"], 2);
    let marked: Vec<bool> = entries.iter().map(|e| e.history).collect();
    assert_eq!(marked, [false, true, true]);
}

#[tokio::test]
async fn an_older_connection_stores_nothing_once_a_newer_one_was_told_the_position() {
    let (_store, ledger) = ledger(100).await;
    let old = ledger.begin("e1").await.unwrap();
    assert_eq!(old.acked, None);
    assert!(
        ledger.read("e1", 10).await.unwrap().is_none(),
        "nothing was reported"
    );
    let first = batch("a", &[(1, "t1", "1")]);
    let commit = |connection, batch| {
        let ledger = &ledger;
        async move { ledger.commit_of("e1", Some(connection), &batch).await }
    };
    assert_eq!(commit(old.connection, first).await.unwrap(), Some(1));
    let new = ledger.begin("e1").await.unwrap();
    assert_eq!(new.acked, Some(("a".to_owned(), 1)));
    let late = commit(old.connection, batch("a", &[(2, "t1", "2")]));
    assert_eq!(late.await.unwrap(), None);
    assert_eq!(
        commit(new.connection, batch("a", &[(5, "t1", "2")]))
            .await
            .unwrap(),
        Some(5)
    );
    let (record, _) = ledger.read("e1", 10).await.unwrap().unwrap();
    assert_eq!(record.received, 2);
}

#[tokio::test]
async fn gaps_stand_in_the_record_and_are_bounded() {
    let (_store, ledger) = ledger(100).await;
    for seq in 1..=150 {
        let gap = wire::extension::Gap {
            stream: "upload/t".into(),
            fate: "evicted".into(),
            rows: seq,
            ..wire::extension::Gap::default()
        };
        let gaps = Gaps { gaps: vec![gap] };
        let entry = Entry {
            seq,
            stream: GAPS_STREAM.into(),
            message: gaps.into_message("id".into(), 5),
            history: false,
        };
        let batch = Batch {
            epoch: "a".into(),
            after: 0,
            entries: vec![entry],
        };
        ledger.commit("e1", &batch).await.unwrap();
    }
    let (record, _) = ledger.read("e1", 1).await.unwrap().unwrap();
    assert_eq!(record.gaps.len(), record::GAPS_MAX);
    assert_eq!(record.gaps.back().unwrap().rows, 150);
}
