//! Volumes that wait, are replaced and go.

use super::*;

fn pod(volume: &Value) -> Value {
    json!({
        "metadata": {"name": "p", "namespace": "default", "uid": "u-1"},
        "spec": {"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                                 "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                 "volumes": [volume]},
    })
}

fn token(text: &str, refresh_at_ms: i64) -> Token {
    Token {
        token: text.to_owned(),
        refresh_at_ms,
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_waited_for_replaced_in_time_and_kept_while_the_hub_is_away() {
    let mut world = World::new();
    let mut asked = world.store.tokens_asked.subscribe();
    let source = json!({"serviceAccountToken": {"path": "token"}});
    let volume = json!({"name": "v", "projected": {"sources": [source]}});
    world.apply(pod(&volume));
    world.start();
    world
        .until("the reason", |news| {
            news.events.iter().any(|event| {
                event["reason"] == "FailedMount"
                    && event["message"].as_str().unwrap().contains(
                        "MountVolume.SetUp failed for volume \"v\" : failed to fetch token: ",
                    )
            })
        })
        .await;
    // The last one is issued first.
    let hour = 3_600_000;
    let now = world.runtime.now_ms();
    *world.store.tokens.lock().unwrap() =
        vec![token("second", now + 2 * hour), token("first", now + hour)];
    world.until_running("p", 0).await;
    let path = world
        .dir
        .path()
        .join("run/u-1/volumes/kubernetes.io~projected/v/token");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "first");
    let before = *asked.borrow_and_update();
    let begun = world.runtime.now_ms();
    // After the second one the hub is away: it is asked again and again.
    let patience = Duration::from_secs(5 * 3600);
    tokio::time::timeout(patience, asked.wait_for(|asked| *asked >= before + 4))
        .await
        .unwrap()
        .unwrap();
    assert!(world.runtime.now_ms() - begun >= 2 * hour - 60_000);
    assert_eq!(
        std::fs::read_to_string(&path).unwrap(),
        "second",
        "the last one stays"
    );
    world.until_running("p", 0).await;
    // Less and less often; but at once when the hub is back.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let before = *asked.borrow_and_update();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let hourly = *asked.borrow_and_update() - before;
    assert!((5..=7).contains(&hourly), "{hourly}");
    let begun = tokio::time::Instant::now();
    world.edged.as_ref().unwrap().resend();
    let before = *asked.borrow_and_update();
    asked.wait_for(|asked| *asked > before).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_replaced_soon_after_the_clock_was_set() {
    let mut world = World::new();
    let mut asked = world.store.tokens_asked.subscribe();
    let source = json!({"serviceAccountToken": {"path": "token"}});
    let volume = json!({"name": "v", "projected": {"sources": [source]}});
    let years = 50 * 365 * 86_400_000_i64;
    let now = world.runtime.now_ms();
    *world.store.tokens.lock().unwrap() = vec![
        token("second", now + 2 * years),
        token("first", now + years),
    ];
    world.apply(pod(&volume));
    world.start();
    world.until_running("p", 0).await;
    let before = *asked.borrow_and_update();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(*asked.borrow_and_update(), before, "it lives");
    world.clock_ahead_ms.store(years, Ordering::Relaxed);
    let soon = Duration::from_secs(601);
    tokio::time::timeout(soon, asked.wait_for(|asked| *asked > before))
        .await
        .unwrap()
        .unwrap();
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_claim_is_waited_for_and_its_data_goes_when_no_pod_uses_it() {
    let mut world = World::new();
    let volume = json!({"name": "v", "persistentVolumeClaim": {"claimName": "data"}});
    world.apply(pod(&volume));
    world.start();
    world
        .until("the reason", |news| {
            news.events.iter().any(|event| {
                event["reason"] == "FailedMount"
                    && event["involvedObject"].get("fieldPath").is_none()
                    && event["message"].as_str().unwrap().ends_with(
                        "error processing PVC default/data: failed to fetch PVC from API server: \
                         persistentvolumeclaims \"data\" not found",
                    )
            })
        })
        .await;
    let claim = json!({"metadata": {"name": "data", "uid": "c-1"},
        "spec": {"volumeName": "pv"}, "status": {"phase": "Bound"}});
    let mut volume = json!({
        "metadata": {"name": "pv", "uid": "v-1", "annotations": {
            "pv.kubernetes.io/provisioned-by": "outpost.dev/local-path"}},
        "spec": {"claimRef": {"namespace": "default", "name": "data", "uid": "c-1"},
                 "persistentVolumeReclaimPolicy": "Delete", "local": {"path": "/s/default_data_pv"}},
    });
    let put = |world: &World, volume: &Value| {
        let volume = serde_json::from_value(volume.clone()).unwrap();
        let mut volumes = world.store.volumes.lock().unwrap();
        volumes.insert("pv".to_owned(), volume);
    };
    put(&world, &volume);
    let claim = serde_json::from_value(claim).unwrap();
    world
        .store
        .claims
        .lock()
        .unwrap()
        .insert("data".to_owned(), claim);
    world.bump();
    world.until_running("p", 0).await;
    let path = world.dir.path().join("storage/default_data_pv");
    std::fs::write(path.join("x"), "").unwrap();

    volume["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    put(&world, &volume);
    // Used by a pod that is wanted here: whatever the hub says, it waits.
    world.configmap("other", "k", "v");
    world.edit("u-1", |pod| {
        pod.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        pod.metadata.deletion_grace_period_seconds = Some(1);
    });
    world
        .until("the end of the pod", |news| !news.gone.is_empty())
        .await;
    assert!(path.join("x").exists());
    world.store.pods.lock().unwrap().clear();
    world.bump();
    world
        .until("the end of the data", |news| news.volumes_gone == ["pv"])
        .await;
    assert!(!path.exists());
}
