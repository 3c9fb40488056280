//! The three walks over an object: drop the unknown, add defaults, find what is wrong.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "JSON has six types, and will not get a seventh"
)]

use serde_json::{Map, Value, json};

use super::compile::{Limits, Schema, Type};
use crate::validate::FieldError;

/// JSON bodies nest at most this deep.
const MAX_DEPTH: usize = 130;
/// Errors and unknown fields reported for one object.
const MAX_FOUND: usize = 100;
/// The fields every object has, whatever its schema says.
const TYPE_META: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A compiled `pattern`. Linear in the text, as Go's RE2.
#[derive(Debug)]
pub(super) struct Pattern(regex_lite::Regex);

impl Pattern {
    /// `None` for syntax we do not know: such a pattern is not enforced.
    pub(super) fn compile(text: &str) -> Option<Pattern> {
        regex_lite::RegexBuilder::new(text)
            .size_limit(256 * 1024)
            .build()
            .ok()
            .map(Pattern)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Pattern) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

impl Schema {
    /// Drops unknown fields. Answers their paths.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut gone = Vec::new();
        self.prune_at(object, "", true, 0, &mut gone);
        gone.truncate(MAX_FOUND);
        gone
    }

    fn prune_at(
        &self,
        value: &mut Value,
        path: &str,
        object: bool,
        depth: usize,
        gone: &mut Vec<String>,
    ) {
        if depth > MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                let object = object || self.embedded;
                map.retain(|key, value| {
                    if object && TYPE_META.contains(&key.as_str()) {
                        if key == "metadata" {
                            let lost = crate::strict::prune(value, "meta/v1", "ObjectMeta");
                            gone.extend(lost.iter().map(|l| join(&join(path, key), l)));
                        }
                        return true;
                    }
                    let inner = self.properties.get(key).or(self.additional.as_deref());
                    match inner {
                        Some(inner) => {
                            inner.prune_at(value, &join(path, key), false, depth + 1, gone);
                        }
                        None if self.preserve_unknown => {}
                        None => {
                            gone.push(join(path, key));
                            return false;
                        }
                    }
                    true
                });
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        items.prune_at(item, &format!("{path}[{i}]"), false, depth + 1, gone);
                    }
                }
            }
            _ => {}
        }
    }

    /// Adds defaults, recursively in the parents that are present.
    pub fn default(&self, object: &mut Value) {
        self.default_at(object, 0);
    }

    fn default_at(&self, value: &mut Value, depth: usize) {
        if depth > MAX_DEPTH {
            return;
        }
        match value {
            Value::Object(map) => {
                for (name, schema) in &self.properties {
                    let Some(default) = &schema.default else {
                        continue;
                    };
                    let absent = match map.get(name) {
                        None => true,
                        Some(Value::Null) => !schema.nullable,
                        Some(_) => false,
                    };
                    if absent {
                        map.insert(name.clone(), default.clone());
                    }
                }
                // Null where it may not stand, and nothing to put there: as if it had not been sent.
                map.retain(|name, value| {
                    !value.is_null() || self.properties.get(name).is_none_or(|s| s.nullable)
                });
                for (name, value) in map.iter_mut() {
                    if let Some(schema) = self.properties.get(name).or(self.additional.as_deref()) {
                        schema.default_at(value, depth + 1);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for item in list {
                        items.default_at(item, depth + 1);
                    }
                }
            }
            _ => {}
        }
    }

    /// What is wrong with an object.
    pub fn validate(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        self.check(object, "", true, 0, &mut errors);
        let blocking = errors.iter().any(|e| {
            matches!(
                e.reason,
                "FieldValueRequired"
                    | "FieldValueTypeInvalid"
                    | "FieldValueNotSupported"
                    | "FieldValueTooLong"
                    | "FieldValueTooMany"
            )
        });
        if blocking && self.any_rules() {
            errors.push(FieldError::invalid(
                "<nil>",
                &Value::Null,
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
            ));
        }
        errors
    }

    fn any_rules(&self) -> bool {
        self.has_rules
            || self.properties.values().any(Schema::any_rules)
            || [&self.additional, &self.items]
                .into_iter()
                .flatten()
                .any(|s| s.any_rules())
    }

    fn check(
        &self,
        value: &Value,
        path: &str,
        root: bool,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        if depth > MAX_DEPTH || errors.len() >= MAX_FOUND {
            return;
        }
        if value.is_null() && self.nullable {
            return;
        }
        if !self.type_fits(value) {
            let wanted = if self.int_or_string {
                "integer,string"
            } else {
                self.ty.name()
            };
            let have = type_name(value);
            let why = format!("{} in body must be of type {wanted}: {have:?}", shown(path));
            errors.push(FieldError::type_invalid(path, &json!(have), &why));
            return;
        }
        if let Some(choices) = &self.choices
            && !choices.contains(value)
        {
            let list = choices
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ");
            errors.push(FieldError {
                path: path.to_owned(),
                reason: "FieldValueNotSupported",
                message: format!("Unsupported value: {value}: supported values: {list}"),
            });
        }
        if let Some(limits) = &self.limits {
            check_limits(limits, value, path, errors);
        }
        match value {
            Value::Object(map) => self.check_object(map, path, root, depth, errors),
            Value::Array(list) => self.check_list(list, path, depth, errors),
            _ => {}
        }
        self.check_junctors(value, path, depth, errors);
    }

    fn check_object(
        &self,
        map: &Map<String, Value>,
        path: &str,
        root: bool,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        for name in &self.required {
            if !map.contains_key(name) {
                errors.push(FieldError::required(join(path, name), ""));
            }
        }
        for (key, value) in map {
            if (root || self.embedded) && TYPE_META.contains(&key.as_str()) {
                continue;
            }
            if let Some(inner) = self.properties.get(key) {
                inner.check(value, &join(path, key), false, depth + 1, errors);
            } else if let Some(inner) = &self.additional {
                inner.check(value, &join(path, key), false, depth + 1, errors);
            }
        }
    }

    fn check_list(&self, list: &[Value], path: &str, depth: usize, errors: &mut Vec<FieldError>) {
        if let Some(items) = &self.items {
            for (i, item) in list.iter().enumerate() {
                items.check(item, &format!("{path}[{i}]"), false, depth + 1, errors);
            }
        }
        if !self.list_set && self.list_keys.is_empty() {
            return;
        }
        let mut seen = std::collections::HashSet::new();
        for (i, item) in list.iter().enumerate() {
            let key = if self.list_set {
                item.clone()
            } else {
                let field = |k: &String| (k.clone(), item.get(k).cloned().unwrap_or_default());
                Value::Object(self.list_keys.iter().map(field).collect())
            };
            if !seen.insert(key.to_string()) {
                errors.push(FieldError::duplicate(format!("{path}[{i}]"), &key));
            }
        }
    }

    fn check_junctors(
        &self,
        value: &Value,
        path: &str,
        depth: usize,
        errors: &mut Vec<FieldError>,
    ) {
        let valid = |schema: &Schema| {
            let mut inner = Vec::new();
            schema.check(value, path, false, depth + 1, &mut inner);
            inner.is_empty()
        };
        let shown = shown(path);
        let mut fail = |why: String| errors.push(FieldError::invalid(path, value, &why));
        if !self.any_of.is_empty() && !self.int_or_string && !self.any_of.iter().any(valid) {
            fail(format!(
                "{shown:?} must validate at least one schema (anyOf)"
            ));
        }
        if !self.one_of.is_empty() {
            match self.one_of.iter().filter(|s| valid(s)).count() {
                1 => {}
                0 => fail(format!(
                    "{shown:?} must validate one and only one schema (oneOf). Found none valid"
                )),
                n => fail(format!(
                    "{shown:?} must validate one and only one schema (oneOf). Found {n} valid alternatives"
                )),
            }
        }
        if self.not.as_ref().is_some_and(|s| valid(s)) {
            fail(format!("{shown:?} must not validate the schema (not)"));
        }
        for schema in &self.all_of {
            schema.check(value, path, false, depth + 1, errors);
        }
    }

    fn type_fits(&self, value: &Value) -> bool {
        if self.int_or_string {
            return matches!(value, Value::String(_)) || is_integer(value);
        }
        match self.ty {
            Type::Any => true,
            Type::Object => value.is_object(),
            Type::Array => value.is_array(),
            Type::Text => value.is_string(),
            Type::Boolean => value.is_boolean(),
            Type::Number => value.is_number(),
            Type::Integer => is_integer(value),
        }
    }
}

