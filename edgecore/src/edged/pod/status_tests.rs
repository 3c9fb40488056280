use serde_json::{Value, json};

use super::*;

const AT_MS: i64 = 1_700_000_000_500;

struct Scene {
    pod: Pod,
    seen: Vec<Seen>,
    memory: Memory,
    troubles: BTreeMap<String, Trouble>,
    ips: Option<Vec<String>>,
    times: Times,
    verdict: Option<Verdict>,
    health: BTreeMap<String, Health>,
    last_words: BTreeMap<String, String>,
    unstarted: BTreeMap<String, Seen>,
    now_ms: i64,
    now: Instant,
}

impl Scene {
    fn new(restart: &str) -> Self {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {"restartPolicy": restart, "containers": [{"name": "c", "image": "busybox:1.36"}]},
        });
        Self {
            pod: serde_json::from_value(pod).unwrap(),
            seen: Vec::new(),
            memory: Memory::default(),
            troubles: BTreeMap::new(),
            ips: Some(vec!["10.0.0.2".to_owned()]),
            times: Times::default(),
            verdict: None,
            health: BTreeMap::new(),
            last_words: BTreeMap::new(),
            unstarted: BTreeMap::new(),
            now_ms: AT_MS,
            now: Instant::now(),
        }
    }

    fn saw(mut self, name: &str, attempt: u32, state: ContainerState) -> Self {
        self.seen.push(Seen {
            id: format!("{name}{attempt}"),
            pod_uid: "u".to_owned(),
            pod_namespace: "ns".to_owned(),
            pod_name: "web".to_owned(),
            name: name.to_owned(),
            attempt,
            spec_hash: String::new(),
            image: "busybox:1.36".to_owned(),
            image_id: "busybox@sha256:1".to_owned(),
            log_path: "/l".into(),
            state,
        });
        self
    }

    fn build(&self) -> PodStatus {
        let want = convert::desired(&self.pod, false);
        let health = |id: &str| self.health.get(id).copied().unwrap_or_default();
        build(&View {
            pod: &self.pod,
            health: &health,
            last_words: &self.last_words,
            unstarted: &self.unstarted,
            want: &want,
            seen: &self.seen,
            memory: &self.memory,
            troubles: &self.troubles,
            pod_ips: self.ips.as_deref(),
            host_ip: "192.0.2.9",
            times: &self.times,
            verdict: self.verdict.as_ref(),
            started_ms: None,
            now: self.now,
            now_ms: self.now_ms,
        })
    }

    fn json(&self) -> Value {
        serde_json::to_value(self.build()).unwrap()
    }
}

fn running() -> ContainerState {
    ContainerState::Running {
        started_at_ms: AT_MS,
    }
}

fn exited(exit_code: i32, oom_killed: bool) -> ContainerState {
    ContainerState::Exited {
        exit_code,
        oom_killed,
        started_at_ms: AT_MS,
        finished_at_ms: AT_MS + 2000,
    }
}

#[test]
fn a_running_pod_looks_as_from_kubelet() {
    let status = Scene::new("Always").saw("c", 0, running()).json();
    let at = "2023-11-14T22:13:20Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at});
    assert_eq!(
        status,
        json!({
            "phase": "Running",
            "hostIP": "192.0.2.9", "hostIPs": [{"ip": "192.0.2.9"}],
            "podIP": "10.0.0.2", "podIPs": [{"ip": "10.0.0.2"}],
            "startTime": at, "qosClass": "BestEffort",
            "conditions": [
                condition("PodReadyToStartContainers"), condition("Initialized"),
                condition("Ready"), condition("ContainersReady"), condition("PodScheduled"),
            ],
            "containerStatuses": [{
                "name": "c", "image": "busybox:1.36", "imageID": "busybox@sha256:1",
                "containerID": "containerd://c0", "ready": true, "started": true, "restartCount": 0,
                "state": {"running": {"startedAt": at}},
            }],
        })
    );
}

#[test]
fn phases_follow_kubelet() {
    use ContainerState::Unknown;
    for (name, restart, states, want) in [
        ("nothing yet", "Always", vec![], "Pending"),
        (
            "created",
            "Always",
            vec![ContainerState::Created],
            "Pending",
        ),
        ("running", "Always", vec![running()], "Running"),
        (
            "ended well, restarts",
            "Always",
            vec![exited(0, false)],
            "Running",
        ),
        (
            "failed, restarts",
            "OnFailure",
            vec![exited(1, false)],
            "Running",
        ),
        (
            "ended well, no restart",
            "OnFailure",
            vec![exited(0, false)],
            "Succeeded",
        ),
        (
            "failed, no restart",
            "Never",
            vec![exited(1, false)],
            "Failed",
        ),
        ("lost, no restart", "Never", vec![Unknown], "Failed"),
        ("lost, restarts", "Always", vec![Unknown], "Running"),
        (
            "restarted",
            "Always",
            vec![exited(1, false), running()],
            "Running",
        ),
    ] {
        let mut scene = Scene::new(restart);
        for (attempt, state) in states.into_iter().enumerate() {
            scene = scene.saw("c", u32::try_from(attempt).unwrap(), state);
        }
        assert_eq!(scene.build().phase.as_deref(), Some(want), "{name}");
    }
}

