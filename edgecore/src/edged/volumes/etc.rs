//! The pod's own `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use super::local::make_dir;
use super::{Dirs, VolumeError, io_error, is_plain_name, unsupported};
use crate::edged::pod::dns::{self, Names, Notice, Resolvers, Site};

/// systemd-resolved's stub, which a pod's network cannot reach, and the file with the real ones.
const STUB: &str = "127.0.0.53";
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// As kubelet writes them (`kubelet_pods.go: managedHostsFileContent`): programs look for it.
const HEADER: &str = "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
    fe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n";
const HEADER_HOST_NETWORK: &str = "# Kubernetes-managed hosts file (host network).\n";

/// A pod's files: where they go and where they lie.
pub type Files = Vec<(PathBuf, PathBuf)>;

/// Writes the pod's `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname`. May be repeated: what
/// changed on the host since is taken over.
pub fn write_etc(
    pod: &Pod,
    names: &Names,
    ips: &[String],
    site: &Site,
    dirs: &Dirs,
) -> Result<(Files, Vec<Notice>), VolumeError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    if !is_plain_name(uid) {
        return Err(unsupported(
            "etc",
            "the pod's uid is not usable as a file name",
        ));
    }
    let dir = dirs.pod(uid, true).join("etc");
    make_dir("etc", &dir, 0o755)?;
    let (resolvers, notices) = dns::resolvers(pod, &of_node(&site.resolv_conf), site);
    let contents = [
        ("hosts", hosts_file(pod, names, ips)),
        ("resolv.conf", resolvers.text()),
        ("hostname", format!("{}\n", names.kernel)),
    ];
    let mut files = Vec::new();
    for (name, content) in contents {
        let path = dir.join(name);
        // In place: a running container has this very file bound.
        if !holds(&path, content.as_bytes()) {
            std::fs::write(&path, content)
                .and_then(|()| {
                    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
                })
                .map_err(io_error("etc", "write", &path))?;
        }
        files.push((Path::new("/etc").join(name), path));
    }
    Ok((files, notices))
}

/// Whether the file holds exactly this. A container may write to it, as much as it likes: what has
/// another length is not read.
fn holds(path: &Path, content: &[u8]) -> bool {
    let length = std::fs::metadata(path).map(|meta| meta.len());
    length.is_ok_and(|length| length == content.len() as u64)
        && std::fs::read(path).is_ok_and(|found| found == content)
}

fn hosts_file(pod: &Pod, names: &Names, ips: &[String]) -> String {
    let spec = pod.spec.as_ref();
    let host_network = spec.and_then(|s| s.host_network) == Some(true);
    let mut text;
    if host_network {
        text = HEADER_HOST_NETWORK.to_owned();
        text.push_str(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        text = HEADER.to_owned();
        for ip in ips {
            text.push_str(&match &names.domain {
                Some(domain) => format!("{ip}\t{}.{domain}\t{}\n", names.host, names.host),
                None => format!("{ip}\t{}\n", names.host),
            });
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

/// The node's resolvers; those behind the stub where it has nothing else.
fn of_node(path: &Path) -> Resolvers {
    let found = Resolvers::parse(&std::fs::read_to_string(path).unwrap_or_default());
    let only_stub =
        !found.nameservers.is_empty() && found.nameservers.iter().all(|server| server == STUB);
    if only_stub && let Ok(real) = std::fs::read_to_string(BEHIND_STUB) {
        return Resolvers::parse(&real);
    }
    found
}
