//! Credentials for registries: docker's configuration files and the two Secret types made of
//! them, matched to images as kubelet's keyring does (`pkg/credentialprovider/keyring.go`).

use base64::Engine as _;
use serde_json::{Map, Value};

use super::RegistryAuth;

/// Where an entry without a registry's name belongs: docker's own.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Credentials by registry host and path; patterns such as `*.example.org` too.
#[derive(Clone, Debug, Default)]
pub struct Keyring {
    entries: Vec<(Location, RegistryAuth)>,
}

/// Host, port and path of an entry's key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Location {
    host: String,
    port: String,
    path: String,
}

impl Keyring {
    /// Adds `.dockerconfigjson` or docker's `config.json`; false if it is neither.
    pub fn add_config(&mut self, bytes: &[u8]) -> bool {
        let Ok(Value::Object(mut file)) = serde_json::from_slice(bytes) else {
            return false;
        };
        match file.remove("auths") {
            Some(Value::Object(auths)) => self.add(&auths),
            // A file that only names credential helpers holds nothing for us.
            None => {}
            Some(_) => return false,
        }
        true
    }

    /// Adds `.dockercfg`: the entries without the `auths` around them; false if it is not one.
    pub fn add_legacy(&mut self, bytes: &[u8]) -> bool {
        let Ok(Value::Object(auths)) = serde_json::from_slice(bytes) else {
            return false;
        };
        self.add(&auths);
        true
    }

    fn add(&mut self, auths: &Map<String, Value>) {
        let mut found: Vec<(Location, RegistryAuth)> = auths
            .iter()
            .filter_map(|(key, entry)| Some((Location::parse(key), credentials(entry)?)))
            .collect();
        // The more exact path first, as kubelet does by sorting its keys backwards.
        found.sort_by(|(a, _), (b, _)| {
            (b.path.len(), &b.host, &b.path).cmp(&(a.path.len(), &a.host, &a.path))
        });
        self.entries.append(&mut found);
    }

    /// Every entry that fits `registry/repository`, in the order in which they are to be tried.
    pub fn lookup(&self, registry: &str, repository: &str) -> Vec<RegistryAuth> {
        let image = Location::parse(&format!("{registry}/{repository}"));
        let mut fitting: Vec<RegistryAuth> = Vec::new();
        for (location, auth) in &self.entries {
            if location.covers(&image) && !fitting.contains(auth) {
                fitting.push(auth.clone());
            }
        }
        fitting
    }
}

impl Location {
    fn parse(key: &str) -> Self {
        let key = key
            .strip_prefix("https://")
            .or_else(|| key.strip_prefix("http://"))
            .unwrap_or(key);
        let (authority, path) = key.split_once('/').unwrap_or((key, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, ""),
        };
        let host = match host {
            "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
            host => host,
        };
        // `https://index.docker.io/v1/` is how docker writes its own; the version says nothing.
        let path = path.trim_matches('/');
        let path = match path.split_once('/') {
            Some(("v1" | "v2", rest)) => rest,
            _ if matches!(path, "v1" | "v2") => "",
            _ => path,
        };
        Self {
            host: host.to_ascii_lowercase(),
            port: port.to_owned(),
            path: path.to_owned(),
        }
    }

    /// Same number of labels, each of which fits; same port; the path a prefix.
    fn covers(&self, image: &Self) -> bool {
        let (ours, theirs): (Vec<&str>, Vec<&str>) = (
            self.host.split('.').collect(),
            image.host.split('.').collect(),
        );
        ours.len() == theirs.len()
            && ours
                .iter()
                .zip(&theirs)
                .all(|(p, label)| label_fits(p, label))
            && self.port == image.port
            && image.path.starts_with(&self.path)
    }
}

