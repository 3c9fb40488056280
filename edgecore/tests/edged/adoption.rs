//! edgecore and containerd come and go in every order; pods do not notice, and nothing is forgotten.

use edgecore::edged::runtime::{ContainerState, Runtime};

use std::sync::atomic::Ordering;

use k8s_openapi::api::core::v1::Pod;

use super::*;

/// A pod of two that each end, with their own code, when their file appears.
fn pod(uid: &str, gate: &std::path::Path) -> Pod {
    let container = |name: &str, code: u8| {
        let script = format!("until [ -e /gate/{name} ]; do sleep 0.05; done; exit {code}");
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", script], "volumeMounts": [{"name": "gate", "mountPath": "/gate"}]})
    };
    let pod = json!({
        "metadata": {"name": "web", "namespace": "default", "uid": uid},
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "gate", "hostPath": {"path": gate}}],
            "containers": [container("main", 5), container("other", 6)],
        },
    });
    serde_json::from_value(pod).unwrap()
}

struct Stage {
    world: World,
    gate: PathBuf,
    uid: String,
    /// As told while everything ran.
    told: Value,
}

impl Stage {
    async fn new() -> Option<Self> {
        let world = World::new().await?;
        let gate = world.directory.path().join("gate");
        std::fs::create_dir(&gate).unwrap();
        let uid = uuid::Uuid::new_v4().to_string();
        let pods = &world.store.pods;
        pods.lock().unwrap().insert(uid.clone(), pod(&uid, &gate));
        world.store.bump();
        let mut stage = Self {
            world,
            gate,
            uid,
            told: Value::Null,
        };
        stage.both_run("web").await;
        stage.told = stage.statuses();
        Some(stage)
    }

    fn statuses(&self) -> Value {
        self.world.status("web")["containerStatuses"].clone()
    }

    async fn both_run(&self, pod: &str) {
        self.world
            .until("both run", |news| {
                let all = news.status(pod)["containerStatuses"].as_array();
                all.is_some_and(|all| all.iter().all(|c| c["ready"] == true))
            })
            .await;
    }

    async fn until_ended(&self, code: u64, index: usize) {
        self.world
            .until("ended", |news| {
                let state = &news.status("web")["containerStatuses"][index]["state"];
                state["terminated"]["exitCode"] == code
            })
            .await;
        // When it was started does not change with its end.
        let end = self.statuses()[index]["state"]["terminated"]["startedAt"].clone();
        assert_eq!(end, self.told[index]["state"]["running"]["startedAt"]);
    }

    async fn leave(&mut self) {
        self.world.edged.take().unwrap().stop().await;
        self.world.sink.forget();
    }

    /// Lets a container end and waits until its process is gone; nobody tells, so this looks again.
    async fn end(&self, name: &str) {
        let marker = format!("[ -e /gate/{name} ]");
        let runs = || {
            std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
                let is_ours = || {
                    let info = std::fs::read_to_string(entry.path().join("mountinfo"));
                    info.unwrap_or_default()
                        .contains(&self.gate.display().to_string())
                };
                String::from_utf8_lossy(&line).contains(&marker)
                    && !line.starts_with(b"containerd")
                    && is_ours()
            })
        };
        // Its start is told a moment before runc's process has become the container's.
        self.looks(name, true, runs).await;
        std::fs::write(self.gate.join(name), "").unwrap();
        self.looks(name, false, runs).await;
    }

    async fn looks(&self, name: &str, wanted: bool, runs: impl Fn() -> bool) {
        let what = format!("{name} to run: {wanted}");
        wait::until(&what, PATIENCE, async || {
            Ok((runs() == wanted).then_some(()))
        })
        .await
        .unwrap();
    }

    async fn gone(mut self) {
        self.world.store.pods.lock().unwrap().clear();
        self.world.store.bump();
        self.world
            .until("gone", |news| news.gone.iter().any(|pod| pod == "web"))
            .await;
        self.world.edged.take().unwrap().stop().await;
        assert!(
            self.world.ctr(&["containers", "ls", "-q"]).is_empty(),
            "{}",
            self.uid
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_while_the_daemon_was_away_is_learnt() {
    let Some(mut stage) = Stage::new().await else {
        return;
    };
    stage.leave().await;
    stage.end("main").await;
    stage.world.start();
    stage.until_ended(5, 0).await;
    assert_eq!(stage.statuses()[1], stage.told[1], "the other one ran on");
    // All of it, and containerd restarted on top.
    stage.leave().await;
    stage.end("other").await;
    stage.world.daemon.restart().unwrap();
    stage.world.start();
    stage.until_ended(5, 0).await;
    stage.until_ended(6, 1).await;
    assert_eq!(stage.world.status("web")["phase"], "Failed");
    stage.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containerd_goes_and_comes_under_a_running_daemon() {
    let Some(mut stage) = Stage::new().await else {
        return;
    };
    stage.world.daemon.kill().unwrap();
    stage.end("other").await;
    stage.world.daemon.restart().unwrap();
    stage.until_ended(6, 1).await;
    assert_eq!(stage.statuses()[0], stage.told[0], "the first ran on");
    stage.end("main").await;
    stage.until_ended(5, 0).await;
    stage.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_comes_before_containerd_waits_and_adopts() {
    let Some(mut stage) = Stage::new().await else {
        return;
    };
    stage.leave().await;
    stage.world.daemon.kill().unwrap();
    stage.end("main").await;
    stage.world.start();
    stage
        .world
        .until("the node is told as not ready", |news| {
            let conditions = news
                .nodes
                .last()
                .and_then(|n| n["status"]["conditions"].as_array());
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "False")
            })
        })
        .await;
    stage.world.daemon.restart().unwrap();
    stage.until_ended(5, 0).await;
    assert_eq!(stage.statuses()[1], stage.told[1], "the other one ran on");
    stage.gone().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_lost_its_store_leaves_pods_alone_until_the_hub_speaks() {
    let Some(mut stage) = Stage::new().await else {
        return;
    };
    stage.leave().await;
    let pods = std::mem::take(&mut *stage.world.store.pods.lock().unwrap());
    // Nothing says so but the containers: all of the node's data may be gone.
    stage.world.store.is_new.store(true, Ordering::SeqCst);
    let runtime = stage.world.start();
    stage
        .world
        .until("the node is told", |news| !news.nodes.is_empty())
        .await;
    // Another pod comes up meanwhile: everything has been looked at by then.
    let uid = uuid::Uuid::new_v4().to_string();
    let mut other = pod(&uid, &stage.gate);
    other.metadata.name = Some("late".to_owned());
    stage
        .world
        .store
        .pods
        .lock()
        .unwrap()
        .insert(uid.clone(), other);
    stage.world.store.bump();
    stage.both_run("late").await;
    let listed = runtime.containers().await.unwrap();
    let running = listed.iter().filter(|container| {
        container.pod_uid == stage.uid && matches!(container.state, ContainerState::Running { .. })
    });
    assert_eq!(running.count(), 2, "{listed:?}");
    // The hub tells of the first pod again: it is adopted as it is, and the other one ends.
    stage.world.sink.forget();
    *stage.world.store.pods.lock().unwrap() = pods;
    stage
        .world
        .store
        .is_incomplete
        .store(false, Ordering::SeqCst);
    stage.world.store.bump();
    stage
        .world
        .until("the pods", |news| {
            news.gone == ["late"] && news.statuses.contains_key("web")
        })
        .await;
    let adopted = stage.statuses();
    assert_eq!(adopted, stage.told);
    stage.gone().await;
}
