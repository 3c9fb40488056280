//! The thread that owns the database: whatever waits is committed together.

use tokio::sync::{mpsc, oneshot, watch};

use super::{
    ReadingsError,
    db::Db,
    db::{Progress, Settled},
    parse::Row,
};
use crate::clock;

/// Jobs in one commit.
const BATCH_JOBS_MAX: usize = 128;

type Reply<T> = oneshot::Sender<Result<T, ReadingsError>>;

/// What the thread is asked.
pub(super) enum Job {
    Append {
        node: String,
        epoch: String,
        entries: Vec<(u64, Vec<Row>)>,
        reply: Reply<()>,
    },
    Prune(Reply<()>),
    Register(String, Reply<Progress>),
    Advance {
        name: String,
        up_to: i64,
        how: Settled,
        reply: Reply<Progress>,
    },
}

/// An answer that is given after the commit, or instead of it.
type Answer = Box<dyn FnOnce(Result<(), ReadingsError>)>;

/// Runs until the last handle is gone.
pub(super) fn run(mut db: Db, mut waiting: mpsc::Receiver<Job>, newest: &watch::Sender<i64>) {
    let mut jobs = Vec::new();
    while waiting.blocking_recv_many(&mut jobs, BATCH_JOBS_MAX) > 0 {
        let now = clock::unix_millis();
        let mut answers: Vec<Answer> = Vec::with_capacity(jobs.len());
        let begun = db.begin();
        let mut outcome = begun;
        for job in jobs.drain(..) {
            let answer = act(&mut db, job, now, &mut outcome);
            answers.push(answer);
        }
        if outcome.is_ok() {
            outcome = db.finish(now);
        }
        if outcome.is_err() {
            db.roll_back();
        }
        let failure = outcome.err().map(|error| error.to_string());
        newest.send_if_modified(|n| std::mem::replace(n, db.newest()) != db.newest());
        for answer in answers {
            answer(match &failure {
                None => Ok(()),
                Some(error) => Err(ReadingsError::Database(error.clone())),
            });
        }
    }
    db.close();
}

/// Does one job unless one before it failed: all share the commit.
fn act(db: &mut Db, job: Job, now: i64, outcome: &mut rusqlite::Result<()>) -> Answer {
    fn step<T>(
        outcome: &mut rusqlite::Result<()>,
        job: impl FnOnce() -> rusqlite::Result<T>,
    ) -> Option<T> {
        if outcome.is_err() {
            return None;
        }
        match job() {
            Ok(value) => Some(value),
            Err(error) => {
                *outcome = Err(error);
                None
            }
        }
    }
    fn later<T: 'static>(reply: Reply<T>, value: Option<T>) -> Answer {
        // Whoever asked may be gone.
        Box::new(move |committed| {
            let _ = reply.send(committed.and_then(|()| value.ok_or(ReadingsError::Closed)));
        })
    }
    match job {
        Job::Append {
            node,
            epoch,
            entries,
            reply,
        } => {
            let done = step(outcome, || db.append(&node, &epoch, entries, now));
            later(reply, done)
        }
        Job::Prune(reply) => {
            // What is too old goes with every commit.
            later(reply, Some(()))
        }
        Job::Register(name, reply) => {
            let done = step(outcome, || db.register(&name));
            later(reply, done)
        }
        Job::Advance {
            name,
            up_to,
            how,
            reply,
        } => {
            let done = step(outcome, || db.advance(&name, up_to, how));
            later(reply, done)
        }
    }
}
