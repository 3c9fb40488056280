//! Outbox rows on their way to the hub: read, told, deleted; a backlog's history behind what is live.

use std::time::{Duration, Instant};

use wire::limits;
use wire::message::Message;

use super::{Done, Driver, History, TIDY_EVERY};
use crate::clock;
use crate::outbox;
use crate::store::StoreError;

/// Delivered rows are deleted this much later, many with one commit. Until then they count as
/// pending; after a crash the hub says at connect what it has.
const DELETE_AFTER: Duration = Duration::from_millis(500);
/// Outbox rows read at once.
const ROWS_MAX: usize = 256;
/// Rows of the history put into the queue at once.
const HISTORY_ROWS: u32 = 256;
/// Room that the history leaves in the window: what is live never waits for it.
const HISTORY_LEAVES: usize = limits::UPSTREAM_WINDOW / 2;
/// How far the history may lag behind its rate and catch up.
const HISTORY_LAG: Duration = Duration::from_millis(200);
/// After a store that could not put history into the queue.
const HISTORY_RETRY_AFTER: Duration = Duration::from_secs(5);

impl Driver {
    /// Puts the outbox in order for a connection: for a hub of ours, which has what is up to
    /// `acked`, live values before history; for a plain one everything as it came.
    pub(in crate::hub) async fn resume(&mut self, acked: Option<u64>) -> Result<(), StoreError> {
        self.history = None;
        let Some(acked) = acked else {
            if self.store.write(outbox::resume_plain).await? {
                self.session.forget_pushed();
                self.cursor = 0;
            }
            return Ok(());
        };
        let newest = self.store.read(move |tx| outbox::newest(tx, acked)).await?;
        let is_backlog = newest.is_some();
        let now = clock::unix_millis();
        let resumed = self.store.write(move |tx| {
            outbox::expire(tx, now)?;
            let mark = outbox::resume(tx, acked, newest)?;
            outbox::queue_gaps(tx, now)?;
            Ok(mark)
        });
        let mark = match resumed.await {
            Ok(mark) => mark,
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, "the backlog cannot be put in order now; it goes as it came");
                self.store.read(outbox::mark).await?
            }
            Err(error) => return Err(error),
        };
        if is_backlog {
            tracing::info!("a backlog waits; its newest values go first");
        }
        self.session.forget_pushed();
        self.cursor = mark;
        self.history = (mark > 0).then(History::default);
        Ok(())
    }

    pub(super) fn has_room_for_history(&self) -> bool {
        self.session.is_connected() && self.session.capacity() > HISTORY_LEAVES
    }

    pub(super) fn may_release(&self, now: Instant) -> bool {
        let due = |history: &History| history.next.is_none_or(|at| at <= now);
        self.history.as_ref().is_some_and(due) && !self.more_rows && self.has_room_for_history()
    }

    /// Puts the next rows of the history behind the live ones.
    pub(super) async fn release_history(&mut self, now: Instant) -> Result<(), StoreError> {
        let Some(history) = &mut self.history else {
            return Ok(());
        };
        let mut told = history.told.clone();
        let rows_max = HISTORY_ROWS.min(self.history_rate);
        let limit = usize::try_from(rows_max).unwrap_or(ROWS_MAX);
        let released = self.store.write(move |tx| {
            let rows = outbox::release(tx, &mut told, limit)?;
            Ok((told, rows))
        });
        match released.await {
            Ok((told, rows)) => {
                history.told = told;
                let since = history
                    .next
                    .map_or(now, |at| at.max(now.checked_sub(HISTORY_LAG).unwrap_or(at)));
                history.next =
                    Some(since + Duration::from_secs(rows_max.into()) / self.history_rate);
                if rows < limit {
                    self.history = None;
                    tracing::info!("the backlog is in the queue");
                }
                self.more_rows = rows > 0;
                self.pull_rows().await
            }
            Err(error) => {
                history.next = Some(now + HISTORY_RETRY_AFTER);
                Err(error)
            }
        }
    }

    pub(super) fn tidy(&mut self, now: Instant) {
        if self.tidy_at.is_none_or(|at| at > now) || !self.session.is_connected() {
            return;
        }
        self.tidy_at = Some(now + TIDY_EVERY);
        let wall = clock::unix_millis();
        let done = self.done.clone();
        // A store that is busy is asked again in a minute.
        drop(self.store.submit_fn(
            move |tx| {
                outbox::expire(tx, wall)?;
                outbox::queue_gaps(tx, wall)
            },
            move |outcome| {
                let has_rows = outcome.unwrap_or(false);
                drop(done.try_send(Done::Tidied { has_rows }));
            },
        ));
    }

    pub(super) fn delete_delivered(&mut self, now: Instant) {
        if self.deleting || self.delivered <= self.deleted {
            return;
        }
        if *self.delete_at.get_or_insert(now + DELETE_AFTER) > now {
            return;
        }
        self.delete_at = None;
        let up_to = self.delivered;
        let done = self.done.clone();
        let submitted = self.store.submit_fn(
            move |tx| outbox::delivered_up_to(tx, up_to),
            move |outcome| drop(done.try_send(Done::Deleted { up_to, outcome })),
        );
        self.deleting = submitted.is_ok();
    }

    pub(super) fn finish_row(
        &mut self,
        seq: u64,
        finish: fn(&rusqlite::Connection, u64) -> Result<bool, StoreError>,
    ) {
        let submitted = self.store.submit_fn(
            move |tx| finish(tx, seq),
            move |outcome| {
                if let Err(error) = outcome {
                    tracing::warn!(seq, %error, "outbox row was not closed; it is sent again");
                }
            },
        );
        if let Err(error) = submitted {
            tracing::warn!(seq, %error, "outbox row was not closed; it is sent again after a restart");
        }
    }

    /// Hands outbox rows to the session while it has room.
    pub(super) async fn pull_rows(&mut self) -> Result<(), StoreError> {
        while self.more_rows && self.session.is_connected() && self.session.capacity() > 0 {
            let limit = self.session.capacity().min(ROWS_MAX);
            let after = self.cursor.max(self.delivered);
            let rows = self
                .store
                .read(move |tx| outbox::pending(tx, after, limit))
                .await?;
            self.more_rows = rows.len() == limit;
            for row in rows {
                self.cursor = row.seq;
                match Message::decode(&row.message) {
                    // There is room: `limit` said so.
                    Ok(message) if row.is_history => {
                        let _ = self.session.push_history(row.seq, row.stream, message);
                    }
                    Ok(message) => drop(self.session.push(row.seq, row.stream, message)),
                    Err(error) => {
                        tracing::error!(seq = row.seq, %error, "outbox row is unreadable; it counts as expired");
                        self.finish_row(row.seq, outbox::expired_one);
                    }
                }
            }
        }
        Ok(())
    }
}
