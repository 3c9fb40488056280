//! What a container needs before it can start: its image and its objects.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_told_and_tried_again() {
    let mut world = World::new();
    let image = "reg.example/none:1";
    world
        .runtime
        .script_pulls(image, [Err("not found".to_owned()), Ok(())]);
    world.start();
    world.apply(web_with("image", json!(image)));
    world.until_waiting("web", "ErrImagePull").await;
    world.until_waiting("web", "ImagePullBackOff").await;
    assert_eq!(world.status("web")["phase"], "Pending");
    world.until_running("web", 0).await;
    assert_eq!(world.calls("pull"), 2);
    let reasons = world.reasons();
    assert_eq!(
        reasons,
        [
            "Pulling", "Failed", "Failed", "BackOff", "Failed", "Pulling", "Pulled", "Created",
            "Started"
        ]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_pull_under_way_does_not_delay_deletion() {
    let mut world = World::new();
    world.runtime.set_pull_time(Duration::from_secs(600));
    world.start();
    world.apply(web_with("image", json!("slow:1")));
    world.until("pulling", |news| !news.events.is_empty()).await;
    assert!(world.delete("web").await < Duration::from_secs(1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn always_falls_back_to_the_image_that_is_there() {
    let mut world = World::new();
    world.start();
    world.apply(web_with("imagePullPolicy", json!("Always")));
    world.until_running("web", 0).await;
    assert_eq!(world.calls("pull"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn never_does_not_pull() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["containers"][0]["image"] = json!("absent:1");
    wanted["spec"]["containers"][0]["imagePullPolicy"] = json!("Never");
    world.apply(wanted);
    world.until_waiting("web", "ErrImageNeverPull").await;
    assert_eq!(world.calls("pull"), 0);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_missing_configmap_holds_the_container_until_it_comes() {
    let mut world = World::new();
    world.start();
    world.apply(web_with(
        "envFrom",
        json!([{"configMapRef": {"name": "cm"}}]),
    ));
    world
        .until_waiting("web", "CreateContainerConfigError")
        .await;
    let state = world.status("web")["containerStatuses"][0]["state"].clone();
    assert_eq!(state["waiting"]["message"], "configmap \"cm\" not found");
    let begun = tokio::time::Instant::now();
    world.configmap("cm", "k", "v");
    world.until_running("web", 0).await;
    assert_eq!(begun.elapsed().as_secs(), 0, "no timer was waited for");
    assert_eq!(
        world.runtime.specs()[0].env,
        [("k".to_owned(), "v".to_owned())]
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_content_reaches_a_running_container_in_place() {
    let mut world = World::new();
    world.configmap("cm", "k", "one");
    world.start();
    let mut wanted = pod("web");
    wanted["spec"]["volumes"] = json!([{"name": "v", "configMap": {"name": "cm"}}]);
    wanted["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
    world.apply(wanted);
    world.until_running("web", 0).await;
    let file = world.mounted("/v").join("k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
    world.configmap("cm", "k", "two");
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while std::fs::read_to_string(&file).unwrap() != "two" {
        assert!(std::time::Instant::now() < deadline, "content never came");
        // Paused time: passes when nobody has anything to do.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(world.calls("start"), 1);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_reboot_pods_run_again_at_once_without_hub_or_registry() {
    let mut world = World::new();
    world.start();
    world.apply(pod("web"));
    world.until_running("web", 0).await;
    world.stop().await;
    world.runtime.reboot();
    let begun = tokio::time::Instant::now();
    world.start();
    world.until_running("web", 1).await;
    assert_eq!(begun.elapsed().as_secs(), 0);
    let last = world.status("web")["containerStatuses"][0]["lastState"].clone();
    assert_eq!(last["terminated"]["reason"], "ContainerStatusUnknown");
    assert_eq!(world.calls("sandbox"), 2);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_start_that_fails_is_told_and_tried_again() {
    let mut world = World::new();
    world.runtime.fail_start(
        "c",
        RuntimeError::Create {
            reason: "no space left on device".to_owned(),
        },
    );
    world.start();
    world.apply(pod("web"));
    world.until_waiting("web", "CreateContainerError").await;
    world.until_running("web", 0).await;
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn work_done_offline_is_not_done_again_after_a_reboot() {
    let mut world = World::new();
    world.runtime.exit_at_once("c", 0);
    world.start();
    let mut wanted = pod("job");
    wanted["spec"]["restartPolicy"] = json!("OnFailure");
    world.apply(wanted);
    world.until_phase("job", "Succeeded").await;
    let before = world.status("job");
    world.stop().await;
    // The hub never heard of it: the desired pod has no status.
    world.runtime.reboot();
    world.sink.forget();
    world.start();
    world.until_phase("job", "Succeeded").await;
    world.settle().await;
    assert_eq!(world.calls("start"), 1);
    let end = |status: &Value| status["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!(end(&world.status("job")), end(&before));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_optional_secret_is_not_waited_for_while_the_hub_is_away() {
    let mut world = World::new();
    world.start();
    let mut wanted = pod("web");
    let secret = |optional: bool| json!([{"secretRef": {"name": "s", "optional": optional}}]);
    wanted["spec"]["containers"][0]["envFrom"] = secret(false);
    world.apply(wanted.clone());
    world
        .until_waiting("web", "CreateContainerConfigError")
        .await;
    wanted["metadata"]["name"] = json!("other");
    wanted["metadata"]["uid"] = json!("uid-other");
    wanted["spec"]["containers"][0]["envFrom"] = secret(true);
    world.apply(wanted);
    world.until_running("other", 0).await;
    world.stop().await;
}
