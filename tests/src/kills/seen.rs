//! What the hub was seen to have.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::ledger;

/// The readings of one device, which are numbered from 1.
#[derive(Debug, Default)]
struct Readings {
    all: BTreeSet<u64>,
    live: u64,
    history: u64,
}

/// The readings of each stream, taken from the hub's ledger a part at a time.
#[derive(Debug)]
pub(super) struct Seen {
    streams: BTreeMap<String, Readings>,
    /// Position in the ledger up to which it was read.
    position: u64,
    history: u64,
}

impl Seen {
    pub(super) fn new(streams: impl Iterator<Item = String>) -> Self {
        Self {
            streams: streams.map(|s| (s, Readings::default())).collect(),
            position: 0,
            history: 0,
        }
    }

    /// Takes what is new.
    ///
    /// # Errors
    /// A reading came twice, or out of order among its like.
    pub(super) fn take(&mut self, ledger: &Value) -> Result<()> {
        for entry in ledger["entries"].as_array().into_iter().flatten() {
            let position = entry["seq"].as_u64().context("no seq")?;
            if position <= self.position {
                continue;
            }
            self.position = position;
            let stream = entry["stream"].as_str().unwrap_or_default();
            let Some(readings) = self.streams.get_mut(stream) else {
                continue;
            };
            let value = entry["value"]["temperature"].as_str();
            let number: u64 = value
                .and_then(|value| value.parse().ok())
                .with_context(|| format!("no reading: {entry}"))?;
            ensure!(readings.all.insert(number), "{stream}: {number} came twice");
            let is_history = entry["history"] == true;
            self.history += u64::from(is_history);
            let last = if is_history {
                &mut readings.history
            } else {
                &mut readings.live
            };
            let what = if is_history { "history" } else { "live" };
            ensure!(
                number > *last,
                "{stream}: {number} came after {last}, {what}"
            );
            *last = number;
        }
        Ok(())
    }

    /// How many there are.
    pub(super) fn readings(&self) -> u64 {
        self.streams.values().map(|r| r.all.len() as u64).sum()
    }

    /// How many of them came as history.
    pub(super) fn history(&self) -> u64 {
        self.history
    }

    pub(super) fn has_all_up_to(&self, wanted: u64) -> bool {
        let is_whole = |r: &Readings| r.all.len() as u64 >= wanted;
        self.streams.values().all(is_whole)
    }

    /// What is missing, for a person.
    pub(super) fn missing_up_to(&self, wanted: u64) -> String {
        let of = |(stream, readings): (&String, &Readings)| {
            let gone: Vec<u64> = (1..=wanted).filter(|n| !readings.all.contains(n)).collect();
            let (count, first) = (gone.len(), gone.first()?);
            Some(format!("{count} of {stream}, from {first} on"))
        };
        let all: Vec<String> = self.streams.iter().filter_map(of).collect();
        all.join("; ")
    }

    /// The hub counts what it shows.
    ///
    /// # Errors
    /// It counts more.
    pub(super) fn agrees_with(&self, told: &Value) -> Result<()> {
        for (stream, readings) in &self.streams {
            let (counted, shown) = (ledger::received(told, stream), readings.all.len());
            ensure!(
                counted == shown as u64,
                "{stream}: the hub counts {counted}, and showed {shown}"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn take(entries: &[(u64, u64, bool)]) -> Result<Seen> {
        let entries: Vec<Value> = entries
            .iter()
            .map(|(seq, number, is_history)| {
                json!({
                    "seq": seq, "stream": "s", "history": is_history,
                    "value": {"temperature": number.to_string()},
                })
            })
            .collect();
        let mut seen = Seen::new(["s".to_owned()].into_iter());
        seen.take(&json!({ "entries": entries }))?;
        Ok(seen)
    }

    #[test]
    fn history_may_follow_what_is_live_and_each_keeps_its_order() {
        for (name, entries, is_fine) in [
            ("in order", &[(1, 1, false), (2, 2, false)][..], true),
            ("swapped", &[(1, 2, false), (2, 1, false)], false),
            ("twice", &[(1, 1, false), (2, 1, true)], false),
            (
                "history after",
                &[(1, 3, false), (2, 1, true), (3, 2, true)],
                true,
            ),
            (
                "history swapped",
                &[(1, 3, false), (2, 2, true), (3, 1, true)],
                false,
            ),
            ("read before", &[(1, 1, false), (1, 1, false)], true),
        ] {
            assert_eq!(take(entries).is_ok(), is_fine, "{name}");
        }
        let seen = take(&[(1, 3, false), (2, 1, true)]).unwrap();
        assert_eq!(seen.missing_up_to(3), "1 of s, from 2 on");
        assert!(!seen.has_all_up_to(3));
        assert!(seen.agrees_with(&json!({"streams": {"s": 3}})).is_err());
    }
}
