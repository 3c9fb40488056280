//! `edgecore device` and `edgecore history`.

use super::table::{span, table};
use crate::api::Status;
use crate::clock::UnixMillis;
use crate::twin::{DeviceDetail, Part, PropertyDetail, Reading};

/// The device that a person means by `name` (NAME or NAMESPACE/NAME), among those of the node.
///
/// # Errors
/// What to say: none, or several.
pub fn find(status: &Status, name: &str) -> Result<(String, String), String> {
    let mut found = status.devices.iter().filter(|device| {
        device.name == name || format!("{}/{}", device.namespace, device.name) == name
    });
    match (found.next(), found.next()) {
        (Some(device), None) => Ok((device.namespace.clone(), device.name.clone())),
        (None, _) => Err(format!("this node has no device {name}")),
        (Some(_), Some(_)) => Err(format!(
            "several namespaces have a device {name}; say NAMESPACE/{name}"
        )),
    }
}

/// All devices, one a line.
pub fn devices(status: &Status) -> String {
    if status.devices.is_empty() {
        return "No devices on this node.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = status
        .devices
        .iter()
        .map(|device| {
            vec![
                device.namespace.clone(),
                device.name.clone(),
                or_dash(&device.state),
                device.properties.to_string(),
                device.pending.to_string(),
            ]
        })
        .collect();
    table(
        &["NAMESPACE", "NAME", "STATE", "PROPERTIES", "PENDING"],
        &rows,
    )
}

/// One device with its properties.
pub fn device(device: &DeviceDetail, now_ms: UnixMillis) -> String {
    let online = device.last_online_ms.map_or_else(
        || "never".to_owned(),
        |at| format!("{} ago", ago(at, now_ms)),
    );
    let mut out = format!(
        "Device:       {}/{}\nDescription:  {}\nState:        {}\nLast online:  {online}\n\n",
        device.namespace,
        device.name,
        or_dash(&device.description),
        or_dash(&device.state),
    );
    let rows: Vec<Vec<String>> = device
        .properties
        .iter()
        .map(|property| row(property, now_ms))
        .collect();
    let heads = [
        "PROPERTY", "TYPE", "REPORTED", "AGE", "DESIRED", "AGE", "BY", "VERSION", "SYNC",
    ];
    out.push_str(&table(&heads, &rows));
    out
}

fn row(property: &PropertyDetail, now_ms: UnixMillis) -> Vec<String> {
    let value = |part: Option<&Part>| part.map_or_else(|| "-".to_owned(), |p| or_dash(&p.value));
    let age = |part: Option<&Part>| part.map_or_else(|| "-".to_owned(), |p| ago(p.at_ms, now_ms));
    let version = |part: Option<&Part>| {
        part.map_or_else(
            || "-".to_owned(),
            |p| format!("{}.{}", p.cloud_version, p.edge_version),
        )
    };
    let (reported, desired) = (property.reported.as_ref(), property.desired.as_ref());
    let sync = if property.reason.is_empty() {
        or_dash(&property.sync)
    } else {
        format!(
            "{} {}: {}",
            property.sync, property.refused, property.reason
        )
    };
    vec![
        property.name.clone(),
        property.kind.clone(),
        value(reported),
        age(reported),
        value(desired),
        age(desired),
        or_dash(&property.desired_by),
        format!("{}/{}", version(reported), version(desired)),
        sync,
    ]
}

/// Readings, oldest first.
pub fn history(readings: &[Reading]) -> String {
    if readings.is_empty() {
        return "No readings.\n".to_owned();
    }
    let rows: Vec<Vec<String>> = readings
        .iter()
        .map(|reading| {
            let time = jiff::Timestamp::from_millisecond(reading.at_ms);
            let time = time.map_or_else(|_| reading.at_ms.to_string(), |t| t.to_string());
            vec![time, reading.value.clone()]
        })
        .collect();
    table(&["TIME", "VALUE"], &rows)
}

fn ago(at_ms: UnixMillis, now_ms: UnixMillis) -> String {
    span(now_ms.saturating_sub(at_ms) / 1000)
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_shown_with_what_became_of_its_wishes() {
        let part = |value: &str, at_ms| {
            Some(Part {
                value: value.into(),
                at_ms,
                cloud_version: 7,
                edge_version: 1,
            })
        };
        let shown = device(
            &DeviceDetail {
                namespace: "dev".into(),
                name: "lamp".into(),
                description: String::new(),
                state: "online".into(),
                last_online_ms: Some(60_000),
                properties: vec![PropertyDetail {
                    name: "level".into(),
                    kind: "int".into(),
                    reported: part("10", 170_000),
                    desired: part("30", 160_000),
                    desired_by: "hub".into(),
                    sync: "refused".into(),
                    refused: "30".into(),
                    reason: "stuck".into(),
                }],
            },
            180_000,
        );
        let last = shown.lines().last().unwrap();
        let cells: Vec<_> = last.split_whitespace().collect();
        let expected = "level int 10 10s 30 20s hub 7.1/7.1 refused 30: stuck";
        assert_eq!(cells.join(" "), expected);
        assert!(shown.contains("Last online:  2m ago"), "{shown}");
        assert_eq!(history(&[]), "No readings.\n");
        let reading = Reading {
            at_ms: 0,
            value: "1".into(),
        };
        assert!(history(&[reading]).contains("1970-01-01T00:00:00Z   1"));
    }
}
