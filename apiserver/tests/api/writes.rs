//! What a write changes.

use super::*;

#[tokio::test]
async fn a_write_that_changes_nothing_is_not_a_write() {
    let place = place().await;
    let created = place.ok("POST", MAPS, map("a")).await;
    let path = format!("{MAPS}/a");
    let put = place.ok("PUT", &path, map("a")).await;
    let patched = place.ok("PATCH", &path, json!({"data": {"k": "v"}})).await;
    assert_eq!((rv(&put), rv(&patched)), (rv(&created), rv(&created)));
    let changed = place.ok("PATCH", &path, json!({"data": {"k": null}})).await;
    assert!(rv(&changed) > rv(&created));
    assert_eq!(changed["metadata"]["uid"], created["metadata"]["uid"]);
}

#[tokio::test]
async fn dry_runs_answer_and_store_nothing() {
    let place = place().await;
    let dry = place
        .ok("POST", &format!("{MAPS}?dryRun=All"), map("a"))
        .await;
    assert!(dry["metadata"]["uid"].is_string());
    assert!(dry["metadata"]["resourceVersion"].is_null());
    assert_eq!(
        place.ask("GET", &format!("{MAPS}/a"), Value::Null).await.0,
        404
    );
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_removed() {
    let place = place().await;
    let mut object = map("f");
    object["metadata"]["finalizers"] = json!(["ex.io/f"]);
    place.ok("POST", MAPS, object).await;
    let path = format!("{MAPS}/f");
    let deleted = place.ok("DELETE", &path, Value::Null).await;
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    let again = place.ok("DELETE", &path, Value::Null).await;
    assert_eq!(rv(&again), rv(&deleted), "deleting again changes nothing");
    let more = json!({"metadata": {"finalizers": ["ex.io/f", "ex.io/g"]}});
    assert_eq!(place.ask("PATCH", &path, more).await.0, 422);
    let (_, taken) = place.ask("POST", MAPS, map("f")).await;
    assert_eq!(
        taken["message"],
        "object is being deleted: configmaps \"f\" already exists"
    );
    let none = json!({"metadata": {"finalizers": null}});
    place.ok("PATCH", &path, none).await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let place = place().await;
    let created = place.ok("POST", PODS, pod("p", "n1")).await;
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["metadata"]["generation"], 1);
    let path = format!("{PODS}/p");
    let both = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "b"}}});
    let main = place.ok("PATCH", &path, both.clone()).await;
    assert_eq!(main["status"]["phase"], "Pending");
    assert_eq!(main["metadata"]["labels"]["a"], "b");
    let other = json!({"status": {"phase": "Running"}, "metadata": {"labels": {"a": "c"}},
                       "spec": {"nodeName": "n2"}});
    let status = place.ok("PATCH", &format!("{path}/status"), other).await;
    assert_eq!(status["status"]["phase"], "Running");
    assert_eq!(status["metadata"]["labels"]["a"], "b");
    assert_eq!(status["spec"]["nodeName"], "n1");
    assert_eq!(status["metadata"]["generation"], 1);
    assert_eq!(
        place
            .ask("GET", &format!("{MAPS}/p/status"), Value::Null)
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn a_pod_on_a_node_gets_time_to_stop() {
    let place = place().await;
    place.ok("POST", PODS, pod("free", "")).await;
    let gone = place
        .ok("DELETE", &format!("{PODS}/free"), Value::Null)
        .await;
    assert_eq!(gone["metadata"]["deletionGracePeriodSeconds"], 0);
    assert_eq!(
        place
            .ask("GET", &format!("{PODS}/free"), Value::Null)
            .await
            .0,
        404
    );

    let path = format!("{PODS}/p");
    let created = place.ok("POST", PODS, pod("p", "n1")).await;
    let stopping = place.ok("DELETE", &path, Value::Null).await;
    assert_eq!(stopping["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(stopping["metadata"]["generation"], 2);
    let longer = place
        .ok("DELETE", &path, json!({"gracePeriodSeconds": 60}))
        .await;
    assert_eq!(rv(&longer), rv(&stopping), "longer is ignored");
    let shorter = place
        .ok("DELETE", &path, json!({"gracePeriodSeconds": 5}))
        .await;
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    let wrong = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "other"}});
    assert_eq!(place.ask("DELETE", &path, wrong).await.0, 409);
    let right = json!({"gracePeriodSeconds": 0,
                       "preconditions": {"uid": created["metadata"]["uid"]}});
    place.ok("DELETE", &path, right).await;
    assert_eq!(place.ask("GET", &path, Value::Null).await.0, 404);
}

