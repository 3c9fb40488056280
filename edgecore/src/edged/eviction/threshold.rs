//! When something counts as short: kubelet's eviction signals and thresholds, as its configuration
//! writes them (`eviction/api/types.go`, `eviction/helpers.go: ParseThresholdConfig`).

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::edged::quantity;

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

/// The node condition that goes with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shortage {
    Memory,
    Disk,
    Pids,
}

impl Signal {
    const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|signal| signal.as_str() == text)
    }

    pub const fn shortage(self) -> Shortage {
        match self {
            Self::MemoryAvailable => Shortage::Memory,
            Self::PidAvailable => Shortage::Pids,
            Self::NodefsAvailable
            | Self::NodefsInodesFree
            | Self::ImagefsAvailable
            | Self::ImagefsInodesFree => Shortage::Disk,
        }
    }

    /// The name that messages use.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }
}

/// A quantity, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Value(i64),
    /// In hundredths of a per cent.
    Share(u32),
}

impl Amount {
    /// The amount of a capacity.
    pub fn of(self, capacity: i64) -> i64 {
        match self {
            Self::Value(value) => value,
            Self::Share(share) => {
                let part = i128::from(capacity) * i128::from(share) / 10_000;
                i64::try_from(part).unwrap_or(i64::MAX)
            }
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let Some(number) = text.strip_suffix('%') else {
            let value = quantity::value(&Quantity(text.to_owned()))?;
            return (value >= 0).then_some(Self::Value(value));
        };
        // A share has as many digits as a quantity may have.
        let thousandths = quantity::milli(&Quantity(number.to_owned()))?;
        let share = u32::try_from(thousandths / 10).ok()?;
        (number.chars().all(|c| c.is_ascii_digit() || c == '.') && share <= 10_000)
            .then_some(Self::Share(share))
    }

    /// kubelet's way to switch a threshold off.
    const fn is_off(self) -> bool {
        matches!(self, Self::Share(0 | 10_000))
    }
}

/// Less than `amount` of a signal is too little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// How long it may last before pods are ended; `None`: not at all.
    pub grace: Option<Duration>,
    /// This much more than `amount` ends the shortage.
    pub reclaim: Option<Amount>,
}

impl Threshold {
    pub const fn is_hard(&self) -> bool {
        self.grace.is_none()
    }
}

/// Everything that decides about shortages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub thresholds: Vec<Threshold>,
    /// A condition stays this long after it was last seen.
    pub transition: Duration,
    /// Most time that a pod gets to end when a threshold with grace is met.
    pub pod_grace_max: Duration,
    /// How often the node is looked at when the kernel does not speak up.
    pub interval: Duration,
}

/// A wrong entry: its key below `tailoredKubeletConfig` and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ThresholdError {
    pub key: &'static str,
    pub reason: String,
}

/// The configuration's texts.
#[derive(Clone, Copy, Debug)]
pub struct Texts<'a> {
    pub hard: &'a BTreeMap<String, String>,
    pub soft: &'a BTreeMap<String, String>,
    pub soft_grace: &'a BTreeMap<String, String>,
    pub minimum_reclaim: &'a BTreeMap<String, String>,
}

fn entries<'a>(
    key: &'static str,
    texts: &'a BTreeMap<String, String>,
) -> impl Iterator<Item = Result<(Signal, &'a str), ThresholdError>> {
    texts.iter().map(move |(name, text)| {
        let signal = Signal::parse(name).ok_or_else(|| ThresholdError {
            key,
            reason: format!("`{name}` is no eviction signal of this node"),
        })?;
        Ok((signal, text.as_str()))
    })
}

fn amounts(
    key: &'static str,
    texts: &BTreeMap<String, String>,
) -> Result<BTreeMap<Signal, Amount>, ThresholdError> {
    let mut found = BTreeMap::new();
    for entry in entries(key, texts) {
        let (signal, text) = entry?;
        let amount = Amount::parse(text).ok_or_else(|| ThresholdError {
            key,
            reason: format!("`{text}` is neither a quantity nor a percentage"),
        })?;
        found.insert(signal, amount);
    }
    Ok(found)
}

