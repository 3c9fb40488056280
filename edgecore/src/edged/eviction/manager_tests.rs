use proptest::prelude::*;

use super::*;
use crate::edged::eviction::threshold::Amount;

const MIB: i64 = 1 << 20;

fn config() -> Config {
    let memory = |amount: i64, grace: Option<u64>| Threshold {
        signal: Signal::MemoryAvailable,
        amount: Amount::Value(amount * MIB),
        grace: grace.map(Duration::from_secs),
        reclaim: Some(Amount::Value(50 * MIB)),
    };
    Config {
        thresholds: vec![
            memory(100, None),
            memory(300, Some(60)),
            Threshold {
                signal: Signal::NodefsAvailable,
                amount: Amount::Share(1000),
                grace: None,
                reclaim: None,
            },
        ],
        transition: Duration::from_secs(300),
        ..Config::default()
    }
}

fn saw(memory_mib: i64, disk_percent: i64) -> Observations {
    let of = |available, capacity| Observation {
        available,
        capacity,
    };
    Observations::from([
        (Signal::MemoryAvailable, of(memory_mib * MIB, 4096 * MIB)),
        (Signal::NodefsAvailable, of(disk_percent, 100)),
    ])
}

#[test]
fn a_hard_threshold_acts_at_once_and_until_the_minimum_is_back() {
    let mut manager = Manager::new(config());
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    let calm = manager.observe(&saw(400, 50), at(0));
    assert_eq!((calm.pressure, calm.starved), (Pressure::default(), None));
    let short = manager.observe(&saw(99, 50), at(10));
    assert!(short.pressure.memory && !short.pressure.disk);
    let starved = short.starved.unwrap();
    assert!(starved.threshold.is_hard());
    assert_eq!(starved.observation.available, 99 * MIB);
    // 120 MiB is above the threshold, but not by the minimum.
    let more = manager.observe(&saw(120, 50), at(20));
    assert!(more.starved.is_some_and(|s| s.threshold.is_hard()));
    let soft = manager.observe(&saw(160, 50), at(30));
    assert_eq!(soft.starved, None, "the soft one's grace is not over");
    assert!(soft.pressure.memory);
    let soft = manager.observe(&saw(160, 50), at(71));
    assert!(soft.starved.is_some_and(|s| !s.threshold.is_hard()));
    let calm = manager.observe(&saw(400, 50), at(80));
    assert_eq!(calm.starved, None);
    assert!(calm.pressure.memory, "for the transition period");
    assert!(manager.observe(&saw(400, 50), at(370)).pressure.memory);
    assert!(!manager.observe(&saw(400, 50), at(371)).pressure.memory);
}

#[test]
fn a_soft_threshold_that_passes_begins_anew() {
    let mut manager = Manager::new(config());
    let start = Instant::now();
    let at = |seconds: u64| start + Duration::from_secs(seconds);
    assert_eq!(manager.observe(&saw(200, 50), at(0)).starved, None);
    assert_eq!(manager.observe(&saw(301, 50), at(50)).starved, None);
    assert_eq!(manager.observe(&saw(200, 50), at(60)).starved, None);
    assert_eq!(manager.observe(&saw(200, 50), at(119)).starved, None);
    assert!(manager.observe(&saw(200, 50), at(120)).starved.is_some());
}

#[test]
fn memory_goes_before_disk_and_what_is_not_read_decides_nothing() {
    let mut manager = Manager::new(config());
    let start = Instant::now();
    let both = manager.observe(&saw(10, 5), start);
    assert!(both.pressure.memory && both.pressure.disk);
    let first = both.starved.unwrap().threshold.signal;
    assert_eq!(first, Signal::MemoryAvailable);
    let blind = manager.observe(&Observations::new(), start + Duration::from_secs(900));
    assert_eq!(blind.starved, None);
    assert!(
        blind.pressure.memory && blind.pressure.disk,
        "not known to be over"
    );
}

proptest! {
    /// Nothing is taken back while more is left than every threshold with its minimum asks for,
    /// and the condition follows what is short at once.
    #[test]
    fn only_a_shortage_acts(steps in proptest::collection::vec((0i64..600, 0i64..100, 0u64..120), 1..40)) {
        let mut manager = Manager::new(config());
        let mut now = Instant::now();
        for (memory, disk, seconds) in steps {
            now += Duration::from_secs(seconds);
            let outlook = manager.observe(&saw(memory, disk), now);
            if memory >= 350 && disk >= 10 {
                prop_assert_eq!(outlook.starved, None);
            }
            if memory < 100 {
                prop_assert!(outlook.starved.is_some_and(|s| s.threshold.is_hard()));
            }
            prop_assert!(outlook.pressure.memory || memory >= 300);
            prop_assert!(outlook.pressure.disk || disk >= 10);
        }
    }
}
