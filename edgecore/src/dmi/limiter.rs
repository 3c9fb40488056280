//! Calls per second and mapper. KubeEdge has one bucket for all mappers, refilled once a second.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::peer::Peer;

/// Processes remembered; the one that has been silent longest is forgotten.
const PEERS_MAX: usize = 128;

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

/// One bucket a process: the stock framework opens a connection for every call.
#[derive(Debug)]
pub(super) struct Limiter {
    per_second: f64,
    buckets: Mutex<BTreeMap<(u32, i32), Bucket>>,
}

impl Limiter {
    pub(super) fn new(per_second: u32) -> Self {
        Self {
            per_second: f64::from(per_second),
            buckets: Mutex::default(),
        }
    }

    /// Takes one call; false if there is none left. A burst is one second's worth.
    pub(super) fn allow(&self, peer: Peer, now: Instant) -> bool {
        let key = (peer.uid, peer.pid.unwrap_or_default());
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= PEERS_MAX && !buckets.contains_key(&key) {
            let silent = buckets.iter().min_by_key(|(_, bucket)| bucket.at);
            if let Some(silent) = silent.map(|(key, _)| *key) {
                buckets.remove(&silent);
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket {
            tokens: self.per_second,
            at: now,
        });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.tokens = (bucket.tokens + since * self.per_second).min(self.per_second);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_process_has_its_own_calls_and_they_come_back() {
        let limiter = Limiter::new(100);
        let start = Instant::now();
        let peer = |pid| Peer {
            uid: 0,
            pid: Some(pid),
        };
        let taken = |pid, at| (0..1000).filter(|_| limiter.allow(peer(pid), at)).count();
        assert_eq!(taken(1, start), 100);
        assert_eq!(taken(1, start), 0);
        assert_eq!(taken(2, start), 100, "another mapper is not touched");
        assert_eq!(taken(1, start + Duration::from_millis(500)), 50);
        assert_eq!(taken(1, start + Duration::from_secs(60)), 100, "no hoard");
        for pid in 3..1000 {
            assert!(limiter.allow(peer(pid), start + Duration::from_secs(61)));
        }
        assert!(limiter.buckets.lock().unwrap().len() <= PEERS_MAX);
    }
}