/// A label with `*` in it, as many as wanted; none of them crosses a dot.
fn label_fits(pattern: &str, label: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else {
        return pattern == label;
    };
    let Some(mut left) = label.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = rest.split('*').collect();
    let Some((last, middle)) = parts.split_last() else {
        return true;
    };
    for part in middle {
        let Some(at) = left.find(part) else {
            return false;
        };
        left = left.get(at + part.len()..).unwrap_or_default();
    }
    left.ends_with(last)
}

fn credentials(entry: &Value) -> Option<RegistryAuth> {
    let text = |key: &str| {
        let value = entry.get(key).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let mut auth = RegistryAuth {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        registry_token: text("registrytoken"),
    };
    if auth.username.is_empty()
        && let Some((username, password)) = decode(&text("auth"))
    {
        (auth.username, auth.password) = (username, password);
    }
    (auth != RegistryAuth::default()).then_some(auth)
}

/// `user:password` in base64, with or without padding.
fn decode(field: &str) -> Option<(String, String)> {
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let bytes = engine.decode(field.trim().trim_end_matches('=')).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (username, password) = text.split_once(':')?;
    Some((
        username.to_owned(),
        password.trim_end_matches('\0').to_owned(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(file: &str) -> Keyring {
        let mut ring = Keyring::default();
        assert!(ring.add_config(file.as_bytes()));
        ring
    }

    #[test]
    fn entries_are_matched_as_kubelet_does() {
        let user = |name: &str| format!(r#"{{"username":"{name}","password":"x"}}"#);
        let file = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"dTpw"}},"reg.local:5000":{},
            "*.example.org":{},"reg.example.org/team":{},"a*b*.c.io":{},"http://Mixed.IO/v2/":{}}}}}"#,
            user("port"),
            user("wild"),
            user("team"),
            user("stars"),
            user("mixed")
        );
        let ring = ring(&file);
        for (registry, repository, want) in [
            ("docker.io", "library/busybox", vec!["u"]),
            ("reg.local:5000", "x/y", vec!["port"]),
            ("reg.local", "x/y", vec![]),
            ("other.local:5000", "x", vec![]),
            ("a.example.org", "x", vec!["wild"]),
            ("a.b.example.org", "x", vec![]),
            ("reg.example.org", "team/app", vec!["team", "wild"]),
            ("reg.example.org", "other/app", vec!["wild"]),
            ("axxbyy.c.io", "x", vec!["stars"]),
            ("axx.c.io", "x", vec![]),
            ("mixed.io", "x", vec!["mixed"]),
        ] {
            let found: Vec<String> = ring
                .lookup(registry, repository)
                .into_iter()
                .map(|auth| auth.username)
                .collect();
            assert_eq!(found, want, "{registry}/{repository}");
        }
    }

    #[test]
    fn every_form_of_credentials_is_read() {
        let with_token = ring(r#"{"auths":{"r.io":{"auth":"dTpw","identitytoken":"t"}}}"#);
        let found = with_token.lookup("r.io", "x");
        assert_eq!(found[0].identity_token, "t");
        let mut legacy = Keyring::default();
        assert!(legacy.add_legacy(br#"{"r.io":{"auth":"dTpw","email":"e"}}"#));
        assert_eq!(legacy.lookup("r.io", "x")[0].password, "p");
        let mut none = Keyring::default();
        assert!(none.add_config(br#"{"credsStore":"desktop"}"#));
        assert!(!none.add_config(b"[]"));
        assert!(!none.add_legacy(b"x"));
        for junk in [
            r#"{"auths":{"r.io":{"auth":"%%"}}}"#,
            r#"{"auths":{"r.io":7}}"#,
        ] {
            assert_eq!(ring(junk).lookup("r.io", "x"), vec![]);
        }
    }

    #[test]
    fn a_debug_line_shows_no_secret() {
        let ring = ring(r#"{"auths":{"r.io":{"username":"joe","password":"hush"}}}"#);
        let text = format!("{ring:?}");
        assert!(!text.contains("hush") && !text.contains("joe"), "{text}");
    }
}
