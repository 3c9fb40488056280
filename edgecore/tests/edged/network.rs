//! Networks that somebody took down while the daemon was away.

use std::process::Command;

use super::*;

const HOST_PORT: u16 = 38_932;

fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

impl World {
    /// Does something in a pod's network.
    fn inside(&self, uid: &str, script: &str) -> String {
        let pin = self.config.state_dir.join("sandboxes").join(uid);
        sh(&format!("nsenter --net={}/ns/net {script}", pin.display()))
    }

    async fn all_gone(&mut self, pods: usize) {
        self.store.set([]);
        self.until("gone", |news| news.gone.len() == pods).await;
        self.edged.take().unwrap().stop().await;
    }
}

fn pod(name: &str, uid: &str, policy: &str) -> Value {
    let main = json!({"name": "main", "image": IMAGE, "imagePullPolicy": "Never",
        "command": ["sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait"]});
    json!({
        "metadata": {"name": name, "namespace": "default", "uid": uid},
        "spec": {"restartPolicy": policy, "terminationGracePeriodSeconds": 1, "containers": [main]},
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_that_is_gone_is_made_anew_and_what_stands_is_left_alone() {
    let Some(mut world) = World::new().await else {
        return;
    };
    let [web, mapped, steady, job] = [(); 4].map(|()| uuid::Uuid::new_v4().to_string());
    let mut with_port = pod("mapped", &mapped, "Always");
    with_port["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": 80, "hostPort": HOST_PORT}]);
    world.store.apply(pod("web", &web, "Always"));
    world.store.apply(with_port);
    world.store.apply(pod("steady", &steady, "Always"));
    world.store.apply(pod("job", &job, "Never"));
    for name in ["web", "mapped", "steady", "job"] {
        world.until_running(name, 0).await;
    }
    let left_alone = ["mapped", "steady", "job"];
    let told = left_alone.map(|name| world.status(name));
    world.edged.take().unwrap().stop().await;

    for uid in [&web, &job] {
        world.inside(uid, "ip link delete eth0");
    }
    // Somebody empties a table: the plugin complains, the network stands.
    let rules = sh("iptables-save -t nat");
    let rule = rules
        .lines()
        .find(|rule| rule.starts_with("-A CNI-HOSTPORT-DNAT") && rule.contains(&mapped))
        .unwrap();
    sh(&format!(
        "iptables -w -t nat {}",
        rule.replacen("-A", "-D", 1)
    ));

    world.sink.forget();
    world.start();
    world.until_running("web", 1).await;
    let ip = world.status("web")["podIP"].as_str().unwrap().to_owned();
    let addresses = world.inside(&web, "ip -4 addr show eth0");
    assert!(addresses.contains(&ip), "{ip} {addresses}");
    for reason in ["SandboxChanged", "NetworkCheckFailed", "NetworkLost"] {
        world
            .until(reason, |news| news.messages(reason).len() == 1)
            .await;
    }
    assert_eq!(left_alone.map(|name| world.status(name)), told);

    // Everything stands now but for the job's and the rule: nothing is restarted again.
    world.edged.take().unwrap().stop().await;
    world.sink.forget();
    world.start();
    for reason in ["NetworkCheckFailed", "NetworkLost"] {
        world
            .until(reason, |news| news.messages(reason).len() == 1)
            .await;
    }
    world.until_running("web", 1).await;
    assert_eq!(world.status("web")["podIP"], json!(ip));
    assert!(world.sink.0.borrow().messages("SandboxChanged").is_empty());
    world.all_gone(4).await;
}
