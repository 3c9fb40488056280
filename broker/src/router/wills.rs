//! Wills: kept from the CONNECT on, so that a death of the broker does not swallow them.

use std::sync::Arc;

use super::{Router, Timer};
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
            // Two of one client: the older connection had been taken over.
            if let Some(old) = session.will.replace(will) {
                self.void_wills.extend(old.row);
                self.timers
                    .retain(|(_, timed, kind)| (*timed, *kind) != (key, timer));
            }
            self.timers.insert((at, key, timer));
        }
        unreadable
    }
}
