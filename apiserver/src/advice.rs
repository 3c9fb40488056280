//! What is allowed and probably a mistake, told to who writes a Device: a `Warning` header, never a
//! refusal, because a model and a node may come after their device. Pure.

use serde_json::Value;

/// Sentences in one answer; a longer list helps nobody.
const SENTENCES_MAX: usize = 10;

/// Whether writers of the kind are given advice.
pub(crate) fn is_given(group: &str, plural: &str) -> bool {
    (group, plural) == ("devices.kubeedge.io", "devices")
}

/// About a Device, given its model and whether its node is there.
pub(crate) fn device(device: &Value, model: Option<&Value>, has_node: bool) -> Vec<String> {
    let spec = &device["spec"];
    let mut said = Vec::new();
    let node = text(&spec["nodeName"]);
    if !node.is_empty() && !has_node {
        said.push(format!("spec.nodeName: there is no node \"{node}\" (yet)"));
    }
    let name = text(&spec["deviceModelRef"]["name"]);
    match model {
        None if name.is_empty() => {}
        None => said.push(format!(
            "spec.deviceModelRef.name: there is no devicemodel \"{name}\" in the namespace (yet)"
        )),
        Some(model) => {
            for (at, property) in list(&spec["properties"]).iter().enumerate() {
                said.extend(about_property(at, property, name, model));
            }
        }
    }
    if said.len() > SENTENCES_MAX {
        let more = said.len() - SENTENCES_MAX + 1;
        said.truncate(SENTENCES_MAX - 1);
        said.push(format!("and {more} more of the kind"));
    }
    said
}

fn about_property(at: usize, property: &Value, model: &str, of: &Value) -> Option<String> {
    let name = text(&property["name"]);
    let known = list(&of["spec"]["properties"]);
    let Some(known) = known.iter().find(|k| text(&k["name"]) == name) else {
        return Some(format!(
            "spec.properties[{at}].name: devicemodel \"{model}\" has no property \"{name}\""
        ));
    };
    let desired = property.pointer("/desired/value")?;
    let path = format!("spec.properties[{at}].desired");
    if text(&known["accessMode"]) == "ReadOnly" {
        return Some(format!(
            "{path}: property \"{name}\" is ReadOnly in devicemodel \"{model}\""
        ));
    }
    let kind = text(&known["type"]);
    let value = number(kind, text(desired));
    let bound = |bound| number(kind, text(&known[bound])).flatten();
    let why = match value? {
        None => format!("is no {kind}"),
        Some(value) if bound("minimum").is_some_and(|least| value < least) => {
            format!("is less than {}", text(&known["minimum"]))
        }
        Some(value) if bound("maximum").is_some_and(|most| value > most) => {
            format!("is more than {}", text(&known["maximum"]))
        }
        Some(_) => return None,
    };
    Some(format!(
        "{path}.value: \"{}\" {why}, says devicemodel \"{model}\"",
        shown(text(desired))
    ))
}

/// `None`: the type says nothing about the text. `Some(None)`: the text is none of the type.
#[expect(
    clippy::option_option,
    reason = "whether there is a rule, and whether it is met"
)]
fn number(kind: &str, value: &str) -> Option<Option<f64>> {
    match kind {
        "INT" => Some(value.parse::<i64>().ok().and_then(|_| value.parse().ok())),
        "FLOAT" | "DOUBLE" => Some(value.parse().ok()),
        "BOOLEAN" => Some(value.parse::<bool>().ok().map(f64::from)),
        _ => None,
    }
}

fn shown(value: &str) -> String {
    value
        .chars()
        .take(40)
        .flat_map(char::escape_debug)
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_probably_a_mistake_is_said() {
        let model = json!({"spec": {"properties": [
            {"name": "seen", "type": "DOUBLE", "accessMode": "ReadOnly"},
            {"name": "rate", "type": "INT", "accessMode": "ReadWrite",
             "minimum": "1", "maximum": "60"},
            {"name": "on", "type": "BOOLEAN"},
            {"name": "label", "type": "STRING"},
        ]}});
        let of = |name: &str, desired: Value| {
            let property = json!({"name": name, "desired": {"value": desired}});
            let object = json!({"spec": {"nodeName": "e1", "deviceModelRef": {"name": "m"},
                                         "properties": [property]}});
            device(&object, Some(&model), true).join("; ")
        };
        for (name, desired, told) in [
            ("rate", "5", ""),
            ("on", "true", ""),
            ("label", "anything", ""),
            (
                "rate",
                "five",
                "spec.properties[0].desired.value: \"five\" is no INT, says devicemodel \"m\"",
            ),
            (
                "rate",
                "0",
                "spec.properties[0].desired.value: \"0\" is less than 1, says devicemodel \"m\"",
            ),
            (
                "rate",
                "61",
                "spec.properties[0].desired.value: \"61\" is more than 60, says devicemodel \"m\"",
            ),
            (
                "on",
                "ja",
                "spec.properties[0].desired.value: \"ja\" is no BOOLEAN, says devicemodel \"m\"",
            ),
            (
                "seen",
                "1",
                "spec.properties[0].desired: property \"seen\" is ReadOnly in devicemodel \"m\"",
            ),
            (
                "sene",
                "1",
                "spec.properties[0].name: devicemodel \"m\" has no property \"sene\"",
            ),
        ] {
            assert_eq!(of(name, desired.into()), told);
        }
        let lonely = json!({"spec": {"nodeName": "e1", "deviceModelRef": {"name": "m"}}});
        assert_eq!(
            device(&lonely, None, false),
            [
                "spec.nodeName: there is no node \"e1\" (yet)",
                "spec.deviceModelRef.name: there is no devicemodel \"m\" in the namespace (yet)",
            ]
        );
        let many: Vec<Value> = (0..99).map(|n| json!({"name": n.to_string()})).collect();
        let many = json!({"spec": {"properties": many}});
        let said = device(&many, Some(&model), true);
        assert_eq!((said.len(), &*said[9]), (10, "and 90 more of the kind"));
        // Neither of a form that anybody expects.
        assert!(device(&json!([1]), Some(&json!("x")), true).is_empty());
    }
}
