//! Networks that were taken down while the daemon was away.

use super::*;
use crate::edged::runtime::NetworkHealth;

fn reason() -> String {
    "the pod has no interface eth0".to_owned()
}

/// Three pods run; the daemon goes, this becomes of the network of `web`, and it comes back.
async fn after(health: NetworkHealth, policy: &str) -> World {
    let mut world = World::new();
    world.start();
    for name in ["web", "other"] {
        let mut wanted = pod(name);
        wanted["spec"]["restartPolicy"] = json!(policy);
        world.apply(wanted);
        world.until_running(name, 0).await;
    }
    world.stop().await;
    world.runtime.set_network("uid-web", health);
    world.sink.forget();
    world.start();
    world
        .settle_disk(|| world.calls("check-network") == 2)
        .await;
    world
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_network_is_gone_gets_a_new_one_and_others_are_left_alone() {
    let mut world = after(NetworkHealth::Gone { reason: reason() }, "Always").await;
    world.until_running("web", 1).await;
    world.pass(3600).await;
    assert_eq!(
        world.status("web")["containerStatuses"][0]["restartCount"],
        1
    );
    assert_eq!(
        world.status("other")["containerStatuses"][0]["restartCount"],
        0
    );
    assert_eq!(world.calls("abandon-sandbox"), 1);
    assert!(world.position("stop uid-web-c-0") > world.position("abandon-sandbox uid-web"));
    assert_eq!(world.calls("sandbox web"), 2);
    let told = world.messages("SandboxChanged");
    assert!(told.len() == 1 && told[0].contains(&reason()), "{told:?}");
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn complaints_about_a_network_that_stands_restart_nothing_however_often() {
    let doubtful = NetworkHealth::Doubtful {
        reason: "plugin `odd`: no".to_owned(),
    };
    let mut world = after(doubtful, "Always").await;
    for starts in 2..5 {
        world
            .until("told", |news| {
                !news.messages("NetworkCheckFailed").is_empty()
            })
            .await;
        world.pass(600).await;
        assert_eq!(world.messages("NetworkCheckFailed").len(), 1);
        assert_eq!(world.calls("stop"), 0);
        world.stop().await;
        world.sink.forget();
        world.start();
        world
            .settle_disk(|| world.calls("check-network") == 2 * starts)
            .await;
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn work_that_would_not_be_started_again_goes_on_without_its_network() {
    let mut world = after(NetworkHealth::Gone { reason: reason() }, "Never").await;
    world
        .until("told", |news| !news.messages("NetworkLost").is_empty())
        .await;
    world.pass(600).await;
    assert_eq!(world.calls("stop") + world.calls("abandon"), 0);
    assert_eq!(world.status("web")["phase"], "Running");
    world.stop().await;
}
