use super::*;

fn timing(period: u64, success: u32, failure: u32) -> Timing {
    Timing {
        initial_delay: Duration::ZERO,
        period: Duration::from_secs(period),
        timeout: Duration::from_secs(1),
        success,
        failure,
        grace: None,
    }
}

fn bad() -> Outcome {
    Outcome::Failure("no".to_owned())
}

struct Scene {
    probes: Probes,
    born: Instant,
    now: Instant,
}

impl Scene {
    fn new(timings: &[(Kind, Timing)]) -> Self {
        let born = Instant::now();
        let mut probes = Probes::default();
        probes.begin("c", timings, true, born, None, born);
        Self {
            probes,
            born,
            now: born,
        }
    }

    /// Goes to the next time something is due; when that is, and what.
    fn next(&mut self, ending: bool) -> Option<(u64, Vec<Kind>)> {
        self.now = self.probes.due(ending)?;
        let taken = self.probes.take_due(self.now, ending);
        let kinds = taken.into_iter().map(|(_, kind)| kind).collect();
        Some((self.now.duration_since(self.born).as_secs(), kinds))
    }

    fn answer(&mut self, kind: Kind, outcome: &Outcome) -> bool {
        self.probes.finished("c", kind, outcome, self.now)
    }

    /// started, ready, failed
    fn health(&self) -> (bool, bool, Option<Cause>) {
        let health = self.probes.health("c");
        (health.started, health.ready, health.fault.map(|f| f.cause))
    }
}

#[test]
fn readiness_follows_its_thresholds_and_nothing_else_is_a_change() {
    let mut scene = Scene::new(&[(Kind::Readiness, timing(10, 2, 3))]);
    assert_eq!(scene.health(), (true, false, None));
    let script = [
        (bad(), false, false),
        (Outcome::Success, false, false),
        (Outcome::Error("no answer".to_owned()), false, false),
        (Outcome::Success, true, true),
        (Outcome::Success, false, true),
        (bad(), false, true),
        (bad(), false, true),
        (Outcome::Success, false, true),
        (bad(), false, true),
        (bad(), false, true),
        (bad(), true, false),
        (bad(), false, false),
    ];
    for (at, (outcome, changes, ready)) in script.into_iter().enumerate() {
        let due = 1 + 10 * u64::try_from(at).unwrap();
        assert_eq!(scene.next(false), Some((due, vec![Kind::Readiness])));
        assert_eq!(scene.probes.due(false), None, "one at a time");
        assert_eq!(scene.answer(Kind::Readiness, &outcome), changes, "{at}");
        assert_eq!(scene.health().1, ready, "{at}");
    }
    assert_eq!(scene.health().2, None, "readiness ends nobody");
}

#[test]
fn liveness_ends_a_container_once() {
    let mut scene = Scene::new(&[(Kind::Liveness, timing(5, 1, 2))]);
    assert_eq!(scene.health(), (true, true, None));
    scene.next(false);
    assert!(!scene.answer(Kind::Liveness, &bad()));
    assert_eq!(scene.next(false).unwrap().0, 6);
    assert!(scene.answer(Kind::Liveness, &bad()));
    assert_eq!(scene.health(), (true, true, Some(Cause::Liveness)));
    assert_eq!(scene.next(false), None, "asked no more");
    scene.probes.retain(&BTreeSet::new());
    assert!(!scene.probes.knows("c"));
    assert!(!scene.answer(Kind::Liveness, &bad()), "came too late");
}

#[test]
fn startup_holds_back_the_others_and_then_hastens_readiness() {
    let startup = Timing {
        initial_delay: Duration::from_secs(4),
        grace: Some(Duration::from_secs(7)),
        ..timing(3, 1, 2)
    };
    let timings = [
        (Kind::Startup, startup),
        (Kind::Liveness, timing(10, 1, 1)),
        (Kind::Readiness, timing(100, 1, 1)),
    ];
    let mut scene = Scene::new(&timings);
    assert_eq!(scene.health(), (false, false, None));
    assert_eq!(scene.next(false), Some((4, vec![Kind::Startup])));
    assert!(!scene.answer(Kind::Startup, &bad()));
    assert_eq!(scene.next(false), Some((7, vec![Kind::Startup])));
    assert!(scene.answer(Kind::Startup, &Outcome::Success));
    assert_eq!(scene.health(), (true, false, None));
    let both = vec![Kind::Liveness, Kind::Readiness];
    scene.now = scene.probes.due(false).unwrap().max(scene.now);
    let taken = scene.probes.take_due(scene.now, false);
    assert_eq!(taken.into_iter().map(|t| t.1).collect::<Vec<_>>(), both);
    assert_eq!(scene.now.duration_since(scene.born).as_secs(), 7);
    assert!(scene.answer(Kind::Readiness, &Outcome::Success));
    assert_eq!(scene.health(), (true, true, None));

    let mut scene = Scene::new(&timings);
    for _ in 0..2 {
        scene.next(false);
        scene.answer(Kind::Startup, &bad());
    }
    let fault = scene.probes.health("c").fault.unwrap();
    assert_eq!(fault.cause, Cause::Startup);
    assert_eq!(fault.grace, Some(Duration::from_secs(7)));
}

#[test]
fn a_pod_that_ends_is_only_asked_whether_it_is_ready() {
    let timings = [
        (Kind::Liveness, timing(5, 1, 1)),
        (Kind::Readiness, timing(5, 1, 1)),
    ];
    let mut scene = Scene::new(&timings);
    assert_eq!(scene.next(true), Some((1, vec![Kind::Readiness])));
}

#[test]
fn nobody_is_asked_before_the_post_start_hook_is_over() {
    let born = Instant::now();
    let mut probes = Probes::default();
    let timings = [(Kind::Readiness, timing(5, 1, 1))];
    probes.begin("c", &timings, false, born, None, born);
    assert_eq!(probes.due(false), None);
    let health = probes.health("c");
    assert!(!health.hooked && !health.started && !health.ready);
    probes.hook_over("c", true);
    assert!(probes.health("c").started && probes.due(false).is_some());
    probes.hook_over("c", false);
    let fault = probes.health("c").fault.unwrap();
    assert_eq!(fault.cause, Cause::PostStart);
}

#[test]
fn an_adopted_container_stays_what_it_was_known_to_be() {
    let now = Instant::now();
    let timings = [
        (Kind::Startup, timing(5, 1, 1)),
        (Kind::Readiness, timing(10, 1, 1)),
    ];
    let known = Known {
        started: true,
        ready: true,
    };
    let mut probes = Probes::default();
    probes.begin("c", &timings, true, now, Some((known, 0.5)), now);
    assert!(probes.health("c").started && probes.health("c").ready);
    assert_eq!(probes.due(false), Some(now + Duration::from_secs(5)));
    let unknown = Some((Known::default(), 0.5));
    probes.begin(
        "c",
        &timings,
        true,
        now,
        unknown,
        now + Duration::from_secs(60),
    );
    assert!(!probes.health("c").started);
    let at = probes.due(false).unwrap();
    assert_eq!(at, now + Duration::from_secs(60), "asked at once");
}