fn is_integer(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|f| f.fract() == 0.0)
}

/// The root has no name.
fn shown(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_limits(limits: &Limits, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut fail = |why: String| {
        errors.push(FieldError::invalid(
            path,
            value,
            &format!("{path} in body should {why}"),
        ));
    };
    match value {
        Value::Number(n) => {
            let Some(n) = n.as_f64() else { return };
            if let Some((low, exclusive)) = limits.minimum
                && (n < low || (exclusive && n <= low))
            {
                fail(if exclusive {
                    format!("be greater than {low}")
                } else {
                    format!("be greater than or equal to {low}")
                });
            }
            if let Some((high, exclusive)) = limits.maximum
                && (n > high || (exclusive && n >= high))
            {
                fail(if exclusive {
                    format!("be less than {high}")
                } else {
                    format!("be less than or equal to {high}")
                });
            }
            if let Some(step) = limits.multiple_of
                && (n / step).fract() != 0.0
            {
                fail(format!("be a multiple of {step}"));
            }
        }
        Value::String(text) => {
            let count = text.chars().count() as u64;
            if let Some(low) = limits.min_length.filter(|low| count < *low) {
                fail(format!("be at least {low} chars long"));
            }
            if let Some(Pattern(pattern)) = limits.pattern.as_ref()
                && !pattern.is_match(text)
            {
                fail(format!("match '{}'", pattern.as_str()));
            }
            if let Some(high) = limits.max_length.filter(|high| count > *high) {
                errors.push(FieldError {
                    path: path.to_owned(),
                    reason: "FieldValueTooLong",
                    message: format!("Too long: may not be more than {high} bytes"),
                });
            }
        }
        Value::Array(list) => {
            let count = list.len() as u64;
            if let Some(low) = limits.min_items.filter(|low| count < *low) {
                fail(format!("have at least {low} items"));
            }
            if limits.unique
                && list
                    .iter()
                    .enumerate()
                    .any(|(i, a)| list.iter().take(i).any(|b| a == b))
            {
                errors.push(FieldError::invalid(
                    path,
                    value,
                    &format!("{path} in body shouldn't contain duplicates"),
                ));
            }
            if let Some(high) = limits.max_items.filter(|high| count > *high) {
                errors.push(too_many(path, count, high));
            }
        }
        Value::Object(map) => {
            let count = map.len() as u64;
            if let Some(low) = limits.min_properties.filter(|low| count < *low) {
                fail(format!("have at least {low} properties"));
            }
            if let Some(high) = limits.max_properties.filter(|high| count > *high) {
                errors.push(too_many(path, count, high));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn too_many(path: &str, have: u64, limit: u64) -> FieldError {
    FieldError {
        path: path.to_owned(),
        reason: "FieldValueTooMany",
        message: format!("Too many: {have}: must have at most {limit} items"),
    }
}
