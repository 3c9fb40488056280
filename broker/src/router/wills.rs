//! Wills: kept from the CONNECT on, so that a death of the broker does not swallow them.

use std::sync::Arc;

use super::{DueWill, NOBODY, Router, Timer};
use crate::proto::Will;
use crate::record::{self, Moment};
use crate::storage::Op;

/// A will that is not published.
pub(crate) fn void(will: Option<Will>, ops: &mut Vec<Op>) {
    if let Some(id) = will.and_then(|will| will.row) {
        ops.push(Op::WillDelete { id });
    }
}

impl Router {
    /// Gives the will of a connection its row.
    pub(crate) fn keep_will(
        &mut self,
        client: &Arc<str>,
        will: &mut Will,
        now: Moment,
        ops: &mut Vec<Op>,
    ) {
        let id = self.next_will;
        self.next_will += 1;
        ops.push(Op::WillPut {
            id,
            client: Arc::clone(client),
            will: record::encode_will(will, now),
        });
        will.row = Some(id);
    }

    /// Wills of connections that the last run did not see ending. Each is due when its client does
    /// not come back in time, or after its delay. Returns how many rows could not be read.
    pub(super) fn load_wills(&mut self, wills: Vec<(u64, String, Vec<u8>)>, now: Moment) -> usize {
        let mut unreadable = 0;
        for (id, client, blob) in wills {
            self.next_will = self.next_will.max(id + 1);
            let Some(will) = record::decode_will(id, &blob, now) else {
                unreadable += 1;
                self.void_wills.push(id);
                continue;
            };
            let delay = std::time::Duration::from_secs(u64::from(will.delay_secs));
            let found = self.by_client.get(client.as_str()).copied();
            // A session that ended with its connection stays for its will alone.
            let key = found.unwrap_or_else(|| self.add_session(client.into(), 0));
            let Some(session) = self.sessions.get_mut(&key) else {
                continue;
            };
            let at = now.at + self.limits.return_within.max(delay);
            let (at, timer) = match session.expiry_secs {
                0 => (now.at + self.limits.return_within, Timer::Expiry),
                _ => (at, Timer::Will),
            };
            // Two of one client: the older connection had been taken over, and only its will with a
            // delay is void.
            if let Some(old) = session.will.replace(will) {
                if old.delay_secs == 0 {
                    let client = Arc::clone(&session.client);
                    self.late_wills.push(DueWill { client, will: old });
                } else {
                    self.void_wills.extend(old.row);
                }
                self.timers
                    .retain(|(_, timed, kind)| (*timed, *kind) != (key, timer));
            }
            self.timers.insert((at, key, timer));
        }
        if !self.late_wills.is_empty() {
            // Whoever wants to know has to come back too.
            let at = now.at + self.limits.return_within;
            self.timers.insert((at, NOBODY, Timer::Will));
        }
        unreadable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::message::{Message, Qos};
    use crate::storage::Loaded;

    #[test]
    fn wills_of_connections_that_were_taken_over_before_a_death_are_published_too() {
        let now = Moment::now();
        let row = |id, topic, delay_secs| {
            let will = Will {
                message: Message::new(topic, "gone", Qos::AtLeastOnce, false),
                delay_secs,
                expiry_secs: None,
                row: None,
            };
            (id, "d".to_owned(), record::encode_will(&will, now))
        };
        for expiry_secs in [0, 100] {
            let state = record::encode_session(1, expiry_secs, 0, [].into_iter());
            let loaded = Loaded {
                // Without an expiry no session is kept.
                sessions: [("d".to_owned(), state)]
                    .into_iter()
                    .filter(|_| expiry_secs > 0)
                    .collect(),
                wills: vec![row(1, "older", 0), row(2, "void", 50), row(3, "newer", 0)],
                ..Loaded::default()
            };
            let mut router = Router::new(Limits::default(), Arc::default());
            assert_eq!(router.load(loaded, now), 0);
            let mut ops = Vec::new();
            let within = router.limits.return_within;
            assert!(router.fire_timers(now.at, &mut ops).is_empty());
            let due = router.fire_timers(now.at + within, &mut ops);
            let topics: Vec<_> = due.iter().map(|due| &*due.will.message.topic).collect();
            assert_eq!(topics, ["older", "newer"], "expiry {expiry_secs}");
            router.take_stale(&mut ops);
            assert!(ops.contains(&Op::WillDelete { id: 2 }));
        }
    }
}
