//! Devices as rows: what is wanted of them, and what they say (device plane §4.2, §4.4).
//!
//! A Device holds the wishes, the DeviceStatus of the same name what was reported; a row shows
//! both, so a Device's row is made from two objects.

use jiff::Timestamp;
use serde_json::Value;

use super::{age, cells};

/// Group of the kinds.
const GROUP: &str = "devices.kubeedge.io";
/// Properties shown in a row; the rest is counted.
const PROPERTIES_SHOWN: usize = 3;
/// Characters of a value that are shown.
const VALUE_CHARS_SHOWN: usize = 20;

/// The columns of a Device.
pub(super) const DEVICE: &str = "Name:string/name, Node:string, State:string, Last Online:string, Reported:string, Desired:string, Age:string, Model:string*1, Protocol:string*1";
/// The columns of a DeviceStatus.
pub(super) const STATUS: &str = "Name:string/name, State:string, Last Online:string, Reported:string, Desired:string, Age:string, Received:integer*1";

/// Plural of the kind whose objects of the same names are shown in the rows of this one.
pub(super) fn companion(group: &str, plural: &str) -> Option<&'static str> {
    (group == GROUP && plural == "devices").then_some("devicestatuses")
}

/// Whether the kind has rows of its own, whatever columns its definition names.
pub(super) fn of(group: &str, plural: &str) -> Option<(&'static str, super::Pair)> {
    match (group, plural) {
        (GROUP, "devices") => Some((DEVICE, device)),
        (GROUP, "devicestatuses") => Some((STATUS, status)),
        _ => None,
    }
}

fn device(object: &Value, status: &Value, now: Timestamp) -> Vec<Value> {
    let wishes = cells::list(&object["spec"]["properties"]).iter().map(|p| {
        let (name, value) = (cells::text(&p["name"]), cells::text(&p["desired"]["value"]));
        (name, value, progress(status, name, Some(value)))
    });
    vec![
        cells::name(object),
        cells::or(&object["spec"]["nodeName"], cells::NONE).into(),
        cells::or(&status["status"]["state"], cells::UNKNOWN).into(),
        last_online(status, now),
        summary(values(status, "reported").map(|(name, value)| (name, value, ""))).into(),
        summary(wishes).into(),
        cells::created(object, now),
        cells::or(&object["spec"]["deviceModelRef"]["name"], cells::NONE).into(),
        cells::or(&object["spec"]["protocol"]["protocolName"], cells::NONE).into(),
    ]
}

fn status(object: &Value, _: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        cells::or(&object["status"]["state"], cells::UNKNOWN).into(),
        last_online(object, now),
        summary(values(object, "reported").map(|(name, value)| (name, value, ""))).into(),
        summary(
            values(object, "observedDesired")
                .map(|(name, value)| (name, value, progress(object, name, None))),
        )
        .into(),
        cells::created(object, now),
        object["status"]["extensions"]["outpost"]["received"]
            .as_u64()
            .map_or(Value::Null, Value::from),
    ]
}

fn last_online(status: &Value, now: Timestamp) -> Value {
    match cells::text(&status["status"]["lastOnlineTime"]) {
        "" => cells::NONE.into(),
        _ => age::since(&status["status"]["lastOnlineTime"], now).into(),
    }
}

fn values<'v>(status: &'v Value, part: &'v str) -> impl Iterator<Item = (&'v str, &'v str)> {
    cells::list(&status["status"]["twins"])
        .iter()
        .map(move |t| {
            (
                cells::text(&t["propertyName"]),
                cells::text(&t[part]["value"]),
            )
        })
}

/// How far a desired value has come, unless that is where it should be; of a value that the node
/// does not have yet nothing is known.
fn progress(status: &Value, name: &str, wished: Option<&str>) -> &'static str {
    let has = |value| values(status, "observedDesired").any(|known| known == (name, value));
    if !wished.is_none_or(has) {
        return "";
    }
    let facts = &status["status"]["extensions"]["outpostProperties"][name];
    match cells::text(&facts["sync"]) {
        "refused" => "(refused)",
        "pending" => "(pending)",
        _ => "",
    }
}

/// `a=1,b=2(refused),c=3 + 4 more...`; values that are not there are left out.
fn summary<'v>(values: impl Iterator<Item = (&'v str, &'v str, &'v str)>) -> String {
    let mut shown = Vec::new();
    let mut more = 0_usize;
    for (name, value, note) in values.filter(|(_, value, _)| !value.is_empty()) {
        if shown.len() < PROPERTIES_SHOWN {
            shown.push(format!("{name}={}{note}", short(value)));
        } else {
            more += 1;
        }
    }
    match (shown.is_empty(), more) {
        (true, _) => cells::NONE.into(),
        (false, 0) => shown.join(","),
        (false, more) => format!("{} + {more} more...", shown.join(",")),
    }
}

fn short(value: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = value.chars().take(VALUE_CHARS_SHOWN).map(clean).collect();
    if value.chars().nth(VALUE_CHARS_SHOWN).is_some() {
        format!("{text}...")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_device_is_shown_with_what_it_says() {
        let device_object = json!({
            "metadata": {"name": "t1", "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"nodeName": "e1", "properties": [
                {"name": "target", "desired": {"value": "30"}}, {"name": "temp"}]},
        });
        let twin =
            |name: &str, value: &str| json!({"propertyName": name, "reported": {"value": value}});
        let status_object = json!({"status": {
            "state": "online", "lastOnlineTime": "1970-01-01T00:00:50Z",
            "twins": [twin("a", "1"), twin("b", "a\nvery long text that nobody reads"),
                      twin("c", ""), twin("d", "3"), twin("e", "4"), twin("f", "5")],
            "extensions": {"outpost": {"received": 7}},
        }});
        let now = Timestamp::from_second(60).unwrap();
        assert_eq!(
            device(&device_object, &status_object, now),
            vec![
                json!("t1"),
                json!("e1"),
                json!("online"),
                json!("10s"),
                json!("a=1,b=a very long text tha...,d=3 + 2 more..."),
                json!("target=30"),
                json!("60s"),
                json!("<none>"),
                json!("<none>"),
            ]
        );
        // A wish that the node has, and what became of it.
        let mut refused = status_object.clone();
        refused["status"]["twins"][0] =
            json!({"propertyName": "target", "observedDesired": {"value": "30"}});
        refused["status"]["extensions"]["outpostProperties"] =
            json!({"target": {"sync": "refused"}});
        let wish = |status: &Value| device(&device_object, status, now)[5].clone();
        assert_eq!(wish(&refused), "target=30(refused)");
        assert_eq!(status(&refused, &Value::Null, now)[4], "target=30(refused)");
        refused["status"]["twins"][0]["observedDesired"]["value"] = "20".into();
        assert_eq!(wish(&refused), "target=30", "another value was refused");
        // Neither a status nor anything in it.
        let bare = device(&json!({"metadata": {"name": "t1"}}), &Value::Null, now);
        assert_eq!(bare[2..6], ["<unknown>", "<none>", "<none>", "<none>"]);
        assert_eq!(bare.len(), DEVICE.split(',').count());
        let row = status(&status_object, &Value::Null, now);
        assert_eq!(row.len(), STATUS.split(',').count());
        assert_eq!(row[6], 7);
    }
}
