//! `edgecore pods`.

use super::table::{span, table};
use crate::clock::UnixMillis;
use crate::edged::PodSummary;

/// How the pods are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Table,
    Wide,
    Json,
}

/// The pods as text; of one namespace, or of all with a column that says which.
pub fn pods(
    found: &[PodSummary],
    namespace: Option<&str>,
    shape: Shape,
    now_ms: UnixMillis,
) -> String {
    let mut found: Vec<&PodSummary> = found
        .iter()
        .filter(|pod| namespace.is_none_or(|namespace| pod.namespace == namespace))
        .collect();
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    if shape == Shape::Json {
        return serde_json::to_string_pretty(&found).unwrap_or_default() + "\n";
    }
    if found.is_empty() {
        return match namespace {
            Some(namespace) => format!("No pods of namespace {namespace} on this node.\n"),
            None => "No pods on this node.\n".to_owned(),
        };
    }
    let mut heads = vec!["NAME", "READY", "STATUS", "RESTARTS", "AGE"];
    if namespace.is_none() {
        heads.insert(0, "NAMESPACE");
    }
    if shape == Shape::Wide {
        heads.extend(["IP", "CONTAINERS", "UID"]);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|pod| {
            let mut row = row(pod, now_ms);
            if namespace.is_none() {
                row.insert(0, pod.namespace.clone());
            }
            if shape == Shape::Wide {
                let names: Vec<&str> = pod.members.iter().map(|c| c.name.as_str()).collect();
                row.extend([or_none(&pod.ip), or_none(&names.join(",")), pod.uid.clone()]);
            }
            row
        })
        .collect();
    table(&heads, &rows)
}

fn row(pod: &PodSummary, now_ms: UnixMillis) -> Vec<String> {
    let age = pod.started_at_ms.map_or_else(
        || "<unknown>".to_owned(),
        |started| span((now_ms - started) / 1000),
    );
    vec![
        pod.name.clone(),
        format!("{}/{}", pod.ready, pod.containers),
        pod.status.clone(),
        pod.restarts.to_string(),
        age,
    ]
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edged::ContainerSummary;

    #[test]
    fn the_table_is_kubectls() {
        let pod = |namespace: &str, name: &str, status: &str| PodSummary {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: "u".to_owned(),
            containers: 1,
            status: status.to_owned(),
            started_at_ms: Some(1000),
            members: vec![ContainerSummary {
                name: "main".to_owned(),
                ..ContainerSummary::default()
            }],
            ..PodSummary::default()
        };
        let found = [
            pod("x", "web", "Running"),
            pod("default", "job", "Completed"),
        ];
        let now = 61_000;
        assert_eq!(
            pods(&found, None, Shape::Table, now),
            "NAMESPACE   NAME   READY   STATUS      RESTARTS   AGE\n\
             default     job    0/1     Completed   0          60s\n\
             x           web    0/1     Running     0          60s\n"
        );
        assert_eq!(
            pods(&found, Some("x"), Shape::Wide, now),
            "NAME   READY   STATUS    RESTARTS   AGE   IP       CONTAINERS   UID\n\
             web    0/1     Running   0          60s   <none>   main         u\n"
        );
        assert_eq!(
            pods(&found, Some("y"), Shape::Table, now),
            "No pods of namespace y on this node.\n"
        );
        let json: serde_json::Value =
            serde_json::from_str(&pods(&found, None, Shape::Json, now)).unwrap();
        assert_eq!(json[1]["members"][0]["name"], "main");
    }
}
