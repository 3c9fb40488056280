//! The main job, shown: a pod and a device twin reach the edge, survive a cut cable and a killed
//! daemon, and come back with nothing lost. Every line printed is checked, so this is also the
//! last gate of `make test`.
//!
//! `KEEP=1` leaves everything running and says how to use it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use outpost_tests::containerd::PrivateContainerd;
use outpost_tests::device::Thermometer;
use outpost_tests::ground::Ground;
use outpost_tests::process::tail;
use outpost_tests::world::{NODE, Place, World, reported};
use outpost_tests::{containers, ledger, mosquitto, oci, wait};
use serde_json::Value;

const IMAGE: &str = "docker.io/library/busybox:demo";
const DEVICE: &str = "default/thermometer";
/// Generous for an unoptimised build on a busy machine; the figures printed are what was measured.
const PATIENCE: Duration = Duration::from_secs(60);

fn say(line: &str) {
    drop(writeln!(std::io::stdout().lock(), "{line}"));
}

fn step(number: u8, line: &str) {
    say(&format!("\n[{number}/6] {line}"));
}

fn done(line: &str) {
    say(&format!("   ✓ {line}"));
}

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("demo: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("\n   ✗ {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let id = std::process::id();
    let dir = std::env::current_dir()?.join(format!("target/demo/{id}"));
    let ground = Ground::at(&dir)?;
    let started = Instant::now();
    step(
        1,
        "containerd, cloudhub and edgecore start; the node joins by a one-time token over mTLS",
    );
    let containerd = PrivateContainerd::start(&dir.join("containerd"))?;
    done(&format!(
        "containerd (private) at {}",
        containerd.address().display()
    ));
    let place = Place::new("demo", &dir)?;
    let mut world = World::start_hub(place).await?;
    let outcome = Box::pin(story(&mut world, &dir)).await;
    if let Err(error) = outcome {
        for name in ["cloudhub.log", "edgecore.log"] {
            let log = std::fs::read_to_string(dir.join(name)).unwrap_or_default();
            say(&format!("\n--- end of {name}\n{}", tail(&log, 25)));
        }
        clean_up(world, containerd).await?;
        return Err(error);
    }
    say(&format!(
        "\n   the whole demo took {:.1} s",
        started.elapsed().as_secs_f64()
    ));
    if std::env::var_os("KEEP").is_some() {
        world.take_cable_away().await?;
        world.node_is("True", PATIENCE).await?;
        keep(&world, &containerd);
        // The daemons are left to the user; their ids are printed.
        std::mem::forget((world, containerd));
        ground.keep()?;
        return Ok(());
    }
    clean_up(world, containerd).await?;
    drop(ground);
    let _ = std::fs::remove_dir_all(&dir);
    Ok(())
}

async fn clean_up(mut world: World, mut containerd: PrivateContainerd) -> Result<()> {
    let kubectl = world.kubectl();
    // Pods outlive edgecore on purpose; the demo takes its own away.
    let _ = kubectl
        .run(&[
            "delete",
            "pod",
            "hello",
            "--grace-period=1",
            "--timeout=20s",
        ])
        .await;
    for process in [world.edge.take(), world.hub.take()].into_iter().flatten() {
        let mut process = process;
        let _ = process.stop().await;
    }
    Ok(containerd.kill()?)
}

fn keep(world: &World, containerd: &PrivateContainerd) {
    let kubeconfig = world.hub_dir().join("admin.kubeconfig");
    let (host, port) = (world.place.mqtt.ip(), world.place.mqtt.port());
    say(&format!(
        "
KEEP=1: everything goes on running.

  export KUBECONFIG={kubeconfig}
  kubectl get nodes,pods,devices -o wide
  mosquitto_sub -h {host} -p {port} -t '$hw/events/device/{DEVICE}/twin/update/#' -v
  mosquitto_pub -h {host} -p {port} -q 1 -t '$hw/events/device/{DEVICE}/twin/update' \\
      -m '{{\"event_id\":\"1\",\"twin\":{{\"temperature\":{{\"actual\":{{\"value\":\"21.5\"}},\"metadata\":{{\"type\":\"float\"}}}}}}}}'
  {edgecore} status --config {config}

Stop with: kubectl delete pods --all; kill {pids}",
        kubeconfig = kubeconfig.display(),
        edgecore = world.place.bins.join("edgecore").display(),
        config = world.edge_config().display(),
        pids = [&world.hub, &world.edge]
            .into_iter()
            .flatten()
            .map(outpost_tests::process::Process::pid)
            .chain(containerd.pid())
            .map(|pid| pid.to_string())
            .collect::<Vec<_>>()
            .join(" "),
    ));
}

async fn story(world: &mut World, dir: &Path) -> Result<()> {
    done(&format!(
        "cloudhub with its embedded store, API at https://{}",
        world.ports.api
    ));
    let token = world.token()?;
    world.join(&token).await?;
    let Err(refusal) = world.join_from_elsewhere(&token) else {
        bail!("a token must not work twice");
    };
    done("edgecore joined; a second use of the token is refused:");
    say(&indent(&refusal.to_string()));
    world.edge_up()?;
    let ready = world.node_is("True", PATIENCE).await?;
    done(&format!(
        "node {NODE} is Ready after {} ms",
        ready.as_millis()
    ));

    let pod_ms = deploy(world, dir).await?;
    let (value_ms, mut thermometer) = twins(world).await?;
    let offline_ms = offline(world, &mut thermometer).await?;
    let back = restore(world, &thermometer).await?;

    step(6, "summary");
    let edge = world.edge()?.usage()?;
    let hub = world.hub()?.usage()?;
    say(&format!(
        "   readings acknowledged by the node    {}",
        thermometer.acknowledged.len()
    ));
    say(&format!(
        "   readings counted by the hub          {} (none lost, none twice, in order)",
        back.received
    ));
    say(&format!(
        "   kubectl apply → pod Running          {pod_ms} ms"
    ));
    say(&format!(
        "   publish → value in the cloud         {value_ms} ms (seen by polling kubectl)"
    ));
    say(&format!(
        "   kill -9, no hub → pod and twin back   {offline_ms} ms"
    ));
    say(&format!(
        "   link whole → ledger complete         {} ms",
        back.after_ms
    ));
    say(&format!(
        "   edgecore memory                      {} MB RSS, {} MB PSS",
        edge.rss_kib / 1024,
        edge.pss_kib / 1024
    ));
    say(&format!(
        "   cloudhub memory                      {} MB RSS, {} MB PSS",
        hub.rss_kib / 1024,
        hub.pss_kib / 1024
    ));
    Ok(())
}

async fn deploy(world: &mut World, dir: &Path) -> Result<u128> {
    step(
        2,
        "kubectl apply: a DeviceModel, a Device, a ConfigMap and a Pod",
    );
    let archive = dir.join("busybox.tar");
    oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
    world.import(&archive)?;
    done(&format!(
        "image {IMAGE} imported on the node from an OCI archive"
    ));
    let kubectl = world.kubectl();
    let manifests = manifests("demo");
    let applied = Instant::now();
    let said = kubectl
        .run(&["apply", "-f", manifests.to_str().context("path")?])
        .await?;
    for line in said.lines() {
        done(line);
    }
    kubectl
        .until(
            "pod hello Running",
            PATIENCE,
            &["get", "pod", "hello"],
            |pod| (pod["status"]["phase"] == "Running").then_some(()),
        )
        .await?;
    let pod_ms = applied.elapsed().as_millis();
    let logs = world.edge_dir().join("logs");
    wait::until(
        "the ConfigMap's text in the container's log",
        PATIENCE,
        async || Ok(find_in_logs(&logs, "hello from the edge").then_some(())),
    )
    .await?;
    done(&format!(
        "pod hello is Running {pod_ms} ms after kubectl apply began; it printed its ConfigMap"
    ));
    say(&indent(
        &kubectl
            .run(&["get", "nodes,pods,devices", "-o", "wide"])
            .await?,
    ));
    Ok(pod_ms)
}

async fn twins(world: &mut World) -> Result<(u128, Thermometer)> {
    step(
        3,
        "a thermometer reports by MQTT; the admin sets a desired value with kubectl",
    );
    let kubectl = world.kubectl();
    let mut thermometer = Thermometer::new(world.place.mqtt, DEVICE);
    thermometer.subscribe(PATIENCE).await?;
    thermometer.publish(1..11, 20, PATIENCE).await?;
    done("10 readings by rumqttc, each acknowledged only when on disk");
    let published = Instant::now();
    thermometer.publish(11..12, 20, PATIENCE).await?;
    let get = ["get", "devicestatus", "thermometer"];
    kubectl
        .until("the value in the cloud", PATIENCE, &get, |status| {
            (reported(status, "temperature")? == "11").then_some(())
        })
        .await?;
    let value_ms = published.elapsed().as_millis();
    done(&format!("kubectl sees temperature 11 after {value_ms} ms"));
    mosquitto_pub(world, "12").await?;
    kubectl
        .until("mosquitto's value in the cloud", PATIENCE, &get, |status| {
            (reported(status, "temperature")? == "12").then_some(())
        })
        .await?;
    thermometer.acknowledged.push(12);
    done("the same by mosquitto_pub");
    let patch = r#"{"spec":{"properties":[{"name":"temperature","reportToCloud":true},{"name":"sample-rate","desired":{"value":"5"},"reportToCloud":true}]}}"#;
    kubectl
        .run(&[
            "patch",
            "device",
            "thermometer",
            "--type=merge",
            "-p",
            patch,
        ])
        .await?;
    thermometer
        .delta(PATIENCE, |delta| delta["delta"]["sample-rate"] == "5")
        .await?;
    done("kubectl sets sample-rate to 5; the device gets it as a delta on MQTT");
    let yaml = kubectl
        .run(&["get", "devicestatus", "thermometer", "-o", "yaml"])
        .await?;
    let twins: String = yaml
        .lines()
        .skip_while(|l| *l != "status:")
        .collect::<Vec<_>>()
        .join("\n");
    say(&indent(&twins));
    Ok((value_ms, thermometer))
}

async fn mosquitto_pub(world: &World, value: &str) -> Result<()> {
    let payload = format!(
        r#"{{"event_id":"reading-{value}","twin":{{"temperature":{{"actual":{{"value":"{value}"}},"metadata":{{"type":"int"}}}}}}}}"#
    );
    let topic = format!("$hw/events/device/{DEVICE}/twin/update");
    mosquitto::publish(world.place.mqtt, &topic, &payload).await
}

async fn offline(world: &mut World, thermometer: &mut Thermometer) -> Result<u128> {
    step(
        4,
        "the link is cut, the container killed, edgecore killed with -9 and started with no hub",
    );
    let before = containers::running(world, "hello")?;
    world.link()?.cut();
    done("the cable is cut: nothing is closed, nothing answers");
    thermometer.publish(13..33, 50, PATIENCE).await?;
    done("20 readings published and acknowledged with no hub");
    world.edge()?.kill9()?;
    let status = std::process::Command::new("kill")
        .args(["-9", &before.pid.to_string()])
        .status()?;
    ensure!(status.success(), "kill -9 {}: {status}", before.pid);
    let killed = Instant::now();
    world.edge_up()?;
    wait::until("the pod to run again with no hub", PATIENCE, async || {
        Ok((containers::running(world, "hello")?.pid != before.pid).then_some(()))
    })
    .await?;
    thermometer.publish(33..34, 50, PATIENCE).await?;
    let offline_ms = killed.elapsed().as_millis();
    done(&format!(
        "after {offline_ms} ms the pod runs again and the device is answered"
    ));
    thermometer.publish(34..54, 50, PATIENCE).await?;
    let status = world.status()?;
    let pending = pending(&status);
    ensure!(
        pending >= 41,
        "41 readings must wait for the hub, edgecore says {pending}: {status}"
    );
    done(&format!(
        "twin readable, {pending} readings wait in the ledger"
    ));
    Ok(offline_ms)
}

struct Back {
    received: u64,
    after_ms: u128,
}

async fn restore(world: &mut World, thermometer: &Thermometer) -> Result<Back> {
    step(5, "the link is whole again");
    let before = containers::running(world, "hello")?;
    world.link()?.restore();
    let restored = Instant::now();
    let kubectl = world.kubectl();
    let expected = thermometer.acknowledged.len() as u64;
    let path = format!("/outpost/v1/ledger/{NODE}");
    let ledger = kubectl
        .until(
            "every acknowledged reading at the hub",
            PATIENCE,
            &["get", "--raw", &path],
            |ledger| (received(ledger) >= expected).then(|| ledger.clone()),
        )
        .await?;
    let after_ms = restored.elapsed().as_millis();
    let readings = ledger::values(&ledger, &format!("twin/{DEVICE}"), "temperature");
    let wanted: Vec<String> = (1..54_u64).map(|n| n.to_string()).collect();
    ensure!(
        readings == wanted,
        "the ledger differs.\n wanted {wanted:?}\n    got {readings:?}"
    );
    done(&format!(
        "{expected} readings arrived: none lost, none twice, in order ({after_ms} ms)"
    ));
    kubectl
        .until(
            "the last value",
            PATIENCE,
            &["get", "devicestatus", "thermometer"],
            |status| (reported(status, "temperature")? == "53").then_some(()),
        )
        .await?;
    kubectl
        .until(
            "the pod's restart count",
            PATIENCE,
            &["get", "pod", "hello"],
            |pod| {
                let status = &pod["status"]["containerStatuses"][0];
                (status["restartCount"] == 1 && status["ready"] == true).then_some(())
            },
        )
        .await?;
    world.node_is("True", PATIENCE).await?;
    ensure!(
        containers::running(world, "hello")?.pid == before.pid,
        "the pod was restarted by the reconnect"
    );
    done("node Ready, status up to date; the pod was not restarted because of it");
    let status = world.status()?;
    wait::until("the node's ledger to balance", PATIENCE, async || {
        Ok((pending(&world.status()?) == 0).then_some(()))
    })
    .await
    .with_context(|| status.to_string())?;
    Ok(Back {
        received: received(&ledger),
        after_ms,
    })
}

fn received(ledger: &Value) -> u64 {
    ledger::received(ledger, &format!("twin/{DEVICE}"))
}

fn pending(status: &Value) -> u64 {
    let streams = status["ledger"].as_array().cloned().unwrap_or_default();
    streams
        .iter()
        .filter_map(|stream| stream["pending"].as_u64())
        .sum()
}

fn manifests(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name)
}

fn find_in_logs(dir: &Path, text: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return false;
    };
    entries.flatten().any(|entry| {
        let path = entry.path();
        if path.is_dir() {
            find_in_logs(&path, text)
        } else {
            std::fs::read_to_string(&path).is_ok_and(|log| log.contains(text))
        }
    })
}

fn indent(text: &str) -> String {
    text.lines()
        .map(|line| format!("     {line}"))
        .collect::<Vec<_>>()
        .join("\n")
}
