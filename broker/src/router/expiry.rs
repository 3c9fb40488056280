//! Times of sessions: when they end, and when delayed wills are due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{DueWill, NOBODY, Router, Timer};
use crate::limits::{CLOCK_STEP_MS, ENDS_WRITTEN_MAX};
use crate::record::Moment;
use crate::storage::Op;
use crate::trie::SessionKey;

impl Router {
    /// `life` is what is left of `expiry_secs`, of which `u32::MAX` is for ever.
    pub(super) fn start_expiry(
        &mut self,
        key: SessionKey,
        expiry_secs: u32,
        life: Duration,
        now: Instant,
    ) {
        if expiry_secs != u32::MAX {
            self.timers.insert((now + life, key, Timer::Expiry));
        }
    }

    /// When the next timer is due.
    pub(crate) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _, _)| *at)
    }

    /// Fires what is due: sessions that expire, wills whose delay is over.
    pub(crate) fn fire_timers(&mut self, now: Instant, ops: &mut Vec<Op>) -> Vec<DueWill> {
        let mut due = Vec::new();
        while let Some((at, key, timer)) = self.timers.first().copied() {
            if at > now {
                break;
            }
            self.timers.remove(&(at, key, timer));
            match timer {
                Timer::Expiry => due.extend(self.remove_session(key, ops)),
                Timer::Will if key == NOBODY => due.append(&mut self.late_wills),
                Timer::Will => due.extend(self.sessions.get_mut(&key).and_then(|session| {
                    let client = Arc::clone(&session.client);
                    session.will.take().map(|will| DueWill { client, will })
                })),
            }
        }
        due
    }

    /// Writes when absent sessions end, where their rows do not say so by the clock as it is now:
    /// the last run died, or the clock was not set (right) when they were written. At most
    /// [`ENDS_WRITTEN_MAX`] at once.
    pub(crate) fn write_ends(&mut self, now: Moment, ops: &mut Vec<Op>) {
        for (at, key, timer) in &self.timers {
            let Some(session) = self.sessions.get_mut(key) else {
                continue;
            };
            let ends_ms = now.wall_ms_of(*at);
            if *timer != Timer::Expiry
                || !session.is_stored
                || ends_ms == 0
                || ends_ms.abs_diff(session.ends_ms) < CLOCK_STEP_MS
            {
                continue;
            }
            session.ends_ms = ends_ms;
            ops.push(session.put(&mut self.revision));
            if ops.len() >= ENDS_WRITTEN_MAX {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Limits;
    use crate::record;
    use crate::storage::Loaded;

    const DAY_MS: u64 = 86_400_000;

    fn kept(ends_ms: u64) -> Loaded {
        let state = record::encode_session(4, 7 * 86_400, ends_ms, [].into_iter());
        Loaded {
            sessions: vec![("d".to_owned(), state)],
            ..Loaded::default()
        }
    }

    fn written(router: &mut Router, now: Moment) -> Option<u64> {
        let mut ops = Vec::new();
        router.write_ends(now, &mut ops);
        let Some(Op::SessionPut { state, .. }) = ops.first() else {
            return None;
        };
        Some(record::decode_session(state).unwrap().ends_ms)
    }

    #[test]
    fn the_end_of_an_absent_session_is_written_whenever_the_clock_turns_out_to_be_another() {
        let start = Moment::now();
        let later = |millis, wall_ms| Moment {
            at: start.at + Duration::from_millis(millis),
            wall_ms,
        };
        let week_on = start.wall_ms + 7 * DAY_MS;
        for (name, ends_ms, steps) in [
            (
                "the last run died",
                0,
                vec![(later(0, start.wall_ms), Some(week_on))],
            ),
            (
                "left six days ago",
                start.wall_ms + DAY_MS,
                vec![(later(0, start.wall_ms), None)],
            ),
            (
                "the clock is set a day forward after a minute",
                week_on,
                vec![
                    (later(0, start.wall_ms), None),
                    (later(60_000, start.wall_ms + 60_000), None),
                    (
                        later(60_000, start.wall_ms + DAY_MS + 60_000),
                        Some(week_on + DAY_MS),
                    ),
                    (later(60_000, start.wall_ms + DAY_MS + 60_000), None),
                ],
            ),
            (
                "the clock is not set",
                week_on,
                vec![(later(60_000, 5_000), None)],
            ),
        ] {
            let mut router = Router::new(Limits::default(), Arc::default());
            assert_eq!(router.load(kept(ends_ms), start), 0, "{name}");
            for (now, expected) in steps {
                assert_eq!(written(&mut router, now), expected, "{name}");
            }
        }
    }

    #[test]
    fn a_session_that_was_kept_for_longer_than_is_allowed_now_is_cut() {
        let limits = Limits {
            session_expiry_max_secs: 60,
            ..Limits::default()
        };
        let mut router = Router::new(limits, Arc::default());
        let now = Moment::now();
        router.load(kept(now.wall_ms + DAY_MS), now);
        let minute = now.at + Duration::from_secs(60);
        assert_eq!(router.next_timer(), Some(minute));
        let mut ops = Vec::new();
        assert!(router.fire_timers(minute, &mut ops).is_empty());
        assert!(matches!(ops[..], [Op::SessionDelete { .. }]));
    }
}
