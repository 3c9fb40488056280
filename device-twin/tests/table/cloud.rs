//! What the cloud says.

use super::*;

#[test]
fn the_cloud_syncs_unless_the_edge_has_moved_on() {
    check(vec![
        row(
            "11",
            report("e8", "b", "true", Some("boolean")),
            &[
                "result e8 [b: boolean want - is true@0.1]",
                "document e8 [b: null -> boolean want - is true@0.1]",
                "report [b: boolean want - is true@0.1]",
            ],
        ),
        row(
            "13",
            sync("b", "false", 5, 0),
            &[
                "document c [b: boolean want - is true@0.1 -> boolean want false@5.0 is true@0.1]",
                "delta {\"b\": \"false\"}",
            ],
        ),
        row(
            "14",
            sync("b", "true", 4, 0),
            &[
                "delta {\"b\": \"false\"}",
                "report [b: boolean want false@5.0 is -]",
            ],
        ),
        row(
            "15, the local write",
            update("e", "b", Some(change(Some("true"), None, None))),
            &[
                "result e [b: boolean want true@5.1 is -]",
                "document e [b: boolean want false@5.0 is true@0.1 -> boolean want true@5.1 is true@0.1]",
                "report [b: boolean want true@5.1 is -]",
            ],
        ),
        row(
            "15",
            sync("b", "false", 9, 0),
            &["report [b: boolean want true@5.1 is -]"],
        ),
        row(
            "an unknown property without a version is dropped",
            Event::Sync {
                event_id: "c".to_owned(),
                changes: BTreeMap::from([(
                    "new".to_owned(),
                    SyncChange {
                        change: change(Some("1"), None, None),
                        ..SyncChange::default()
                    },
                )]),
            },
            &[],
        ),
    ]);
}

#[test]
fn membership_adds_then_removes() {
    // 18
    let t2 = DeviceId::parse("default/t2").unwrap();
    let one = BTreeSet::from([t2.clone()]);
    let added = plan(
        &BTreeSet::new(),
        &MembershipEvent::Update {
            added: one.clone(),
            removed: BTreeSet::new(),
        },
    );
    assert_eq!((&added.add, added.remove.len()), (&one, 0));
    let removed = plan(
        &one,
        &MembershipEvent::Update {
            added: BTreeSet::new(),
            removed: one.clone(),
        },
    );
    assert_eq!((removed.add.len(), &removed.remove), (0, &one));
    assert_eq!(DeviceId::parse("dev/t1").unwrap().namespace, "dev");
    assert!(DeviceId::parse("t1").is_none());
}

/// A sync of both parts; `kind` may say `deleted`.
fn sync_both(optional: bool, kind: &str, desired: Option<i64>, reported: Option<i64>) -> Event {
    let version = |edge: i64| Version { cloud: 3, edge };
    let is_removal = kind == "deleted";
    let change = SyncChange {
        change: Change {
            desired: desired.filter(|_| !is_removal).map(|v| v.to_string()),
            reported: reported.filter(|_| !is_removal).map(|v| v.to_string()),
            optional: Some(optional),
            kind: Some(kind.to_owned()),
            ..Change::default()
        },
        desired_version: desired.map(version),
        reported_version: reported.map(version),
    };
    Event::Sync {
        event_id: "c".to_owned(),
        changes: BTreeMap::from([("t".to_owned(), change)]),
    }
}

#[test]
fn the_cloud_syncs_parts_and_removals() {
    let device = check(vec![
        row(
            "an unknown property is added",
            sync_both(true, "int", Some(0), Some(2)),
            &[
                "document c [t: null -> int want 0@3.0 is 2@3.2]",
                "delta {\"t\": \"0\"}",
            ],
        ),
        row(
            "replayed: no document, the delta repeats",
            sync_both(true, "int", Some(0), Some(2)),
            &["delta {\"t\": \"0\"}"],
        ),
        row(
            "the first part is taken, the second refused",
            sync_both(true, "int", Some(1), Some(1)),
            &[
                "document c [t: int want 0@3.0 is 2@3.2 -> int want 1@3.1 is 2@3.2]",
                "delta {\"t\": \"1\"}",
                "report [t: int want - is 2@3.2]",
            ],
        ),
        row(
            "a removal that lost the race",
            sync_both(true, "deleted", Some(0), None),
            &[
                "delta {\"t\": \"1\"}",
                "report [t: int want 1@3.1 is 2@3.2]",
            ],
        ),
        row(
            "a removal without versions",
            sync_both(true, "deleted", None, None),
            &["document c [t: int want 1@3.1 is 2@3.2 -> null]"],
        ),
        row(
            "a stale value does not revive it",
            sync_both(true, "int", None, Some(1)),
            &["report [t: deleted want - is -@3.3]"],
        ),
        row(
            "a newer one does, and makes it required",
            sync_both(false, "string", None, Some(9)),
            &["document c [t: null -> string want -@3.2 is 9@3.9]"],
        ),
        row(
            "ok counts as online",
            state("OK"),
            &["state OK Some(1700000000008)"],
        ),
    ]);
    assert!(!device.properties["t"].optional);
}
