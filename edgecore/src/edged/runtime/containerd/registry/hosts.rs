//! containerd's directory of registry settings (containerd `docs/hosts.md`,
//! `core/remotes/docker/config/hosts.go`): `<host>/hosts.toml`, or docker's older form of the same
//! directory with `*.crt`, `*.cert` and `*.key` in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{Endpoint, Tls, read_bounded, server_of};

/// `hosts.toml`. Keys we do not use are passed over: the file is another program's.
#[derive(Deserialize)]
struct File {
    server: Option<String>,
    #[serde(flatten)]
    settings: Settings,
    /// In the order of the file, which their places in it tell.
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Settings>,
}

#[derive(Deserialize)]
struct Settings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn all(&self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one.clone()],
            Self::Many(many) => many.clone(),
        }
    }
}

/// One file with both, several of these, or pairs of certificate and key.
#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<String>),
    Pairs(Vec<(String, String)>),
}

/// The endpoints for `registry` by the directory; `None` if it says nothing of it.
pub(super) fn read(directory: &Path, registry: &str) -> Result<Option<Vec<Endpoint>>, String> {
    let Some(own) = directory_of(directory, registry) else {
        return Ok(None);
    };
    let path = own.join("hosts.toml");
    match read_bounded(&path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let file: File =
                toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
            endpoints(&file, registry, &own).map(Some)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut origin =
                Endpoint::new(&format!("https://{}", server_of(registry)), false, true)?;
            origin.tls = certificates(&own);
            Ok(Some(vec![origin]))
        }
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// containerd looks for the name as it is, then with the port set apart, then `_default`.
fn directory_of(directory: &Path, registry: &str) -> Option<PathBuf> {
    let underscored = registry
        .rsplit_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    [
        Some(registry.to_owned()),
        underscored,
        Some("_default".to_owned()),
    ]
    .into_iter()
    .flatten()
    .map(|name| directory.join(name))
    .find(|path| path.is_dir())
}

fn endpoints(file: &File, registry: &str, directory: &Path) -> Result<Vec<Endpoint>, String> {
    let mut hosts: Vec<_> = file.host.iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mut endpoints = Vec::new();
    for (url, settings) in hosts {
        endpoints.extend(endpoint(url.get_ref(), settings, true, directory)?);
    }
    let server = file
        .server
        .clone()
        .unwrap_or_else(|| server_of(registry).to_owned());
    endpoints.extend(endpoint(&server, &file.settings, false, directory)?);
    Ok(endpoints)
}

fn endpoint(
    url: &str,
    settings: &Settings,
    is_mirror: bool,
    directory: &Path,
) -> Result<Option<Endpoint>, String> {
    let capable = |name: &str| {
        let listed = settings.capabilities.as_ref();
        listed.is_none_or(|listed| listed.iter().any(|capability| capability == name))
    };
    if !capable("pull") {
        return Ok(None);
    }
    let url = if url.contains("://") {
        url.to_owned()
    } else {
        format!("https://{url}")
    };
    let mut endpoint = Endpoint::new(&url, is_mirror, !settings.override_path)?;
    endpoint.resolves = capable("resolve");
    let absolute = |path: String| directory.join(path);
    let ca_files = settings.ca.as_ref().map(OneOrMany::all).unwrap_or_default();
    let whole = |cert: &String| (absolute(cert.clone()), None);
    endpoint.tls = Tls {
        ca_files: ca_files.into_iter().map(absolute).collect(),
        identities: match &settings.client {
            None => Vec::new(),
            Some(Clients::One(cert)) => vec![whole(cert)],
            Some(Clients::Many(certs)) => certs.iter().map(whole).collect(),
            Some(Clients::Pairs(pairs)) => pairs
                .iter()
                .map(|(cert, key)| {
                    let key = (!key.is_empty()).then(|| absolute(key.clone()));
                    (absolute(cert.clone()), key)
                })
                .collect(),
        },
        skip_verify: settings.skip_verify,
    };
    for (name, values) in &settings.header {
        let values = values.all().into_iter();
        endpoint
            .headers
            .extend(values.map(|value| (name.clone(), value)));
    }
    Ok(Some(endpoint))
}

fn certificates(directory: &Path) -> Tls {
    let mut tls = Tls::default();
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca_files.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.identities.push((path, Some(key)));
            }
            _ => {}
        }
    }
    tls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, host: &str, file: &str, text: &str) {
        std::fs::create_dir_all(directory.join(host)).unwrap();
        std::fs::write(directory.join(host).join(file), text).unwrap();
    }

    #[test]
    fn the_file_is_read_in_its_order() {
        let directory = tempfile::tempdir().unwrap();
        let text = r#"
server = "https://registry-1.docker.io"
ca = "root.pem"
unknown = 1

[host."https://zz.local"]
  capabilities = ["pull", "resolve"]
  ca = ["a.pem", "/b.pem"]
  client = [["c.pem", "k.pem"]]
[host."http://aa.local:5000/cache/v2"]
  capabilities = ["pull"]
  override_path = true
  skip_verify = true
  [host."http://aa.local:5000/cache/v2".header]
    x-tenant = "one"
[host."https://push.local"]
  capabilities = ["push"]
"#;
        write(directory.path(), "docker.io", "hosts.toml", text);
        let found = read(directory.path(), "docker.io").unwrap().unwrap();
        let bases: Vec<&str> = found.iter().map(|e| e.base.as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://zz.local/v2",
                "http://aa.local:5000/cache/v2",
                "https://registry-1.docker.io/v2"
            ]
        );
        let own = directory.path().join("docker.io");
        assert_eq!(found[0].tls.ca_files, [own.join("a.pem"), "/b.pem".into()]);
        assert_eq!(
            found[0].tls.identities,
            [(own.join("c.pem"), Some(own.join("k.pem")))]
        );
        assert!(found[1].tls.skip_verify && !found[1].resolves && found[1].is_mirror);
        assert_eq!(
            found[1].headers,
            [("x-tenant".to_owned(), "one".to_owned())]
        );
        assert_eq!(found[2].tls.ca_files, [own.join("root.pem")]);
    }

    #[test]
    fn other_forms_of_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        write(path, "a.io:5000", "ca.crt", "");
        write(
            path,
            "b.io_5000_",
            "hosts.toml",
            "[host.\"https://m.b.io\"]",
        );
        write(path, "bad.io", "hosts.toml", "server = 1");
        let docker = read(path, "a.io:5000").unwrap().unwrap();
        assert_eq!(docker[0].base, "https://a.io:5000/v2");
        assert_eq!(docker[0].tls.ca_files, [path.join("a.io:5000/ca.crt")]);
        let apart = read(path, "b.io:5000").unwrap().unwrap();
        assert_eq!(apart[0].base, "https://m.b.io/v2");
        assert_eq!(apart[1].base, "https://b.io:5000/v2");
        assert!(read(path, "c.io").unwrap().is_none());
        assert!(read(path, "bad.io").unwrap_err().contains("hosts.toml"));
        write(path, "_default", "hosts.toml", "[host.\"http://cache\"]");
        assert_eq!(
            read(path, "c.io").unwrap().unwrap()[0].base,
            "http://cache/v2"
        );
    }
}
