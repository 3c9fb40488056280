use proptest::prelude::*;

use super::*;

fn want(delete: bool, restart: RestartPolicy) -> Desired {
    Desired {
        delete,
        grace: Duration::from_secs(30),
        restart,
        finished: false,
        verdict: None,
        containers: vec![wanted("c", Role::Main)],
    }
}

fn wanted(name: &str, role: Role) -> WantContainer {
    WantContainer {
        name: name.to_owned(),
        hash: "h".to_owned(),
        role,
    }
}

fn seen(name: &str, attempt: u32, state: SeenState) -> SeenContainer {
    SeenContainer {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
        hash: "h".to_owned(),
        attempt,
        state,
    }
}

fn saw(containers: &[SeenContainer]) -> Observed {
    Observed {
        containers: containers.to_vec(),
    }
}

fn start(name: &str, attempt: u32) -> Action {
    Action::Start {
        name: name.to_owned(),
        attempt,
    }
}

fn stop(name: &str, attempt: u32) -> Action {
    Action::Stop {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
    }
}

fn remove(name: &str, attempt: u32) -> Action {
    Action::Remove {
        id: format!("{name}{attempt}"),
    }
}

const RUNNING: SeenState = SeenState::Running;
const OK: SeenState = SeenState::Exited { ok: true };
const FAILED: SeenState = SeenState::Exited { ok: false };

#[test]
fn one_container() {
    use RestartPolicy::{Always, Never, OnFailure};
    let changed = SeenContainer {
        hash: "other".to_owned(),
        ..seen("c", 0, RUNNING)
    };
    let changed_and_over = SeenContainer {
        hash: "other".to_owned(),
        ..seen("c", 0, OK)
    };
    for (name, restart, saw_list, expected) in [
        ("nothing there: start", Always, vec![], vec![start("c", 0)]),
        (
            "made, not started: again",
            Always,
            vec![seen("c", 4, SeenState::Created)],
            vec![start("c", 4)],
        ),
        (
            "runs: leave it",
            Always,
            vec![seen("c", 0, RUNNING)],
            vec![],
        ),
        (
            "ended well, Always",
            Always,
            vec![seen("c", 0, OK)],
            vec![start("c", 1)],
        ),
        (
            "ended well, OnFailure",
            OnFailure,
            vec![seen("c", 0, OK)],
            vec![],
        ),
        (
            "failed, OnFailure",
            OnFailure,
            vec![seen("c", 2, FAILED)],
            vec![start("c", 3)],
        ),
        ("failed, Never", Never, vec![seen("c", 0, FAILED)], vec![]),
        (
            "other image: stop",
            Always,
            vec![changed],
            vec![stop("c", 0)],
        ),
        (
            "other image, over: start",
            Never,
            vec![changed_and_over],
            vec![start("c", 1)],
        ),
        (
            "not of this pod: stop",
            Always,
            vec![seen("c", 0, RUNNING), seen("x", 0, RUNNING)],
            vec![stop("x", 0)],
        ),
        (
            "old records go, the last state stays",
            Always,
            vec![
                seen("c", 0, OK),
                seen("c", 1, FAILED),
                seen("c", 2, RUNNING),
            ],
            vec![remove("c", 0)],
        ),
    ] {
        let now = Instant::now();
        let saw = saw(&saw_list);
        let step = step(
            Phase::Syncing,
            &want(false, restart),
            &saw,
            &Memory::default(),
            now,
        );
        assert_eq!(
            (step.phase, step.actions),
            (Phase::Syncing, expected),
            "{name}"
        );
    }
}

#[test]
fn init_containers_and_sidecars_gate_the_others() {
    let mut want = want(false, RestartPolicy::Always);
    want.containers = vec![
        wanted("i", Role::Init),
        wanted("s", Role::Sidecar),
        wanted("j", Role::Init),
        wanted("c", Role::Main),
    ];
    let (i, s, j, c) = (
        |state| seen("i", 0, state),
        |state| seen("s", 0, state),
        |state| seen("j", 0, state),
        |state| seen("c", 0, state),
    );
    for (name, saw_list, expected) in [
        ("first", vec![], vec![start("i", 0)]),
        ("first runs", vec![i(RUNNING)], vec![]),
        ("first failed", vec![i(FAILED)], vec![start("i", 1)]),
        ("first done", vec![i(OK)], vec![start("s", 0)]),
        ("sidecar up", vec![i(OK), s(RUNNING)], vec![start("j", 0)]),
        (
            "all done",
            vec![i(OK), s(RUNNING), j(OK)],
            vec![start("c", 0)],
        ),
        ("up", vec![i(OK), s(RUNNING), j(OK), c(RUNNING)], vec![]),
        (
            "sidecar fell",
            vec![i(OK), s(FAILED), j(OK), c(RUNNING)],
            vec![start("s", 1)],
        ),
        (
            "adopted without init records",
            vec![s(RUNNING), c(RUNNING)],
            vec![],
        ),
        (
            "reboot: all over again",
            vec![i(FAILED), s(FAILED), j(FAILED), c(FAILED)],
            vec![start("i", 1)],
        ),
    ] {
        let now = Instant::now();
        let step = step(
            Phase::Syncing,
            &want,
            &saw(&saw_list),
            &Memory::default(),
            now,
        );
        assert_eq!(step.actions, expected, "{name}");
    }
    want.restart = RestartPolicy::Never;
    let over = saw(&[i(OK), s(RUNNING), j(OK), c(OK)]);
    let step = step(
        Phase::Syncing,
        &want,
        &over,
        &Memory::default(),
        Instant::now(),
    );
    assert_eq!(
        step.actions,
        [stop("s", 0)],
        "sidecars end with the main containers"
    );
}

