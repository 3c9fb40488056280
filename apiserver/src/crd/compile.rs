//! From `openAPIV3Schema` to the tree the walks use.

use std::collections::BTreeMap;

use serde_json::Value;

/// Schemas nest as deep as JSON bodies at most.
const MAX_DEPTH: usize = 64;

/// A schema that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Not an object where one must be.
    #[error("{0}: must be an object")]
    NotAnObject(String),
    /// Nested too deep.
    #[error("{0}: nested too deep")]
    TooDeep(String),
}

/// The value types of JSON schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Any,
    Object,
    Array,
    Text,
    Integer,
    Number,
    Boolean,
}

impl Type {
    pub(super) fn name(self) -> &'static str {
        match self {
            Type::Any => "",
            Type::Object => "object",
            Type::Array => "array",
            Type::Text => "string",
            Type::Integer => "integer",
            Type::Number => "number",
            Type::Boolean => "boolean",
        }
    }
}

/// Limits of numbers, strings, lists and maps, boxed because most nodes have none.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Limits {
    pub(super) minimum: Option<(f64, bool)>,
    pub(super) maximum: Option<(f64, bool)>,
    pub(super) multiple_of: Option<f64>,
    pub(super) min_length: Option<u64>,
    pub(super) max_length: Option<u64>,
    pub(super) min_items: Option<u64>,
    pub(super) max_items: Option<u64>,
    pub(super) unique: bool,
    pub(super) min_properties: Option<u64>,
    pub(super) max_properties: Option<u64>,
    pub(super) pattern: Option<super::run::Pattern>,
}

/// The compiled schema of one version of a custom resource.
#[derive(Debug)]
pub struct Schema {
    pub(super) ty: Type,
    pub(super) nullable: bool,
    pub(super) int_or_string: bool,
    pub(super) preserve_unknown: bool,
    pub(super) embedded: bool,
    pub(super) has_rules: bool,
    pub(super) default: Option<Value>,
    pub(super) choices: Option<Vec<Value>>,
    pub(super) required: Vec<String>,
    pub(super) properties: BTreeMap<String, Schema>,
    pub(super) additional: Option<Box<Schema>>,
    pub(super) items: Option<Box<Schema>>,
    pub(super) list_keys: Vec<String>,
    pub(super) list_set: bool,
    pub(super) limits: Option<Box<Limits>>,
    pub(super) all_of: Vec<Schema>,
    pub(super) any_of: Vec<Schema>,
    pub(super) one_of: Vec<Schema>,
    pub(super) not: Option<Box<Schema>>,
}

impl Schema {
    /// Compiles an `openAPIV3Schema`. Null gives the schema that keeps everything.
    pub fn compile(schema: &Value) -> Result<Schema, SchemaError> {
        if schema.is_null() {
            let mut any = Schema::node(&Value::Object(serde_json::Map::new()), "", 0)?;
            any.preserve_unknown = true;
            return Ok(any);
        }
        Schema::node(schema, "", 0)
    }

    fn node(schema: &Value, path: &str, depth: usize) -> Result<Schema, SchemaError> {
        if depth > MAX_DEPTH {
            return Err(SchemaError::TooDeep(path.to_owned()));
        }
        let Value::Object(map) = schema else {
            return Err(SchemaError::NotAnObject(path.to_owned()));
        };
        let flag = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or(false);
        let child = |name: &str| -> Result<Option<Box<Schema>>, SchemaError> {
            match map.get(name) {
                Some(inner @ Value::Object(_)) => Ok(Some(Box::new(Schema::node(
                    inner,
                    &format!("{path}.{name}"),
                    depth + 1,
                )?))),
                _ => Ok(None),
            }
        };
        let list = |name: &str| -> Result<Vec<Schema>, SchemaError> {
            let list = map
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            list.map(|inner| Schema::node(inner, &format!("{path}.{name}"), depth + 1))
                .collect()
        };
        let strings = |name: &str| -> Vec<String> {
            let list = map
                .get(name)
                .and_then(Value::as_array)
                .into_iter()
                .flatten();
            list.filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let mut properties = BTreeMap::new();
        for (name, inner) in map
            .get("properties")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            properties.insert(
                name.clone(),
                Schema::node(inner, &format!("{path}.{name}"), depth + 1)?,
            );
        }
        Ok(Schema {
            ty: match map.get("type").and_then(Value::as_str) {
                Some("object") => Type::Object,
                Some("array") => Type::Array,
                Some("string") => Type::Text,
                Some("integer") => Type::Integer,
                Some("number") => Type::Number,
                Some("boolean") => Type::Boolean,
                _ => Type::Any,
            },
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve_unknown: flag("x-kubernetes-preserve-unknown-fields")
                || map.get("additionalProperties") == Some(&Value::Bool(true)),
            embedded: flag("x-kubernetes-embedded-resource"),
            has_rules: map
                .get("x-kubernetes-validations")
                .and_then(Value::as_array)
                .is_some_and(|l| !l.is_empty()),
            default: map.get("default").cloned(),
            choices: map.get("enum").and_then(Value::as_array).cloned(),
            required: strings("required"),
            properties,
            additional: child("additionalProperties")?,
            items: child("items")?,
            list_keys: if map.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("map") {
                strings("x-kubernetes-list-map-keys")
            } else {
                Vec::new()
            },
            list_set: map.get("x-kubernetes-list-type").and_then(Value::as_str) == Some("set"),
            limits: limits(map),
            all_of: list("allOf")?,
            any_of: list("anyOf")?,
            one_of: list("oneOf")?,
            not: child("not")?,
        })
    }
}

fn limits(map: &serde_json::Map<String, Value>) -> Option<Box<Limits>> {
    let count = |name: &str| map.get(name).and_then(Value::as_u64);
    let number = |name: &str| map.get(name).and_then(Value::as_f64);
    let exclusive = |name: &str| map.get(name).and_then(Value::as_bool).unwrap_or(false);
    let limits = Limits {
        minimum: number("minimum").map(|n| (n, exclusive("exclusiveMinimum"))),
        maximum: number("maximum").map(|n| (n, exclusive("exclusiveMaximum"))),
        multiple_of: number("multipleOf").filter(|n| *n > 0.0),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        unique: map.get("uniqueItems") == Some(&Value::Bool(true)),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        pattern: map
            .get("pattern")
            .and_then(Value::as_str)
            .and_then(super::run::Pattern::compile),
    };
    (limits != Limits::default()).then(|| Box::new(limits))
}
