//! How pods and containers end.

use super::*;

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
