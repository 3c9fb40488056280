//! `make bench`: the figures of the design's table, on this machine, in one run. Prints a table
//! and writes `target/bench/bench.json`, one object, the unit in each key's name.
//!
//! Memory and CPU are read from `/proc`, link bytes are payload bytes counted by the forwarder
//! between node and hub, disk bytes are what reached the block layer (`/proc/PID/io`).
//! `BENCH_IDLE_SECS` shortens the idle window (default 300).

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use http::Method;
use outpost_tests::api::{self, Watch};
use outpost_tests::containerd::PrivateContainerd;
use outpost_tests::device::Thermometer;
use outpost_tests::process::Usage;
use outpost_tests::world::{NODE, Place, World, bins, free_port, reported};
use outpost_tests::{containers, ledger, oci, wait};
use serde_json::{Value, json};

const IMAGE: &str = "docker.io/library/busybox:bench";
const PATIENCE: Duration = Duration::from_secs(120);
const PODS: usize = 11;
const PODS_PATH: &str = "/api/v1/namespaces/default/pods";
const STATUS_PATH: &str =
    "/apis/devices.kubeedge.io/v1beta1/namespaces/default/devicestatuses/thermometer";

/// Uploads of each of the four connections in the throughput run.
const UPLOADS_EACH: u64 = 5_000;

type Figures = BTreeMap<&'static str, f64>;

