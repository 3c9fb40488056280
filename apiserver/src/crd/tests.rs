use serde_json::{Value, json};

use super::*;

fn thing() -> Schema {
    Schema::compile(&json!({"type": "object", "required": ["spec"], "properties": {
        "spec": {"type": "object", "required": ["size"], "x-kubernetes-validations": [{"rule": "self.size >= 0"}], "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "name": {"type": "string", "maxLength": 5, "pattern": "^[a-z]+$"},
            "mode": {"type": "string", "enum": ["A", "B"], "default": "A"},
            "on": {"type": "boolean"},
            "port": {"x-kubernetes-int-or-string": true},
            "maybe": {"type": "string", "nullable": true},
            "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
                "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "string", "default": "d"}}}},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        }},
        "status": {"type": "object", "properties": {"n": {"type": "integer"}}},
    }}))
    .unwrap()
}

fn wrong(spec: &Value) -> Vec<String> {
    thing().validate(&json!({"apiVersion": "ex.io/v1", "kind": "Thing", "metadata": {"name": "b"}, "spec": spec}))
        .iter()
        .map(|e| format!("{} {}", e.reason, e.render()))
        .collect()
}

#[test]
fn recorded_messages() {
    let skipped = "FieldValueInvalid <nil>: Invalid value: null: some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
    assert_eq!(
        wrong(&json!({"size": 0})),
        [
            "FieldValueInvalid spec.size: Invalid value: 0: spec.size in body should be greater than or equal to 1"
        ]
    );
    let mut found = wrong(&json!({"size": "x", "name": "toolong", "mode": "C", "on": "yes"}));
    found.sort();
    let mut wanted = [
        "FieldValueTypeInvalid spec.on: Invalid value: \"string\": spec.on in body must be of type boolean: \"string\"",
        "FieldValueNotSupported spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\"",
        "FieldValueTooLong spec.name: Too long: may not be more than 5 bytes",
        "FieldValueTypeInvalid spec.size: Invalid value: \"string\": spec.size in body must be of type integer: \"string\"",
        skipped,
    ];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    let no_spec = thing().validate(&json!({"metadata": {"name": "b"}}));
    assert_eq!(
        no_spec.iter().map(FieldError::render).next().unwrap(),
        "spec: Required value"
    );
    assert_eq!(no_spec.len(), 2);
}

use crate::validate::FieldError;

#[test]
fn accepted() {
    let spec = json!({"size": 3, "port": "http", "maybe": null, "free": {"any": [1]}, "labels": {"a": "b"}, "list": [{"k": "1"}, {"k": "2"}]});
    assert_eq!(wrong(&spec), Vec::<String>::new());
    assert_eq!(
        wrong(&json!({"size": 3.0, "port": 80})),
        Vec::<String>::new()
    );
}

#[test]
fn refused() {
    for (spec, message) in [
        (
            json!({"size": 3, "port": true}),
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"size": 3, "name": "A"}),
            "spec.name: Invalid value: \"A\": spec.name in body should match '^[a-z]+$'",
        ),
        (
            json!({"size": 3, "labels": {"a": 1}}),
            "spec.labels.a: Invalid value: \"integer\": spec.labels.a in body must be of type string: \"integer\"",
        ),
        (
            json!({"size": 3, "list": [{"k": "1"}, {"k": "1"}]}),
            "spec.list[1]: Duplicate value: {\"k\":\"1\"}",
        ),
    ] {
        assert!(
            wrong(&spec).iter().any(|w| w.ends_with(message)),
            "{:?}",
            wrong(&spec)
        );
    }
}

#[test]
fn pruned_and_defaulted() {
    let mut object = json!({"apiVersion": "ex.io/v1", "kind": "Thing", "metadata": {"name": "a", "zz": 1}, "zz": 1,
        "spec": {"size": 1, "zz": {"a": 1}, "free": {"kept": 1}, "labels": {"kept": "1"}, "list": [{"k": "1", "zz": 1}]}});
    let gone = thing().prune(&mut object);
    assert_eq!(gone, ["metadata.zz", "spec.list[0].zz", "spec.zz", "zz"]);
    thing().default(&mut object);
    assert_eq!(
        object,
        json!({"apiVersion": "ex.io/v1", "kind": "Thing", "metadata": {"name": "a"},
            "spec": {"size": 1, "mode": "A", "free": {"kept": 1}, "labels": {"kept": "1"}, "list": [{"k": "1", "v": "d"}]}})
    );
    // Null is kept where it may stand, replaced by the default or dropped elsewhere.
    let mut nulls = json!({"spec": {"maybe": null, "mode": null, "on": null}});
    thing().default(&mut nulls);
    assert_eq!(nulls, json!({"spec": {"maybe": null, "mode": "A"}}));
    assert!(!wrong(&json!({"size": 1, "on": null})).is_empty());
    // Absent parents are not made.
    let mut empty = json!({});
    thing().default(&mut empty);
    assert_eq!(empty, json!({}));
}

#[test]
fn junctors() {
    let schema = Schema::compile(
        &json!({"type": "object", "properties": {"spec": {"type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}], "not": {"required": ["c"]}}}}),
    )
    .unwrap();
    let messages = |spec: Value| {
        schema
            .validate(&json!({"spec": spec}))
            .iter()
            .map(|e| e.message.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(messages(json!({"a": 1})), Vec::<String>::new());
    assert!(
        messages(json!({}))[0]
            .ends_with("\"spec\" must validate one and only one schema (oneOf). Found none valid")
    );
    assert_eq!(messages(json!({"a": 1, "b": 1, "c": 1})).len(), 2);
}
