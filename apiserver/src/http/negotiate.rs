//! Which representation a client wants (kube-api.md §2, §3.1). Pure.

use crate::status::ApiError;

const ACCEPTED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// A representation of one or many objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The objects themselves.
    Plain,
    /// Rows; `true` for `meta.k8s.io/v1beta1`.
    Table(bool),
    /// Metadata of one object.
    Partial,
    /// Metadata of many objects.
    PartialList,
    /// Aggregated discovery.
    Discovery,
}

/// Parameters are parsed, not compared as text: clients order them differently.
struct Range<'a> {
    kind: &'a str,
    view: &'a str,
    group: &'a str,
    version: &'a str,
    quality: u16,
}

fn ranges(accept: &str) -> Vec<Range<'_>> {
    let mut found: Vec<Range<'_>> = accept
        .split(',')
        .filter(|s| !s.trim().is_empty())
        .map(|text| {
            let mut parts = text.split(';').map(str::trim);
            let mut range = Range {
                kind: parts.next().unwrap_or_default(),
                view: "",
                group: "",
                version: "",
                quality: 1000,
            };
            for (key, value) in parts.filter_map(|p| p.split_once('=')) {
                match key {
                    "as" => range.view = value,
                    "g" => range.group = value,
                    "v" => range.version = value,
                    "q" => range.quality = thousandths(value),
                    _ => {}
                }
            }
            range
        })
        .collect();
    // Stable: among equals the client's order counts.
    found.sort_by_key(|range| std::cmp::Reverse(range.quality));
    found
}

/// `0.8` → 800.
fn thousandths(text: &str) -> u16 {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = part.chars().chain("000".chars()).take(3).collect();
    let whole: u16 = whole.parse().unwrap_or(1);
    whole
        .saturating_mul(1000)
        .saturating_add(digits.parse().unwrap_or(0))
        .min(1000)
}

/// Chooses among what the client accepts. Everything but discovery is answered in JSON, which
/// every client that prefers protobuf also takes.
pub(super) fn choose(accept: &str) -> Result<Shape, ApiError> {
    if accept.trim().is_empty() {
        return Ok(Shape::Plain);
    }
    for range in ranges(accept) {
        if range.quality == 0 {
            continue;
        }
        let readable = matches!(
            range.kind,
            "application/json" | "*/*" | "application/vnd.kubernetes.protobuf"
        );
        if !readable {
            continue;
        }
        match (range.view, range.group, range.version) {
            ("", _, _) => return Ok(Shape::Plain),
            ("Table", "meta.k8s.io", "v1") => return Ok(Shape::Table(false)),
            ("Table", "meta.k8s.io", "v1beta1") => return Ok(Shape::Table(true)),
            ("PartialObjectMetadata", "meta.k8s.io", "v1") => return Ok(Shape::Partial),
            ("PartialObjectMetadataList", "meta.k8s.io", "v1") => return Ok(Shape::PartialList),
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => return Ok(Shape::Discovery),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable(ACCEPTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;\
                     v=v1beta1;g=meta.k8s.io,application/json";
        for (accept, shape) in [
            ("", Shape::Plain),
            ("*/*", Shape::Plain),
            ("application/json, */*", Shape::Plain),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Shape::Plain,
            ),
            (table, Shape::Table(false)),
            (
                "application/json;as=Table;v=v1beta1;g=meta.k8s.io",
                Shape::Table(true),
            ),
            (
                "application/json;g=meta.k8s.io;as=PartialObjectMetadata;v=v1",
                Shape::Partial,
            ),
            (
                "application/json;as=Nope;g=x;v=v1, application/json",
                Shape::Plain,
            ),
            ("text/html;q=0.9, application/json;q=0.8", Shape::Plain),
        ] {
            assert_eq!(choose(accept), Ok(shape), "{accept}");
        }
        for refused in [
            "text/html",
            "application/*",
            "application/json;as=Nope;g=x;v=v1",
        ] {
            assert_eq!(choose(refused).map_err(|e| e.code()), Err(406), "{refused}");
        }
    }
}
