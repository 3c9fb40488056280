//! Any event at any time: no panic, a refusal says why, versions never go back, the document can
//! be stored.

use std::collections::BTreeMap;

use device_twin::{
    Attribute, Change, Conflict, Delivery, Device, DeviceId, Event, Property, SyncChange,
    SyncState, Version, Wanted, apply,
};
use proptest::prelude::*;

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec!["", "1", "2", "x", "true", "two words"]).prop_map(str::to_owned),
        1 => "\\PC{0,6}",
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![6 => "[abc]", 1 => text()]
}

fn kind() -> impl Strategy<Value = String> {
    let kinds = ["int", "float", "boolean", "Updated", "deleted", "INT", ""];
    prop_oneof![4 => prop::sample::select(kinds.to_vec()).prop_map(str::to_owned), 1 => text()]
}

fn change() -> impl Strategy<Value = Change> {
    let delivery = prop_oneof![text().prop_map(Delivery::Refused), Just(Delivery::Taken),];
    (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(any::<i64>()),
        prop::option::of(any::<bool>()),
        prop::option::of(kind()),
        prop::option::weighted(0.3, text()),
        prop::option::weighted(0.2, "\\PC{0,300}"),
        prop::option::weighted(0.3, delivery),
    )
        .prop_map(
            |(desired, reported, reported_at_ms, optional, kind, observed, refused, delivery)| {
                Change {
                    desired,
                    reported,
                    reported_at_ms,
                    optional,
                    kind,
                    observed,
                    refused,
                    delivery,
                }
            },
        )
}

fn event() -> impl Strategy<Value = Event> {
    let version =
        || prop::option::of((0..9_i64, 0..9_i64).prop_map(|(cloud, edge)| Version { cloud, edge }));
    let update = prop::collection::btree_map(name(), prop::option::weighted(0.9, change()), 0..3)
        .prop_map(|changes| Event::Update {
            event_id: "e".to_owned(),
            changes,
        });
    let sync =
        (change(), version(), version()).prop_map(|(change, desired_version, reported_version)| {
            SyncChange {
                change,
                desired_version,
                reported_version,
            }
        });
    let sync = prop::collection::btree_map(name(), sync, 0..3).prop_map(|changes| Event::Sync {
        event_id: "s".to_owned(),
        changes,
    });
    let rule = prop::sample::select(vec![
        Conflict::CloudWins,
        Conflict::EdgeWins,
        Conflict::Newest,
    ]);
    let wanted = (
        text(),
        prop::option::of(kind()),
        prop::option::of(any::<i64>()),
        rule,
    )
        .prop_map(|(value, kind, at_ms, rule)| Wanted {
            value,
            kind,
            at_ms,
            rule,
        });
    let desired = (
        "[uv]",
        any::<i64>(),
        prop::collection::btree_map(name(), wanted, 0..3),
    )
        .prop_map(|(object_uid, version, values)| Event::Desired {
            object_uid,
            version,
            values,
        });
    let attribute = text().prop_map(|value| Attribute {
        value,
        optional: true,
        kind: "string".to_owned(),
    });
    let described = (
        prop::option::of(text()),
        prop::collection::btree_map(name(), prop::option::of(attribute), 0..3),
    )
        .prop_map(|(description, attributes)| Event::Described {
            description,
            attributes,
        });
    let states = prop_oneof![Just("Online".to_owned()), text()];
    let state = states.prop_map(|state| Event::State { state });
    prop_oneof![4 => update, 1 => sync, 2 => desired, 1 => described, 1 => state]
}

fn versions_rise(before: &Device, after: &Device) -> bool {
    let rises = |old: Option<Version>, new: Option<Version>| {
        old.is_none_or(|old| new.is_some_and(|new| new.covers(old)))
    };
    before.properties.iter().all(|(name, old)| {
        after.properties.get(name).is_some_and(|new| {
            rises(old.desired_version, new.desired_version)
                && rises(old.reported_version, new.reported_version)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_event_at_any_time_leaves_a_device_that_makes_sense(
        events in prop::collection::vec((event(), any::<i64>()), 0..30),
    ) {
        let mut device = Device::new(DeviceId::parse("dev/t1").unwrap());
        for (event, now) in events {
            let is_update = matches!(event, Event::Update { .. } | Event::State { .. });
            let next = match apply(&device, event.clone(), now) {
                Ok(decision) => decision.next,
                Err(rejected) => {
                    prop_assert!(is_update && !rejected.reason.is_empty(), "{:?}", event);
                    continue;
                }
            };
            prop_assert!(versions_rise(&device, &next), "{:?}", event);
            for (name, property) in &next.properties {
                if let Some(SyncState::Refused(refusal)) = property.sync() {
                    prop_assert!(refusal.reason.len() <= 256, "{}", name);
                }
                let has_values = property.desired.is_some() || property.reported.is_some();
                prop_assert!(!(property.is_deleted() && has_values), "{}", name);
            }
            device = next;
        }
        let stored = serde_json::to_string(&device).unwrap();
        prop_assert_eq!(serde_json::from_str::<Device>(&stored).unwrap(), device);
    }
}

fn after(device: &Device, change: Change) -> Property {
    let changes = BTreeMap::from([("a".to_owned(), Some(change))]);
    let event = Event::Update {
        event_id: String::new(),
        changes,
    };
    apply(device, event, 2).unwrap().next.properties["a"].clone()
}

#[test]
fn what_a_mapper_saw_of_any_wish_is_heard() {
    let wanted = Wanted {
        value: "two words".to_owned(),
        ..Wanted::default()
    };
    let wish = Event::Desired {
        object_uid: "u".to_owned(),
        version: 1,
        values: BTreeMap::from([("a".to_owned(), wanted)]),
    };
    let device = Device::new(DeviceId::parse("dev/t1").unwrap());
    let device = apply(&device, wish, 1).unwrap().next;
    let seen = |text: &str| Change {
        observed: Some(text.to_owned()),
        ..Change::default()
    };
    assert_eq!(
        after(&device, seen("two words")).sync(),
        Some(SyncState::Acknowledged)
    );
    let other = after(&device, seen("three of them"));
    assert_eq!(
        (other.sync(), other.observed.as_ref()),
        (Some(SyncState::Pending), None)
    );
}
