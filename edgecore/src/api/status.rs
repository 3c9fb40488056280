//! What `edgecore status` shows, as JSON and as a table.

use serde::{Deserialize, Serialize};

use crate::dmi::MapperSummary;
use crate::edged::PodSummary;
use crate::outbox::report::StreamReport;

/// Everything a person asks a node first.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub version: String,
    pub node: String,
    pub uptime_secs: u64,
    pub link: LinkStatus,
    /// Absent on a node without MQTT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<MqttStatus>,
    pub pods: Vec<PodSummary>,
    pub devices: Vec<DeviceStatus>,
    #[serde(default)]
    pub mappers: Vec<MapperStatus>,
    pub ledger: Vec<StreamReport>,
    pub disk: DiskStatus,
    pub memory: MemoryStatus,
}

/// The link to the hub.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStatus {
    /// `connected`, `connecting`, `offline` or `disabled`.
    pub state: String,
    /// `host:port`.
    pub hub: String,
    /// Why it is not connected; empty otherwise.
    pub reason: String,
    pub since_secs: u64,
    /// Extensions in force, comma-separated; empty with a plain KubeEdge hub.
    pub extensions: String,
    pub connects: u64,
}

/// MQTT.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MqttStatus {
    /// `host:port` of the broker inside; empty without one.
    pub listen: String,
    /// Absent without an external broker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external_connected: Option<bool>,
    /// Results that were not published because a queue was full.
    pub publishes_dropped: u64,
}

/// One device.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceStatus {
    pub namespace: String,
    pub name: String,
    /// As last reported.
    pub state: String,
    pub properties: usize,
    /// Properties whose desired value the device has not reported yet.
    pub pending: usize,
}

/// One mapper.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MapperStatus {
    pub name: String,
    pub protocol: String,
    pub socket: String,
    /// `reachable`, `unreachable`, or `registered` before the first call.
    pub state: String,
    pub devices: usize,
    /// Devices and models it has not taken yet.
    pub pending: usize,
    /// Why something is pending; empty otherwise.
    pub reason: String,
}

impl From<MapperSummary> for MapperStatus {
    fn from(mapper: MapperSummary) -> Self {
        let state = match mapper.reachable {
            None => "registered",
            Some(true) => "reachable",
            Some(false) => "unreachable",
        };
        Self {
            name: mapper.name,
            protocol: mapper.protocol,
            socket: mapper.socket,
            state: state.to_owned(),
            devices: mapper.devices,
            pending: mapper.pending,
            reason: mapper.reason,
        }
    }
}

/// Disk.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    pub database_bytes: u64,
    /// What waits for the hub; bounded by `outpost.outboxBytesMax`.
    #[serde(default)]
    pub outbox_bytes: u64,
    pub free_bytes: u64,
    /// Written by this process to storage since its start.
    pub written_bytes: u64,
}

/// Memory of this process.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryStatus {
    pub rss_bytes: u64,
    pub pss_bytes: u64,
}

impl Status {
    /// The table for people.
    pub fn render(&self) -> String {
        let mut out = format!(
            "node     {}   edgecore {}   up {}\n",
            self.node,
            self.version,
            span(self.uptime_secs)
        );
        let link = &self.link;
        out.push_str(&format!(
            "link     {} to {} for {}{}{}\n",
            link.state,
            link.hub,
            span(link.since_secs),
            prefixed("   extensions ", &link.extensions),
            prefixed("   because ", &link.reason),
        ));
        if let Some(mqtt) = &self.mqtt {
            let external = match mqtt.external_connected {
                None => "",
                Some(true) => "external broker connected",
                Some(false) => "external broker NOT connected",
            };
            out.push_str(&format!("mqtt     {}  {external}\n", mqtt.listen));
        }
        out.push_str(&format!(
            "memory   {} MiB resident, {} MiB proportional\ndisk     database {} KiB (outbox {} KiB), {} MiB free\n",
            self.memory.rss_bytes >> 20,
            self.memory.pss_bytes >> 20,
            self.disk.database_bytes >> 10,
            self.disk.outbox_bytes >> 10,
            self.disk.free_bytes >> 20
        ));
        let pods = self.pods.iter().map(|pod| {
            vec![
                format!("{}/{}", pod.namespace, pod.name),
                pod.phase.clone(),
                format!("{}/{}", pod.ready, pod.containers),
                pod.restarts.to_string(),
                pod.ip.clone(),
                pod.reason.clone(),
            ]
        });
        section(
            &mut out,
            &["POD", "PHASE", "READY", "RESTARTS", "IP", "REASON"],
            pods,
        );
        let devices = self.devices.iter().map(|device| {
            vec![
                format!("{}/{}", device.namespace, device.name),
                device.state.clone(),
                device.properties.to_string(),
                device.pending.to_string(),
            ]
        });
        section(
            &mut out,
            &["DEVICE", "STATE", "PROPERTIES", "DESIRED-PENDING"],
            devices,
        );
        let mappers = self.mappers.iter().map(|mapper| {
            vec![
                mapper.name.clone(),
                mapper.protocol.clone(),
                mapper.state.clone(),
                mapper.devices.to_string(),
                mapper.pending.to_string(),
                mapper.reason.clone(),
            ]
        });
        section(
            &mut out,
            &[
                "MAPPER", "PROTOCOL", "STATE", "DEVICES", "PENDING", "REASON",
            ],
            mappers,
        );
        let streams = self.ledger.iter().map(|s| {
            vec![
                s.stream.clone(),
                s.accepted.to_string(),
                s.delivered.to_string(),
                s.pending.to_string(),
                s.expired.to_string(),
                s.evicted.to_string(),
                if s.balanced { "yes" } else { "NO" }.to_owned(),
            ]
        });
        section(
            &mut out,
            &[
                "STREAM",
                "ACCEPTED",
                "DELIVERED",
                "PENDING",
                "EXPIRED",
                "EVICTED",
                "BALANCED",
            ],
            streams,
        );
        out
    }
}

fn prefixed(prefix: &str, text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!("{prefix}{text}")
    }
}

fn span(secs: u64) -> String {
    match secs {
        0..=119 => format!("{secs}s"),
        120..=7199 => format!("{}m", secs / 60),
        7200..=172_799 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

/// A table with columns as wide as their widest cell; nothing for no rows.
fn section(out: &mut String, heads: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    let mut table: Vec<Vec<String>> = vec![heads.iter().map(|&h| h.to_owned()).collect()];
    table.extend(rows);
    if table.len() == 1 {
        return;
    }
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    out.push('\n');
    for row in &table {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:<width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_when_a_stream_does_not_balance() {
        let status = Status {
            node: "n1".into(),
            ledger: vec![
                crate::outbox::Balance {
                    stream: "twin/a/b".into(),
                    accepted: 2,
                    delivered: 1,
                    ..crate::outbox::Balance::default()
                }
                .into(),
            ],
            ..Status::default()
        };
        let text = status.render();
        assert!(text.contains("twin/a/b") && text.contains("NO"), "{text}");
        assert!(!text.contains("PHASE"), "no pods, no table: {text}");
    }
}
