//! Pods: one after the other, a burst, and what containerd's own client needs for the same.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::Method;
use outpost_tests::api::{self, Watch};
use outpost_tests::world::World;
use outpost_tests::{containers, wait};
use serde_json::{Value, json};

use crate::figures::{Figures, insert_quantiles, millis, say};
use crate::{IMAGE, PATIENCE};

/// Pods that stay for the idle window.
pub(crate) const PODS: usize = 11;
/// Pods of a burst.
const BURST: usize = 30;
/// Single starts that a median is made of.
const SINGLE: usize = 20;
pub(crate) const PODS_PATH: &str = "/api/v1/namespaces/default/pods";

pub(crate) fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                "command": ["sleep", "1000000"],
            }],
        },
    })
}

fn is_running(object: &Value, name: &str) -> Option<()> {
    (object["metadata"]["name"] == name && object["status"]["phase"] == "Running").then_some(())
}

fn ctr(world: &World, args: &[&str]) -> Command {
    let mut command = Command::new("ctr");
    command
        .arg("--address")
        .arg(&world.place.containerd)
        .args(["--namespace", &world.place.namespace])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// What everything is compared with: `ctr run --detach` of the same image on the same daemon,
/// one after the other and 30 at once. No network, no volumes, no log.
pub(crate) async fn reference(world: &World, figures: &mut Figures) -> Result<()> {
    say("ctr run …");
    let run = |id: &str| ctr(world, &["run", "--detach", IMAGE, id, "sleep", "1000000"]);
    let mut single = Vec::new();
    for n in 0..SINGLE {
        let started = Instant::now();
        ensure!(run(&format!("c{n}")).status()?.success(), "ctr run");
        single.push(started.elapsed());
    }
    insert_quantiles(figures, &mut single, "ctr_run_p50_ms", "ctr_run_p99_ms");
    let started = Instant::now();
    let mut burst = Vec::new();
    for n in 0..BURST {
        burst.push(run(&format!("r{n}")).spawn()?);
    }
    for mut child in burst {
        ensure!(child.wait()?.success(), "ctr run");
    }
    figures.insert("ctr_run_30_at_once_ms", millis(started.elapsed()));
    let ids = (0..SINGLE).map(|n| format!("c{n}"));
    for id in ids.chain((0..BURST).map(|n| format!("r{n}"))) {
        ctr(world, &["tasks", "kill", "--signal", "9", &id]).status()?;
        wait::until("a container of ctr to end", PATIENCE, async || {
            Ok(ctr(world, &["tasks", "delete", &id])
                .status()?
                .success()
                .then_some(()))
        })
        .await?;
        ctr(world, &["containers", "delete", &id]).status()?;
    }
    Ok(())
}

/// API create → API shows Running, one after the other; what is left stays for the idle window.
pub(crate) async fn pods(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("pods, one after the other …");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    let mut watch = Watch::start(&kubeconfig, PODS_PATH).await?;
    let mut create = Vec::new();
    for n in 0..SINGLE + PODS {
        let name = format!("p{n}");
        let started = Instant::now();
        calls
            .call(Method::POST, PODS_PATH, Some(&pod(&name)))
            .await?;
        watch.until(|object| is_running(object, &name)).await?;
        create.push(started.elapsed());
    }
    insert_quantiles(
        figures,
        &mut create,
        "pod_create_to_running_p50_ms",
        "pod_create_to_running_p99_ms",
    );
    runtime_part(world, figures)?;
    let mut delete = Vec::new();
    for n in 0..SINGLE {
        let path = format!("{PODS_PATH}/p{n}");
        let started = Instant::now();
        calls.call(Method::DELETE, &path, None).await?;
        let name = format!("p{n}");
        loop {
            let (kind, object) = watch.next().await?;
            if kind == "DELETED" && object["metadata"]["name"] == name.as_str() {
                break;
            }
        }
        delete.push(started.elapsed());
    }
    insert_quantiles(
        figures,
        &mut delete,
        "pod_delete_to_gone_p50_ms",
        "pod_delete_to_gone_p99_ms",
    );
    let left: Vec<String> = (SINGLE..SINGLE + PODS).map(|n| format!("p{n}")).collect();
    settled(world, |name| left.iter().any(|one| one == name)).await
}

/// From the pod being known on the node to its container running, as the node's log tells it:
/// namespaces, network, volumes, image look-up, container.
fn runtime_part(world: &mut World, figures: &mut Figures) -> Result<()> {
    let log = world.edge()?.log();
    let mut took: Vec<Duration> = log
        .lines()
        .filter(|line| line.contains("container started"))
        .filter_map(|line| line.split("took_ms=").nth(1))
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .map(Duration::from_millis)
        .collect();
    insert_quantiles(
        figures,
        &mut took,
        "runtime_part_p50_ms",
        "runtime_part_p99_ms",
    );
    if let (Some(ours), Some(theirs)) = (
        figures.get("runtime_part_p50_ms").copied(),
        figures.get("ctr_run_p50_ms").copied(),
    ) {
        figures.insert(
            "runtime_part_per_ctr_run",
            crate::figures::ms_round(ours / theirs),
        );
    }
    Ok(())
}

/// 30 pods at once: when the first half and when all are told to run.
pub(crate) async fn burst(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("a burst of 30 pods …");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    let mut watch = Watch::start(&kubeconfig, PODS_PATH).await?;
    let (edge, hub) = (world.edge()?.usage()?, world.hub()?.usage()?);
    let started = Instant::now();
    for n in 0..BURST {
        calls
            .call(Method::POST, PODS_PATH, Some(&pod(&format!("b{n}"))))
            .await?;
    }
    figures.insert("pod_burst_of_30_created_ms", millis(started.elapsed()));
    let mut left: Vec<String> = (0..BURST).map(|n| format!("b{n}")).collect();
    let mut took = Vec::new();
    while !left.is_empty() {
        let (_, object) = watch.next().await?;
        let had = left.len();
        left.retain(|name| is_running(&object, name).is_none());
        if left.len() < had {
            took.push(started.elapsed());
        }
    }
    insert_quantiles(
        figures,
        &mut took,
        "pod_burst_of_30_p50_ms",
        "pod_burst_of_30_all_running_ms",
    );
    let (edge1, hub1) = (world.edge()?.usage()?, world.hub()?.usage()?);
    figures.insert(
        "pod_burst_of_30_edgecore_cpu_ms",
        crate::figures::float(edge1.cpu_ms - edge.cpu_ms),
    );
    figures.insert(
        "pod_burst_of_30_cloudhub_cpu_ms",
        crate::figures::float(hub1.cpu_ms - hub.cpu_ms),
    );
    for n in 0..BURST {
        calls
            .call(Method::DELETE, &format!("{PODS_PATH}/b{n}"), None)
            .await?;
    }
    settled(world, |name| !name.starts_with('b')).await
}

/// Waits until the node has nothing but the pods that `stays` likes: their networks are gone too.
pub(crate) async fn settled(world: &World, stays: impl Fn(&str) -> bool) -> Result<()> {
    wait::until("pods to go", PATIENCE, async || {
        let status = world.status()?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let gone = pods
            .iter()
            .all(|pod| stays(pod["name"].as_str().unwrap_or_default()));
        Ok((gone && containers::all(world)?.len() == pods.len()).then_some(()))
    })
    .await
}
