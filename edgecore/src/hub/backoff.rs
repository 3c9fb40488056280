//! How long to wait before the next attempt to reach the hub: at once, then doubling with jitter.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
/// Cap during the first minute of an outage: a hub that restarts is found within 2 s.
const CAP_EARLY: Duration = Duration::from_millis(1500);
/// Cap afterwards: a node that is offline for weeks makes four attempts a minute.
const CAP_LATE: Duration = Duration::from_secs(15);
const EARLY: Duration = Duration::from_secs(60);

/// Attempts since the link was last up.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A connection stood: the next attempt is immediate again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// The wait before the next attempt. `offline_for` is the time since the link was last up,
    /// `random` is uniform in 0..1 and spreads the nodes of a site by ±25 %.
    pub fn next(&mut self, offline_for: Duration, random: f64) -> Duration {
        let failures = self.failures;
        self.failures = self.failures.saturating_add(1);
        if failures == 0 {
            return Duration::ZERO;
        }
        let cap = if offline_for < EARLY {
            CAP_EARLY
        } else {
            CAP_LATE
        };
        let wait = FIRST.saturating_mul(1 << (failures - 1).min(10)).min(cap);
        wait.mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_attempt_is_immediate_and_the_rest_stay_under_the_cap() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(Duration::ZERO, 1.0), Duration::ZERO);
        assert_eq!(
            backoff.next(Duration::ZERO, 0.5),
            Duration::from_millis(100)
        );
        for _ in 0..40 {
            assert!(backoff.next(Duration::from_secs(30), 1.0) < Duration::from_secs(2));
        }
        let late = backoff.next(Duration::from_secs(61), 1.0);
        assert!(late > Duration::from_secs(15) && late < Duration::from_secs(19));
        backoff.reset();
        assert_eq!(backoff.next(Duration::from_secs(61), 0.0), Duration::ZERO);
    }
}
