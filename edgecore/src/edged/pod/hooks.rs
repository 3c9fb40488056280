//! Lifecycle hooks: postStart and preStop (`kubelet/lifecycle/handlers.go`).

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use super::probe::{self, http};
use crate::edged::runtime::{Runtime, RuntimeError};

/// Longest that a postStart hook may take. Kubelet sets none; a container is held back by its hook
/// either way, and this ends a hook whose end was lost.
pub(super) const POST_START_MAX: Duration = Duration::from_secs(24 * 3600);

/// A hook is tried again as soon as the daemon is heard of; after this also without a word: one
/// refused call need not interrupt its stream of events.
const DAEMON_AWAY: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    Exec(Vec<String>),
    Http(http::Get),
    Sleep(Duration),
}

/// What the pod asks for; a hook of another kind fails, as with kubelet.
pub(super) fn read(container: &Container, handler: &LifecycleHandler) -> Result<Hook, String> {
    if let Some(exec) = &handler.exec {
        return Ok(Hook::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(get) = &handler.http_get {
        return probe::http_get(container, get).map(Hook::Http);
    }
    if let Some(sleep) = &handler.sleep {
        let secs = u64::try_from(sleep.seconds).unwrap_or(0);
        return Ok(Hook::Sleep(Duration::from_secs(secs)));
    }
    Err("invalid handler".to_owned())
}

pub(super) fn post_start(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.post_start.as_ref()
}

pub(super) fn pre_stop(container: &Container) -> Option<&LifecycleHandler> {
    container.lifecycle.as_ref()?.pre_stop.as_ref()
}

/// Carries a hook out; `limit` is what a command and a request may take, the caller bounds all of
/// it.
///
/// # Errors
/// With what went wrong, which may hold what the hook wrote: it is for logs, not for events.
pub(super) async fn run(
    runtime: &dyn Runtime,
    id: &str,
    hook: Hook,
    address: &str,
    limit: Duration,
) -> Result<(), String> {
    match hook {
        Hook::Exec(command) => exec(runtime, id, &command, limit).await,
        // Any answer will do: kubelet does not look at the status of a hook.
        Hook::Http(get) => http::request(&get, address, limit, "kube-lifecycle")
            .await
            .map(|_| ()),
        Hook::Sleep(duration) => {
            tokio::time::sleep(duration.min(limit)).await;
            Ok(())
        }
    }
}

/// A daemon that is away says nothing about the hook: it is run when the daemon is back, perhaps
/// again, rather than ending the container for it.
async fn exec(
    runtime: &dyn Runtime,
    id: &str,
    command: &[String],
    limit: Duration,
) -> Result<(), String> {
    let mut changes = runtime.changes();
    loop {
        changes.mark_unchanged();
        match runtime.exec_sync(id, command, limit).await {
            Ok(output) if output.exit_code == 0 => return Ok(()),
            Ok(output) => return Err(format!("exit code {}", output.exit_code)),
            Err(RuntimeError::Unavailable { .. }) => {
                let heard = tokio::time::timeout(DAEMON_AWAY, changes.changed()).await;
                if let Ok(Err(_)) = heard {
                    return Err("the runtime ends".to_owned());
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
