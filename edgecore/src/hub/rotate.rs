//! Renewing the node's certificate while the hub is reached, after 70–90 % of its life
//! (protocol §2.5). The link keeps its connection; the next one uses the new certificate.
//!
//! A certificate that expired while the node was away brings no link up; it is renewed all the
//! same: the hub's joining port takes the proof of its key (design D11).

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::join::{self, JoinError};
use super::tls::{self, Floor};
use super::{HubHandle, LinkPhase};
use crate::config::HubConfig;

/// After a failure. The hub may be reached and still refuse.
const RETRY_AFTER: Duration = Duration::from_secs(3600);
/// After a failure with a certificate that has expired: nothing goes on without a new one.
const RETRY_EXPIRED_AFTER: Duration = Duration::from_secs(60);
/// Wall time may jump (a node that boots in 1970), so nothing is slept through for longer.
const LOOK_AGAIN: Duration = Duration::from_secs(86_400);

#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Renew,
    Wait(Duration),
}

/// Runs until `stop`.
pub async fn run(
    config: HubConfig,
    node: String,
    hub: HubHandle,
    floor: Floor,
    stop: CancellationToken,
) -> Result<(), JoinError> {
    let mut link = hub.link();
    let share = 0.7 + 0.2 * rand::random::<f64>();
    let mut told = String::new();
    loop {
        let is_up = link.borrow().is_connected();
        let wait = match plan(is_up, validity(&config), share, floor.now_ms()) {
            Plan::Wait(wait) => wait,
            Plan::Renew => {
                match join::renew(&config.http_server, &node, &config.tls, &floor).await {
                    Ok(()) => {
                        told.clear();
                        tracing::info!("node certificate renewed");
                        LOOK_AGAIN
                    }
                    Err(error) => {
                        let error = error.to_string();
                        if is_up || error != told {
                            tracing::warn!(
                                error,
                                "node certificate was not renewed; tried again later"
                            );
                        }
                        told = error;
                        if is_up {
                            RETRY_AFTER
                        } else {
                            RETRY_EXPIRED_AFTER
                        }
                    }
                }
            }
        };
        // Cancel-safe: a token, a timer and a watch.
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(wait) => {}
            up = link.wait_for(|state| state.phase == LinkPhase::Connected), if !is_up => {
                if up.is_err() {
                    return Ok(());
                }
            }
        }
    }
}

/// First and last second of the certificate's life; `None` without a readable one.
fn validity(config: &HubConfig) -> Option<(i64, i64)> {
    let chain = tls::certificates(&config.tls.cert).ok()?;
    join::validity(chain.first()?)
}

/// While the link is up the certificate is renewed after its share of life; while it is down only
/// when the certificate itself may be the reason.
fn plan(is_up: bool, life: Option<(i64, i64)>, share: f64, now_ms: i64) -> Plan {
    let Some((from, until)) = life else {
        return Plan::Wait(LOOK_AGAIN);
    };
    let wait = remaining(from, until, if is_up { share } else { 1.0 }, now_ms);
    if wait.is_zero() {
        Plan::Renew
    } else {
        Plan::Wait(wait.min(LOOK_AGAIN))
    }
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
    fn an_expired_certificate_is_renewed_though_the_link_is_down() {
        let wait = |secs| Plan::Wait(Duration::from_secs(secs));
        let life = Some((1000, 1100));
        for (name, is_up, life, now_s, expected) in [
            ("up and due", true, life, 1080, Plan::Renew),
            ("up and young", true, life, 1050, wait(30)),
            (
                "down and due: the link comes first",
                false,
                life,
                1080,
                wait(20),
            ),
            ("down and expired", false, life, 1100, Plan::Renew),
            ("down and long expired", false, life, 90_000, Plan::Renew),
            ("not joined", false, None, 90_000, Plan::Wait(LOOK_AGAIN)),
        ] {
            assert_eq!(plan(is_up, life, 0.8, now_s * 1000), expected, "{name}");
        }
    }

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
