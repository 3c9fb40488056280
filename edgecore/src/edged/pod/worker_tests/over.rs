//! Pods that are over and stay to be looked at: they hold nothing of the node.

use super::*;
use crate::edged::pod::verdict::Verdict;

impl World {
    async fn until_released(&self) {
        self.settle_disk(|| self.runtime.sandbox_uids().is_empty())
            .await;
    }
}

fn job(name: &str, policy: &str) -> Value {
    let mut job = pod(name);
    job["spec"]["restartPolicy"] = json!(policy);
    job
}

fn sidecar(name: &str) -> Value {
    json!({"name": name, "image": IMAGE, "imagePullPolicy": "Never", "restartPolicy": "Always"})
}

#[tokio::test(start_paused = true)]
async fn whatever_ended_a_pod_it_gives_back_what_it_holds_and_keeps_its_status() {
    type Case = (
        &'static str,
        Value,
        &'static [(&'static str, i32)],
        &'static str,
    );
    let mut failed_init = job("web", "Never");
    failed_init["spec"]["initContainers"] =
        json!([{"name": "i", "image": IMAGE, "imagePullPolicy": "Never"}]);
    let mut with_sidecar = job("web", "OnFailure");
    with_sidecar["spec"]["initContainers"] = json!([sidecar("s")]);
    let mut late = job("web", "Always");
    late["spec"]["activeDeadlineSeconds"] = json!(10);
    let mut on_host = job("web", "Never");
    on_host["spec"]["hostNetwork"] = json!(true);
    let cases: [Case; 6] = [
        ("done", job("web", "OnFailure"), &[("c", 0)], "Succeeded"),
        ("failed", job("web", "Never"), &[("c", 3)], "Failed"),
        ("init failed", failed_init, &[("i", 1)], "Failed"),
        ("sidecar", with_sidecar, &[("c", 0)], "Succeeded"),
        ("deadline", late, &[], "Failed"),
        ("host network", on_host, &[("c", 0)], "Succeeded"),
    ];
    for (name, wanted, exits, phase) in cases {
        let mut world = World::new();
        for (container, code) in exits {
            world.runtime.exit_at_once(container, *code);
        }
        world.start();
        world.apply(wanted);
        world.until_phase("web", phase).await;
        world.until_released().await;
        let told = world.status("web");
        assert_eq!(told["podIP"], "10.88.0.7", "{name}");
        let starts = world.calls("start");
        // Nothing changes with time, a restart of the daemon, or one of the machine.
        for reboots in [false, true] {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            world.stop().await;
            if reboots {
                world.runtime.reboot();
            }
            world.sink.0.send_modify(|news| *news = News::default());
            world.start();
            world.until_phase("web", phase).await;
            world.settle().await;
            assert_eq!(world.status("web"), told, "{name}, reboots: {reboots}");
        }
        assert_eq!(world.calls("start"), starts, "{name}");
        assert_eq!(world.calls("remove uid-web"), 0, "{name}: its records stay");
        world.edit("uid-web", delete);
        world.until("gone", |news| news.gone == ["web"]).await;
        assert!(!world.dir.path().join("disk/uid-web").exists(), "{name}");
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_that_breaks_off_anywhere_is_finished_and_starts_nothing() {
    // By this process, or by the next one after a crash at that very step.
    for (step, crashes) in [
        ("retire uid-web-c", false),
        ("remove-sandbox", false),
        ("retire uid-web-c", true),
        ("retire uid-web-d", true),
        ("remove-sandbox", true),
    ] {
        let mut world = World::new();
        world.runtime.exit_at_once("c", 0);
        world.runtime.exit_at_once("d", 4);
        let often = if crashes { u32::MAX } else { 2 };
        world.runtime.refuse(step, often);
        world.start();
        let mut wanted = job("web", "Never");
        let mut second = wanted["spec"]["containers"][0].clone();
        second["name"] = json!("d");
        wanted["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(second);
        world.apply(wanted);
        world.until_phase("web", "Failed").await;
        world.settle_disk(|| world.calls(step) > 0).await;
        let told = world.status("web");
        if crashes {
            world.stop().await;
            world.runtime.refuse(step, 0);
            world.runtime.reboot();
            world.sink.0.send_modify(|news| *news = News::default());
            world.start();
            world.until_phase("web", "Failed").await;
        }
        tokio::time::sleep(Duration::from_secs(600)).await;
        world.until_released().await;
        assert_eq!(world.status("web"), told, "{step}, crashes: {crashes}");
        assert_eq!(world.calls("start"), 2, "{step}, crashes: {crashes}");
        world.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_only_rests_keeps_its_sandbox() {
    let mut world = World::new();
    world.runtime.exit_at_once("c", 1);
    world.start();
    world.apply(pod("web"));
    world.until_waiting("web", "CrashLoopBackOff").await;
    world.settle().await;
    assert_eq!(world.runtime.sandbox_uids(), ["uid-web"]);
    assert_eq!(world.calls("retire"), 0);
    let verdict = Verdict {
        reason: "Evicted".to_owned(),
        message: "full".to_owned(),
        grace: Duration::ZERO,
        disruption: None,
    };
    let edged = world.edged.as_ref().unwrap();
    edged.context.judge("uid-web", verdict);
    world.until_phase("web", "Failed").await;
    world.until_released().await;
    world.stop().await;
}
