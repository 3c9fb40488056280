//! Properties against a second model: the history itself. The model keeps every accepted write
//! and derives values, versions and effects by folding over it, with no state of its own.

use std::collections::BTreeMap;

use device_twin::{
    Change, Device, DeviceId, Effect, Event, Property, Version, Wanted, apply, delta,
};
use proptest::prelude::*;

/// What the model remembers of an accepted event.
#[derive(Clone, Debug)]
enum Fact {
    Wrote {
        name: String,
        desired: Option<String>,
        reported: Option<String>,
    },
    Removed {
        name: String,
    },
    Wanted {
        version: i64,
        values: BTreeMap<String, String>,
    },
}

/// One property as the history tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Told {
    desired: Option<String>,
    reported: Option<String>,
    desired_version: Option<(i64, i64)>,
    reported_version: Option<(i64, i64)>,
    wish: Option<String>,
}

fn fold(history: &[Fact]) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    let edge = |version: Option<(i64, i64)>| version.map_or((0, 1), |(c, e)| (c, e + 1));
    for fact in history {
        match fact {
            Fact::Wrote {
                name,
                desired,
                reported,
            } => {
                let told = all.entry(name.clone()).or_default();
                if let Some(value) = desired {
                    told.desired = Some(value.clone());
                    told.desired_version = Some(edge(told.desired_version));
                }
                if let Some(value) = reported {
                    told.reported = Some(value.clone());
                    told.reported_version = Some(edge(told.reported_version));
                }
            }
            Fact::Removed { name } => {
                let told = all.entry(name.clone()).or_default();
                (told.desired, told.reported) = (None, None);
                told.desired_version = told.desired_version.map(|v| edge(Some(v)));
                told.reported_version = told.reported_version.map(|v| edge(Some(v)));
            }
            Fact::Wanted { version, values } => {
                for name in values.keys() {
                    all.entry(name.clone()).or_default();
                }
                for (name, told) in &mut all {
                    let seen = told.desired_version.map_or(i64::MIN, |v| v.0);
                    if *version < seen || told.wish.as_ref() == values.get(name) {
                        continue;
                    }
                    let gone = told.wish.take();
                    let next = told.desired_version.unwrap_or((0, 0));
                    match values.get(name) {
                        Some(value) => {
                            told.wish = Some(value.clone());
                            told.desired = Some(value.clone());
                            told.desired_version = Some((next.0.max(*version), next.1));
                        }
                        None if told.desired.is_some() && told.desired == gone => {
                            told.desired = None;
                            told.desired_version = Some((next.0.max(*version), next.1));
                        }
                        None => {}
                    }
                }
            }
        }
    }
    all
}

