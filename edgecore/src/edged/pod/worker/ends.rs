//! How containers ended: kept on disk, recalled after a reboot, and what they said last.

use std::collections::BTreeSet;

use tracing::warn;

use super::super::state::RestartPolicy;
use super::super::{convert, exits, last_words};
use super::Worker;
use crate::edged::runtime::ContainerState;

impl Worker {
    /// Writes down how containers ended before it is told, and recalls what a reboot made the
    /// runtime forget: work that was done is not done again.
    pub(super) async fn keep_exits(&mut self) {
        if self.want.restart == RestartPolicy::Always && self.record.verdict.is_none() {
            return;
        }
        let Some(dir) = self.context.dirs.exits(&self.id.uid) else {
            return;
        };
        for index in 0..self.seen.len() {
            let Some(seen) = self.seen.get(index).cloned() else {
                return;
            };
            let key = (seen.name.clone(), seen.attempt);
            if matches!(
                seen.state,
                ContainerState::Created | ContainerState::Running { .. }
            ) {
                continue;
            }
            let known = if let Some(known) = self.exits.get(&key) {
                known.clone()
            } else {
                let dir = dir.clone();
                let work = move || match seen.state {
                    ContainerState::Unknown => {
                        Ok(exits::recall(&dir, &seen.name, seen.attempt).unwrap_or(seen.state))
                    }
                    ContainerState::Created
                    | ContainerState::Running { .. }
                    | ContainerState::Exited { .. } => {
                        exits::record(&dir, &seen.name, seen.attempt, &seen.state)
                            .map(|()| seen.state)
                    }
                };
                match tokio::task::spawn_blocking(work).await {
                    Ok(Ok(state)) => {
                        self.exits.insert(key, state.clone());
                        state
                    }
                    Ok(Err(error)) => {
                        warn!(pod = %self.id.name, namespace = %self.id.namespace, error = %error,
                            "end of a container not written down; a reboot would forget it");
                        continue;
                    }
                    Err(_) => continue,
                }
            };
            if let Some(seen) = self.seen.get_mut(index)
                && seen.state == ContainerState::Unknown
            {
                seen.state = known;
            }
        }
        let seen: BTreeSet<(&str, u32)> = self
            .seen
            .iter()
            .map(|s| (s.name.as_str(), s.attempt))
            .collect();
        self.exits
            .retain(|(name, attempt), _| seen.contains(&(name.as_str(), *attempt)));
    }

    /// Reads what ended containers left as their last words, once each.
    pub(super) async fn hear_last_words(&mut self) {
        let present: BTreeSet<&str> = self.seen.iter().map(|seen| seen.id.as_str()).collect();
        self.last_words
            .retain(|id, _| present.contains(id.as_str()));
        let ended: Vec<_> = self
            .seen
            .iter()
            .filter(|seen| matches!(seen.state, ContainerState::Exited { .. }))
            .filter(|seen| !self.last_words.contains_key(&seen.id))
            .cloned()
            .collect();
        for seen in ended {
            let ContainerState::Exited { exit_code, .. } = seen.state else {
                continue;
            };
            let container = convert::container(&self.pod, &seen.name);
            let asks_logs = exit_code != 0
                && container.is_some_and(|c| {
                    c.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
                });
            let file = self.message_file(&seen.name, seen.attempt);
            let bytes_max = last_words::bytes_max(&self.pod);
            let log = asks_logs.then_some(seen.log_path);
            let work = move || last_words::read(file.as_deref(), log.as_deref(), bytes_max);
            let words = tokio::task::spawn_blocking(work).await.unwrap_or_default();
            self.last_words.insert(seen.id, words);
        }
    }

    /// Where a container's last words are on this node.
    pub(super) fn message_file(&self, name: &str, attempt: u32) -> Option<std::path::PathBuf> {
        let dir = self.context.dirs.exits(&self.id.uid)?;
        Some(dir.join("messages").join(format!("{name}.{attempt}")))
    }
}
