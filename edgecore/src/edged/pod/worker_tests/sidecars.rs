//! Init containers with `restartPolicy: Always`.

use super::*;

fn with_sidecars(name: &str, names: &[&str]) -> Value {
    let mut wanted = pod(name);
    let sidecars = names.iter().map(|name| {
        json!({"name": name, "image": IMAGE, "restartPolicy": "Always",
        "startupProbe": {"exec": {"command": [format!("up-{name}")]}, "periodSeconds": 1}})
    });
    wanted["spec"]["initContainers"] = json!(sidecars.collect::<Vec<_>>());
    wanted
}

fn starts(world: &World) -> Vec<String> {
    let calls = world.runtime.calls();
    calls
        .into_iter()
        .filter(|c| c.starts_with("start"))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn sidecars_start_one_after_the_other_and_end_in_reverse_after_the_main_ones() {
    let mut world = World::new();
    world.runtime.on_exec("up-one", 1, "", Duration::ZERO);
    world.start();
    world.apply(with_sidecars("web", &["one", "two"]));
    world
        .until("one runs", |news| {
            let sidecar = &news.status("web")["initContainerStatuses"][0];
            sidecar["state"]["running"].is_object()
        })
        .await;
    let status = world.status("web");
    assert_eq!(status["phase"], "Pending");
    assert_eq!(status["initContainerStatuses"][0]["started"], false);
    assert_eq!(
        status["conditions"][1]["message"],
        "containers with incomplete status: [one two]"
    );
    assert_eq!(starts(&world), ["start one 0"]);
    world.runtime.on_exec("up-one", 0, "", Duration::ZERO);
    world.until_running("web", 0).await;
    assert_eq!(starts(&world), ["start one 0", "start two 0", "start c 0"]);
    world.delete("web").await;
    let calls = world.runtime.calls();
    let stops: Vec<&String> = calls.iter().filter(|c| c.starts_with("stop")).collect();
    assert_eq!(
        stops,
        [
            "stop uid-web-c-0",
            "stop uid-web-two-0",
            "stop uid-web-one-0"
        ]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_is_restarted_beside_the_main_one_and_does_not_hold_a_job() {
    let mut world = World::new();
    world.start();
    let mut wanted = with_sidecars("job", &["one"]);
    wanted["spec"]["restartPolicy"] = json!("Never");
    world.apply(wanted);
    world.until_running("job", 0).await;
    world.runtime.exit("one", 1);
    world
        .until("restarted", |news| {
            let sidecar = &news.status("job")["initContainerStatuses"][0];
            sidecar["restartCount"] == 1 && sidecar["started"] == true
        })
        .await;
    assert_eq!(world.status("job")["phase"], "Running");
    world.runtime.exit("c", 0);
    world.until_phase("job", "Succeeded").await;
    assert_eq!(world.calls("stop uid-job-one-1"), 1);
    world.pass(60).await;
    assert_eq!(starts(&world), ["start one 0", "start c 0", "start one 1"]);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_that_is_slow_to_end_has_the_grace_and_two_seconds() {
    let mut world = World::new();
    world.runtime.make_deaf("c");
    world.runtime.make_deaf("one");
    world.start();
    world.apply(with_sidecars("web", &["one"]));
    world.until_running("web", 0).await;
    assert_eq!(world.delete("web").await.as_secs(), 32);
    assert_eq!((world.calls("stop"), world.calls("kill")), (2, 2));
    world.stop().await;
}
