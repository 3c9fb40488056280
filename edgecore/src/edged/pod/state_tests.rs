use std::collections::BTreeMap;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

fn want(delete: bool, restart: RestartPolicy) -> Desired {
    Desired {
        delete,
        suspended: false,
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
        attempts: 0,
        post_start: false,
    }
}

fn seen(name: &str, attempt: u32, state: SeenState) -> SeenContainer {
    SeenContainer {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
        hash: "h".to_owned(),
        attempt,
        state,
        health: Health::default(),
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

/// Without the time at which its grace ends.
fn stop(name: &str, attempt: u32, why: Why) -> Action {
    Action::Stop {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
        why,
        deadline: *NO_TIME,
    }
}

fn signal(name: &str, attempt: u32) -> Action {
    Action::Signal {
        id: format!("{name}{attempt}"),
        name: name.to_owned(),
    }
}

static NO_TIME: LazyLock<Instant> = LazyLock::new(Instant::now);

fn timeless(actions: Vec<Action>) -> Vec<Action> {
    let each = actions.into_iter().map(|action| match action {
        Action::Stop { id, name, why, .. } => Action::Stop {
            id,
            name,
            why,
            deadline: *NO_TIME,
        },
        other => other,
    });
    each.collect()
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
            vec![stop("c", 0, Why::Changed)],
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
            vec![stop("x", 0, Why::Changed)],
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
            (step.phase, timeless(step.actions)),
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
        timeless(step.actions),
        [stop("s", 0, Why::PodEnds)],
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
    signalled.signalled("c0", t0);
    let kill = Action::Kill {
        id: "c0".to_owned(),
        name: "c".to_owned(),
    };
    let one = saw(&[seen("c", 0, RUNNING)]);
    let over = saw(&[seen("c", 0, OK), seen("c", 1, FAILED)]);
    let mut killed = signalled.clone();
    killed.killed("c0", end);
    let fresh = Memory::default();
    let mut asked = Memory::default();
    asked.stopping("c0", false, t0);
    let mut hooked = Memory::default();
    hooked.stopping("c0", true, t0);
    let mut judged = keep.clone();
    judged.verdict = Some(Duration::from_secs(9));
    let ending = Phase::Ending {
        since: t0,
        deadline: t0 + Duration::from_secs(9),
    };
    let mut hanged = keep.clone();
    hanged.verdict = Some(Duration::ZERO);
    let ended = Phase::Ending {
        since: t0,
        deadline: t0,
    };
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
            vec![stop("c", 0, Why::PodEnds), stop("d", 0, Why::PodEnds)],
        ),
        (
            "undelete is ignored",
            stopping,
            &keep,
            &two,
            &signalled,
            t0,
            stopping,
            vec![stop("d", 0, Why::PodEnds)],
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
            "asked: the signal",
            stopping,
            &gone,
            &one,
            &asked,
            t0,
            stopping,
            vec![signal("c", 0)],
        ),
        (
            "its preStop hook: wait",
            stopping,
            &gone,
            &one,
            &hooked,
            t0,
            stopping,
            vec![],
        ),
        (
            "a preStop hook has no more than the grace",
            stopping,
            &gone,
            &one,
            &hooked,
            end,
            stopping,
            vec![signal("c", 0)],
        ),
        (
            "forced: after the least grace",
            stopping,
            &forced,
            &one,
            &signalled,
            t0 + GRACE_MIN,
            forced_phase,
            vec![kill.clone()],
        ),
        (
            "forced: not before",
            stopping,
            &forced,
            &one,
            &signalled,
            t0,
            forced_phase,
            vec![],
        ),
        (
            "a verdict",
            Phase::Syncing,
            &judged,
            &one,
            &fresh,
            t0,
            ending,
            vec![stop("c", 0, Why::PodEnds)],
        ),
        (
            "a verdict keeps what ended",
            ending,
            &judged,
            &over,
            &fresh,
            end,
            ending,
            vec![],
        ),
        (
            "a verdict without grace",
            Phase::Syncing,
            &hanged,
            &one,
            &fresh,
            t0,
            ended,
            vec![kill],
        ),
        (
            "deleted after a verdict: no new grace",
            ending,
            &gone,
            &over,
            &fresh,
            t0 + GRACE_MIN,
            Phase::Terminating {
                since: t0 + GRACE_MIN,
                deadline: t0 + Duration::from_secs(9),
            },
            vec![remove("c", 0), remove("c", 1)],
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
        let got = (step.phase, timeless(step.actions));
        assert_eq!(got, (expected, actions), "{name}");
    }
}

#[test]
fn what_is_wrong_with_a_container_ends_it() {
    let now = Instant::now();
    let want = want(false, RestartPolicy::Always);
    for (cause, grace, secs) in [
        (Cause::Liveness, None, 30),
        (Cause::Startup, Some(5), 5),
        (Cause::PostStart, None, 30),
    ] {
        let mut sick = seen("c", 3, RUNNING);
        sick.health.fault = Some(Fault {
            cause,
            grace: grace.map(Duration::from_secs),
        });
        let saw = saw(&[sick]);
        let mut memory = Memory::default();
        let first = step(Phase::Syncing, &want, &saw, &memory, now);
        let deadline = now + Duration::from_secs(secs);
        let expected = Action::Stop {
            id: "c3".to_owned(),
            name: "c".to_owned(),
            why: Why::Fault(cause),
            deadline,
        };
        assert_eq!(first.actions, [expected], "{cause:?}");
        memory.stopping("c3", false, now);
        let later = now + Duration::from_secs(1);
        let second = step(Phase::Syncing, &want, &saw, &memory, later);
        assert_eq!(second.actions, [signal("c", 3)]);
        memory.signalled("c3", later);
        let third = step(Phase::Syncing, &want, &saw, &memory, later);
        assert_eq!((third.actions, third.wake), (vec![], Some(deadline)));
    }
}

#[test]
fn hooks_and_startup_probes_hold_back_what_comes_after() {
    let mut want = want(false, RestartPolicy::Always);
    let hooked = WantContainer {
        post_start: true,
        ..wanted("c", Role::Main)
    };
    want.containers = vec![wanted("s", Role::Sidecar), hooked, wanted("d", Role::Main)];
    let young = |name| {
        let mut seen = seen(name, 0, RUNNING);
        seen.health.started = false;
        seen
    };
    let hooking = |name| {
        let mut seen = young(name);
        seen.health.hooked = false;
        seen
    };
    let up = |name| seen(name, 0, RUNNING);
    for (name, saw_list, expected) in [
        ("a sidecar that starts up", vec![young("s")], vec![]),
        ("up", vec![up("s")], vec![start("c", 0)]),
        (
            "postStart of the one before",
            vec![up("s"), hooking("c")],
            vec![],
        ),
        (
            "a startup probe holds back nobody beside it",
            vec![up("s"), young("c")],
            vec![start("d", 0)],
        ),
        (
            "a sidecar that starts up again",
            vec![young("s"), up("c")],
            vec![start("d", 0)],
        ),
    ] {
        let memory = Memory::default();
        let step = step(
            Phase::Syncing,
            &want,
            &saw(&saw_list),
            &memory,
            Instant::now(),
        );
        assert_eq!(step.actions, expected, "{name}");
    }
}

#[test]
fn sidecars_end_last_and_in_reverse() {
    let mut want = want(true, RestartPolicy::Always);
    want.containers = vec![
        wanted("s", Role::Sidecar),
        wanted("t", Role::Sidecar),
        wanted("c", Role::Main),
    ];
    let t0 = Instant::now();
    let phase = Phase::Terminating {
        since: t0,
        deadline: t0 + Duration::from_secs(30),
    };
    let mut memory = Memory::default();
    for id in ["s0", "t0", "c0"] {
        memory.stopping(id, false, t0);
    }
    let up = |name| seen(name, 0, RUNNING);
    let plan = |list: &[SeenContainer], now| step(phase, &want, &saw(list), &memory, now).actions;
    let all = [up("s"), up("t"), up("c")];
    assert_eq!(plan(&all, t0), [signal("c", 0)]);
    assert_eq!(plan(&all[..2], t0), [signal("t", 0)]);
    assert_eq!(plan(&all[..1], t0), [signal("s", 0)]);
    let late = t0 + Duration::from_secs(30);
    let every = [signal("s", 0), signal("t", 0), signal("c", 0)];
    assert_eq!(plan(&all, late), every, "nobody waits beyond the grace");
}

#[test]
fn a_failed_init_container_ends_a_pod_that_may_not_restart() {
    let mut want = want(false, RestartPolicy::Never);
    want.containers = vec![
        wanted("s", Role::Sidecar),
        wanted("i", Role::Init),
        wanted("c", Role::Main),
    ];
    let saw = saw(&[seen("s", 0, RUNNING), seen("i", 0, FAILED)]);
    assert!(is_over(&want, &saw));
    let memory = Memory::default();
    let step = step(Phase::Syncing, &want, &saw, &memory, Instant::now());
    assert_eq!(timeless(step.actions), [stop("s", 0, Why::PodEnds)]);
}

#[test]
fn counting_goes_on_from_what_the_api_knows() {
    let mut want = want(false, RestartPolicy::Always);
    want.containers = vec![WantContainer {
        attempts: 4,
        ..wanted("c", Role::Main)
    }];
    let memory = Memory::default();
    let step = step(
        Phase::Syncing,
        &want,
        &Observed::default(),
        &memory,
        Instant::now(),
    );
    assert_eq!(step.actions, [start("c", 4)]);
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
                    Action::Stop { id, .. } => memory.stopping(&id, works, now),
                    Action::Signal { id, .. } => memory.signalled(&id, now),
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
                    Action::Stop { id, .. } => memory.stopping(&id, deaf, now),
                    Action::Signal { id, .. } => {
                        memory.signalled(&id, now);
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

#[derive(Clone, Debug)]
enum Happening {
    Exit(usize, bool),
    Sick(usize),
    StartedUp(usize),
    Wait(u64),
    Delete(u64),
    Verdict(u64),
    Reboot,
    HookOver(usize),
}

fn any_happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (0_usize..4, any::<bool>()).prop_map(|(at, ok)| Happening::Exit(at, ok)),
        2 => (0_usize..4).prop_map(Happening::Sick),
        3 => (0_usize..4).prop_map(Happening::StartedUp),
        3 => (0_usize..4).prop_map(Happening::HookOver),
        8 => (0_u64..400).prop_map(Happening::Wait),
        1 => (0_u64..40).prop_map(Happening::Delete),
        1 => (0_u64..40).prop_map(Happening::Verdict),
        1 => Just(Happening::Reboot),
    ]
}

/// A runtime that obeys, and the rules that hold whatever happens.
struct Toy {
    want: Desired,
    phase: Phase,
    memory: Memory,
    containers: Vec<SeenContainer>,
    now: Instant,
    delays: BTreeMap<String, Duration>,
    /// Containers heed the stop signal.
    polite: bool,
}

impl Toy {
    /// Lets the worker act until it waits; how long it wants to wait.
    fn settle(&mut self) -> Result<Option<Instant>, TestCaseError> {
        for _ in 0..100 {
            let saw = saw(&self.containers);
            self.memory.observe(&saw, self.now);
            let before = self.phase;
            let step = step(self.phase, &self.want, &saw, &self.memory, self.now);
            self.phase = step.phase;
            if before != Phase::Syncing {
                prop_assert!(self.phase != Phase::Syncing);
            }
            prop_assert!(step.wake.is_none_or(|at| at > self.now));
            if step.actions.is_empty() || self.phase == Phase::Terminated {
                return Ok(step.wake);
            }
            for action in step.actions {
                self.perform(before, action)?;
            }
        }
        prop_assert!(false, "never comes to rest: {:?}", self.containers);
        Ok(None)
    }

    fn perform(&mut self, before: Phase, action: Action) -> Result<(), TestCaseError> {
        match action {
            Action::Start { name, attempt } => {
                prop_assert_eq!(before, Phase::Syncing, "started while ending");
                self.check_start(&name, attempt)?;
                let mut new = seen(&name, attempt, RUNNING);
                new.health.hooked = attempt % 2 == 0;
                new.health.started = false;
                self.containers.push(new);
                self.memory.started(&name, attempt, self.now);
            }
            Action::Stop { id, .. } => self.memory.stopping(&id, self.polite, self.now),
            Action::Signal { id, .. } => {
                self.memory.signalled(&id, self.now);
                if self.polite {
                    self.end(&id, true);
                }
            }
            Action::Kill { id, .. } => {
                self.memory.killed(&id, self.now);
                self.end(&id, false);
            }
            Action::Remove { id } => {
                let gone = self.containers.iter().find(|c| c.id == id);
                prop_assert!(gone.is_some_and(|c| !c.runs()), "removed while it runs");
                self.containers.retain(|c| c.id != id);
            }
            Action::Cleanup => {
                prop_assert!(self.containers.is_empty());
                self.phase = Phase::Terminated;
            }
        }
        Ok(())
    }

    fn check_start(&mut self, name: &str, attempt: u32) -> Result<(), TestCaseError> {
        let mine = self.containers.iter().filter(|c| c.name == name);
        for other in mine {
            prop_assert!(!other.runs(), "two attempts of {name} at once");
            prop_assert!(other.attempt < attempt, "attempt counted back");
        }
        let place = self.want.containers.iter().position(|c| c.name == name);
        let main_runs = self
            .containers
            .iter()
            .any(|c| c.name.starts_with('c') && c.runs());
        for earlier in self.want.containers.iter().take(place.unwrap_or(0)) {
            let newest = current_of(&self.containers, &earlier.name);
            let fine = match earlier.role {
                Role::Init => newest.is_some_and(|c| c.state == OK) || main_runs,
                Role::Sidecar => newest.is_some_and(|c| c.runs() && c.health.started) || main_runs,
                Role::Main => true,
            };
            prop_assert!(fine, "{name} started before {}", earlier.name);
        }
        // Each delay is no shorter than the one before it, or has begun anew.
        let delay = self.memory.last_delay(name);
        let before = self
            .delays
            .insert(name.to_owned(), delay)
            .unwrap_or_default();
        prop_assert!(delay >= before || delay <= BACKOFF_FIRST);
        prop_assert!(delay <= BACKOFF_MAX);
        Ok(())
    }

    fn end(&mut self, id: &str, ok: bool) {
        let mut mine = self.containers.iter_mut();
        if let Some(container) = mine.find(|c| c.id == id && c.runs()) {
            container.state = SeenState::Exited { ok };
        }
    }

    fn happen(&mut self, happening: &Happening) {
        let running = |list: &mut Vec<SeenContainer>, at: usize| {
            let mut running = list.iter_mut().filter(|c| c.runs());
            running.nth(at).map(|c| c.id.clone())
        };
        match *happening {
            Happening::Exit(at, ok) => {
                if let Some(id) = running(&mut self.containers, at) {
                    self.end(&id, ok);
                }
            }
            Happening::Sick(at) | Happening::StartedUp(at) => {
                let sick = matches!(happening, Happening::Sick(_));
                let id = running(&mut self.containers, at);
                for c in self
                    .containers
                    .iter_mut()
                    .filter(|c| Some(&c.id) == id.as_ref())
                {
                    c.health.hooked = true;
                    c.health.started |= !sick;
                    c.health.fault = sick.then_some(Fault {
                        cause: Cause::Liveness,
                        grace: None,
                    });
                }
            }
            Happening::HookOver(at) => {
                if let Some(id) = running(&mut self.containers, at) {
                    self.memory.hook_over(&id);
                }
            }
            Happening::Wait(secs) => self.now += Duration::from_secs(secs),
            Happening::Delete(grace) => {
                self.want.delete = true;
                self.want.grace = self.want.grace.min(Duration::from_secs(grace));
            }
            Happening::Verdict(grace) => {
                self.want.verdict.get_or_insert(Duration::from_secs(grace));
            }
            Happening::Reboot => {
                for container in &mut self.containers {
                    container.state = SeenState::Exited { ok: false };
                }
            }
        }
    }
}

fn current_of<'a>(list: &'a [SeenContainer], name: &str) -> Option<&'a SeenContainer> {
    let mine = list.iter().filter(|c| c.name == name);
    mine.max_by_key(|c| c.attempt)
}

