//! The set of long-lived tasks: any that ends by itself ends the process (the service manager
//! restarts it, and start-up reconciles from disk), and stopping happens in phases under one
//! deadline.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// All phases together; a service manager kills after 90 s by default.
const DRAIN_MAX: Duration = Duration::from_secs(8);

/// Of it, for what takes things in: what was accepted is committed by then.
const INTAKE_MAX: Duration = Duration::from_secs(2);

/// Why the daemon leaves.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    Signal,
    /// This task ended and should not have.
    Fatal(&'static str),
}

type Outcome = (&'static str, Result<(), String>);

/// When a task is told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes things in from outside: sockets that are listened on.
    Intake,
    /// Everything else.
    Core,
}

/// The tasks and their two stop tokens.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<Outcome>,
    intake_tasks: JoinSet<Outcome>,
    intake: CancellationToken,
    core: CancellationToken,
}

impl Supervisor {
    /// The token that tells a task of this phase to stop.
    pub fn token(&self, phase: Phase) -> CancellationToken {
        match phase {
            Phase::Intake => self.intake.clone(),
            Phase::Core => self.core.clone(),
        }
    }

    /// Starts a task that must not end before its token is cancelled.
    pub fn spawn<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.tasks
            .spawn(async move { (name, task.await.map_err(|error| error.to_string())) });
    }

    /// As [`Self::spawn`], for a task of [`Phase::Intake`]: it ends when what it has accepted is
    /// committed, and only then the others are told to stop.
    pub fn spawn_intake<E: std::fmt::Display>(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.intake_tasks
            .spawn(async move { (name, task.await.map_err(|error| error.to_string())) });
    }

    /// Waits for a signal or for a task that ends; then stops everything.
    pub async fn run(mut self) -> Exit {
        let exit = tokio::select! {
            () = stop_signal() => Exit::Signal,
            Some(ended) = self.tasks.join_next() => fatal(ended),
            Some(ended) = self.intake_tasks.join_next() => fatal(ended),
        };
        self.stop().await;
        exit
    }

    async fn stop(&mut self) {
        self.intake.cancel();
        let taken_in = tokio::time::timeout(INTAKE_MAX, async {
            while self.intake_tasks.join_next().await.is_some() {}
        });
        if taken_in.await.is_err() {
            tracing::warn!("what was being taken in did not end in time");
        }
        self.core.cancel();
        let drained = tokio::time::timeout(DRAIN_MAX, async {
            while self.tasks.join_next().await.is_some() {}
        });
        if drained.await.is_err() {
            tracing::warn!(
                left = self.tasks.len(),
                "tasks did not stop in time; leaving without them"
            );
            self.tasks.abort_all();
        }
    }
}

fn fatal(ended: Result<Outcome, tokio::task::JoinError>) -> Exit {
    match ended {
        Ok((name, Ok(()))) => {
            tracing::error!(task = name, "core task ended by itself");
            Exit::Fatal(name)
        }
        Ok((name, Err(error))) => {
            tracing::error!(task = name, error, "core task failed");
            Exit::Fatal(name)
        }
        Err(panic) => {
            tracing::error!(%panic, "core task panicked");
            Exit::Fatal("panic")
        }
    }
}

/// SIGTERM or SIGINT. If neither can be listened for, never.
async fn stop_signal() {
    match (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    ) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "signals cannot be listened for");
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_takes_the_others_along() {
        let mut supervisor = Supervisor::default();
        let core = supervisor.token(Phase::Core);
        let told = core.clone();
        supervisor.spawn("waits", async move {
            core.cancelled().await;
            Ok::<_, String>(())
        });
        supervisor.spawn("fails", async { Err("broken") });
        assert_eq!(supervisor.run().await, Exit::Fatal("fails"));
        assert!(told.is_cancelled());
    }

    #[tokio::test]
    async fn what_is_taken_in_ends_before_the_rest_is_told() {
        let mut supervisor = Supervisor::default();
        let (intake, core) = (
            supervisor.token(Phase::Intake),
            supervisor.token(Phase::Core),
        );
        let (committed, told) = tokio::sync::watch::channel(false);
        supervisor.spawn_intake("takes in", async move {
            intake.cancelled().await;
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            committed.send_replace(true);
            Ok::<_, String>(())
        });
        let seen = told.clone();
        supervisor.spawn("stores", async move {
            core.cancelled().await;
            assert!(*seen.borrow(), "stopped before everything was committed");
            Ok::<_, String>(())
        });
        supervisor.spawn("fails", async { Err("broken") });
        assert_eq!(supervisor.run().await, Exit::Fatal("fails"));
        assert!(*told.borrow());
    }
}
