//! Pods that the node has by itself, and what pods ask for while one end is away. On the daemons.

use anyhow::{Result, ensure};
use outpost_tests::scenario::{IMAGE, PATIENCE, Run, scenario_with};
use outpost_tests::world::NODE;
use outpost_tests::{containers, wait};
use serde_json::Value;

const STATIC_PODS: &str = "modules.edged.tailoredKubeletConfig.staticPodPath";

fn manifest(name: &str, word: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: {IMAGE}\n    \
         imagePullPolicy: IfNotPresent\n    command: [sleep, '{word}']\n"
    )
}

async fn until_containers(run: &Run, what: &str, count: usize) -> Result<()> {
    wait::until(what, PATIENCE, async || {
        let all = containers::all(&run.world)?;
        let running = all.iter().filter(|container| container.running).count();
        Ok((running == count).then_some(()))
    })
    .await
}

/// The uid of the static pod that the mirror shows as running.
async fn mirrored(run: &Run, not_uid: &str, not_hash: &str) -> Result<(String, String)> {
    let name = format!("web-{NODE}");
    run.world
        .kubectl()
        .until(
            "a mirror that runs",
            PATIENCE,
            &["get", "pod", &name],
            |pod| {
                let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let uid = text(&pod["metadata"]["uid"]);
                let hash = text(&pod["metadata"]["annotations"]["kubernetes.io/config.mirror"]);
                let runs = pod["status"]["phase"] == "Running";
                (runs && uid != not_uid && hash != not_hash && !hash.is_empty())
                    .then_some((uid, hash))
            },
        )
        .await
}

#[test]
fn static_pods_run_without_a_hub_and_are_mirrored_in_it() {
    let manifests = tempfile::tempdir().unwrap();
    let directory = manifests.path().to_owned();
    let settings = vec![(STATIC_PODS, directory.display().to_string())];
    scenario_with("static", settings, async |run| {
        run.image()?;
        // No hub, a node that starts anew, and an empty store: the file is enough.
        run.world.edge()?.stop().await?;
        run.world.hub()?.kill9()?;
        for file in std::fs::read_dir(run.world.edge_dir())?.flatten() {
            if file.file_name().to_string_lossy().contains(".db") {
                std::fs::remove_file(file.path())?;
            }
        }
        std::fs::write(directory.join("web.yaml"), manifest("web", "1000001"))?;
        run.world.edge_up()?;
        until_containers(run, "the static pod", 1).await?;
        let first = containers::all(&run.world)?;

        // The hub comes: the pod is shown in it, as the node's.
        run.world.hub_up().await?;
        let (uid, hash) = mirrored(run, "", "").await?;
        let name = format!("web-{NODE}");
        let kubectl = run.world.kubectl();
        let pod = kubectl.json(&["get", "pod", &name]).await?;
        ensure!(
            pod["metadata"]["ownerReferences"][0]["kind"] == "Node",
            "{pod:#}"
        );

        // Deleting what is shown ends nothing; it is shown again.
        kubectl
            .run(&["delete", "pod", &name, "--wait=false"])
            .await?;
        let (uid, same) = mirrored(run, &uid, "").await?;
        ensure!(same == hash, "the same pod");
        ensure!(
            containers::all(&run.world)? == first,
            "the container lived on"
        );

        // A file that is no pod is told, and nothing ends.
        std::fs::write(directory.join("web.yaml"), "apiVersion: v1\nkind: Pod\n")?;
        wait::until("the event", PATIENCE, async || {
            let events = kubectl.run(&["get", "events", "-o", "json"]).await?;
            Ok(events.contains("web.yaml: metadata.name").then_some(()))
        })
        .await?;
        ensure!(
            containers::all(&run.world)? == first,
            "the container lived on"
        );

        // Another content is another pod; no file is none.
        std::fs::write(directory.join("web.yaml"), manifest("web", "1000002"))?;
        mirrored(run, &uid, &hash).await?;
        until_containers(run, "the new pod alone", 1).await?;
        ensure!(containers::all(&run.world)? != first, "another container");
        std::fs::remove_file(directory.join("web.yaml"))?;
        until_containers(run, "the pod to end", 0).await?;
        wait::until("the mirror to go", PATIENCE, async || {
            Ok(kubectl
                .run(&["get", "pod", &name])
                .await
                .is_err()
                .then_some(()))
        })
        .await
    });
}

fn asking(name: &str, annotation: &str) -> String {
    manifest(name, "1000003").replacen(
        "spec:",
        &format!("  annotations: {{{annotation}}}\nspec:\n  nodeName: {NODE}"),
        1,
    )
}