#[test]
fn termination() {
    let t0 = Instant::now();
    let end = t0 + Duration::from_secs(30);
    let stopping = Phase::Terminating {
        since: t0,
        deadline: end,
    };
    let gone = want(true, RestartPolicy::Always);
    let keep = want(false, RestartPolicy::Always);
    let mut forced = gone.clone();
    forced.grace = Duration::ZERO;
    let two = saw(&[seen("c", 0, RUNNING), seen("d", 0, RUNNING)]);
    let mut signalled = Memory::default();
    signalled.signalled("c0", end);
    let kill = Action::Kill {
        id: "c0".to_owned(),
        name: "c".to_owned(),
    };
    let one = saw(&[seen("c", 0, RUNNING)]);
    let over = saw(&[seen("c", 0, OK), seen("c", 1, FAILED)]);
    let mut killed = signalled.clone();
    killed.killed("c0", end);
    let fresh = Memory::default();
    let forced_phase = Phase::Terminating {
        since: t0,
        deadline: t0,
    };
    for (name, phase, want, saw, memory, now, expected, actions) in [
        (
            "delete starts grace",
            Phase::Syncing,
            &gone,
            &two,
            &fresh,
            t0,
            stopping,
            vec![stop("c", 0), stop("d", 0)],
        ),
        (
            "undelete is ignored",
            stopping,
            &keep,
            &two,
            &signalled,
            t0,
            stopping,
            vec![stop("d", 0)],
        ),
        (
            "signalled: wait",
            stopping,
            &gone,
            &one,
            &signalled,
            t0,
            stopping,
            vec![],
        ),
        (
            "grace over: kill",
            stopping,
            &gone,
            &one,
            &signalled,
            end,
            stopping,
            vec![kill.clone()],
        ),
        (
            "killed: wait",
            stopping,
            &gone,
            &one,
            &killed,
            end,
            stopping,
            vec![],
        ),
        (
            "killed long ago: again",
            stopping,
            &gone,
            &one,
            &killed,
            end + KILL_AGAIN_AFTER,
            stopping,
            vec![kill.clone()],
        ),
        (
            "forced: at once",
            stopping,
            &forced,
            &one,
            &signalled,
            t0,
            forced_phase,
            vec![kill],
        ),
        (
            "all ended: remove",
            stopping,
            &gone,
            &over,
            &fresh,
            t0,
            stopping,
            vec![remove("c", 0), remove("c", 1)],
        ),
        (
            "nothing left: clean up",
            stopping,
            &gone,
            &Observed::default(),
            &fresh,
            t0,
            stopping,
            vec![Action::Cleanup],
        ),
        (
            "gone",
            Phase::Terminated,
            &keep,
            &one,
            &fresh,
            t0,
            Phase::Terminated,
            vec![],
        ),
    ] {
        let step = step(phase, want, saw, memory, now);
        assert_eq!((step.phase, step.actions), (expected, actions), "{name}");
    }
}

#[test]
fn back_off_doubles_to_its_limit_and_starts_anew() {
    let want = want(false, RestartPolicy::Always);
    let mut memory = Memory::default();
    let mut now = Instant::now();
    let mut waits = Vec::new();
    for attempt in 0..9_u32 {
        memory.started("c", attempt, now);
        now += Duration::from_secs(1);
        let saw = saw(&[seen("c", attempt, FAILED)]);
        memory.observe(&saw, now);
        memory.observe(&saw, now);
        let step = step(Phase::Syncing, &want, &saw, &memory, now);
        let wait = step.wake.map_or(0, |at| at.duration_since(now).as_secs());
        assert_eq!(step.actions.is_empty(), wait > 0);
        waits.push(wait);
        now += Duration::from_secs(wait);
    }
    assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    memory.started("c", 9, now);
    now += BACKOFF_RESET_AFTER;
    let saw = saw(&[seen("c", 9, FAILED)]);
    memory.observe(&saw, now);
    assert_eq!(memory.backing_off("c", now), None, "it ran long enough");
}

