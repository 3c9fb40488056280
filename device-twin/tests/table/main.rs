//! The nineteen conformance vectors recorded from KubeEdge (device plane, Appendix B), at the
//! level of events. Each row says where this library differs on purpose (Appendix A).
//!
//! Not here because they concern payload text or topics, which the library does not see: 6 (text
//! that is no JSON), 11 (case of keys), 17 (membership/get), 19 (topic levels). They are tested
//! with the daemon's twin functions.

#![expect(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod cloud;
mod conflict;
mod objects;
mod optional;

use std::collections::{BTreeMap, BTreeSet};

use device_twin::{
    Change, Code, Device, DeviceId, Effect, Event, Kind, MembershipEvent, SyncChange, Version,
    Wanted, apply, plan,
};

const T: i64 = 1_700_000_000_000;

struct Row {
    vector: &'static str,
    event: Event,
    /// Effects, one short line each, or the refusal.
    expected: Vec<&'static str>,
}

fn change(desired: Option<&str>, reported: Option<&str>, kind: Option<&str>) -> Change {
    Change {
        desired: desired.map(str::to_owned),
        reported: reported.map(str::to_owned),
        kind: kind.map(str::to_owned),
        ..Change::default()
    }
}

fn update(event_id: &str, name: &str, change: Option<Change>) -> Event {
    Event::Update {
        event_id: event_id.to_owned(),
        changes: BTreeMap::from([(name.to_owned(), change)]),
    }
}

fn report(event_id: &str, name: &str, value: &str, kind: Option<&str>) -> Event {
    update(event_id, name, Some(change(None, Some(value), kind)))
}

fn sync(name: &str, desired: &str, cloud: i64, edge: i64) -> Event {
    let change = SyncChange {
        change: change(Some(desired), None, None),
        desired_version: Some(Version { cloud, edge }),
        reported_version: None,
    };
    Event::Sync {
        event_id: "c".to_owned(),
        changes: BTreeMap::from([(name.to_owned(), change)]),
    }
}

fn state(state: &str) -> Event {
    Event::State {
        state: state.to_owned(),
    }
}

/// A property in short: type, values, versions.
fn short(property: &device_twin::Property) -> String {
    let value = |part: &Option<device_twin::Stamped>| {
        let text = part.as_ref().map(|stamped| stamped.value.clone());
        text.unwrap_or_else(|| "-".to_owned())
    };
    let version = |version: Option<Version>| {
        version.map_or_else(String::new, |v| format!("@{}.{}", v.cloud, v.edge))
    };
    format!(
        "{} want {}{} is {}{}",
        property.kind.as_str(),
        value(&property.desired),
        version(property.desired_version),
        value(&property.reported),
        version(property.reported_version),
    )
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Result { event_id, changed } => {
            let parts: Vec<_> = changed
                .iter()
                .map(|(name, p)| match p {
                    Some(p) => format!("{name}: {}", short(p)),
                    None => format!("{name}: null"),
                })
                .collect();
            format!("result {event_id} [{}]", parts.join("; "))
        }
        Effect::Document { event_id, entries } => {
            let text = |p: &Option<device_twin::Property>| {
                p.as_ref().map_or_else(|| "null".to_owned(), short)
            };
            let parts: Vec<_> = entries
                .iter()
                .map(|(name, e)| format!("{name}: {} -> {}", text(&e.last), text(&e.current)))
                .collect();
            format!("document {event_id} [{}]", parts.join("; "))
        }
        Effect::Delta(delta) => format!("delta {:?}", delta.missing),
        Effect::Report { properties } => {
            let parts: Vec<_> = properties
                .iter()
                .map(|(name, p)| format!("{name}: {}", short(p)))
                .collect();
            format!("report [{}]", parts.join("; "))
        }
        Effect::State {
            state,
            last_online_ms,
        } => format!("state {state} {last_online_ms:?}"),
        Effect::Attributes { changed } => format!("attributes {:?}", changed.keys()),
        Effect::DesiredRefused { name, reason } => format!("refused {name}: {reason}"),
    }
}

/// Applies the rows one after the other to one device, a millisecond apart.
fn check(rows: Vec<Row>) -> Device {
    let mut device = Device::new(DeviceId::parse("default/t1").unwrap());
    let mut now = T;
    for row in rows {
        now += 1;
        let got = match apply(&device, row.event, now) {
            Ok(decision) => {
                device = decision.next;
                decision.effects.iter().map(describe).collect()
            }
            Err(rejected) => vec![format!("{} {}", rejected.code.as_i64(), rejected.reason)],
        };
        assert_eq!(got, row.expected, "vector {}", row.vector);
        let stored = serde_json::to_vec(&device).unwrap();
        let read: Device = serde_json::from_slice(&stored).unwrap();
        assert_eq!(
            read, device,
            "vector {}: the document is stable",
            row.vector
        );
    }
    device
}

fn row(vector: &'static str, event: Event, expected: &[&'static str]) -> Row {
    Row {
        vector,
        event,
        expected: expected.to_vec(),
    }
}

