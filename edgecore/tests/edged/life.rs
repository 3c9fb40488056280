//! Probes, hooks, sidecars and failed starts on a real containerd.

use super::*;

impl World {
    fn apply_spec(&self, uid: &str, spec: Value) {
        self.store.apply(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": uid}, "spec": spec}));
    }

    /// A directory of the host that pods of this test write to.
    fn shared(&self) -> PathBuf {
        let path = self.directory.path().join("shared");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    async fn delete_and_wait(&mut self) -> Duration {
        let begun = Instant::now();
        self.store.set([]);
        self.until_gone("web").await;
        let took = begun.elapsed();
        self.edged.take().unwrap().stop().await;
        took
    }

    fn has_event(&self, reason: &str, message: &str) -> bool {
        let messages = self.sink.0.borrow().messages(reason);
        messages.iter().any(|told| told.starts_with(message))
    }
}

fn lines(path: &std::path::Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn new_uid() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_liveness_probe_restarts_and_last_words_are_told() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let script = "trap 'echo out of paper > /dev/termination-log; exit 7' TERM; \
        touch /alive; sleep 2 & wait; rm /alive; while true; do sleep 0.1; done";
    world.apply_spec(
        &new_uid(),
        json!({
            "terminationGracePeriodSeconds": 20,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "livenessProbe": {"exec": {"command": ["ls", "/alive"]},
                    "periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 10},
            }],
        }),
    );
    world.until_running("web", 1).await;
    let last = world.container("web")["lastState"].clone();
    assert_eq!(last["terminated"]["exitCode"], 7, "{last}");
    assert_eq!(last["terminated"]["reason"], "Error");
    assert_eq!(last["terminated"]["message"], "out of paper\n");
    assert!(world.has_event("Unhealthy", "Liveness probe failed: ls: /alive"));
    assert!(world.has_event(
        "Killing",
        "Container main failed liveness probe, will be restarted"
    ));
    world.delete_and_wait().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_is_asked_over_the_pods_network_and_pre_stop_runs_in_the_grace() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let shared = world.shared();
    let script = "trap 'echo term >> /shared/order; exit 0' TERM; mkdir -p /www; \
        echo hook-waits >> /shared/order; httpd -p 8080 -h /www; \
        while true; do test -e /shared/ready && touch /www/ready; sleep 0.1; done";
    world.apply_spec(
        &new_uid(),
        json!({
            "terminationGracePeriodSeconds": 20,
            "volumes": [{"name": "shared", "hostPath": {"path": shared}}],
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", script],
                "ports": [{"name": "web", "containerPort": 8080}],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
                "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 30},
                "readinessProbe": {"httpGet": {"port": "web", "path": "/ready"},
                    "periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 5},
                "lifecycle": {
                    "postStart": {"exec": {"command": ["sh", "-c", "echo hook >> /shared/order"]}},
                    "preStop": {"exec": {"command": ["sh", "-c", "sleep 1; echo bye >> /shared/order"]}},
                },
            }],
        }),
    );
    world
        .until("started, not ready", |news| {
            let container = &news.status("web")["containerStatuses"][0];
            container["started"] == true && container["ready"] == false
        })
        .await;
    world
        .until("asked", |news| {
            let failed = "Readiness probe failed: HTTP probe failed with statuscode: 404";
            let told = news.messages("Unhealthy");
            told.iter().any(|message| message.starts_with(failed))
        })
        .await;
    let condition = world.status("web")["conditions"][2].clone();
    assert_eq!(
        (&condition["type"], &condition["status"]),
        (&json!("Ready"), &json!("False"))
    );
    std::fs::write(shared.join("ready"), "").unwrap();
    world
        .until("ready", |news| {
            news.status("web")["conditions"][2]["status"] == "True"
        })
        .await;
    assert!(lines(&shared.join("order")).contains(&"hook".to_owned()));
    let took = world.delete_and_wait().await;
    assert!(
        took > Duration::from_secs(1) && took < Duration::from_secs(15),
        "{took:?}"
    );
    let order = lines(&shared.join("order"));
    assert_eq!(order[order.len() - 2..], ["bye", "term"], "{order:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sidecars_start_in_order_and_end_in_reverse() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let shared = world.shared();
    let container = |name: &str, up: &str| {
        let script = format!(
            "trap 'echo {name} down >> /shared/order; exit 0' TERM; echo {name} up >> /shared/order; \
             {up}; while true; do sleep 0.1; done"
        );
        json!({"name": name, "image": IMAGE, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
            "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]})
    };
    let mut one = container("one", "sleep 1; touch /up");
    one["restartPolicy"] = json!("Always");
    one["startupProbe"] = json!({"exec": {"command": ["ls", "/up"]},
        "periodSeconds": 1, "failureThreshold": 30, "timeoutSeconds": 10});
    let mut two = container("two", "true");
    two["restartPolicy"] = json!("Always");
    let mut init = container("init", "exit 0");
    init["command"] = json!(["sh", "-c", "echo init >> /shared/order"]);
    world.apply_spec(
        &new_uid(),
        json!({
            "terminationGracePeriodSeconds": 20,
            "volumes": [{"name": "shared", "hostPath": {"path": shared}}],
            "initContainers": [one, init, two],
            "containers": [container("main", "true")],
        }),
    );
    world.until_running("web", 0).await;
    let sidecars = world.status("web")["initContainerStatuses"].clone();
    assert_eq!(
        (&sidecars[0]["started"], &sidecars[2]["started"]),
        (&json!(true), &json!(true))
    );
    let order = shared.join("order");
    wait::until("four to be up", PATIENCE, async || {
        let order = lines(&order);
        ensure!(order.len() >= 4, "{order:?}");
        Ok(Some(()))
    })
    .await
    .unwrap();
    world.delete_and_wait().await;
    assert_eq!(
        lines(&order),
        [
            "one up",
            "init",
            "two up",
            "main up",
            "main down",
            "two down",
            "one down"
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_not_there_is_a_start_error() {
    let Some(mut world) = World::new().await else {
        return;
    };
    world.apply_spec(
        &new_uid(),
        json!({
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["/nosuch"],
            }],
        }),
    );
    world
        .until("crash loop", |news| {
            let state = &news.status("web")["containerStatuses"][0]["state"];
            state["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let container = world.container("web");
    let last = &container["lastState"]["terminated"];
    assert_eq!(
        (&last["reason"], &last["exitCode"]),
        (&json!("StartError"), &json!(128)),
        "{container}"
    );
    assert!(
        last["message"].as_str().unwrap().contains("/nosuch"),
        "{last}"
    );
    world.delete_and_wait().await;
}
