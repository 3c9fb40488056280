//! Seeded simulation: the shipped sessions, DeviceTwin, outbox, store and MetaManager over a
//! network that loses, delays, doubles, reorders and cuts, a disk that is full at times, and
//! crashes at any commit. Safety is checked at every step, convergence at the end.
//!
//! `SEED=n cargo test -p outpost-tests --test sim` runs one schedule and says what it did.

mod cloud;
mod net;
mod node;
mod rng;
mod things;
mod world;

use world::World;

/// Fixed seeds of every run; `SIM_SEEDS` asks for more.
const SEEDS: u64 = 200;

fn run(seed: u64) {
    // A failing assertion must name the schedule that broke it.
    let outcome = std::panic::catch_unwind(|| World::new(seed).run());
    if let Err(cause) = outcome {
        eprintln!("seed {seed} failed; again with SEED={seed}");
        std::panic::resume_unwind(cause);
    }
}

#[test]
fn nothing_acknowledged_is_lost_and_both_sides_converge() {
    if let Some(seed) = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
    {
        let told = World::new(seed).run();
        eprintln!("{told:#?}");
        return;
    }
    let seeds = std::env::var("SIM_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(SEEDS);
    for seed in 0..seeds {
        run(seed);
    }
}

/// A simulation that never crashes, cuts or fills a disk proves nothing.
#[test]
fn the_schedules_reach_the_faults_they_are_for() {
    let mut sum = world::Told::default();
    for seed in 0..25 {
        sum.add(&World::new(seed).run());
    }
    assert!(sum.crashes_before_commit > 10, "{sum:#?}");
    assert!(sum.crashes_after_commit > 10, "{sum:#?}");
    assert!(sum.disk_full > 10, "{sum:#?}");
    assert!(sum.cuts > 40, "{sum:#?}");
    assert!(sum.messages_lost > 40, "{sum:#?}");
    assert!(sum.hub_crashes > 20, "{sum:#?}");
    assert!(sum.events_sent_again > 40, "{sum:#?}");
    assert!(sum.readings > 500, "{sum:#?}");
}