#[test]
fn held_and_busy_containers_are_not_started() {
    let want = want(false, RestartPolicy::Always);
    let now = Instant::now();
    let later = now + Duration::from_secs(5);
    let mut memory = Memory::default();
    let plan =
        |memory: &Memory, now| step(Phase::Syncing, &want, &Observed::default(), memory, now);
    memory.hold(Key::Start("c".to_owned()), later);
    assert_eq!(
        (plan(&memory, now).actions, plan(&memory, now).wake),
        (vec![], Some(later))
    );
    assert_eq!(plan(&memory, later).actions, [start("c", 0)]);
    memory.release(&Key::Start("c".to_owned()));
    assert_eq!(plan(&memory, now).actions, [start("c", 0)]);
    memory.set_busy("c", true);
    assert_eq!(plan(&memory, now).actions, []);
    let mut finished = want.clone();
    finished.finished = true;
    let step = step(
        Phase::Syncing,
        &finished,
        &Observed::default(),
        &Memory::default(),
        now,
    );
    assert_eq!(
        step.actions,
        [],
        "what the API knows as finished is never started"
    );
}

fn any_state() -> impl Strategy<Value = SeenState> {
    prop_oneof![
        Just(SeenState::Created),
        Just(RUNNING),
        any::<bool>().prop_map(|ok| SeenState::Exited { ok }),
    ]
}

proptest! {
    /// Whatever is seen and whenever: once out of Syncing nothing starts, a phase never goes
    /// back, the deadline never moves away, and a step that does nothing but waits names a time
    /// that is still to come.
    #[test]
    fn phases_only_go_forward(
        rounds in prop::collection::vec(
            (
                any::<bool>(),
                0_u64..60,
                prop::collection::vec((0_u32..3, any_state(), any::<bool>()), 0..4),
                0_u64..40,
                any::<bool>(),
            ),
            1..40,
        ),
    ) {
        let mut phase = Phase::Syncing;
        let mut memory = Memory::default();
        let mut now = Instant::now();
        for (delete, grace, list, seconds, works) in rounds {
            now += Duration::from_secs(seconds);
            let mut want = want(delete, RestartPolicy::Always);
            want.grace = Duration::from_secs(grace);
            want.containers.push(wanted("d", Role::Sidecar));
            let list: Vec<SeenContainer> = list
                .into_iter()
                .map(|(attempt, state, first)| seen(if first { "c" } else { "d" }, attempt, state))
                .collect();
            let saw = saw(&list);
            memory.observe(&saw, now);
            let before = phase;
            let step = step(phase, &want, &saw, &memory, now);
            if before != Phase::Syncing {
                let starts = step.actions.iter().any(|a| matches!(a, Action::Start { .. }));
                prop_assert!(!starts);
                prop_assert!(step.phase != Phase::Syncing);
            }
            if let (Phase::Terminating { deadline: old, .. }, Phase::Terminating { deadline, .. }) =
                (before, step.phase)
            {
                prop_assert!(deadline <= old);
            }
            prop_assert!(step.wake.is_none_or(|at| at > now));
            phase = step.phase;
            for action in step.actions {
                match action {
                    Action::Start { name, attempt } if works => memory.started(&name, attempt, now),
                    Action::Start { name, .. } => {
                        memory.hold(Key::Start(name), now + Duration::from_secs(1));
                    }
                    Action::Stop { id, .. } => memory.signalled(&id, now + want.grace),
                    Action::Kill { id, .. } => memory.killed(&id, now),
                    Action::Remove { .. } => {}
                    Action::Cleanup if works => phase = Phase::Terminated,
                    Action::Cleanup => memory.hold(Key::Cleanup, now + Duration::from_secs(1)),
                }
            }
        }
    }

    /// A worker that does what it is told, against a runtime that obeys, brings a deleted pod to
    /// its end, in bounded steps.
    #[test]
    fn a_deleted_pod_ends(list in prop::collection::vec((0_u32..4, any_state()), 0..6), deaf in any::<bool>()) {
        let mut containers: Vec<SeenContainer> = Vec::new();
        for (attempt, state) in list {
            if !containers.iter().any(|c| c.attempt == attempt) {
                containers.push(seen("c", attempt, state));
            }
        }
        let want = want(true, RestartPolicy::Always);
        let mut memory = Memory::default();
        let mut now = Instant::now();
        let mut phase = Phase::Syncing;
        for _ in 0..20 {
            let observed = saw(&containers);
            memory.observe(&observed, now);
            let step = step(phase, &want, &observed, &memory, now);
            phase = step.phase;
            if step.actions.is_empty() {
                prop_assert!(step.wake.is_some(), "waits for nothing");
                now = step.wake.unwrap();
            }
            for action in step.actions {
                match action {
                    Action::Start { .. } => prop_assert!(false, "started while deleted"),
                    Action::Stop { id, .. } => {
                        memory.signalled(&id, now + want.grace);
                        containers.iter_mut().filter(|c| !deaf && c.id == id).for_each(|c| c.state = OK);
                    }
                    Action::Kill { id, .. } => {
                        memory.killed(&id, now);
                        containers.iter_mut().filter(|c| c.id == id).for_each(|c| c.state = FAILED);
                    }
                    Action::Remove { id } => containers.retain(|c| c.id != id),
                    Action::Cleanup => phase = Phase::Terminated,
                }
            }
            if phase == Phase::Terminated {
                return Ok(());
            }
        }
        prop_assert!(false, "did not end");
    }
}
