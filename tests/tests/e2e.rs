//! Hub, node and devices as processes, with everything that may happen to them in the field.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use outpost_tests::device::{Thermometer, flood};
use outpost_tests::kubectl::Kubectl;
use outpost_tests::scenario::{IMAGE, PATIENCE, scenario, scenario_with};
use outpost_tests::world::{NODE, World, path, reported};
use outpost_tests::{containers, ledger, wait};
fn device(name: &str) -> String {
    format!(
        "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: {name}, namespace: default}}
spec:
  deviceModelRef: {{name: thermometer}}
  nodeName: {NODE}
  protocol: {{protocolName: mqtt}}
  properties:
    - {{name: temperature, reportToCloud: true}}
    - {{name: sample-rate, desired: {{value: \"1\"}}, reportToCloud: true}}
---
"
    )
}

const MODEL: &str = "apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer, namespace: default}
spec:
  protocol: mqtt
  properties:
    - {name: temperature, type: DOUBLE, accessMode: ReadOnly}
    - {name: sample-rate, type: INT, accessMode: ReadWrite}
---
";

fn pod(name: &str, extra: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec:
  {extra}
  containers:
    - name: main
      image: {IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, \"trap 'exit 0' TERM; echo started; while true; do sleep 1 & wait $!; done\"]
---
"
    )
}

async fn device_is_there(world: &World, name: &str) -> Result<()> {
    wait::until("the device on the node", PATIENCE, async || {
        let status = world.status()?;
        let devices = status["devices"].as_array().cloned().unwrap_or_default();
        Ok(devices
            .iter()
            .any(|device| device["name"] == name)
            .then_some(()))
    })
    .await
}

/// Breaks things as the readings go by; every step waits for a number of acknowledgements.
async fn chaos(world: &mut World, progress: &Arc<AtomicU64>) -> Result<()> {
    let reached = async |count: u64| {
        wait::until(
            &format!("{count} acknowledged readings"),
            PATIENCE * 2,
            async || Ok((progress.load(Ordering::Relaxed) >= count).then_some(())),
        )
        .await
    };
    reached(150).await?;
    world.link()?.cut();
    reached(400).await?;
    world.link()?.restore();
    reached(500).await?;
    world.edge()?.kill9()?;
    world.edge_up()?;
    reached(800).await?;
    world.link()?.cut();
    reached(950).await?;
    world.link()?.restore();
    reached(1100).await?;
    world.hub()?.kill9()?;
    world.hub_up().await?;
    reached(1400).await?;
    world.link()?.cut();
    reached(1550).await?;
    world.edge()?.kill9()?;
    world.edge_up()?;
    reached(1800).await?;
    world.link()?.restore();
    Ok(())
}

#[test]
fn two_thousand_readings_through_cuts_and_kills_arrive_once_and_in_order() {
    scenario("readings", async |run| {
        run.apply(&format!("{MODEL}{}", device("thermometer")))
            .await?;
        device_is_there(&run.world, "thermometer").await?;
        let mut thermometer = Thermometer::new(run.world.place.mqtt, "default/thermometer");
        let progress = Arc::clone(&thermometer.progress);
        let (published, broken) = tokio::join!(
            thermometer.publish(1..2001, 200, PATIENCE * 3),
            chaos(&mut run.world, &progress)
        );
        published?;
        broken?;
        let stream = "twin/default/thermometer";
        let wanted: Vec<String> = (1..2001).map(|n: u32| n.to_string()).collect();
        let path = format!("/outpost/v1/ledger/{NODE}");
        let kubectl = run.world.kubectl();
        let ledger = kubectl
            .until(
                "2000 readings in the ledger",
                PATIENCE,
                &["get", "--raw", &path],
                |ledger| {
                    let values = ledger::values(ledger, stream, "temperature");
                    (values.len() >= 2000).then(|| ledger.clone())
                },
            )
            .await?;
        let got = ledger::values(&ledger, stream, "temperature");
        if let Some(at) = wanted.iter().zip(&got).position(|(w, g)| w != g) {
            anyhow::bail!(
                "reading {} of the ledger is {}, not {}",
                at + 1,
                got[at],
                wanted[at]
            );
        }
        ensure!(got.len() == 2000, "{} readings in the ledger", got.len());
        kubectl
            .until(
                "the last value",
                PATIENCE,
                &["get", "devicestatus", "thermometer"],
                |status| (reported(status, "temperature")? == "2000").then_some(()),
            )
            .await?;
        wait::until("the node's ledger to be empty", PATIENCE, async || {
            let status = run.world.status()?;
            let streams = status["ledger"].as_array().cloned().unwrap_or_default();
            let pending: u64 = streams.iter().filter_map(|s| s["pending"].as_u64()).sum();
            Ok((pending == 0 && !streams.is_empty()).then_some(()))
        })
        .await
    });
}

#[test]
fn pods_outlive_their_daemon_and_come_back_without_a_hub() {
    scenario("pods", async |run| {
        run.image()?;
        let manifests: String = (0..3).map(|n| pod(&format!("p{n}"), "")).collect();
        run.apply(&manifests).await?;
        for n in 0..3 {
            running(&run.world.kubectl(), &format!("p{n}")).await?;
        }
        let before = pids(&run.world)?;
        run.world.hub()?.kill9()?;
        run.world.edge()?.kill9()?;
        ensure!(
            pids(&run.world)? == before,
            "containers died with their daemon"
        );
        run.world.edge_up()?;
        adopted(&run.world, 3).await?;
        ensure!(
            pids(&run.world)? == before,
            "a restart of the daemon restarted containers"
        );
        // A reboot with the cable cut: no containers, no hub.
        run.world.edge()?.kill9()?;
        for container in containers::all(&run.world)? {
            std::process::Command::new("kill")
                .args(["-9", &container.pid.to_string()])
                .status()?;
        }
        run.world.edge_up()?;
        wait::until(
            "every pod to run again without a hub",
            PATIENCE,
            async || {
                let now = pids(&run.world)?;
                Ok((now.len() == 3 && now.iter().all(|pid| !before.contains(pid))).then_some(()))
            },
        )
        .await?;
        run.world.hub_up().await?;
        run.world.node_is("True", PATIENCE).await?;
        for n in 0..3 {
            running(&run.world.kubectl(), &format!("p{n}")).await?;
        }
        Ok(())
    });
}

async fn running(kubectl: &Kubectl, pod: &str) -> Result<()> {
    kubectl
        .until(
            &format!("pod {pod} Ready"),
            PATIENCE,
            &["get", "pod", pod],
            |pod| {
                let ready = outpost_tests::world::condition(pod, "Ready")? == "True";
                (pod["status"]["phase"] == "Running" && ready).then_some(())
            },
        )
        .await
}

fn pids(world: &World) -> Result<Vec<u32>> {
    let mut pids: Vec<u32> = containers::all(world)?
        .into_iter()
        .filter(|c| c.running)
        .map(|c| c.pid)
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

async fn adopted(world: &World, pods: usize) -> Result<()> {
    wait::until("the daemon to know its pods", PATIENCE, async || {
        let status = world.status()?;
        let known = status["pods"].as_array().cloned().unwrap_or_default();
        let running = known.iter().filter(|pod| pod["phase"] == "Running").count();
        Ok((running == pods).then_some(()))
    })
    .await
}

#[test]
fn an_admin_changes_and_deletes_what_runs_at_the_edge() {
    scenario("admin", async |run| {
        run.image()?;
        let kubectl = run.world.kubectl();
        kubectl
            .run(&["create", "configmap", "settings", "--from-literal=key=one"])
            .await?;
        kubectl
            .run(&[
                "create",
                "secret",
                "generic",
                "password",
                "--from-literal=word=secret-1",
            ])
            .await?;
        run.apply(&format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: {IMAGE}
      command: [sh, -c, 'echo \"$KEY $WORD $(cat /etc/settings/key) $(cat /etc/password/word)\"']
      env:
        - {{name: KEY, valueFrom: {{configMapKeyRef: {{name: settings, key: key}}}}}}
        - {{name: WORD, valueFrom: {{secretKeyRef: {{name: password, key: word}}}}}}
      volumeMounts:
        - {{name: settings, mountPath: /etc/settings}}
        - {{name: password, mountPath: /etc/password}}
  volumes:
    - {{name: settings, configMap: {{name: settings}}}}
    - {{name: password, secret: {{secretName: password}}}}
"
        ))
        .await?;
        kubectl
            .until(
                "pod reader Succeeded",
                PATIENCE,
                &["get", "pod", "reader"],
                |pod| (pod["status"]["phase"] == "Succeeded").then_some(()),
            )
            .await?;
        let log = find_log(
            &run.world.edge_dir().join("logs"),
            "one secret-1 one secret-1",
        );
        ensure!(
            log.is_some(),
            "the container did not see its ConfigMap and Secret"
        );
        let database = std::fs::read(run.world.edge_dir().join("edgecore.db"))?;
        let wal = std::fs::read(run.world.edge_dir().join("edgecore.db-wal")).unwrap_or_default();
        let clear = "c2VjcmV0LTE=".as_bytes();
        let leaks = |bytes: &[u8]| bytes.windows(clear.len()).any(|window| window == clear);
        ensure!(
            !leaks(&database) && !leaks(&wal),
            "the secret is on the node's disk in clear text"
        );

        run.apply(&pod("stays", "terminationGracePeriodSeconds: 5"))
            .await?;
        running(&kubectl, "stays").await?;
        kubectl
            .run(&["delete", "pod", "stays", "--timeout=60s"])
            .await?;
        ensure!(
            pids(&run.world)?.is_empty(),
            "the container outlived its pod"
        );

        run.apply(&pod("ghost", "").replace(IMAGE, "127.0.0.1:9/nobody/has:this"))
            .await?;
        kubectl
            .until(
                "the image error",
                PATIENCE,
                &["get", "pod", "ghost"],
                |pod| {
                    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                    let reason = waiting["reason"].as_str()?;
                    (reason == "ErrImagePull" || reason == "ImagePullBackOff").then_some(())
                },
            )
            .await?;
        Ok(())
    });
}

fn find_log(dir: &std::path::Path, text: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return find_log(&path, text);
        }
        std::fs::read_to_string(&path)
            .ok()?
            .contains(text)
            .then_some(path)
    })
}

#[test]
fn desired_values_reach_a_device_that_was_away() {
    scenario("desired", async |run| {
        run.apply(&format!("{MODEL}{}", device("thermometer")))
            .await?;
        device_is_there(&run.world, "thermometer").await?;
        let kubectl = run.world.kubectl();
        let patch = r#"[{"op":"replace","path":"/spec/properties/1/desired/value","value":"7"}]"#;
        kubectl
            .run(&["patch", "device", "thermometer", "--type=json", "-p", patch])
            .await?;
        kubectl
            .until(
                "the node to have it",
                PATIENCE,
                &["get", "devicestatus", "thermometer"],
                |status| {
                    let twins = status["status"]["twins"].as_array()?;
                    let rate = twins
                        .iter()
                        .find(|twin| twin["propertyName"] == "sample-rate")?;
                    (rate["observedDesired"]["value"] == "7").then_some(())
                },
            )
            .await?;
        // The device comes later, reports something, and learns what is wanted of it.
        let mut thermometer = Thermometer::new(run.world.place.mqtt, "default/thermometer");
        thermometer.subscribe(PATIENCE).await?;
        thermometer.publish(1..2, 10, PATIENCE).await?;
        thermometer
            .delta(PATIENCE, |delta| delta["delta"]["sample-rate"] == "7")
            .await?;
        Ok(())
    });
}

#[test]
fn a_node_that_vanishes_is_unknown_and_ready_again_when_it_is_back() {
    scenario("vanish", async |run| {
        run.world.link()?.cut();
        run.world.node_is("Unknown", PATIENCE * 2).await?;
        run.world.link()?.restore();
        let back = run.world.node_is("True", PATIENCE).await?;
        eprintln!("Ready {} ms after the cable was whole", back.as_millis());
        let status = run.world.status()?;
        ensure!(status["link"]["state"] == "connected", "{}", status["link"]);
        Ok(())
    });
}

#[test]
fn the_daemons_say_what_is_wrong_with_what_they_are_given() {
    scenario("errors", async |run| {
        let bins = run.world.place.bins.clone();
        let config = run.dir.path().join("broken.yaml");
        std::fs::write(
            &config,
            "apiVersion: edgecore.config.kubeedge.io/v1alpha2\nkind: EdgeCore\nmodules:\n  edgeHub:\n    heartbeet: 3\n",
        )?;
        let output = std::process::Command::new(bins.join("edgecore"))
            .args(["run", "--config", path(&config)?])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(64),
            "{:?}: {said}",
            output.status
        );
        ensure!(
            said.contains("heartbeet"),
            "the error does not name the key: {said}"
        );

        let refused = run
            .apply("apiVersion: v1\nkind: Pod\nmetadata: {name: typo}\nspec: {containrs: []}\n")
            .await
            .err()
            .context("a pod with an unknown field was accepted")?
            .to_string();
        ensure!(
            refused.contains("spec.containrs"),
            "kubectl does not show the path: {refused}"
        );

        let other = std::process::Command::new(bins.join("cloudhub"))
            .args([
                "token",
                "create",
                "--node",
                "edge-2",
                "--data-dir",
                path(&run.world.hub_dir())?,
            ])
            .output()?;
        let token = String::from_utf8_lossy(&other.stdout);
        let token = token
            .split_whitespace()
            .find(|w| w.matches('.').count() == 3)
            .context("token")?;
        let refused = run
            .world
            .join_from_elsewhere(token)
            .err()
            .context("a token joined another node")?
            .to_string();
        ensure!(refused.contains("edge-2"), "{refused}");
        Ok(())
    });
}