proptest! {
    /// Whatever exits, fails, waits, is deleted or judged: nothing starts once the pod ends, order
    /// is kept, one attempt of a container runs at a time, back-off only grows until it begins
    /// anew, and a deleted pod comes to its end.
    #[test]
    fn a_pod_keeps_its_rules(
        happenings in prop::collection::vec(any_happening(), 1..60),
        policy in 0_u8..3,
        polite in any::<bool>(),
    ) {
        let restart = match policy {
            0 => RestartPolicy::Always,
            1 => RestartPolicy::OnFailure,
            _ => RestartPolicy::Never,
        };
        let mut desired = want(false, restart);
        desired.containers = vec![
            wanted("i", Role::Init),
            wanted("s", Role::Sidecar),
            wanted("j", Role::Init),
            wanted("c", Role::Main),
            wanted("c2", Role::Main),
        ];
        let mut toy = Toy {
            want: desired,
            phase: Phase::Syncing,
            memory: Memory::default(),
            containers: Vec::new(),
            now: Instant::now(),
            delays: BTreeMap::new(),
            polite,
        };
        toy.settle()?;
        for happening in &happenings {
            toy.happen(happening);
            toy.settle()?;
        }
        toy.want.delete = true;
        for _ in 0..20 {
            match toy.settle()? {
                _ if toy.phase == Phase::Terminated => return Ok(()),
                Some(at) => toy.now = at,
                None => prop_assert!(false, "waits for nothing"),
            }
        }
        prop_assert!(false, "never ends");
    }
}