#[test]
fn ends_are_named() {
    for (state, reason, code) in [
        (exited(0, false), "Completed", 0),
        (exited(2, false), "Error", 2),
        (exited(137, true), "OOMKilled", 137),
        (ContainerState::Unknown, "ContainerStatusUnknown", 137),
    ] {
        let status = Scene::new("Never").saw("c", 0, state).json();
        let end = &status["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(
            (end["reason"].as_str(), end["exitCode"].as_i64()),
            (Some(reason), Some(code))
        );
    }
}

#[test]
fn a_back_off_shows_what_ended_and_how_long_it_waits() {
    let mut scene = Scene::new("Always").saw("c", 1, exited(1, false));
    let seen = super::super::state::SeenContainer {
        id: "c".to_owned(),
        name: "c".to_owned(),
        hash: String::new(),
        attempt: 0,
        state: super::super::state::SeenState::Exited { ok: false },
        health: Health::default(),
    };
    for attempt in 0..2 {
        scene.memory.started("c", attempt, scene.now);
        let saw = super::super::state::Observed {
            containers: vec![super::super::state::SeenContainer {
                attempt,
                ..seen.clone()
            }],
        };
        scene.memory.observe(&saw, scene.now);
    }
    let status = scene.json();
    let container = &status["containerStatuses"][0];
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=c pod=web_ns(u)"
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["restartCount"], 1);
    assert_eq!(status["conditions"][2]["reason"], "ContainersNotReady");
    assert_eq!(
        status["conditions"][2]["message"],
        "containers with unready status: [c]"
    );
}

#[test]
fn troubles_and_init_containers_are_waited_for() {
    let mut scene = Scene::new("Always");
    let trouble = Trouble {
        reason: "ErrImagePull",
        message: "no".to_owned(),
    };
    scene.troubles.insert("c".to_owned(), trouble);
    let waiting = scene.json()["containerStatuses"][0]["state"]["waiting"].clone();
    assert_eq!(waiting, json!({"reason": "ErrImagePull", "message": "no"}));

    let mut scene = Scene::new("Always").saw("i", 0, running());
    let init = Container {
        name: "i".to_owned(),
        ..Container::default()
    };
    scene.pod.spec.as_mut().unwrap().init_containers = Some(vec![init]);
    let status = scene.json();
    assert_eq!(status["phase"], "Pending");
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(status["conditions"][1]["status"], "False");
    scene.seen.clear();
    let status = scene.saw("i", 0, exited(0, false)).json();
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "PodInitializing"
    );
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
    assert_eq!(status["conditions"][1]["status"], "True");
}

#[test]
fn times_stay_while_nothing_changes() {
    let mut scene = Scene::new("Always").saw("c", 0, running());
    let first = scene.build();
    scene.now_ms += 60_000;
    scene.times = Times::of(&first);
    assert_eq!(scene.build(), first);
    // Who never told them takes them from the API.
    scene.times = Times::default();
    scene.pod.status = Some(first.clone());
    assert_eq!(scene.build(), first);
    scene.seen.clear();
    let second = scene.build();
    assert_eq!(second.start_time, first.start_time);
    let conditions = second.conditions.unwrap();
    assert_eq!(conditions[2].status, "False");
    assert_eq!(conditions[2].last_transition_time, Some(time(scene.now_ms)));
    assert_eq!(conditions[1].last_transition_time, Some(time(AT_MS)));
}

#[test]
fn hooks_and_probes_are_shown() {
    let health = |hooked, started, ready| Health {
        hooked,
        started,
        ready,
        fault: None,
    };
    for (name, health, shown, started, ready) in [
        (
            "postStart under way",
            health(false, false, false),
            "waiting",
            false,
            false,
        ),
        (
            "starts up",
            health(true, false, false),
            "running",
            false,
            false,
        ),
        (
            "not ready",
            health(true, true, false),
            "running",
            true,
            false,
        ),
        ("ready", health(true, true, true), "running", true, true),
    ] {
        let mut scene = Scene::new("Always").saw("c", 0, running());
        scene.health.insert("c0".to_owned(), health);
        let status = scene.json();
        let container = &status["containerStatuses"][0];
        assert!(container["state"][shown].is_object(), "{name}: {container}");
        assert_eq!(container["started"], started, "{name}");
        assert_eq!(container["ready"], ready, "{name}");
        let holds = if ready { "True" } else { "False" };
        assert_eq!(status["conditions"][3]["type"], "ContainersReady");
        assert_eq!(status["conditions"][3]["status"], holds, "{name}");
    }
}

