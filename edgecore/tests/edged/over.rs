//! Pods that are over, on a real containerd: nothing of the node is held for them, and all there is
//! to know of them stays.

use std::path::Path;

use edgecore::edged::runtime::Runtime;
use rustix::mount::{UnmountFlags, unmount};

use super::*;

const HOST_PORT: u16 = 38_931;

impl World {
    pub(crate) fn ctr(&self, arguments: &[&str]) -> Vec<String> {
        let text = self.daemon.ctr(&self.config.namespace, arguments).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// What pods hold of the node, by kind.
    fn held(&self, uid: &str) -> Vec<String> {
        let mut held = Vec::new();
        let mut note = |kind: &str, things: Vec<String>| {
            held.extend(things.into_iter().map(|thing| format!("{kind}: {thing}")));
        };
        note("task", self.ctr(&["tasks", "ls", "-q"]));
        note("exit record", exit_records(&self.ctr(&["sandboxes", "ls"])));
        let under = |dir: &Path| {
            let text = std::fs::read_to_string("/proc/mounts").unwrap();
            let points = text.lines().filter_map(|line| line.split(' ').nth(1));
            let mine = points.filter(|point| Path::new(point).starts_with(dir));
            mine.map(str::to_owned).collect::<Vec<_>>()
        };
        note("mount", under(self.directory.path()));
        let run = &self.config.state_dir;
        for dir in ["sandboxes", "cni/results", "cni/ipam/edgecore"] {
            let entries = std::fs::read_dir(run.join(dir)).into_iter().flatten();
            let names = entries
                .flatten()
                .map(|e| e.file_name().into_string().unwrap());
            // host-local's own bookkeeping
            let names = names.filter(|n| n != "lock" && !n.starts_with("last_reserved_ip"));
            note(dir, names.collect());
        }
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let dir = hierarchy
                .path()
                .join(self.config.cgroup_root.trim_start_matches('/'));
            for class in ["", "besteffort", "burstable"] {
                let pod = dir.join(class).join(format!("pod{uid}"));
                if pod.exists() {
                    note("cgroup", vec![pod.display().to_string()]);
                }
            }
        }
        let rules = std::process::Command::new("iptables-save").output();
        let rules =
            String::from_utf8_lossy(&rules.map(|o| o.stdout).unwrap_or_default()).into_owned();
        let port = HOST_PORT.to_string();
        let ours = rules
            .lines()
            .filter(|rule| rule.contains(uid) || rule.contains(&port));
        note("rule", ours.map(str::to_owned).collect());
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let is_daemon =
                entry.file_name().to_str() == self.daemon.pid().map(|p| p.to_string()).as_deref();
            if line.contains(&self.config.namespace) && !is_daemon {
                note("process", vec![line]);
            }
        }
        held
    }

    /// Waits until the node holds nothing for its pods; nobody tells, so this looks again.
    async fn until_nothing_held(&self, uid: &str) {
        wait::until("nothing to be held", PATIENCE, async || {
            let held = self.held(uid);
            ensure!(held.is_empty(), "still held: {held:#?}");
            Ok(Some(()))
        })
        .await
        .unwrap();
    }

    async fn until_over(&self, phase: &str) {
        self.until(phase, |news| news.status("web")["phase"] == phase)
            .await;
    }

    /// The daemon ends and begins again; what it then tells is what is told from then on.
    async fn begin_again(&mut self) -> Arc<ContainerdRuntime> {
        if let Some(edged) = self.edged.take() {
            edged.stop().await;
        }
        self.sink.forget();
        self.ahead_ms += 3_600_000;
        self.start()
    }

    /// The power fails and comes back: nothing runs, tmpfs is empty.
    async fn power_cut(&mut self) {
        self.edged.take().unwrap().stop().await;
        self.daemon.kill().unwrap();
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let mine = points.filter(|point| Path::new(point).starts_with(self.directory.path()));
        for point in mine.collect::<Vec<_>>().into_iter().rev() {
            unmount(point, UnmountFlags::DETACH).unwrap();
        }
        std::fs::remove_dir_all(&self.config.state_dir).unwrap();
        std::fs::remove_dir_all(self.directory.path().join("state")).unwrap();
        let _ = std::fs::remove_dir_all(self.directory.path().join("volumes"));
        self.daemon.restart().unwrap();
    }
}

fn exit_records(table: &[String]) -> Vec<String> {
    table.iter().skip(1).cloned().collect()
}

fn job(uid: &str) -> Value {
    let container = |name: &str, script: &str| {
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "fast", "mountPath": "/fast"}, {"name": "secret", "mountPath": "/secret"}]})
    };
    let mut main = container(
        "main",
        "cat /secret/key; touch /fast/x; echo out of paper > /dev/termination-log; exit 3",
    );
    main["ports"] = json!([{"containerPort": 80, "hostPort": HOST_PORT}]);
    json!({
        "metadata": {"name": "web", "namespace": "default", "uid": uid},
        "spec": {
            "restartPolicy": "Never", "shareProcessNamespace": true,
            "volumes": [{"name": "fast", "emptyDir": {"medium": "Memory"}}, {"name": "secret", "secret": {"secretName": "s"}}],
            "initContainers": [container("first", "exit 0")],
            "containers": [main, container("other", "exit 0")],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_over_holds_nothing_and_is_remembered() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let secret = Secret {
        data: Some([("key".to_owned(), ByteString(b"open".to_vec()))].into()),
        ..Secret::default()
    };
    world
        .store
        .secrets
        .lock()
        .unwrap()
        .insert("s".to_owned(), secret);
    let uid = uuid::Uuid::new_v4().to_string();
    world.store.apply(job(&uid));
    world.until_over("Failed").await;
    world.until_nothing_held(&uid).await;
    let told = world.status("web");
    let state =
        |status: &Value, n: usize| status["containerStatuses"][n]["state"]["terminated"].clone();
    assert_eq!(state(&told, 0)["exitCode"], 3, "{told}");
    assert_eq!(state(&told, 0)["message"], "out of paper\n");
    assert_eq!(state(&told, 1)["reason"], "Completed");
    let init = &told["initContainerStatuses"][0]["state"]["terminated"];
    assert_eq!(init["exitCode"], 0);
    assert!(
        told["podIP"].as_str().unwrap().starts_with("10.88."),
        "{told}"
    );
    world.until_logged(&uid, 0, "open").await;
    assert_eq!(
        world.ctr(&["containers", "ls", "-q"]).len(),
        3,
        "their records stay"
    );

    // The daemon goes and comes, then containerd with it, then the machine.
    world.begin_again().await;
    world.until_over("Failed").await;
    assert_eq!(world.status("web"), told);
    world.edged.take().unwrap().stop().await;
    world.daemon.restart().unwrap();
    world.begin_again().await;
    world.until_over("Failed").await;
    assert_eq!(world.status("web"), told);
    world.power_cut().await;
    let runtime = world.begin_again().await;
    world.until_over("Failed").await;
    assert_eq!(world.status("web"), told);
    // Asked for once more, what is over is not started again.
    assert_eq!(runtime.containers().await.unwrap().len(), 3);
    world.until_nothing_held(&uid).await;
    world.until_logged(&uid, 0, "open").await;

    world.store.set([]);
    world.until_gone("web").await;
    assert!(world.ctr(&["containers", "ls", "-q"]).is_empty());
    assert!(!world.log(&uid, 0).exists());
    world.edged.take().unwrap().stop().await;
}
