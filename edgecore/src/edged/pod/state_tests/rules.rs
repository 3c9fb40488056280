//! Rules that hold whatever happens.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

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
                    Action::Release if works => memory.released(),
                    Action::Release => memory.hold(Key::Cleanup, now + Duration::from_secs(1)),
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
                    Action::Release => prop_assert!(false, "a deleted pod is cleaned up as a whole"),
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
            Action::Release => {
                prop_assert!(!self.containers.iter().any(SeenContainer::runs));
                self.memory.released();
            }
            Action::Cleanup => {
                prop_assert!(self.containers.is_empty());
                self.phase = Phase::Terminated;
            }
        }
        Ok(())
    }

    fn check_start(&mut self, name: &str, attempt: u32) -> Result<(), TestCaseError> {
        prop_assert!(!self.memory.is_released(), "started without its volumes");
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
                // How the others ended is on disk.
                for container in self.containers.iter_mut().filter(|c| c.runs()) {
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