#[test]
fn readiness_gates_are_asked_for_the_pod_alone() {
    let mut scene = Scene::new("Always").saw("c", 0, running());
    let gates = json!([{"conditionType": "x.dev/a"}, {"conditionType": "x.dev/b"}]);
    let spec = scene.pod.spec.as_mut().unwrap();
    spec.readiness_gates = Some(serde_json::from_value(gates).unwrap());
    let foreign = json!({"conditions": [{"type": "x.dev/b", "status": "False"}]});
    scene.pod.status = Some(serde_json::from_value(foreign).unwrap());
    let status = scene.json();
    let ready = &status["conditions"][2];
    assert_eq!(
        (&ready["type"], &ready["status"]),
        (&json!("Ready"), &json!("False"))
    );
    assert_eq!(ready["reason"], "ReadinessGatesNotReady");
    assert_eq!(
        ready["message"],
        "corresponding condition of pod readiness gate \"x.dev/a\" does not exist., \
         the status of pod readiness gate \"x.dev/b\" is not \"True\", but False"
    );
    assert_eq!(
        status["conditions"][3]["status"], "True",
        "containers are ready"
    );
    let met = json!({"conditions": [
        {"type": "x.dev/a", "status": "True"}, {"type": "x.dev/b", "status": "True"}]});
    scene.pod.status = Some(serde_json::from_value(met).unwrap());
    assert_eq!(scene.json()["conditions"][2]["status"], "True");
}

#[test]
fn sidecars_count_for_readiness_and_for_initialization() {
    let mut scene = Scene::new("Always").saw("s", 0, running());
    let sidecar = json!([{"name": "s", "restartPolicy": "Always"}]);
    let spec = scene.pod.spec.as_mut().unwrap();
    spec.init_containers = Some(serde_json::from_value(sidecar).unwrap());
    let young = Health {
        started: false,
        ready: false,
        ..Health::default()
    };
    scene.health.insert("s0".to_owned(), young);
    let status = scene.json();
    assert_eq!(status["phase"], "Pending");
    let initialized = &status["conditions"][1];
    assert_eq!(initialized["reason"], "ContainersNotInitialized");
    assert_eq!(
        initialized["message"],
        "containers with incomplete status: [s]"
    );
    assert_eq!(
        status["conditions"][3]["message"],
        "containers with unready status: [s c]"
    );
    let status = scene.saw("c", 0, running()).json();
    assert_eq!(
        status["conditions"][1]["status"], "True",
        "a main container has run"
    );
    assert_eq!(
        status["conditions"][3]["message"],
        "containers with unready status: [s]"
    );
}

#[test]
fn last_words_and_failed_starts_are_told() {
    let mut scene = Scene::new("Never").saw("c", 0, exited(1, false));
    scene
        .last_words
        .insert("c0".to_owned(), "out of paper".to_owned());
    let end = scene.json()["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(end["message"], "out of paper");
    assert_eq!(end["reason"], "Error");

    let mut scene = Scene::new("Always").saw("c", 0, exited(128, false));
    let ghost = scene.seen[0].clone();
    scene.unstarted.insert("c0".to_owned(), ghost);
    let trouble = Trouble {
        reason: "RunContainerError",
        message: "no such file".to_owned(),
    };
    scene.troubles.insert("c".to_owned(), trouble);
    let container = scene.json()["containerStatuses"][0].clone();
    assert_eq!(container["state"]["waiting"]["reason"], "RunContainerError");
    let last = &container["lastState"]["terminated"];
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("StartError"), &json!(128))
    );
    assert_eq!(last["containerID"], Value::Null);
}

#[test]
fn a_pod_that_was_ended_fails_when_nothing_runs_any_more() {
    let mut scene = Scene::new("Always").saw("c", 0, running());
    scene.verdict = Some(Verdict {
        reason: "Evicted".to_owned(),
        message: "no room".to_owned(),
        grace: std::time::Duration::ZERO,
        disruption: Some("low on it".to_owned()),
    });
    let status = scene.json();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Running"), &Value::Null)
    );
    scene.seen.clear();
    let status = scene.saw("c", 0, exited(0, false)).json();
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Failed"), &json!("Evicted"))
    );
    assert_eq!(status["message"], "no room");
    assert_eq!(status["conditions"][2]["reason"], "PodFailed");
    let target = status["conditions"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&target["type"], &target["status"], &target["reason"]),
        (
            &json!("DisruptionTarget"),
            &json!("True"),
            &json!("TerminationByKubelet")
        )
    );
    assert_eq!(target["message"], "low on it");
}
