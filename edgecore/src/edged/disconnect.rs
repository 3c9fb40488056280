//! What happens to a pod while the hub is away (design D14): by default nothing. A pod may ask to
//! be stopped after some time, with `outpost.dev/on-disconnect: stop-after=<duration>`; it is
//! started again when the hub is back. So it is no verdict: nothing about the pod ends.
//!
//! The time is counted by a clock that nobody sets: the machine's uptime at the start of this
//! process plus monotonic time since. A file carries the count over restarts of the daemon and of
//! the machine; time in which the machine was off does not count. The file is written only while
//! the hub is away and some pod asks for it: when a pod is stopped, when this process ends, after a
//! minute and then every ten.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::pod::state::FOREVER;

/// The annotation.
pub const ON_DISCONNECT: &str = "outpost.dev/on-disconnect";

const FIRST_WRITE: Duration = Duration::from_secs(60);
const WRITE_EVERY: Duration = Duration::from_secs(600);

/// What a pod asks for. The error is for people; such a pod is kept.
pub fn stop_after(pod: &Pod) -> Result<Option<Duration>, String> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(asked) = annotations.and_then(|map| map.get(ON_DISCONNECT)) else {
        return Ok(None);
    };
    let Some(text) = asked.strip_prefix("stop-after=") else {
        return match asked.as_str() {
            "keep" | "" => Ok(None),
            other => Err(format!(
                "`{other}` is neither `keep` nor `stop-after=<duration>`"
            )),
        };
    };
    let duration: jiff::SignedDuration = text
        .parse()
        .map_err(|_| format!("`{text}` is no duration such as `90s`, `10m` or `1h30m`"))?;
    Duration::try_from(duration)
        .map(|after| Some(after.min(FOREVER)))
        .map_err(|_| format!("`{text}` is negative"))
}

/// The count, as a file carries it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Marker {
    /// Which boot the times are of.
    boot: String,
    /// Uptime at which the hub went, and at which it was last known to be away.
    since_ms: u64,
    seen_ms: u64,
    /// Counted in boots before this one.
    carried_ms: u64,
}

impl Marker {
    /// What it says in this boot, at this uptime.
    fn resumed(self, boot: &str, up_ms: u64) -> Self {
        if self.boot == boot && self.since_ms <= up_ms {
            return self;
        }
        Self {
            boot: boot.to_owned(),
            since_ms: up_ms,
            seen_ms: up_ms,
            carried_ms: self
                .carried_ms
                .saturating_add(self.seen_ms.saturating_sub(self.since_ms)),
        }
    }

    fn away_ms(&self, up_ms: u64) -> u64 {
        self.carried_ms
            .saturating_add(up_ms.saturating_sub(self.since_ms))
    }
}

/// How long the hub has been away.
pub(super) struct Absence {
    link: Option<watch::Receiver<bool>>,
    file: PathBuf,
    boot: String,
    up_at_start: Duration,
    started: Instant,
    /// `None` while the hub is there.
    away: Option<Marker>,
    write_at: Instant,
    /// Pods that ask for it, and those whose time is over.
    asked: usize,
    over: usize,
}

impl Absence {
    /// Without `link` there is no hub that could be away.
    pub(super) fn new(link: Option<watch::Receiver<bool>>, file: PathBuf, boot: String) -> Self {
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
        let seconds = uptime.split('.').next().and_then(|s| s.parse().ok());
        let mut absence = Self {
            link,
            boot,
            up_at_start: Duration::from_secs(seconds.unwrap_or(0)),
            started: Instant::now(),
            away: None,
            write_at: Instant::now() + FIRST_WRITE,
            asked: 0,
            over: 0,
            file,
        };
        let marker = read(&absence.file);
        let up = absence.up_ms();
        absence.away = marker.map(|marker| marker.resumed(&absence.boot, up));
        absence.look();
        absence
    }

    fn up_ms(&self) -> u64 {
        let up = self.up_at_start + self.started.elapsed();
        u64::try_from(up.as_millis()).unwrap_or(u64::MAX)
    }

