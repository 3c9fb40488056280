//! What devices send, damaged: nobody is harmed, who can be told is told, and what was acknowledged
//! before stays.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::store::Db;

const T: UnixMillis = 1_700_000_000_000;
const UPDATE: &str = "$hw/events/device/default/t1/twin/update";
/// Whole payloads of each topic that clients publish.
const GOLDEN: [(&str, &str); 7] = [
    (
        UPDATE,
        r#"{"event_id":"e1","timestamp":5,"twin":{"temp":{"actual":{"value":"23","metadata":{"timestamp":1}},"expected":{"value":"30"},"optional":true,"metadata":{"type":"int"}},"gone":null}}"#,
    ),
    (
        UPDATE,
        r#"{"event_id":"e2","TWIN":{"level":{"sync":{"state":"refused","reason":"stuck"}},"b":{"Actual":{"VALUE":"true"}}}}"#,
    ),
    (
        "$hw/events/device/default/t1/twin/get",
        r#"{"event_id":"g1","timestamp":1}"#,
    ),
    (
        "$hw/events/device/default/t1/state/update",
        r#"{"event_id":"s","timestamp":1,"state":"online"}"#,
    ),
    (
        "$hw/events/node/edge-1/membership/get",
        r#"{"event_id":"m","timestamp":1}"#,
    ),
    ("SYS/dis/upload_records", r#"{"records":[1,2,3]}"#),
    ("default/user/x", "21.5 \u{b0}C"),
];

fn damaged(whole: &[u8], at: prop::sample::Index, how: &Damage) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    let at = at.index(bytes.len());
    match how {
        Damage::Flip(bit) => bytes[at] ^= 1 << bit,
        Damage::Cut => bytes.truncate(at),
        Damage::Insert(other) => {
            bytes.splice(at..at, other.iter().copied());
        }
        Damage::Replace(other) => bytes.clone_from(other),
    }
    bytes
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(u8),
    Cut,
    Insert(Vec<u8>),
    Replace(Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    let json_like = "[\\[\\]{}\":,0-9a-z\\\\]{1,12}".prop_map(String::into_bytes);
    prop_oneof![
        (0_u8..8).prop_map(Damage::Flip),
        Just(Damage::Cut),
        json_like.prop_map(Damage::Insert),
        prop::collection::vec(any::<u8>(), 0..80).prop_map(Damage::Replace),
    ]
}

fn sent(tx: &Connection, topic: &str, payload: &[u8]) -> Outcome {
    let inbound = inbound(topic, &Routes::default()).expect("a topic of ours");
    dispatch(tx, &inbound, payload, T).expect("a payload is no fault of the store")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn damaged_payloads_are_answered_and_what_was_taken_stays(
        all in prop::collection::vec((0..GOLDEN.len(), any::<prop::sample::Index>(), damage()), 1..6),
    ) {
        let db = Db::open_in_memory().unwrap();
        let tx = db.reader();
        twin::set_node(tx, "edge-1").unwrap();
        let device = json!({"metadata": {"namespace": "default", "name": "t1"}});
        twin::device_upserted(tx, &device, T).unwrap();
        let reading = r#"{"event_id":"mine","twin":{"mine":{"actual":{"value":"7"}}}}"#;
        sent(tx, UPDATE, reading.as_bytes());
        let mut rows = outbox::pending(tx, 0, 1000).unwrap().len();
        for (which, at, how) in all {
            let (topic, whole) = GOLDEN[which];
            let payload = damaged(whole.as_bytes(), at, &how);
            let outcome = sent(tx, topic, &payload);
            let told = outcome.publishes.first();
            let answer = told.and_then(|told| serde_json::from_slice::<Value>(&told.payload).ok());
            if topic == UPDATE || topic.ends_with("/get") {
                let answer = answer.expect("an answer that can be read");
                // Other damage can leave what Go's decoder reads.
                let is_refused = answer["code"] == 400;
                prop_assert!(is_refused || !matches!(how, Damage::Cut), "{answer}");
                prop_assert!(answer["code"].is_null() || answer["reason"] != "", "{answer}");
            }
            let pending = outbox::pending(tx, 0, 1000).unwrap();
            prop_assert!(pending.len() >= rows, "an accepted row is gone");
            rows = pending.len();
            for row in pending {
                prop_assert!(Message::decode(&row.message).is_ok());
            }
        }
        let got = sent(tx, GOLDEN[2].0, b"{}");
        let got: Value = serde_json::from_slice(&got.publishes[0].payload).unwrap();
        prop_assert_eq!(&got["twin"]["mine"]["actual"]["value"], "7");
    }
}