fn say(line: &str) {
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

fn main() -> ExitCode {
    let outcome = tokio::runtime::Runtime::new()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let out = std::env::current_dir()?.join("target/bench");
    let dir = out.join(std::process::id().to_string());
    std::fs::create_dir_all(&dir)?;
    let mut containerd = PrivateContainerd::start(&dir.join("containerd"))?;
    let place = Place {
        bins: bins()?,
        dir: dir.clone(),
        containerd: containerd.address(),
        namespace: format!("bench-{}", std::process::id()),
        mqtt: free_port()?,
    };
    let mut figures = Figures::new();
    let mut world = World::start_hub(place).await?;
    let outcome = Box::pin(measure(&mut world, &mut figures)).await;
    let kubectl = world.kubectl();
    let _ = kubectl
        .run(&["delete", "pods", "--all", "--grace-period=0", "--force"])
        .await;
    let _ = wait::until("containers to go", PATIENCE, async || {
        Ok(containers::all(&world)?.is_empty().then_some(()))
    })
    .await;
    for process in [&mut world.edge, &mut world.hub].into_iter().flatten() {
        let _ = process.stop().await;
    }
    containerd.kill()?;
    if outcome.is_ok() {
        let _ = std::fs::remove_dir_all(&dir);
    }
    outcome?;
    print_table(&figures);
    let file = out.join("bench.json");
    std::fs::write(&file, serde_json::to_string_pretty(&figures)?)?;
    say(&format!("\nwritten to {}", file.display()));
    Ok(())
}

async fn measure(world: &mut World, figures: &mut Figures) -> Result<()> {
    sizes(world, figures)?;
    let token = world.token()?;
    world.join(&token).await?;
    world.edge_up()?;
    world.node_is("True", PATIENCE).await?;
    say("idle, no pods …");
    memory(
        world,
        figures,
        "edgecore_rss_0_pods_mib",
        "edgecore_pss_0_pods_mib",
    )?;
    let archive = world.place.dir.join("busybox.tar");
    oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
    world.import(&archive)?;
    pods(world, figures).await?;
    idle(world, figures).await?;
    twins(world, figures).await?;
    throughput(world, figures).await?;
    reconnect(world, figures).await?;
    offline_start(world, figures).await?;
    memory(
        world,
        figures,
        "edgecore_rss_after_load_mib",
        "edgecore_pss_after_load_mib",
    )?;
    let hub = world.hub()?.usage()?;
    figures.insert("cloudhub_rss_after_load_mib", mib(hub.rss_kib));
    Ok(())
}

fn mib(kib: u64) -> f64 {
    ms_round(float(kib) / 1024.0)
}

#[expect(clippy::cast_precision_loss, reason = "figures are far below 2^52")]
fn float(count: u64) -> f64 {
    count as f64
}

fn ms_round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn sizes(world: &World, figures: &mut Figures) -> Result<()> {
    for (name, key) in [
        ("edgecore", "edgecore_binary_mib"),
        ("cloudhub", "cloudhub_binary_mib"),
        ("edged-logger", "edged_logger_binary_mib"),
    ] {
        let bytes = std::fs::metadata(world.place.bins.join(name))?.len();
        figures.insert(key, mib(bytes / 1024));
    }
    Ok(())
}

fn memory(
    world: &mut World,
    figures: &mut Figures,
    rss: &'static str,
    pss: &'static str,
) -> Result<()> {
    let usage = world.edge()?.usage()?;
    figures.insert(rss, mib(usage.rss_kib));
    figures.insert(pss, mib(usage.pss_kib));
    Ok(())
}

fn pod(name: &str) -> Value {
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

/// API create → API shows Running, one after the other; what is left stays for the idle window.
async fn pods(world: &World, figures: &mut Figures) -> Result<()> {
    say("pods, one after the other …");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    let mut watch = Watch::start(&kubeconfig, PODS_PATH).await?;
    let mut create = Vec::new();
    for n in 0..20 + PODS {
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
    let mut delete = Vec::new();
    for n in 0..20 {
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
    say("a burst of 30 pods …");
    let started = Instant::now();
    for n in 0..30 {
        calls
            .call(Method::POST, PODS_PATH, Some(&pod(&format!("b{n}"))))
            .await?;
    }
    let mut left: Vec<String> = (0..30).map(|n| format!("b{n}")).collect();
    while !left.is_empty() {
        let (_, object) = watch.next().await?;
        left.retain(|name| is_running(&object, name).is_none());
    }
    figures.insert("pod_burst_of_30_all_running_ms", millis(started.elapsed()));
    for n in 0..30 {
        calls
            .call(Method::DELETE, &format!("{PODS_PATH}/b{n}"), None)
            .await?;
    }
    wait::until("the burst to go", PATIENCE, async || {
        Ok((containers::all(world)?.len() == PODS).then_some(()))
    })
    .await
}

fn millis(duration: Duration) -> f64 {
    ms_round(duration.as_secs_f64() * 1000.0)
}

fn insert_quantiles(
    figures: &mut Figures,
    samples: &mut [Duration],
    p50: &'static str,
    p99: &'static str,
) {
    samples.sort_unstable();
    if let (Some(half), Some(most)) = (
        samples.get(samples.len() / 2),
        samples.get((samples.len() * 99 / 100).min(samples.len() - 1)),
    ) {
        figures.insert(p50, millis(*half));
        figures.insert(p99, millis(*most));
    }
}

async fn idle(world: &mut World, figures: &mut Figures) -> Result<()> {
    let secs = std::env::var("BENCH_IDLE_SECS")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(300);
    say(&format!("idle with {PODS} pods for {secs} s …"));
    // What the last pods caused settles first.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let sample = |world: &mut World| -> Result<(Usage, Usage, (u64, u64))> {
        Ok((
            world.edge()?.usage()?,
            world.hub()?.usage()?,
            world.link()?.carried(),
        ))
    };
    let (edge0, hub0, link0) = sample(world)?;
    tokio::time::sleep(Duration::from_secs(secs)).await;
    let (edge1, hub1, link1) = sample(world)?;
    let minutes = float(secs) / 60.0;
    let per_minute = |delta: u64| ms_round(float(delta) / minutes);
    figures.insert("edgecore_rss_11_pods_mib", mib(edge1.rss_kib));
    figures.insert("edgecore_pss_11_pods_mib", mib(edge1.pss_kib));
    figures.insert("cloudhub_rss_mib", mib(hub1.rss_kib));
    figures.insert("cloudhub_pss_mib", mib(hub1.pss_kib));
    figures.insert(
        "edgecore_idle_cpu_ms_per_minute",
        per_minute(edge1.cpu_ms - edge0.cpu_ms),
    );
    figures.insert(
        "cloudhub_idle_cpu_ms_per_minute",
        per_minute(hub1.cpu_ms - hub0.cpu_ms),
    );
    let written = |a: &Usage, b: &Usage| b.written_bytes - a.written_bytes;
    figures.insert(
        "edgecore_idle_disk_bytes_per_minute",
        per_minute(written(&edge0, &edge1)),
    );
    figures.insert(
        "cloudhub_idle_disk_bytes_per_minute",
        per_minute(written(&hub0, &hub1)),
    );
    figures.insert(
        "idle_link_up_bytes_per_minute",
        per_minute(link1.0 - link0.0),
    );
    figures.insert(
        "idle_link_down_bytes_per_minute",
        per_minute(link1.1 - link0.1),
    );
    Ok(())
}

fn manifests() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/demo")
}

/// One reading at a time: publish → PUBACK, and publish → the value in the API.
async fn twins(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("twins …");
    let kubectl = world.kubectl();
    for file in ["1-devicemodel.yaml", "2-device.yaml"] {
        let path = manifests().join(file);
        kubectl
            .run(&["apply", "-f", path.to_str().context("path")?])
            .await?;
    }
    wait::until("the device on the node", PATIENCE, async || {
        Ok((world.status()?["devices"]
            .as_array()
            .is_some_and(|d| !d.is_empty()))
        .then_some(()))
    })
    .await?;
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let collection = STATUS_PATH.trim_end_matches("/thermometer");
    let mut watch = Watch::start(&kubeconfig, collection).await?;
    let mut thermometer = Thermometer::new(world.place.mqtt, "default/thermometer");
    thermometer.subscribe(PATIENCE).await?;
    let mut visible = Vec::new();
    for n in 1..301_u64 {
        let value = n.to_string();
        let started = Instant::now();
        let (published, seen) = tokio::join!(
            thermometer.publish(n..n + 1, 1000, PATIENCE),
            watch.until(|object| (reported(object, "temperature")? == value).then_some(()))
        );
        published?;
        seen?;
        visible.push(started.elapsed());
    }
    insert_quantiles(
        figures,
        &mut visible,
        "publish_to_api_p50_ms",
        "publish_to_api_p99_ms",
    );
    let mut acknowledged = std::mem::take(&mut thermometer.latencies);
    insert_quantiles(
        figures,
        &mut acknowledged,
        "publish_to_puback_p50_ms",
        "publish_to_puback_p99_ms",
    );

    say("1,000 updates, as fast as they are acknowledged …");
    let before = world.edge()?.usage()?;
    let link = world.link()?.carried();
    thermometer.publish(301..1301, 100_000, PATIENCE).await?;
    received(world, 1300).await?;
    let after = world.edge()?.usage()?;
    let carried = world.link()?.carried();
    figures.insert(
        "disk_kib_per_1000_updates",
        ms_round(float(after.written_bytes - before.written_bytes) / 1024.0),
    );
    figures.insert(
        "edge_cpu_ms_per_1000_updates",
        float(after.cpu_ms - before.cpu_ms),
    );
    figures.insert(
        "link_up_kib_per_1000_updates",
        ms_round(float(carried.0 - link.0) / 1024.0),
    );
    Ok(())
}

async fn received(world: &World, count: u64) -> Result<()> {
    let path = format!("/outpost/v1/ledger/{NODE}?limit=1");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    wait::until(
        &format!("{count} readings at the hub"),
        PATIENCE,
        async || {
            let ledger = calls.call(Method::GET, &path, None).await?;
            Ok((ledger::received(&ledger, "twin/default/thermometer") >= count).then_some(()))
        },
    )
    .await
}

/// Durable upstream messages per second: 20,000 uploads of 200 bytes at QoS 1 over four
/// connections, from the first publish until the hub has stored the last.
async fn throughput(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("20,000 uploads of 200 bytes …");
    let mqtt = world.place.mqtt;
    let started = Instant::now();
    let mut devices = tokio::task::JoinSet::new();
    for connection in 0..4 {
        devices.spawn(outpost_tests::device::flood(
            mqtt,
            connection,
            UPLOADS_EACH,
            PATIENCE,
        ));
    }
    while let Some(ended) = devices.join_next().await {
        ended??;
    }
    let acknowledged = started.elapsed();
    let path = format!("/outpost/v1/ledger/{NODE}?limit=1");
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let mut calls = api::connect(&kubeconfig).await?;
    wait::until("20,000 uploads at the hub", PATIENCE, async || {
        let ledger = calls.call(Method::GET, &path, None).await?;
        let sum: u64 = (0..4)
            .map(|n| ledger::received(&ledger, &format!("upload/bench/user/{n}")))
            .sum();
        Ok((sum >= 4 * UPLOADS_EACH).then_some(()))
    })
    .await?;
    let stored = started.elapsed();
    let total = float(4 * UPLOADS_EACH);
    figures.insert(
        "puback_after_commit_per_second",
        (total / acknowledged.as_secs_f64()).round(),
    );
    figures.insert(
        "upstream_stored_at_hub_per_second",
        (total / stored.as_secs_f64()).round(),
    );
    Ok(())
}

/// The hub is killed and comes back; how long until the node's session stands again.
async fn reconnect(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("hub killed and back …");
    world.hub()?.kill9()?;
    wait::until("the node to notice", PATIENCE, async || {
        Ok((world.status()?["link"]["state"] != "connected").then_some(()))
    })
    .await?;
    world.hub_up().await?;
    let up = Instant::now();
    wait::until("the session", PATIENCE, async || {
        Ok((world.status()?["link"]["state"] == "connected").then_some(()))
    })
    .await?;
    figures.insert("hub_back_to_session_ms", millis(up.elapsed()));
    Ok(())
}

/// No hub, edgecore killed: until it knows all pods running (adopted); then the containers are
/// killed too, as after a reboot: until all run again.
async fn offline_start(world: &mut World, figures: &mut Figures) -> Result<()> {
    say("offline start …");
    world.hub()?.kill9()?;
    world.edge()?.kill9()?;
    let started = Instant::now();
    world.edge_up()?;
    wait::until("all pods known running", PATIENCE, async || {
        let status = world.status()?;
        let pods = status["pods"].as_array().cloned().unwrap_or_default();
        let running = pods.iter().filter(|pod| pod["phase"] == "Running").count();
        Ok((running == PODS).then_some(()))
    })
    .await?;
    figures.insert("offline_start_to_pods_known_ms", millis(started.elapsed()));
    world.edge()?.kill9()?;
    for container in containers::all(world)? {
        std::process::Command::new("kill")
            .args(["-9", &container.pid.to_string()])
            .status()?;
    }
    let started = Instant::now();
    world.edge_up()?;
    wait::until("all pods to run again", PATIENCE, async || {
        let running = containers::all(world)?.iter().filter(|c| c.running).count();
        Ok((running == PODS).then_some(()))
    })
    .await?;
    figures.insert(
        "offline_reboot_to_pods_running_ms",
        millis(started.elapsed()),
    );
    world.hub_up().await
}

fn print_table(figures: &Figures) {
    // KubeEdge's figure, ours to reach, what was measured (design §1).
    let rows: &[(&str, &str, &str, &str)] = &[
        (
            "edgecore memory, 11 pods (RSS MiB)",
            "96",
            "20",
            "edgecore_rss_11_pods_mib",
        ),
        ("the same, PSS", "94", "", "edgecore_pss_11_pods_mib"),
        (
            "edgecore memory after load (RSS MiB)",
            "166",
            "20",
            "edgecore_rss_after_load_mib",
        ),
        (
            "edgecore CPU idle (ms per minute)",
            "480-740",
            "50",
            "edgecore_idle_cpu_ms_per_minute",
        ),
        (
            "disk written idle (bytes per minute)",
            "222-475 K",
            "0",
            "edgecore_idle_disk_bytes_per_minute",
        ),
        (
            "link idle, up (bytes per minute)",
            "9.1 K",
            "1 K both",
            "idle_link_up_bytes_per_minute",
        ),
        (
            "link idle, down (bytes per minute)",
            "8.0 K",
            "",
            "idle_link_down_bytes_per_minute",
        ),
        ("edgecore binary (MiB)", "99", "16", "edgecore_binary_mib"),
        (
            "pod create → Running p50 (ms)",
            "1000",
            "200",
            "pod_create_to_running_p50_ms",
        ),
        (
            "burst of 30 pods, all Running (ms)",
            "3700",
            "2000",
            "pod_burst_of_30_all_running_ms",
        ),
        (
            "upstream stored at the hub (per second)",
            "30",
            "10000",
            "upstream_stored_at_hub_per_second",
        ),
        (
            "publish → PUBACK p50 (ms)",
            "1.5 (not durable)",
            "",
            "publish_to_puback_p50_ms",
        ),
        (
            "publish → value in the API p50 (ms)",
            "5.9",
            "4",
            "publish_to_api_p50_ms",
        ),
        (
            "publish → value in the API p99 (ms)",
            "11",
            "10",
            "publish_to_api_p99_ms",
        ),
        (
            "disk per 1,000 twin updates (KiB)",
            "22800",
            "2000",
            "disk_kib_per_1000_updates",
        ),
        (
            "edge CPU per 1,000 twin updates (ms)",
            "2900",
            "300",
            "edge_cpu_ms_per_1000_updates",
        ),
        (
            "hub back → session (ms)",
            "30300",
            "2000",
            "hub_back_to_session_ms",
        ),
        (
            "offline start → pods known (ms)",
            "810",
            "500",
            "offline_start_to_pods_known_ms",
        ),
    ];
    say(&format!(
        "\n{:<42} {:>18} {:>9} {:>10}",
        "", "KubeEdge 1.23", "budget", "measured"
    ));
    for (name, theirs, budget, key) in rows {
        let value = figures.get(key).copied().unwrap_or(f64::NAN);
        say(&format!("{name:<42} {theirs:>18} {budget:>9} {value:>10}"));
    }
    say("\nall figures:");
    for (key, value) in figures {
        say(&format!("  {key} = {value}"));
    }
}
