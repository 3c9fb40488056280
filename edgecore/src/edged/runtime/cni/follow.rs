//! Follows the site's network configuration, so that what appears or changes counts without a
//! restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;

use super::config;
use crate::edged::statics::watch::{Change, Watch};

/// After a failure to follow, and between two looks at a directory whose parents are busy.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the configuration has changed; who wants to be woken by it listens to `announce`.
#[derive(Debug)]
pub(in super::super) struct Follower {
    directory: PathBuf,
    known: Result<Option<Value>, String>,
    count: Arc<AtomicU64>,
    announce: watch::Sender<u64>,
}

/// What counts of the directory: the usable configuration, or what is wrong with it.
fn look(directory: &Path) -> Result<Option<Value>, String> {
    config::load(directory).map_err(|error| error.to_string())
}

impl Follower {
    /// Looks at once: whoever asks for the network after this is told of every change since.
    pub(in super::super) fn new(
        directory: PathBuf,
        count: Arc<AtomicU64>,
        announce: watch::Sender<u64>,
    ) -> Self {
        Self {
            known: look(&directory),
            directory,
            count,
            announce,
        }
    }

    /// Runs until dropped.
    pub(in super::super) async fn run(mut self) {
        loop {
            match Watch::new(&self.directory) {
                Ok(mut watch) => loop {
                    // What happened before the watch is found by the first look.
                    self.compare();
                    match watch.next().await {
                        Ok(Change::Files(_)) => {}
                        Ok(Change::Everything) => break,
                        Err(error) => {
                            tracing::debug!(%error, "network configuration no more followed");
                            break;
                        }
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, "network configuration cannot be followed");
                    self.compare();
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn compare(&mut self) {
        let now = look(&self.directory);
        if self.known == now {
            return;
        }
        match &now {
            Ok(Some(list)) => {
                let network = list["name"].as_str().unwrap_or_default();
                tracing::info!(network, "network configuration changed; new pods get it");
            }
            Ok(None) => tracing::info!("no network configuration; new pods get the built-in one"),
            Err(reason) => tracing::warn!(reason, "network configuration cannot be used"),
        }
        self.known = now;
        self.count.fetch_add(1, Ordering::Release);
        self.announce
            .send_modify(|generation| *generation = generation.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_that_matters_is_counted() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("net.d");
        let (announce, mut changes) = watch::channel(0);
        let count = Arc::new(AtomicU64::new(0));
        let follower = Follower::new(directory.clone(), Arc::clone(&count), announce);
        let running = tokio::spawn(follower.run());
        let text = |name: &str| {
            format!(r#"{{"cniVersion":"1.0.0","name":"{name}","plugins":[{{"type":"x"}}]}}"#)
        };
        let partial = directory.join("10-a.new");
        let write = |text: &str| {
            std::fs::write(&partial, text).unwrap();
            std::fs::rename(&partial, directory.join("10-a.conflist")).unwrap();
        };
        std::fs::create_dir(&directory).unwrap();
        for (n, made) in [text("a"), text("b"), "{".to_owned()].iter().enumerate() {
            write(made);
            let heard = tokio::time::timeout(Duration::from_secs(20), changes.changed());
            heard.await.expect("nothing heard").unwrap();
            assert_eq!(count.load(Ordering::Acquire), n as u64 + 1);
        }
        // What does not count is not told.
        std::fs::write(directory.join("readme"), "x").unwrap();
        std::fs::remove_file(directory.join("10-a.conflist")).unwrap();
        changes.changed().await.unwrap();
        assert_eq!(count.load(Ordering::Acquire), 4);
        running.abort();
    }
}