/// Reads thresholds.
///
/// # Errors
/// An unknown signal, a value that is none, a soft threshold without grace period.
pub fn parse(texts: &Texts<'_>) -> Result<Vec<Threshold>, ThresholdError> {
    let reclaim = amounts("evictionMinimumReclaim", texts.minimum_reclaim)?;
    let mut periods = BTreeMap::new();
    for entry in entries("evictionSoftGracePeriod", texts.soft_grace) {
        let (signal, text) = entry?;
        let period = duration(text).ok_or_else(|| ThresholdError {
            key: "evictionSoftGracePeriod",
            reason: format!("`{text}` is no duration"),
        })?;
        periods.insert(signal, period);
    }
    let mut thresholds = Vec::new();
    for (signal, amount) in amounts("evictionHard", texts.hard)? {
        thresholds.push((signal, amount, None));
    }
    for (signal, amount) in amounts("evictionSoft", texts.soft)? {
        let grace = periods.get(&signal).ok_or_else(|| ThresholdError {
            key: "evictionSoft",
            reason: format!("`{}` needs an evictionSoftGracePeriod", signal.as_str()),
        })?;
        thresholds.push((signal, amount, Some(*grace)));
    }
    let thresholds = thresholds
        .into_iter()
        .filter(|(_, amount, _)| !amount.is_off());
    Ok(thresholds
        .map(|(signal, amount, grace)| Threshold {
            signal,
            amount,
            grace,
            reclaim: reclaim.get(&signal).copied(),
        })
        .collect())
}

/// A duration as Go writes it: `1m30s`, `1.5h`, `300ms`.
pub fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.trim();
    let mut nanos: i128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let (unit, after) = tail.split_at(
            tail.find(|c: char| c.is_ascii_digit() || c == '.')
                .unwrap_or(tail.len()),
        );
        let scale: i128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let thousandths = quantity::milli(&Quantity(number.to_owned()))?;
        nanos = nanos.checked_add(i128::from(thousandths).checked_mul(scale)? / 1000)?;
        rest = after;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

impl Default for Config {
    /// kubelet's, and the process ids that a node cannot do without.
    fn default() -> Self {
        let hard = |signal, amount| Threshold {
            signal,
            amount,
            grace: None,
            reclaim: None,
        };
        Self {
            thresholds: vec![
                hard(Signal::MemoryAvailable, Amount::Value(100 << 20)),
                hard(Signal::NodefsAvailable, Amount::Share(1000)),
                hard(Signal::NodefsInodesFree, Amount::Share(500)),
                hard(Signal::ImagefsAvailable, Amount::Share(1500)),
                hard(Signal::PidAvailable, Amount::Share(500)),
            ],
            transition: Duration::from_secs(300),
            pod_grace_max: Duration::ZERO,
            interval: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn thresholds_are_read_as_kubelet_reads_them() {
        let none = BTreeMap::new();
        let hard = texts(&[
            ("memory.available", "100Mi"),
            ("nodefs.available", "10%"),
            ("nodefs.inodesFree", "5%"),
            ("imagefs.available", "15%"),
            ("pid.available", "5%"),
        ]);
        let read = parse(&Texts {
            hard: &hard,
            soft: &none,
            soft_grace: &none,
            minimum_reclaim: &none,
        });
        assert_eq!(read.unwrap(), Config::default().thresholds);
        let read = parse(&Texts {
            hard: &texts(&[("memory.available", "0%"), ("nodefs.available", "7.5%")]),
            soft: &texts(&[("memory.available", "1Gi")]),
            soft_grace: &texts(&[("memory.available", "1m30s")]),
            minimum_reclaim: &texts(&[("nodefs.available", "1Gi")]),
        })
        .unwrap();
        assert_eq!(read.len(), 2, "0% is off");
        assert_eq!(read[0].amount, Amount::Share(750));
        assert_eq!(read[0].reclaim, Some(Amount::Value(1 << 30)));
        assert_eq!(read[1].grace, Some(Duration::from_secs(90)));
    }

    #[test]
    fn wrong_entries_are_named() {
        let none = BTreeMap::new();
        for (hard, soft, key) in [
            (
                texts(&[("memory.free", "1Mi")]),
                none.clone(),
                "evictionHard",
            ),
            (
                texts(&[("memory.available", "much")]),
                none.clone(),
                "evictionHard",
            ),
            (
                texts(&[("memory.available", "101%")]),
                none.clone(),
                "evictionHard",
            ),
            (
                texts(&[("memory.available", "-1")]),
                none.clone(),
                "evictionHard",
            ),
            (
                none.clone(),
                texts(&[("memory.available", "1Mi")]),
                "evictionSoft",
            ),
        ] {
            let texts = Texts {
                hard: &hard,
                soft: &soft,
                soft_grace: &none,
                minimum_reclaim: &none,
            };
            assert_eq!(parse(&texts).unwrap_err().key, key, "{hard:?} {soft:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, seconds) in [
            ("5m0s", Some(300.0)),
            ("1h", Some(3600.0)),
            ("1.5s", Some(1.5)),
            ("300ms", Some(0.3)),
            ("0", Some(0.0)),
            ("", None),
            ("5", None),
            ("5x", None),
            ("m", None),
        ] {
            assert_eq!(duration(text).map(|d| d.as_secs_f64()), seconds, "{text}");
        }
    }
}
