//! Renewing the node's certificate while the hub is reached, after 70–90 % of its life
//! (protocol §2.5). The link keeps its connection; the next one uses the new certificate.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::join::{self, JoinError};
use super::tls::{self, Floor};
use super::{HubHandle, LinkPhase};
use crate::config::HubConfig;

/// After a failure. The hub may be reached and still refuse.
const RETRY_AFTER: Duration = Duration::from_secs(3600);
/// Wall time may jump (a node that boots in 1970), so nothing is slept through for longer.
const LOOK_AGAIN: Duration = Duration::from_secs(86_400);

/// Runs until `stop`; works only while the link is up.
pub async fn run(
    config: HubConfig,
    node: String,
    hub: HubHandle,
    floor: Floor,
    stop: CancellationToken,
) -> Result<(), JoinError> {
    let mut link = hub.link();
    let share = 0.7 + 0.2 * rand::random::<f64>();
    loop {
        // Cancel-safe: a token and a watch.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            up = link.wait_for(|state| state.phase == LinkPhase::Connected) => {
                if up.is_err() {
                    return Ok(());
                }
            }
        }
        let wait = match due_in(&config, share, floor.now_ms()) {
            Some(wait) if wait.is_zero() => {
                match join::renew(&config.http_server, &node, &config.tls, &floor).await {
                    Ok(()) => {
                        tracing::info!("node certificate renewed");
                        LOOK_AGAIN
                    }
                    Err(error) => {
                        tracing::warn!(%error, "node certificate was not renewed; tried again later");
                        RETRY_AFTER
                    }
                }
            }
            Some(wait) => wait.min(LOOK_AGAIN),
            None => LOOK_AGAIN,
        };
        // Cancel-safe: a token and a timer.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Time until renewal; `None` without a readable certificate.
fn due_in(config: &HubConfig, share: f64, now_ms: i64) -> Option<Duration> {
    let chain = tls::certificates(&config.tls.cert).ok()?;
    let (from, until) = join::validity(chain.first()?)?;
    Some(remaining(from, until, share, now_ms))
}

fn remaining(from: i64, until: i64, share: f64, now_ms: i64) -> Duration {
    let life = Duration::from_secs(u64::try_from(until.saturating_sub(from)).unwrap_or(0));
    let age = u64::try_from(now_ms.saturating_sub(from.saturating_mul(1000))).unwrap_or(0);
    life.mul_f64(share)
        .saturating_sub(Duration::from_millis(age))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn due_after_its_share_of_life_and_at_once_when_late() {
        for (name, now_s, expected_s) in [
            ("fresh", 1000, 80),
            ("half", 1050, 30),
            ("due", 1080, 0),
            ("expired", 5000, 0),
            ("clock before issue", 10, 80),
        ] {
            let wait = remaining(1000, 1100, 0.8, now_s * 1000);
            assert_eq!(wait, Duration::from_secs(expected_s), "{name}");
        }
    }
}
