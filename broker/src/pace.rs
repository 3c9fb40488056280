//! How fast one client may be: packets and bytes a second, with one second of credit.

use std::time::{Duration, Instant};

use crate::limits::Limits;

const SECOND: Duration = Duration::from_secs(1);

/// A virtual clock that each item moves on by its share of a second; it may run one second ahead
/// of the real one (GCRA).
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// 0 is no limit.
    per_second: u32,
    paid_until: Instant,
}

impl Bucket {
    fn take(&mut self, items: usize, now: Instant) {
        if self.per_second == 0 {
            return;
        }
        let items = u32::try_from(items).unwrap_or(u32::MAX);
        let cost = SECOND * items / self.per_second;
        self.paid_until = self.paid_until.max(now) + cost;
    }

    fn free_at(&self) -> Option<Instant> {
        (self.per_second > 0)
            .then(|| self.paid_until.checked_sub(SECOND))
            .flatten()
    }
}

/// See the module. Beyond the rate the client is not read from: nothing is lost, it waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    packets: Bucket,
    bytes: Bucket,
}

impl Pace {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let bucket = |per_second| Bucket {
            per_second,
            paid_until: now,
        };
        Self {
            packets: bucket(limits.packets_per_second),
            bytes: bucket(limits.bytes_per_second),
        }
    }

    pub(crate) fn take(&mut self, packets: usize, bytes: usize, now: Instant) {
        self.packets.take(packets, now);
        self.bytes.take(bytes, now);
    }

    /// When the client may be heard again, if not now.
    pub(crate) fn paused_until(&self, now: Instant) -> Option<Instant> {
        let at = self.packets.free_at().max(self.bytes.free_at())?;
        (at > now).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_credit_then_the_rate() {
        let limits = Limits {
            packets_per_second: 10,
            bytes_per_second: 0,
            ..Limits::default()
        };
        let start = Instant::now();
        let mut pace = Pace::new(&limits, start);
        pace.take(10, 1 << 20, start);
        assert_eq!(pace.paused_until(start), None);
        pace.take(1, 0, start);
        let until = pace.paused_until(start).unwrap();
        assert_eq!(until, start + Duration::from_millis(100));
        assert_eq!(pace.paused_until(until), None);
        // A minute of silence is worth a second of credit, not sixty.
        let later = start + Duration::from_secs(60);
        pace.take(11, 0, later);
        assert!(pace.paused_until(later).is_some());
    }

    #[test]
    fn no_limit_never_pauses() {
        let start = Instant::now();
        let mut pace = Pace::new(&Limits::default(), start);
        pace.take(1_000_000, usize::MAX, start);
        assert_eq!(pace.paused_until(start), None);
    }
}
