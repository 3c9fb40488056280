//! What a path and a query mean. Pure.

use std::collections::BTreeMap;

use crate::status::ApiError;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route {
    /// `/healthz`, `/readyz/ping` …
    Health(String),
    Version,
    Root,
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`
    Resources(String, String),
    OpenApiV2,
    OpenApiV3Index,
    /// `api/v1`, `apis/apps/v1`
    OpenApiV3(String),
    Resource(ResourcePath),
    Unknown,
}

/// `/api/v1/namespaces/<ns>/<plural>/<name>/<subresource>` and its shorter forms.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ResourcePath {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) namespace: String,
    pub(super) plural: String,
    pub(super) name: String,
    pub(super) subresource: String,
    /// More than one segment below the object.
    pub(super) deeper: bool,
}

/// Subresources of namespaces, which look like plurals in a namespace.
const NAMESPACE_SUBRESOURCES: &[&str] = &["status", "finalize"];

pub(super) fn parse(path: &str) -> Route {
    let segments: Vec<String> = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(percent_decode)
        .collect();
    let parts: Vec<&str> = segments.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [] => Route::Root,
        ["healthz" | "livez" | "readyz", ..] => Route::Health(parts.join("/")),
        ["version"] => Route::Version,
        ["openapi", "v2"] => Route::OpenApiV2,
        ["openapi", "v3"] => Route::OpenApiV3Index,
        ["openapi", "v3", rest @ ..] => Route::OpenApiV3(rest.join("/")),
        ["api"] => Route::CoreVersions,
        ["api", version] => Route::Resources(String::new(), (*version).into()),
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).into()),
        ["apis", group, version] => Route::Resources((*group).into(), (*version).into()),
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Route::Unknown,
    }
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Route {
    let mut path = ResourcePath {
        group: group.into(),
        version: version.into(),
        ..ResourcePath::default()
    };
    let rest = match rest {
        ["namespaces", namespace, plural, tail @ ..]
            if !(group.is_empty()
                && NAMESPACE_SUBRESOURCES.contains(plural)
                && tail.is_empty()) =>
        {
            path.namespace = (*namespace).into();
            path.plural = (*plural).into();
            tail
        }
        [plural, tail @ ..] => {
            path.plural = (*plural).into();
            tail
        }
        [] => return Route::Unknown,
    };
    if let [name, tail @ ..] = rest {
        path.name = (*name).into();
        if let [subresource, deeper @ ..] = tail {
            path.subresource = (*subresource).into();
            path.deeper = !deeper.is_empty();
        }
    }
    Route::Resource(path)
}

/// `%41` and, in queries, `+` are decoded; anything malformed stays as it is.
fn percent_decode(text: &str) -> String {
    if !text.contains('%') {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if let (b'%', Some(decoded)) = (byte, hex) {
            out.push(decoded);
            at += 3;
        } else {
            out.push(byte);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Query parameters; of one given twice the first counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Query {
    values: BTreeMap<String, Vec<String>>,
}

impl Query {
    /// Tolerates empty pairs: kube-rs writes `?&limit=500`.
    pub(super) fn parse(query: &str) -> Self {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |s: &str| percent_decode(&s.replace('+', " "));
            values.entry(decode(key)).or_default().push(decode(value));
        }
        Self { values }
    }

    pub(super) fn get(&self, key: &str) -> &str {
        self.values
            .get(key)
            .and_then(|v| v.first())
            .map_or("", String::as_str)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(super) fn all(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// Go's `strconv.ParseBool`; absent is false, present without value is true.
    pub(super) fn flag(&self, key: &str) -> Result<bool, ApiError> {
        if !self.has(key) {
            return Ok(false);
        }
        match self.get(key) {
            "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(ApiError::bad_request(format!(
                "strconv.ParseBool: parsing \"{other}\": invalid syntax"
            ))),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<i64>, ApiError> {
        let text = self.get(key);
        if text.is_empty() {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!(
                "strconv.ParseInt: parsing \"{text}\": invalid syntax"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(group: &str, ns: &str, plural: &str, name: &str, sub: &str) -> Route {
        Route::Resource(ResourcePath {
            group: group.into(),
            version: "v1".into(),
            namespace: ns.into(),
            plural: plural.into(),
            name: name.into(),
            subresource: sub.into(),
            deeper: false,
        })
    }

    #[test]
    fn paths() {
        for (text, route) in [
            ("/api/v1/pods", path("", "", "pods", "", "")),
            ("/api/v1/namespaces", path("", "", "namespaces", "", "")),
            ("/api/v1/namespaces/a", path("", "", "namespaces", "a", "")),
            (
                "/api/v1/namespaces/a/status",
                path("", "", "namespaces", "a", "status"),
            ),
            (
                "/api/v1/namespaces/a/finalize",
                path("", "", "namespaces", "a", "finalize"),
            ),
            ("/api/v1/namespaces/a/pods", path("", "a", "pods", "", "")),
            (
                "/api/v1/namespaces/a/pods/b",
                path("", "a", "pods", "b", ""),
            ),
            (
                "/api/v1/namespaces/a/pods/b/status",
                path("", "a", "pods", "b", "status"),
            ),
            (
                "/api/v1/nodes/n%31/status",
                path("", "", "nodes", "n1", "status"),
            ),
            (
                "/apis/ex.io/v1/namespaces/a/things/",
                path("ex.io", "a", "things", "", ""),
            ),
            ("/api/v1", Route::Resources(String::new(), "v1".into())),
            (
                "/apis/ex.io/v1/",
                Route::Resources("ex.io".into(), "v1".into()),
            ),
            (
                "/openapi/v3/apis/ex.io/v1",
                Route::OpenApiV3("apis/ex.io/v1".into()),
            ),
            ("/", Route::Root),
            ("/nope", Route::Unknown),
        ] {
            assert_eq!(parse(text), route, "{text}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse("&limit=500&labelSelector=a%3Db%2Cc+in+%28d%29&watch");
        assert_eq!(query.get("limit"), "500");
        assert_eq!(query.get("labelSelector"), "a=b,c in (d)");
        assert_eq!(query.flag("watch"), Ok(true));
        assert_eq!(query.flag("absent"), Ok(false));
        assert!(Query::parse("limit=x").number("limit").is_err());
    }
}
