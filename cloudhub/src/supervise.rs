//! The set of long-lived tasks: none may just return, and one deadline ends them all.

use std::{future::Future, time::Duration};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// How long the tasks may take to finish once asked.
pub const DRAIN_MAX: Duration = Duration::from_secs(5);

/// Why the process ends.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to.
    Asked,
    /// A task that must not end has ended.
    Fatal(&'static str),
}

/// The long-lived tasks of the process.
pub struct Supervisor {
    tasks: JoinSet<(&'static str, Result<(), anyhow::Error>)>,
    stop: CancellationToken,
}

impl Supervisor {
    /// An empty set; `stop` is what asks its tasks to end.
    pub fn new(stop: CancellationToken) -> Self {
        Self {
            tasks: JoinSet::new(),
            stop,
        }
    }

    /// The token that asks everybody to end.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that must not end before the token says so.
    pub fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), anyhow::Error>> + Send + 'static,
    ) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits for the stop token or the first task to end, then drains the rest.
    pub async fn run(mut self) -> Exit {
        let exit = tokio::select! {
            () = self.stop.cancelled() => Exit::Asked,
            Some(ended) = self.tasks.join_next() => match ended {
                Ok((name, Ok(()))) if self.stop.is_cancelled() => {
                    tracing::debug!(task = name, "task ended");
                    Exit::Asked
                }
                Ok((name, Ok(()))) => {
                    tracing::error!(task = name, "task ended unasked");
                    Exit::Fatal(name)
                }
                Ok((name, Err(error))) => {
                    tracing::error!(task = name, error = format!("{error:#}"), "task failed");
                    Exit::Fatal(name)
                }
                Err(panic) => {
                    tracing::error!(error = %panic, "task panicked");
                    Exit::Fatal("panic")
                }
            },
        };
        self.stop.cancel();
        let drained = tokio::time::timeout(DRAIN_MAX, async {
            while self.tasks.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "drain deadline passed; aborting the rest"
            );
        }
        exit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_returns_ends_the_process_and_a_stop_does_not_fail_it() {
        let mut tasks = Supervisor::new(CancellationToken::new());
        let stop = tasks.stop();
        tasks.spawn("waits", async move {
            stop.cancelled().await;
            Ok(())
        });
        tasks.spawn("returns", async { Ok(()) });
        assert_eq!(tasks.run().await, Exit::Fatal("returns"));
        let tasks = Supervisor::new(CancellationToken::new());
        tasks.stop().cancel();
        assert_eq!(tasks.run().await, Exit::Asked);
    }
}