#[tokio::test]
async fn binding_happens_once() {
    let place = place().await;
    place.ok("POST", PODS, pod("p", "")).await;
    let binding = |node: &str| json!({"metadata": {"name": "p"}, "target": {"name": node}});
    let path = format!("{PODS}/p/binding");
    let status = place.ok("POST", &path, binding("n1")).await;
    assert_eq!(
        (&status["status"], &status["code"]),
        (&json!("Success"), &json!(201))
    );
    let bound = place.ok("GET", &format!("{PODS}/p"), Value::Null).await;
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(place.ask("POST", &path, binding("n2")).await.0, 409);
}

#[tokio::test]
async fn facts_commit_with_the_object_or_not_at_all() {
    let place = place().await;
    place.ok("POST", PODS, pod("p", "n1")).await;
    let pods = Gvr::core("pods");
    let patch = |phase: &str| Patch {
        kind: PatchKind::Merge,
        body: json!({"status": {"phase": phase}}),
    };
    let options = |facts: Txn| WriteOptions {
        facts,
        ..WriteOptions::default()
    };
    let first = Txn::new()
        .require(Require::Absent("/ledger/n1".into()))
        .put("/ledger/n1", "1");
    place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Running"),
            options(first.clone()),
        )
        .await
        .unwrap();
    let ledger = place.api.store().get("/ledger/n1").await.unwrap().unwrap();
    let object = place.api.get(&pods, "default", "p").await.unwrap();
    assert_eq!(rv(&object), ledger.revision, "one transaction");

    let again = place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Failed"),
            options(first),
        )
        .await
        .unwrap_err();
    assert!(again.is_fact_conflict(), "{again}");
    let object = place.api.get(&pods, "default", "p").await.unwrap();
    assert_eq!(object["status"]["phase"], "Running", "nothing was changed");

    let second = Txn::new()
        .require(Require::At("/ledger/n1".into(), ledger.revision))
        .put("/ledger/n1", "2");
    let same = place
        .api
        .patch(
            &pods,
            "default",
            "p",
            Some("status"),
            &patch("Running"),
            options(second),
        )
        .await
        .unwrap();
    assert_eq!(
        rv(&same.object),
        ledger.revision,
        "an unchanged object is not written"
    );
    let ledger = place.api.store().get("/ledger/n1").await.unwrap().unwrap();
    assert_eq!(ledger.value, "2", "its facts are");
}

#[tokio::test]
async fn concurrent_changes_all_happen() {
    let place = place().await;
    place.ok("POST", MAPS, map("n")).await;
    let maps = Gvr::core("configmaps");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (api, maps) = (place.api.clone(), maps.clone());
        tasks.spawn(async move {
            api.change(&maps, "default", "n", WriteOptions::default(), |object| {
                let mut object = object.clone();
                object["data"][format!("k{n}")] = "1".into();
                Ok(object)
            })
            .await
        });
    }
    while let Some(done) = soon(tasks.join_next()).await {
        done.unwrap().unwrap();
    }
    let object = place.api.get(&maps, "default", "n").await.unwrap();
    assert_eq!(object["data"].as_object().unwrap().len(), 11);
    let deleted = place
        .api
        .delete(&maps, "default", "n", DeleteOptions::default())
        .await
        .unwrap();
    assert!(deleted.removed);
}
