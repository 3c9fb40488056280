//! Device objects, and the documents that are kept.

use super::*;

#[test]
fn a_device_object_sets_desired_values_and_withdraws_them() {
    let object = |version, values: &[(&str, &str)]| Event::Desired {
        object_uid: "u1".to_owned(),
        version,
        values: values
            .iter()
            .map(|(name, value)| {
                let wanted = Wanted {
                    value: (*value).to_owned(),
                    ..Wanted::default()
                };
                ((*name).to_owned(), wanted)
            })
            .collect(),
    };
    let device = check(vec![
        row(
            "first seen",
            object(7, &[("t", "30")]),
            &[
                "document  [t: null -> string want 30@7.0 is -]",
                "delta {\"t\": \"30\"}",
                "report [t: string want 30@7.0 is -]",
            ],
        ),
        row("delivered again", object(7, &[("t", "30")]), &[]),
        row("changed elsewhere", object(8, &[("t", "30")]), &[]),
        row("an older one late", object(6, &[("t", "10")]), &[]),
        row(
            "the device's first report decides the type",
            report("e1", "t", "12", Some("int")),
            &[
                "result e1 [t: int want - is 12@0.1]",
                "document e1 [t: string want 30@7.0 is - -> int want 30@7.0 is 12@0.1]",
                "delta {\"t\": \"30\"}",
                "report [t: int want - is 12@0.1]",
            ],
        ),
        row(
            "converged: no delta",
            report("e2", "t", "30", None),
            &[
                "result e2 [t: int want - is 30@0.2]",
                "document e2 [t: int want 30@7.0 is 12@0.1 -> int want 30@7.0 is 30@0.2]",
                "report [t: int want - is 30@0.2]",
            ],
        ),
        row(
            "of the wrong type",
            object(9, &[("t", "hot")]),
            &[
                "report [t: int want 30@7.0 is -]",
                "refused t: the value is not int or integer",
            ],
        ),
        row(
            "delivered again: told once",
            object(9, &[("t", "hot")]),
            &["refused t: the value is not int or integer"],
        ),
        row(
            "withdrawn",
            object(10, &[]),
            &[
                "document  [t: int want 30@7.0 is 30@0.2 -> int want -@10.0 is 30@0.2]",
                "report [t: int want -@10.0 is -]",
            ],
        ),
        row(
            "set again",
            object(11, &[("t", "31")]),
            &[
                "document  [t: int want -@10.0 is 30@0.2 -> int want 31@11.0 is 30@0.2]",
                "delta {\"t\": \"31\"}",
                "report [t: int want 31@11.0 is -]",
            ],
        ),
        row(
            "overwritten locally",
            update("e3", "t", Some(change(Some("30"), None, None))),
            &[
                "result e3 [t: int want 30@11.1 is -]",
                "document e3 [t: int want 31@11.0 is 30@0.2 -> int want 30@11.1 is 30@0.2]",
                "report [t: int want 30@11.1 is -]",
            ],
        ),
        row(
            "the same object does not undo it",
            object(12, &[("t", "31")]),
            &[],
        ),
        row(
            "its withdrawal leaves the local value",
            object(13, &[]),
            &[],
        ),
    ]);
    assert_eq!(device.properties["t"].kind, Kind::Int);
    // A new object under the old name starts its versions again and is heard.
    let event = Event::Desired {
        object_uid: "u2".to_owned(),
        version: 2,
        values: BTreeMap::from([(
            "t".to_owned(),
            Wanted {
                value: "5".to_owned(),
                ..Wanted::default()
            },
        )]),
    };
    let next = apply(&device, event, T).unwrap().next;
    let property = &next.properties["t"];
    assert_eq!(property.desired.as_ref().unwrap().value, "5");
    assert_eq!(
        property.desired_version,
        Some(Version { cloud: 11, edge: 1 }),
        "no counter goes back"
    );
}

#[test]
fn a_document_of_the_first_release_is_read() {
    let stored = r#"{"id":{"namespace":"dev","name":"t1"},"state":"online","last_online_ms":5,"properties":{"temp":{"type":"int","optional":true,"desired":{"value":"30","at_ms":2},"desired_version":{"cloud":7,"edge":0},"from_cloud":{"value":"30","version":7}}}}"#;
    let device: Device = serde_json::from_str(stored).unwrap();
    assert_eq!(device.properties["temp"].kind, Kind::Int);
    assert_eq!(serde_json::to_string(&device).unwrap(), stored);
}
