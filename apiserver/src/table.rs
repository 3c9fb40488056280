//! `kubectl get`: objects as rows (`kube-api.md` §2).

mod age;
mod cells;
mod columns;
mod devices;
mod network;
mod path;
mod pods;
mod workloads;

pub use age::human_duration;

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use path::Path;

/// What each row carries besides its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// The object's metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
    /// Nothing.
    None,
}

impl IncludeObject {
    /// Parses the query parameter; the error is the message of a 400.
    pub fn parse(text: &str) -> Result<IncludeObject, String> {
        match text {
            "" | "Metadata" => Ok(IncludeObject::Metadata),
            "Object" => Ok(IncludeObject::Object),
            "None" => Ok(IncludeObject::None),
            other => Err(format!(
                "Unable to convert to Table as requested: includeObject: Invalid value: {other:?}: must be 'Metadata', 'Object', 'None', or empty"
            )),
        }
    }
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its header, as served.
    pub name: String,
    /// `string`, `integer`, `boolean`, `date`, …
    pub kind: String,
    /// `name` for the name column.
    pub format: String,
    /// More than 0: only in wide output.
    pub priority: i64,
    /// Free text.
    pub description: String,
}

/// How one resource is shown.
#[derive(Debug, Clone)]
pub struct TableSpec {
    /// The columns.
    pub columns: Vec<Column>,
    rows: Rows,
}

type Cells = fn(&Value, Timestamp) -> Vec<Value>;
type Pair = fn(&Value, &Value, Timestamp) -> Vec<Value>;

/// Objects that are shown in the rows of others, by `namespace/name`.
pub type Companions = HashMap<String, Value>;

/// Plural of the kind, in the same group, whose objects of the same names are shown with this one's.
pub fn companion(group: &str, plural: &str) -> Option<&'static str> {
    devices::companion(group, plural)
}

/// The key of an object among [`Companions`].
pub fn companion_key(object: &Value) -> String {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

#[derive(Debug, Clone)]
enum Rows {
    /// One function per built-in kind.
    Kind(Cells),
    /// A function of the object and its companion.
    Pair(Pair),
    /// A name and one path per column: custom resources.
    Paths(Vec<Path>),
}

const NAME_TEXT: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated. More info: https://kubernetes.io/docs/concepts/overview/working-with-objects/names#names";
const CREATED_TEXT: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";

/// The table of a built-in resource; of any other, name and creation time.
pub fn spec_for(group: &str, plural: &str) -> TableSpec {
    let (columns, cells) = columns::of(group, plural);
    TableSpec {
        columns: columns.split(',').map(|text| column(text.trim())).collect(),
        rows: Rows::Kind(cells),
    }
}

/// Reads `Name:type[/format][*priority]`.
fn column(text: &str) -> Column {
    let (name, rest) = text.split_once(':').unwrap_or((text, "string"));
    let (rest, priority) = rest.split_once('*').unwrap_or((rest, "0"));
    let (kind, format) = rest.split_once('/').unwrap_or((rest, ""));
    let description = match name {
        "Name" => NAME_TEXT.to_owned(),
        "Age" | "Created At" => CREATED_TEXT.to_owned(),
        other => format!("{other} of the object."),
    };
    Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: format.to_owned(),
        priority: priority.parse().unwrap_or(0),
        description,
    }
}

/// The table of a custom resource: `additionalPrinterColumns` of a `spec.versions[i]`. Columns whose path is not
/// understood stay, with empty cells. Devices have columns of their own.
pub fn crd_spec(group: &str, plural: &str, version: &Value) -> TableSpec {
    if let Some((columns, cells)) = devices::of(group, plural) {
        return TableSpec {
            columns: columns.split(',').map(|text| column(text.trim())).collect(),
            rows: Rows::Pair(cells),
        };
    }
    let mut columns = vec![column("Name:string/name")];
    let mut paths = Vec::new();
    let declared = version["additionalPrinterColumns"]
        .as_array()
        .filter(|l| !l.is_empty());
    for item in declared.into_iter().flatten() {
        let text = |key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let path = text("jsonPath");
        columns.push(Column {
            name: text("name"),
            kind: text("type"),
            format: text("format"),
            priority: item["priority"].as_i64().unwrap_or(0),
            description: match item["description"].as_str() {
                Some(description) if !description.is_empty() => description.to_owned(),
                _ => format!("Custom resource definition column (in JSONPath format): {path}"),
            },
        });
        paths.push(Path::parse(&path).unwrap_or_default());
    }
    if declared.is_none() {
        columns.push(column("Age:date"));
        paths.push(Path::parse(".metadata.creationTimestamp").unwrap_or_default());
    }
    TableSpec {
        columns,
        rows: Rows::Paths(paths),
    }
}

/// A `meta.k8s.io/v1` Table. Its `metadata` is empty: the caller knows the list's revision.
pub fn render(
    spec: &TableSpec,
    items: &[Value],
    companions: &Companions,
    now: Timestamp,
    include: IncludeObject,
) -> Value {
    let columns: Vec<Value> = spec
        .columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect();
    let rows: Vec<Value> = items
        .iter()
        .map(|item| row(spec, item, companions, now, include))
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}, "columnDefinitions": columns, "rows": rows})
}

fn row(
    spec: &TableSpec,
    item: &Value,
    companions: &Companions,
    now: Timestamp,
    include: IncludeObject,
) -> Value {
    let cells = match &spec.rows {
        Rows::Pair(cells) => {
            let other = companions.get(&companion_key(item));
            cells(item, other.unwrap_or(&Value::Null), now)
        }
        Rows::Kind(cells) => cells(item, now),
        Rows::Paths(paths) => {
            let name = item["metadata"]["name"].clone();
            let kinds = spec.columns.iter().skip(1).map(|c| c.kind.as_str());
            std::iter::once(name)
                .chain(paths.iter().zip(kinds).map(|(p, k)| p.cell(item, k, now)))
                .collect()
        }
    };
    let object = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Object => item.clone(),
        IncludeObject::Metadata => json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": item["metadata"],
        }),
    };
    let mut row = json!({"cells": cells, "object": object});
    if item["spec"]["containers"].is_array() && matches!(spec.rows, Rows::Kind(_)) {
        let finished = match item["status"]["phase"].as_str() {
            Some("Succeeded") => Some(("Succeeded", "The pod has completed successfully.")),
            Some("Failed") => Some(("Failed", "The pod failed.")),
            _ => None,
        };
        if let Some((reason, message)) = finished {
            row["conditions"] = json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]);
        }
    }
    row
}

#[cfg(test)]
#[path = "table/tests.rs"]
mod tests;
