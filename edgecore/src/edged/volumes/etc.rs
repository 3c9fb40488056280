//! The pod's own `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::local::make_dir;
use super::{Dirs, VolumeError, io_error, is_plain_name, unsupported};

/// Writes the pod's `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.
pub fn write_etc(
    pod: &Pod,
    hostname: &str,
    ips: &[String],
    dirs: &Dirs,
) -> Result<Vec<(PathBuf, PathBuf)>, VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !is_plain_name(uid) {
        return Err(unsupported(
            "etc",
            "the pod's uid is not usable as a file name",
        ));
    }
    let dir = dirs.pod(uid, true).join("etc");
    make_dir("etc", &dir, 0o755)?;
    let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
    let contents = [
        ("hosts", hosts_file(pod, hostname, ips, host_network)),
        ("resolv.conf", resolv_conf(pod)),
        ("hostname", format!("{hostname}\n")),
    ];
    let mut files = Vec::new();
    for (name, content) in contents {
        let path = dir.join(name);
        // In place: a running container has this very file bound.
        if std::fs::read(&path).ok().as_deref() != Some(content.as_bytes()) {
            std::fs::write(&path, content)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                })
                .map_err(io_error("etc", "write", &path))?;
        }
        files.push((Path::new("/etc").join(name), path));
    }
    Ok(files)
}

fn hosts_file(pod: &Pod, hostname: &str, ips: &[String], host_network: bool) -> String {
    let spec = pod.spec.as_ref();
    let mut text = if host_network {
        std::fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned()
    };
    if !host_network {
        for ip in ips {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        }
    }
    let aliases: Vec<_> = spec
        .iter()
        .flat_map(|s| s.host_aliases.iter().flatten())
        .collect();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        text.push_str(&format!("{}\t{names}\n", alias.ip));
    }
    text
}

fn resolv_conf(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let mut servers = Vec::new();
    let mut searches = Vec::new();
    let mut options = Vec::new();
    if spec.and_then(|s| s.dns_policy.as_deref()) != Some("None") {
        for line in host_resolv_conf().lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
                Some("search") => searches = words.map(str::to_owned).collect(),
                Some("options") => options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
    }
    if let Some(config) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(config.nameservers.iter().flatten().cloned());
        searches.extend(config.searches.iter().flatten().cloned());
        options.extend(config.options.iter().flatten().filter_map(|option| {
            let name = option.name.clone()?;
            Some(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name,
            })
        }));
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// The host's resolvers; not systemd-resolved's stub, which a pod's network cannot reach.
fn host_resolv_conf() -> String {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if text.contains("127.0.0.53")
        && let Ok(real) = std::fs::read_to_string("/run/systemd/resolve/resolv.conf")
    {
        return real;
    }
    text
}
