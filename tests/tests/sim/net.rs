//! One direction of a faulty link. Worse than TCP: it may lose, double and reorder messages
//! without the connection breaking.

use std::time::{Duration, Instant};

use crate::rng::Rng;

/// Faults in cases per thousand messages; all zero is a perfect wire.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lose: u64,
    pub(crate) double: u64,
    pub(crate) delay_ms_max: u64,
}

pub(crate) struct Pipe<T> {
    under_way: Vec<(Instant, T)>,
    pub(crate) lost: u64,
}

impl<T: Clone> Pipe<T> {
    pub(crate) fn new() -> Self {
        Self {
            under_way: Vec::new(),
            lost: 0,
        }
    }

    pub(crate) fn send(&mut self, item: T, now: Instant, faults: Faults, rng: &mut Rng) {
        if rng.chance(faults.lose) {
            self.lost += 1;
            return;
        }
        let copies = if rng.chance(faults.double) { 2 } else { 1 };
        for _ in 0..copies {
            let due = now + Duration::from_millis(rng.below(faults.delay_ms_max + 1));
            self.under_way.push((due, item.clone()));
        }
    }

    /// What has arrived by `now`, in the order of arrival.
    pub(crate) fn arrived(&mut self, now: Instant) -> Vec<T> {
        self.under_way.sort_by_key(|(due, _)| *due);
        let count = self.under_way.partition_point(|(due, _)| *due <= now);
        self.under_way
            .drain(..count)
            .map(|(_, item)| item)
            .collect()
    }

    pub(crate) fn clear(&mut self) {
        self.lost += self.under_way.len() as u64;
        self.under_way.clear();
    }
}