fn told(property: &Property) -> Told {
    let pair = |v: Option<Version>| v.map(|v| (v.cloud, v.edge));
    Told {
        desired: property.desired.as_ref().map(|s| s.value.clone()),
        reported: property.reported.as_ref().map(|s| s.value.clone()),
        desired_version: pair(property.desired_version),
        reported_version: pair(property.reported_version),
        wish: property.from_cloud.as_ref().map(|c| c.value.clone()),
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![Just("a"), Just("b"), Just("c")].prop_map(str::to_owned)
}

fn value() -> impl Strategy<Value = String> {
    prop_oneof![Just("1"), Just("2"), Just("x"), Just("")].prop_map(str::to_owned)
}

fn event() -> impl Strategy<Value = Event> {
    let change = (
        prop::option::of(value()),
        prop::option::of(value()),
        prop::option::of(prop_oneof![Just("int"), Just("string"), Just("Updated")]),
    )
        .prop_map(|(desired, reported, kind)| Change {
            desired,
            reported,
            kind: kind.map(str::to_owned),
            ..Change::default()
        });
    let update =
        (name(), prop::option::weighted(0.85, change)).prop_map(|(name, change)| Event::Update {
            event_id: "e".to_owned(),
            changes: BTreeMap::from([(name, change)]),
        });
    let wanted = |value| Wanted {
        value,
        ..Wanted::default()
    };
    let desired = (
        0_i64..12,
        prop::collection::btree_map(name(), value().prop_map(wanted), 0..3),
    )
        .prop_map(|(version, values)| Event::Desired {
            object_uid: "u".to_owned(),
            version,
            values,
        });
    prop_oneof![3 => update, 1 => desired]
}

/// The facts of an accepted event; a refused desired value is no fact.
fn facts(event: &Event, effects: &[Effect], before: &Device) -> Vec<Fact> {
    match event {
        Event::Update { changes, .. } => changes
            .iter()
            .filter_map(|(name, change)| match change {
                Some(change) => Some(Fact::Wrote {
                    name: name.clone(),
                    desired: change.desired.clone(),
                    reported: change.reported.clone(),
                }),
                None if before.properties[name].is_deleted() => None,
                None => Some(Fact::Removed { name: name.clone() }),
            })
            .collect(),
        Event::Desired {
            version, values, ..
        } => {
            let is_refused = |name: &String| {
                let refused =
                    |e: &&Effect| matches!(e, Effect::DesiredRefused { name: n, .. } if n == name);
                effects.iter().any(|e| refused(&e))
            };
            // A refused value leaves the wish as it was: the model sees the old one again.
            let old = |name: &String| before.properties.get(name)?.from_cloud.clone();
            let values = values
                .iter()
                .filter_map(|(name, wanted)| {
                    let value = if is_refused(name) {
                        old(name)?.value
                    } else {
                        wanted.value.clone()
                    };
                    Some((name.clone(), value))
                })
                .collect();
            vec![Fact::Wanted {
                version: *version,
                values,
            }]
        }
        Event::Sync { .. } | Event::State { .. } | Event::Described { .. } => Vec::new(),
    }
}

fn versions_only_rise(before: &Device, after: &Device) -> bool {
    let rises = |old: Option<Version>, new: Option<Version>| match (old, new) {
        (None, _) => true,
        (Some(old), Some(new)) => new.covers(old),
        (Some(_), None) => false,
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
    fn state_is_the_fold_of_the_accepted_history(events in prop::collection::vec(event(), 0..40)) {
        let mut device = Device::new(DeviceId::parse("dev/t1").unwrap());
        let mut history = Vec::new();
        let mut now = 0;
        for event in events {
            now += 1;
            let Ok(decision) = apply(&device, event.clone(), now) else { continue };
            prop_assert!(versions_only_rise(&device, &decision.next));
            history.extend(facts(&event, &decision.effects, &device));
            let model = fold(&history);
            for (name, property) in &decision.next.properties {
                let expected = model.get(name).cloned().unwrap_or_default();
                prop_assert_eq!(told(property), expected, "{} after {:?}", name, event);
            }

            // Effects are the difference that history made.
            for effect in &decision.effects {
                match effect {
                    Effect::Report { properties } => {
                        for (name, part) in properties {
                            let whole = &decision.next.properties[name];
                            if part.desired.is_some() {
                                prop_assert_eq!(&part.desired, &whole.desired);
                                prop_assert_eq!(part.desired_version, whole.desired_version);
                            }
                            if part.reported.is_some() {
                                prop_assert_eq!(&part.reported, &whole.reported);
                                prop_assert_eq!(part.reported_version, whole.reported_version);
                            }
                        }
                    }
                    Effect::Document { entries, .. } => {
                        for (name, entry) in entries {
                            let live = |d: &Device| d.properties.get(name).filter(|p| !p.is_deleted()).cloned();
                            prop_assert_eq!(&entry.last, &live(&device));
                            prop_assert_eq!(&entry.current, &live(&decision.next));
                        }
                    }
                    Effect::Delta(told) => {
                        prop_assert_eq!(Some(told.clone()), delta(&decision.next));
                        for (name, value) in &told.missing {
                            prop_assert_eq!(model[name].desired.as_ref(), Some(value));
                            prop_assert_ne!(model[name].reported.as_ref(), Some(value));
                        }
                    }
                    Effect::Result { .. } | Effect::State { .. } | Effect::Attributes { .. }
                    | Effect::DesiredRefused { .. } => {}
                }
            }

            // A value that was written is always told to the cloud.
            let is_reported = decision.effects.iter().any(|e| matches!(e, Effect::Report { .. }));
            if let Event::Update { changes, .. } = &event {
                let writes = changes.values().flatten().any(|c| c.desired.is_some() || c.reported.is_some());
                prop_assert!(!writes || is_reported);
            }

            // The cloud's object delivered again changes nothing.
            if matches!(event, Event::Desired { .. }) {
                let again = apply(&decision.next, event, now + 1).unwrap();
                prop_assert_eq!(&again.next, &decision.next);
                let is_silent =
                    again.effects.iter().all(|e| matches!(e, Effect::DesiredRefused { .. }));
                prop_assert!(is_silent, "{:?}", again.effects);
            }
            device = decision.next;
        }
        let stored = serde_json::to_string(&device).unwrap();
        prop_assert_eq!(serde_json::from_str::<Device>(&stored).unwrap(), device);
    }
}
