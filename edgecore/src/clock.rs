//! The only place that reads a clock. Everything else is handed `now`.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the Unix epoch, as the wire carries time.
pub type UnixMillis = i64;

/// Wall time in milliseconds since the epoch; 0 if the clock stands before 1970.
pub fn unix_millis() -> UnixMillis {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
        })
}

/// Monotonic time for timers.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// Waits for `at`, and for ever where nothing is due. May be dropped at any moment.
pub(crate) async fn reached(at: Option<impl Into<tokio::time::Instant>>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