    /// Waits until the link changes. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let gone = match &mut self.link {
            Some(link) => link.changed().await.is_err(),
            None => true,
        };
        if gone {
            std::future::pending::<()>().await;
        }
    }

    /// Takes note of the link as it is now.
    pub(super) fn look(&mut self) {
        let Some(link) = &mut self.link else {
            return;
        };
        let connected = *link.borrow_and_update();
        let up = self.up_ms();
        match (&self.away, connected) {
            (None, false) => {
                self.away = Some(Marker {
                    boot: self.boot.clone(),
                    since_ms: up,
                    seen_ms: up,
                    carried_ms: 0,
                });
                self.write_at = Instant::now() + FIRST_WRITE;
            }
            (Some(_), true) => {
                self.away = None;
                match std::fs::remove_file(&self.file) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        debug!(%error, "marker of the hub's absence not removed");
                    }
                    _ => {}
                }
            }
            (None, true) | (Some(_), false) => {}
        }
    }

    fn away_for(&self) -> Option<Duration> {
        let away = self.away.as_ref()?;
        Some(Duration::from_millis(away.away_ms(self.up_ms())))
    }

    /// Whether a pod that asks for this is to be stopped now.
    pub(super) fn is_over(&self, after: Option<Duration>) -> bool {
        match (after, self.away_for()) {
            (Some(after), Some(away)) => away >= after,
            _ => false,
        }
    }

    /// Given what the pods ask for: writes the count down if it is time, and says when to come
    /// back. `None` while the hub is there or nobody asks.
    pub(super) fn keep(&mut self, asked: impl Iterator<Item = Duration>) -> Option<Instant> {
        let now = Instant::now();
        let Some(away) = self.away_for() else {
            (self.asked, self.over) = (0, 0);
            return None;
        };
        let (mut all, mut over, mut next) = (0, 0, None::<Duration>);
        for after in asked {
            all += 1;
            if after <= away {
                over += 1;
            } else {
                next = Some(next.map_or(after, |next| next.min(after)));
            }
        }
        self.asked = all;
        // Written at once when a pod is stopped: a daemon that starts anew must not start it.
        if std::mem::replace(&mut self.over, over) < over {
            info!(
                away_secs = away.as_secs(),
                pods = over,
                "the hub is away; pods that asked for it are stopped"
            );
            self.write();
        }
        let next = next?;
        if self.write_at <= now {
            self.write();
            self.write_at = now + WRITE_EVERY;
        }
        Some((now + next.saturating_sub(away)).min(self.write_at))
    }

    /// This process ends.
    pub(super) fn leave(&mut self) {
        if self.asked > 0 {
            self.write();
        }
    }

    fn write(&mut self) {
        let up = self.up_ms();
        let Some(away) = &mut self.away else {
            return;
        };
        away.seen_ms = up;
        let partial = self.file.with_extension("new");
        let written = serde_json::to_vec(away)
            .map_err(std::io::Error::from)
            .and_then(|bytes| std::fs::write(&partial, bytes))
            .and_then(|()| std::fs::rename(&partial, &self.file));
        if let Err(error) = written {
            warn!(%error, "how long the hub has been away is not written down; a restart forgets it");
        }
    }
}

fn read(file: &Path) -> Option<Marker> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(text: &str) -> Result<Option<Duration>, String> {
        let pod = serde_json::json!({"metadata": {"annotations": {ON_DISCONNECT: text}}});
        stop_after(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn annotations_are_read() {
        let secs = |secs| Ok(Some(Duration::from_secs(secs)));
        assert_eq!(stop_after(&Pod::default()), Ok(None));
        assert_eq!(asks("keep"), Ok(None));
        assert_eq!(asks("stop-after=90s"), secs(90));
        assert_eq!(asks("stop-after=1h30m"), secs(5400));
        for wrong in ["stop", "stop-after=", "stop-after=-5s", "stop-after=soon"] {
            assert!(asks(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_count_goes_on_over_restarts_of_daemon_and_machine() {
        let marker = Marker {
            boot: "a".to_owned(),
            since_ms: 1_000,
            seen_ms: 31_000,
            carried_ms: 5_000,
        };
        // The daemon alone: nothing is lost, whenever it was written.
        assert_eq!(marker.clone().resumed("a", 61_000).away_ms(61_000), 65_000);
        // The machine: what was written, and on from here.
        assert_eq!(marker.resumed("b", 9_000).away_ms(10_000), 36_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_beyond_all_clocks_is_for_ever() {
        let directory = tempfile::tempdir().unwrap();
        let link = watch::Sender::new(false);
        let file = directory.path().join("away");
        let mut absence = Absence::new(Some(link.subscribe()), file, "boot".to_owned());
        let asked = asks("stop-after=2500000000000000h").unwrap();
        assert!(absence.keep(asked.into_iter()).is_some());
        assert!(!absence.is_over(asked));
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_counted_while_the_hub_is_away() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("away");
        let link = watch::Sender::new(true);
        let after = Duration::from_secs(300);
        let make = || Absence::new(Some(link.subscribe()), file.clone(), "boot".to_owned());
        let mut absence = make();
        assert_eq!(absence.keep([after].into_iter()), None, "the hub is there");
        link.send_replace(false);
        absence.changed().await;
        absence.look();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(
            absence.keep([after].into_iter()),
            Some(Instant::now() + Duration::from_secs(200))
        );
        assert!(file.exists(), "written after a minute");
        assert!(!absence.is_over(Some(after)));
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert!(absence.is_over(Some(after)));
        assert!(!absence.is_over(None), "others are kept");
        assert_eq!(
            absence.keep([after].into_iter()),
            None,
            "nothing left to wait for"
        );
        link.send_replace(true);
        absence.look();
        assert!(!absence.is_over(Some(after)));
        assert!(!file.exists());
    }
}
