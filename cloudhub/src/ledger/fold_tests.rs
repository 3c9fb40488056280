//! What becomes of a DeviceStatus when reports come late, again, or with what only ours tell.

use std::sync::Arc;

use apiserver::store::MemoryStore;
use serde_json::json;
use wire::extension::{Batch, Entry};
use wire::message::{Content, Message, Operation, Route};

use super::super::Ledger;
use super::*;

fn report(twin: &Value) -> Message {
    let resource = "device/plant/t1/twin/edge_updated";
    let route = Route::new("twin", "resource", &Operation::Update, resource);
    let body = json!({"event_id": "e", "timestamp": 50, "twin": {"celsius": twin}});
    Message::new("m", 5, route, Content::json(&body).unwrap())
}

/// The value of the edge's `n`th write, `n` being its time too.
fn nth(n: i64) -> Message {
    report(
        &json!({"actual": {"value": n.to_string(), "metadata": {"timestamp": n}},
                "metadata": {"type": "int"}, "actual_version": {"cloud": 0, "edge": n}}),
    )
}

struct Hub(Arc<MemoryStore>, Ledger);

impl Hub {
    async fn new() -> Self {
        let store = Arc::new(MemoryStore::new());
        let device = json!({"metadata": {"name": "t1", "uid": "u"}, "spec": {"nodeName": "e1"}});
        let txn = Txn::new().put(keys::device("plant", "t1"), device.to_string());
        store.txn(txn).await.unwrap();
        Self(store.clone(), Ledger::new(store, 100))
    }

    /// Takes a report as a plain edge sends it; the status after it.
    async fn take(&self, message: &Message) -> Value {
        let stream = "twin/plant/t1".to_owned();
        self.1.commit_plain("e1", stream, message).await.unwrap();
        let key = keys::device_status("plant", "t1");
        let entry = self.0.get(&key).await.unwrap().unwrap();
        let object: Value = serde_json::from_slice(&entry.value).unwrap();
        object["status"].clone()
    }
}

#[tokio::test]
async fn fault_07_a_late_repeat_of_an_old_value_does_not_come_back() {
    let hub = Hub::new().await;
    for (name, n, stands) in [
        ("first", 1, "1"),
        ("newer", 5, "5"),
        ("an old one late", 3, "5"),
        ("the first again", 1, "5"),
        ("the same again", 5, "5"),
        ("newer", 6, "6"),
    ] {
        let status = hub.take(&nth(n)).await;
        assert_eq!(status["twins"][0]["reported"]["value"], stands, "{name}");
    }
    // A removed property does not come back by an old report either.
    let gone = json!({"actual": {}, "metadata": {"type": "deleted"},
                      "actual_version": {"cloud": 0, "edge": 7}});
    assert_eq!(hub.take(&report(&gone)).await["twins"], json!([]));
    assert_eq!(hub.take(&nth(6)).await["twins"], json!([]));
    // A node that was set up anew counts from one again, at a later time.
    let anew = json!({"actual": {"value": "8", "metadata": {"timestamp": 900}},
                      "actual_version": {"cloud": 0, "edge": 1}});
    let status = hub.take(&report(&anew)).await;
    assert_eq!(status["twins"][0]["reported"]["value"], "8");
}

#[tokio::test]
async fn a_node_set_up_anew_with_a_clock_of_the_past_is_believed() {
    let hub = Hub::new().await;
    let commit = async |epoch: &str, first: u64, readings: &[i64]| {
        let entries = readings.iter().zip(first..).map(|(n, seq)| Entry {
            seq,
            stream: "twin/plant/t1".to_owned(),
            message: nth(*n),
            history: false,
        });
        let batch = Batch {
            epoch: epoch.to_owned(),
            after: first - 1,
            entries: entries.collect(),
        };
        hub.1.commit("e1", &batch).await.unwrap();
        let entry = hub.0.get(&keys::device_status("plant", "t1")).await;
        let object: Value = serde_json::from_slice(&entry.unwrap().unwrap().value).unwrap();
        object["status"]["twins"][0]["reported"]["value"].clone()
    };
    assert_eq!(commit("first", 1, &[1000]).await, "1000");
    // The same node's versions rise; an older one is late.
    assert_eq!(commit("first", 2, &[999]).await, "1000");
    // Its disk was replaced: version and time are lower than all that was seen.
    assert_eq!(commit("second", 1, &[3]).await, "3");
    assert_eq!(commit("second", 2, &[2]).await, "3");
    assert_eq!(commit("second", 3, &[4]).await, "4");
}

#[tokio::test]
async fn fault_14_the_first_report_of_a_property_has_its_value() {
    let hub = Hub::new().await;
    let status = hub.take(&nth(1)).await;
    let reported = &status["twins"][0]["reported"];
    assert_eq!(
        reported,
        &json!({"value": "1", "metadata": {"timestamp": "1", "type": "int"}})
    );
}

#[tokio::test]
async fn fault_21_the_time_of_a_devices_own_clock_is_in_the_status() {
    let hub = Hub::new().await;
    let told = json!({"actual": {"value": "8", "metadata": {"timestamp": 900, "deviceTimestamp": 7}},
                      "actual_version": {"cloud": 0, "edge": 1}});
    let status = hub.take(&report(&told)).await;
    let metadata = &status["twins"][0]["reported"]["metadata"];
    assert_eq!(metadata["timestamp"], "900");
    assert_eq!(metadata["deviceTimestamp"], "7");
}

#[tokio::test]
async fn the_state_of_a_desired_value_is_in_the_status() {
    let hub = Hub::new().await;
    let desired = |sync: &Value| {
        report(
            &json!({"expected": {"value": "30", "metadata": {"timestamp": 9}},
            "expected_version": {"cloud": 7, "edge": 0}, "sync": sync}),
        )
    };
    let facts = |status: &Value| status["extensions"]["outpostProperties"]["celsius"].clone();
    let status = hub.take(&desired(&json!({"state": "pending"}))).await;
    assert_eq!(status["twins"][0]["observedDesired"]["value"], "30");
    assert_eq!(facts(&status)["sync"], "pending");
    let refused = json!({"state": "refused", "reason": "hot", "value": "30"});
    let told = facts(&hub.take(&desired(&refused)).await);
    assert_eq!(
        (&told["sync"], &told["reason"]),
        (&json!("refused"), &json!("hot"))
    );
    let told = facts(&hub.take(&desired(&Value::Null)).await);
    assert!(told.get("sync").is_none() && told.get("reason").is_none());
    assert_eq!(told["desired"]["cloud"], 7);
}

#[tokio::test]
async fn fault_26_a_batch_of_samples_is_one_write() {
    let hub = Hub::new().await;
    let entry = |n: i64| Entry {
        seq: n.unsigned_abs(),
        stream: "twin/plant/t1".to_owned(),
        message: nth(n),
        history: false,
    };
    let batch = Batch {
        epoch: "a".to_owned(),
        after: 0,
        entries: (1..=200).map(entry).collect(),
    };
    let before = hub.0.revision().await.unwrap();
    hub.1.commit("e1", &batch).await.unwrap();
    assert_eq!(hub.0.revision().await.unwrap(), before + 1);
    let key = keys::device_status("plant", "t1");
    let entry = hub.0.get(&key).await.unwrap().unwrap();
    let object: Value = serde_json::from_slice(&entry.value).unwrap();
    assert_eq!(object["status"]["twins"][0]["reported"]["value"], "200");
}
