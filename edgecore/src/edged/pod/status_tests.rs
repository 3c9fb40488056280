use serde_json::{Value, json};

use super::*;

const AT_MS: i64 = 1_700_000_000_500;

struct Scene {
    pod: Pod,
    seen: Vec<Seen>,
    memory: Memory,
    troubles: BTreeMap<String, Trouble>,
    ips: Option<Vec<String>>,
    previous: Option<PodStatus>,
    verdict: Option<Verdict>,
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
            previous: None,
            verdict: None,
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
        build(&View {
            pod: &self.pod,
            want: &want,
            seen: &self.seen,
            memory: &self.memory,
            troubles: &self.troubles,
            pod_ips: self.ips.as_deref(),
            host_ip: "192.0.2.9",
            previous: self.previous.as_ref(),
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
        "ContainerCreating"
    );
    assert_eq!(status["initContainerStatuses"][0]["ready"], true);
    assert_eq!(status["conditions"][1]["status"], "True");
}

#[test]
fn times_stay_while_nothing_changes() {
    let mut scene = Scene::new("Always").saw("c", 0, running());
    let first = scene.build();
    scene.now_ms += 60_000;
    scene.previous = Some(first.clone());
    assert_eq!(scene.build(), first);
    // A restart of the daemon takes them from the API.
    scene.previous = None;
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