#[test]
fn pods_are_stopped_for_an_absent_hub_only_if_they_ask() {
    scenario_with("absent", Vec::new(), async |run| {
        run.image()?;
        run.apply(&asking("keeps", "outpost.dev/on-disconnect: keep"))
            .await?;
        run.apply(&asking("stops", "outpost.dev/on-disconnect: stop-after=3s"))
            .await?;
        until_containers(run, "both pods", 2).await?;
        let kept = containers::running(&run.world, "keeps")?;

        run.world.hub()?.kill9()?;
        until_containers(run, "one pod", 1).await?;
        ensure!(containers::running(&run.world, "keeps")? == kept, "kept");
        // A daemon that starts anew meanwhile does not count from nothing again: it starts nothing.
        run.world.edge()?.stop().await?;
        run.world.edge_up()?;
        wait::until("both pods known", PATIENCE, async || {
            let Ok(status) = run.world.status() else {
                return Ok(None);
            };
            let pods = status["pods"].as_array().map_or(0, Vec::len);
            Ok((pods == 2).then_some(()))
        })
        .await?;
        until_containers(run, "still one pod", 1).await?;

        run.world.hub_up().await?;
        until_containers(run, "both pods again", 2).await?;
        ensure!(containers::running(&run.world, "keeps")? == kept, "kept");
        containers::running(&run.world, "stops").map(drop)
    });
}

#[test]
fn pods_of_an_absent_node_are_deleted_only_if_they_ask() {
    scenario_with("evict", Vec::new(), async |run| {
        run.image()?;
        run.apply(&asking("keeps", "a: b")).await?;
        run.apply(&asking("leaves", "outpost.dev/evict-after: 2s"))
            .await?;
        until_containers(run, "both pods", 2).await?;
        run.world.edge()?.stop().await?;
        let kubectl = run.world.kubectl();
        kubectl
            .until("the deletion", PATIENCE, &["get", "pod", "leaves"], |pod| {
                let leaves = pod["metadata"]["deletionTimestamp"].is_string()
                    && pod["status"]["reason"] == "NodeLost";
                leaves.then_some(())
            })
            .await?;
        let kept = kubectl.json(&["get", "pod", "keeps"]).await?;
        ensure!(kept["metadata"]["deletionTimestamp"].is_null(), "{kept:#}");
        // The node comes back and ends what was deleted meanwhile.
        run.world.edge_up()?;
        until_containers(run, "one pod", 1).await?;
        wait::until("the pod to go", PATIENCE, async || {
            Ok(kubectl
                .run(&["get", "pod", "leaves"])
                .await
                .is_err()
                .then_some(()))
        })
        .await
    });
}

/// Pods that tolerate the taint for ever, for a while, and not at all.
fn tolerating(name: &str, tolerations: &str) -> String {
    format!(
        "{}  nodeName: {NODE}\n  tolerations: {tolerations}\n",
        manifest(name, "1000004")
    )
}

#[test]
fn a_taint_empties_the_node_of_those_who_do_not_tolerate_it() {
    scenario_with("taint", Vec::new(), async |run| {
        run.image()?;
        let for_ever = "[{key: drain, operator: Exists, effect: NoExecute}]";
        let a_while = "[{key: drain, operator: Exists, effect: NoExecute, tolerationSeconds: 8}]";
        run.apply(&tolerating("goes", "[]")).await?;
        run.apply(&tolerating("lingers", a_while)).await?;
        run.apply(&tolerating("stays", for_ever)).await?;
        until_containers(run, "all pods", 3).await?;
        let kubectl = run.world.kubectl();
        kubectl
            .run(&["taint", "node", NODE, "drain=yes:NoExecute"])
            .await?;
        until_containers(run, "two pods", 2).await?;
        containers::running(&run.world, "lingers")?;
        containers::running(&run.world, "stays")?;
        until_containers(run, "one pod", 1).await?;
        containers::running(&run.world, "stays")?;
        let events = kubectl
            .run(&[
                "get",
                "events",
                "--field-selector",
                "reason=TaintManagerEviction",
            ])
            .await?;
        ensure!(
            events.contains("default/goes") && !events.contains("stays"),
            "{events}"
        );
        kubectl.run(&["taint", "node", NODE, "drain-"]).await?;
        run.apply(&tolerating("again", "[]")).await?;
        until_containers(run, "a pod after the taint has gone", 2).await
    });
}
