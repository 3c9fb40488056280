//! What a container says of its end: the file at `terminationMessagePath`, or the end of its log
//! (`kuberuntime_container.go: getTerminationMessage`).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::edged::runtime::Mount;

/// `MaxContainerTerminationMessageLength`
const BYTES_MAX: usize = 4096;
/// `MaxPodTerminationMessageLogLength`, shared by the containers of a pod.
const POD_BYTES_MAX: usize = 12 << 10;
/// `MaxContainerTerminationMessageLogLength` and `MaxContainerTerminationMessageLogLines`
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;
/// Enough of a CRI log for that much text.
const LOG_TAIL_BYTES: u64 = 64 << 10;

/// Where the container may write, if it has not mounted something else there.
pub(super) fn target(container: &Container) -> Option<PathBuf> {
    let path = container.termination_message_path.as_deref();
    let path = path.unwrap_or("/dev/termination-log");
    let mounts = container.volume_mounts.iter().flatten();
    let taken = mounts.into_iter().any(|mount| mount.mount_path == path);
    (path.starts_with('/') && !taken).then(|| PathBuf::from(path))
}

/// Makes the file on this node; writable by whatever user the container runs as.
///
/// # Errors
/// When it cannot be made: the container then has nothing to write to.
pub(super) fn make(source: PathBuf, target: PathBuf) -> io::Result<Mount> {
    if let Some(dir) = source.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let file = File::create(&source)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o666))?;
    Ok(Mount {
        source,
        target,
        ..Mount::default()
    })
}

/// Most that one container of this pod may say.
pub(super) fn bytes_max(pod: &Pod) -> usize {
    let spec = pod.spec.as_ref();
    let inits = spec
        .and_then(|s| s.init_containers.as_ref())
        .map_or(0, Vec::len);
    let containers = spec.map_or(0, |s| s.containers.len());
    (POD_BYTES_MAX / (inits + containers).max(1)).min(BYTES_MAX)
}

/// Reads the file; where that is empty and `log` is given, the end of the log.
pub(super) fn read(file: Option<&Path>, log: Option<&Path>, bytes_max: usize) -> String {
    let said = file
        .map(|path| tail(path, bytes_max as u64))
        .unwrap_or_default();
    if !said.is_empty() {
        return String::from_utf8_lossy(&said).into_owned();
    }
    let Some(log) = log else {
        return String::new();
    };
    let bytes = tail(log, LOG_TAIL_BYTES);
    end_of_log(
        &String::from_utf8_lossy(&bytes),
        bytes_max.min(LOG_BYTES_MAX),
    )
}

/// The last bytes of a file; nothing if it cannot be read.
fn tail(path: &Path, bytes_max: u64) -> Vec<u8> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes_max)))?;
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().unwrap_or_default()
}

/// The text of the last lines of a CRI log.
fn end_of_log(log: &str, bytes_max: usize) -> String {
    let lines = log.lines().filter_map(|line| {
        let mut parts = line.splitn(4, ' ');
        let time = parts.next()?;
        let (_stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?);
        // The first line may have been cut.
        (time.ends_with('Z') || time.contains('+')).then_some((tag, text))
    });
    let mut whole: Vec<String> = Vec::new();
    let mut open = String::new();
    for (tag, text) in lines {
        open.push_str(text);
        if tag != "P" {
            open.push('\n');
            whole.push(std::mem::take(&mut open));
        }
    }
    if !open.is_empty() {
        whole.push(open);
    }
    let from = whole.len().saturating_sub(LOG_LINES_MAX);
    let text = whole.split_off(from).concat();
    let mut cut = text.len().saturating_sub(bytes_max);
    while !text.is_char_boundary(cut) {
        cut += 1;
    }
    text.split_at(cut).1.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_goes_before_the_log_and_both_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("messages/c.0");
        let mount = make(file.clone(), "/dev/termination-log".into()).unwrap();
        assert_eq!(mount.source, file);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o666);
        let log = dir.path().join("0.log");
        let lines: Vec<String> = (0..200)
            .map(|n| format!("2026-01-01T00:00:00.000000000Z stdout F line {n}\n"))
            .collect();
        std::fs::write(&log, lines.concat()).unwrap();
        let words = |log| read(Some(&file), log, BYTES_MAX);
        assert_eq!(words(None), "");
        let from_log = words(Some(log.as_path()));
        assert!(from_log.starts_with("line 120\n"), "{from_log}");
        assert!(from_log.ends_with("line 199\n"));
        let long = "2026-01-01T00:00:00.000000000Z stderr P é\n".repeat(3000);
        std::fs::write(&log, long + "2026-01-01T00:00:00.000000000Z stderr F end\n").unwrap();
        let from_log = words(Some(log.as_path()));
        assert!(from_log.len() <= LOG_BYTES_MAX && from_log.ends_with("éend\n"));
        std::fs::write(&file, "x".repeat(5000) + "last").unwrap();
        let said = words(Some(log.as_path()));
        assert_eq!(said.len(), BYTES_MAX);
        assert!(said.ends_with("xlast"));
        assert_eq!(read(Some(Path::new("/nowhere")), None, 10), "");
    }

    #[test]
    fn a_pod_shares_what_its_containers_may_say() {
        let pod = |count: usize| {
            let names = (0..count).map(|n| serde_json::json!({"name": format!("c{n}")}));
            let names: Vec<_> = names.collect();
            let pod = serde_json::json!({"spec": {"containers": names}});
            bytes_max(&serde_json::from_value(pod).unwrap())
        };
        assert_eq!([pod(1), pod(3), pod(4)], [4096, 4096, 3072]);
    }

    #[test]
    fn a_path_that_is_mounted_already_is_left() {
        let container = |json: serde_json::Value| target(&serde_json::from_value(json).unwrap());
        let own = container(serde_json::json!({"name": "c"}));
        assert_eq!(own, Some("/dev/termination-log".into()));
        let taken = serde_json::json!({"name": "c", "terminationMessagePath": "/out",
            "volumeMounts": [{"name": "v", "mountPath": "/out"}]});
        assert_eq!(container(taken), None);
    }
}
