//! Tells when the kernel ran out of memory as a whole and ended a process of its choice (kubelet
//! `pkg/kubelet/oom/oom_watcher_linux.go`, event `SystemOOM`). What ends at a container's own limit
//! is that container's matter.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::{debug, warn};

use super::events;
use super::pod::worker::Context;

const KERNEL_LOG: &str = "/dev/kmsg";
/// A record is read whole or not at all (`Documentation/ABI/testing/dev-kmsg`).
const RECORD_BYTES: usize = 8192;

/// Whom the kernel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Victim {
    name: String,
    pid: u32,
}

/// A record of `/dev/kmsg`: `level,sequence,time,flags;text`. The line that `dump_oom_summary` of
/// the kernel's `mm/oom_kill.c` writes: with `global_oom` when no group's limit was the reason.
fn victim(record: &str) -> Option<Victim> {
    let text = record.split_once(';')?.1.lines().next()?;
    let fields = text.strip_prefix("oom-kill:")?;
    // The process' name may hold commas: it stands between its own key and the last `,pid=`.
    let (before, rest) = fields.split_once(",task=")?;
    if !before.split(',').any(|field| field == "global_oom") {
        return None;
    }
    let (name, rest) = rest.rsplit_once(",pid=")?;
    let pid = rest.split(',').next()?.parse().ok()?;
    Some(Victim {
        name: name.to_owned(),
        pid,
    })
}

fn message(victim: &Victim) -> String {
    format!(
        "System OOM encountered, victim process: {}, pid: {}",
        victim.name, victim.pid
    )
}

struct KernelLog(AsyncFd<File>);

impl KernelLog {
    /// From now on.
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::options()
            .read(true)
            .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
            .open(path)?;
        file.seek(SeekFrom::End(0))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for descriptors that others may close; this one is owned"
        )]
        let file = AsyncFd::with_interest(file, Interest::READABLE)?;
        Ok(Self(file))
    }

    /// The next record. Cancel-safe.
    async fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable_mut().await?;
            match ready.try_io(|file| file.get_mut().read(buffer)) {
                // Records were overwritten before they were read: on with what is left.
                Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Ok(result) => return result,
                Err(_) => {}
            }
        }
    }
}

/// Watches the kernel's log. Ends when there is none.
pub(super) async fn run(context: &Context) {
    let mut log = match KernelLog::open(Path::new(KERNEL_LOG)) {
        Ok(log) => log,
        Err(error) => {
            debug!(%error, "the kernel's log cannot be read; no SystemOOM is told");
            return;
        }
    };
    let mut buffer = [0; RECORD_BYTES];
    loop {
        let length = match log.next(&mut buffer).await {
            Ok(length) if length > 0 => length,
            Ok(_) => return,
            Err(error) => {
                debug!(%error, "the kernel's log is read no more; no SystemOOM is told");
                return;
            }
        };
        let record = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
        if let Some(victim) = victim(&record) {
            warn!(
                process = victim.name,
                pid = victim.pid,
                "the kernel ran out of memory"
            );
            let now_ms = (context.now_ms)();
            let event = events::of_node(&context.node_name, "SystemOOM", &message(&victim), now_ms);
            context.sink.event(event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_systems_shortage_counts() {
        let global = "6,1,2,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),\
                      cpuset=edgepods,mems_allowed=0,global_oom,task_memcg=/edgepods/podu,\
                      task=a,b) x,pid=4711,uid=0\n SUBSYSTEM=x\n";
        assert_eq!(
            victim(global),
            Some(Victim {
                name: "a,b) x".to_owned(),
                pid: 4711
            })
        );
        assert_eq!(
            message(&victim(global).unwrap()),
            "System OOM encountered, victim process: a,b) x, pid: 4711"
        );
        let own_limit = "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,\
                         mems_allowed=0,oom_memcg=/edgepods/podu,task_memcg=/edgepods/podu/c,\
                         task=stress,pid=1,uid=0";
        for other in [
            own_limit,
            // A process that calls itself so.
            "6,1,2,-;oom-kill:constraint=CONSTRAINT_MEMCG,task=x,global_oom,pid=1,uid=0",
            "6,1,2,-;Out of memory: Killed process 1 (x)",
            "6,1,2,-;oom-kill:global_oom,task=x,pid=many,uid=0",
            "oom-kill:",
            "",
        ] {
            assert_eq!(victim(other), None, "{other}");
        }
    }

    /// A real one of a memory limit is in the log of the resource tests; here the log itself.
    #[tokio::test]
    async fn the_kernels_log_is_read_from_now_on() {
        use std::io::Write;
        let Ok(mut log) = KernelLog::open(Path::new(KERNEL_LOG)) else {
            return;
        };
        let Ok(mut writer) = File::options().write(true).open(KERNEL_LOG) else {
            return;
        };
        let mark = format!("outpost-test-{:x}\n", rand::random::<u64>());
        writer.write_all(mark.as_bytes()).unwrap();
        let mut buffer = [0; RECORD_BYTES];
        let found = async {
            loop {
                let length = log.next(&mut buffer).await.unwrap();
                if String::from_utf8_lossy(&buffer[..length]).contains(mark.trim_end()) {
                    return;
                }
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), found)
            .await
            .unwrap();
    }
}
