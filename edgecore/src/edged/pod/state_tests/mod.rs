use std::sync::LazyLock;

mod ending;
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
    memory.released();
    let mut changed = want.clone();
    changed.containers[0].hash = "other".to_owned();
    let over = Observed {
        containers: vec![seen("c", 0, OK)],
    };
    for want in [&want, &changed] {
        let step = step(Phase::Syncing, want, &over, &memory, later);
        assert_eq!(step.actions, [], "what is over starts never again");
    }
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