#[test]
fn values_are_reported_desired_removed_and_revived() {
    let device = check(vec![
        row(
            "1",
            report("e1", "temp", "23", Some("int")),
            &[
                "result e1 [temp: int want - is 23@0.1]",
                "document e1 [temp: null -> int want - is 23@0.1]",
                "report [temp: int want - is 23@0.1]",
            ],
        ),
        row(
            "2: an equal value is processed in full",
            report("e2", "temp", "23", Some("int")),
            &[
                "result e2 [temp: int want - is 23@0.2]",
                "document e2 [temp: int want - is 23@0.1 -> int want - is 23@0.2]",
                "report [temp: int want - is 23@0.2]",
            ],
        ),
        row(
            "3",
            report("e3", "temp", "x", None),
            &["400 the value is not int or integer"],
        ),
        row(
            "4",
            update("e4", "temp", Some(change(Some("30"), None, None))),
            &[
                "result e4 [temp: int want 30@0.1 is -]",
                "document e4 [temp: int want - is 23@0.2 -> int want 30@0.1 is 23@0.2]",
                "delta {\"temp\": \"30\"}",
                "report [temp: int want 30@0.1 is -]",
            ],
        ),
        row(
            "5a",
            report("e5", "temp", "1e+3", None),
            &[
                "400 The value of twin must only include upper or lowercase letters, number, \
               english, and special letter - _ . , : / @ # and the length of value should be \
               less than 512 bytes",
            ],
        ),
        row(
            "5b",
            report("e5", "two words", "1", None),
            &[
                "400 The key of twin must only include upper or lowercase letters, number, \
               english, and special letter - _ . , : / @ # and the length of key should be \
               less than 128 bytes",
            ],
        ),
        row(
            "8",
            report("e6", "temp", "5", Some("string")),
            &[
                "result e6 [temp: int want - is 5@0.3]",
                "document e6 [temp: int want 30@0.1 is 23@0.2 -> int want 30@0.1 is 5@0.3]",
                "delta {\"temp\": \"30\"}",
                "report [temp: int want - is 5@0.3]",
            ],
        ),
        row(
            "9",
            update("e7", "temp", None),
            &[
                "result e7 [temp: null]",
                "document e7 [temp: int want 30@0.1 is 5@0.3 -> null]",
                "report [temp: deleted want -@0.2 is -@0.4]",
            ],
        ),
        row(
            "9, removed again: KubeEdge writes another tombstone, here nothing changes",
            update("e7", "temp", None),
            &["result e7 []"],
        ),
        row(
            "10: KubeEdge keeps showing an empty expected, here it is absent",
            report("e8", "temp", "hot", None),
            &[
                "result e8 [temp: string want - is hot@0.5]",
                "document e8 [temp: null -> string want -@0.2 is hot@0.5]",
                "report [temp: string want - is hot@0.5]",
            ],
        ),
        row(
            "null for an unknown property",
            update("e9", "nope", None),
            &["400 the request body is wrong"],
        ),
        row(
            "7: KubeEdge refuses `Updated`, here it means string",
            report("e10", "old", "on", Some("Updated")),
            &[
                "result e10 [old: string want - is on@0.1]",
                "document e10 [old: null -> string want - is on@0.1]",
                "report [old: string want - is on@0.1]",
            ],
        ),
        row(
            "7: any other type is refused on a new property",
            report("e11", "bad", "1", Some("STREAM")),
            &["400 the value type is not allowed"],
        ),
        row(
            "an object without a value is not given; KubeEdge's worker dies",
            update("e12", "old", Some(change(None, None, None))),
            &["result e12 []"],
        ),
    ]);
    // 12: a get shows the live ones.
    let live: Vec<_> = device.live_properties().map(|(name, _)| name).collect();
    assert_eq!(live, ["old", "temp"]);
}

#[test]
fn states_are_told_and_the_last_time_online_is_kept() {
    let device = check(vec![
        row(
            "16, in the sender's letters",
            state("Online"),
            &["state Online Some(1700000000001)"],
        ),
        row(
            "16: KubeEdge erases the time, here it is kept",
            state("offline"),
            &["state offline Some(1700000000001)"],
        ),
        row(
            "16: KubeEdge is silent, here it is refused",
            state("weird"),
            &["400 the state must be one of online, offline, ok, unknown, unhealthy"],
        ),
    ]);
    assert_eq!(device.state, "offline");
}

#[test]
fn one_bad_property_refuses_all() {
    let device = Device::new(DeviceId::parse("default/t1").unwrap());
    let event = Event::Update {
        event_id: "e".to_owned(),
        changes: BTreeMap::from([
            ("a".to_owned(), Some(change(None, Some("1"), Some("int")))),
            ("b".to_owned(), Some(change(None, Some("x"), Some("int")))),
        ]),
    };
    let rejected = apply(&device, event, T).unwrap_err();
    assert_eq!(rejected.code, Code::BadRequest);
}