#[test]
fn a_node_cut_off_for_too_long_keeps_the_newest_and_says_what_gave_way() {
    const COUNT: u64 = 5_000;
    const STREAM: &str = "upload/bench/user/0";
    let settings = vec![("outpost.outboxBytesMax", "1Mi".to_owned())];
    scenario_with("quota", settings, async |run| {
        let world = &run.world;
        let kubectl = world.kubectl();
        let ledger_path = format!("/outpost/v1/ledger/{NODE}");
        world.link()?.cut();
        flood(world.place.mqtt, 0, COUNT, PATIENCE).await?;
        let stream = || {
            let status = world.status()?;
            let streams = status["ledger"].as_array().cloned().unwrap_or_default();
            let found = streams.into_iter().find(|s| s["stream"] == STREAM);
            anyhow::Ok((found.context("no such stream")?, status))
        };
        let (full, status) = stream()?;
        let count = |stream: &serde_json::Value, key: &str| stream[key].as_u64().unwrap_or(0);
        ensure!(
            full["balanced"] == true && count(&full, "accepted") == COUNT,
            "{full}"
        );
        ensure!(count(&full, "evicted") > 1_000, "{full}");
        let bytes = status["disk"]["outboxBytes"].as_u64().unwrap_or(0);
        ensure!((1 << 19..=1 << 20).contains(&bytes), "{bytes} bytes wait");

        world.link()?.restore();
        wait::until("the outbox to be empty", PATIENCE, async || {
            Ok((count(&stream()?.0, "pending") == 0).then_some(()))
        })
        .await?;
        let (done, _) = stream()?;
        ensure!(done["balanced"] == true, "{done}");
        ensure!(count(&done, "evicted") == count(&full, "evicted"), "{done}");
        let received = ledger::received(
            &kubectl.json(&["get", "--raw", &ledger_path]).await?,
            STREAM,
        );
        // What was on its way when it gave way is still sent: at most one window.
        let delivered = count(&done, "delivered");
        let window = u64::try_from(wire::limits::UPSTREAM_WINDOW)?;
        ensure!(
            (delivered..=delivered + window).contains(&received),
            "{received} received, {done}"
        );
        let log = std::fs::read_to_string(run.dir.path().join("edgecore.log"))?;
        let said = log
            .lines()
            .filter(|line| line.contains("the outbox is full"))
            .count();
        ensure!((1..=2).contains(&said), "said {said} times");
        Ok(())
    });
}
