use std::sync::LazyLock;

mod rules;

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
            vec![Action::Release],
        ),
        (
            "failed, OnFailure",
            OnFailure,
            vec![seen("c", 2, FAILED)],
            vec![start("c", 3)],
        ),
        (
            "failed, Never",
            Never,
            vec![seen("c", 0, FAILED)],
            vec![Action::Release],
        ),
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
    let mut released = Memory::default();
    released.released();
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
            "a verdict keeps what ended, and gives the volumes back",
            ending,
            &judged,
            &over,
            &fresh,
            end,
            ending,
            vec![Action::Release],
        ),
        (
            "given back once",
            ending,
            &judged,
            &over,
            &released,
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
            vec![stop("c", 0, Why::PodEnds), kill],
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
        [Action::Release],
        "what the API knows as finished is never started"
    );
}
