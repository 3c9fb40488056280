//! Waiting on a value that wakes nobody: another process's, a file's, the kernel's. The only place
//! that lets time pass for it; everything else names what it awaits.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Asks again every 20 ms until the answer is `Some`. Fails with `what` and the last error after
/// `limit`.
pub async fn until<T, F>(what: &str, limit: Duration, mut ask: F) -> Result<T>
where
    F: AsyncFnMut() -> Result<Option<T>>,
{
    let started = Instant::now();
    loop {
        let last = match ask().await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if started.elapsed() > limit {
            let waited = format!("waited {} s for {what}", limit.as_secs());
            return match last {
                Some(error) => Err(error).context(waited),
                None => bail!(waited),
            };
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
