//! One masquerading rule for the whole built-in network, instead of the three rules and one chain
//! that the bridge plugin makes for each pod with `ipMasq` (measured: 8 executions of iptables,
//! 24 ms of processor time a pod, and every rule makes the next one slower).

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

/// Member of a conflist that asks for the rule.
const MEMBER: &str = "outpostMasquerade";
/// iptables itself waits this long for its lock.
const LOCK_WAIT: &str = "10";
const RUN_MAX: Duration = Duration::from_secs(20);
const COMMENT: &str = "outpost pods";

/// What is translated: packets from `source` that leave by any interface but `bridge`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    source: String,
    bridge: String,
}

/// Whether the rule is known to stand; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Masquerade {
    made: Arc<Mutex<bool>>,
}

/// Asks for the rule in a conflist of ours.
pub(super) fn ask(conflist: &mut Value, source: &str, bridge: &str) {
    if let Some(members) = conflist.as_object_mut() {
        members.insert(
            MEMBER.to_owned(),
            json!({ "source": source, "bridge": bridge }),
        );
    }
}

fn asked(conflist: &Value) -> Option<Rule> {
    let text = |member: &str| Some(conflist.get(MEMBER)?.get(member)?.as_str()?.to_owned());
    Some(Rule {
        source: text("source")?,
        bridge: text("bridge")?,
    })
}

/// Where iptables is, if it is installed.
pub(super) fn iptables() -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|directory| Path::new(directory).join("iptables"))
        .find(|candidate| candidate.exists())
}

impl Masquerade {
    /// Makes the rule unless it stands. The first pod after a start asks the kernel.
    pub(super) async fn ensure(&self, conflist: &Value) -> Result<(), String> {
        let Some(rule) = asked(conflist) else {
            return Ok(());
        };
        let mut made = self.made.lock().await;
        if *made {
            return Ok(());
        }
        if run("-C", &rule).await.is_err() {
            run("-A", &rule).await?;
        }
        *made = true;
        Ok(())
    }

    /// Removes the rule if `is_last` says so under the lock: nobody can ask for it meanwhile.
    pub(super) async fn forget_if(&self, conflist: &Value, is_last: impl FnOnce() -> bool) {
        let Some(rule) = asked(conflist) else {
            return;
        };
        let mut made = self.made.lock().await;
        if !is_last() {
            return;
        }
        *made = false;
        if let Err(reason) = run("-D", &rule).await {
            tracing::debug!(reason, "masquerading rule not removed");
        }
    }
}

async fn run(command: &str, rule: &Rule) -> Result<(), String> {
    let program = iptables().ok_or("iptables is not installed")?;
    let ran = Command::new(program)
        .args(["-w", LOCK_WAIT, "-t", "nat", command, "POSTROUTING"])
        .args(["-s", &rule.source, "!", "-o", &rule.bridge])
        .args(["-m", "comment", "--comment", COMMENT, "-j", "MASQUERADE"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(RUN_MAX, ran)
        .await
        .map_err(|_| format!("iptables did not end within {RUN_MAX:?}"))?
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_site_s_own_conflist_is_left_alone() {
        let mut conflist = json!({ "name": "site", "plugins": [] });
        let masquerade = Masquerade::default();
        masquerade.ensure(&conflist).await.unwrap();
        masquerade
            .forget_if(&conflist, || unreachable!("nothing was asked for"))
            .await;
        ask(&mut conflist, "10.88.1.0/24", "edge0");
        assert_eq!(
            asked(&conflist),
            Some(Rule {
                source: "10.88.1.0/24".to_owned(),
                bridge: "edge0".to_owned()
            })
        );
    }
}
