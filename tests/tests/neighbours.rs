//! What an installation has around it: registries, an MQTT broker of its own, the kubectl of the
//! distribution, and a person who asks the node how it is.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use outpost_tests::kubectl::{self, Kubectl};
use outpost_tests::mosquitto::Mosquitto;
use outpost_tests::oci::ImageSpec;
use outpost_tests::process::Process;
use outpost_tests::registry::{PASSWORD, Registry, USER};
use outpost_tests::scenario::{IMAGE, PATIENCE, scenario, scenario_with};
use outpost_tests::world::{NODE, World, bins, free_port, path};
use outpost_tests::{containerd, ledger, wait};
use serde_json::{Value, json};

const TERM: &str = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";

fn pod(name: &str, image: &str, secret: Option<&str>) -> String {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "hostNetwork": true, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": image, "command": ["sh", "-c", TERM]}],
        },
    });
    if let Some(secret) = secret {
        pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
    }
    pod.to_string()
}

async fn is_running(kubectl: &Kubectl, pod: &str) -> Result<()> {
    kubectl
        .until(
            &format!("pod {pod} Running"),
            PATIENCE,
            &["get", "pod", pod],
            |pod| (pod["status"]["phase"] == "Running").then_some(()),
        )
        .await
}

#[test]
fn images_come_from_a_registry_with_and_without_a_password() {
    scenario("registry", async |run| {
        let kubectl = run.world.kubectl();
        let image = ImageSpec::busybox("unused");

        let open = Registry::start(&run.dir.path().join("open"), false).await?;
        let reference = open.push(&image, "demo/busybox", "1")?;
        run.apply(&pod("plain", &reference, None)).await?;
        is_running(&kubectl, "plain").await?;

        let guarded = Registry::start(&run.dir.path().join("guarded"), true).await?;
        let reference = guarded.push(&image, "demo/busybox", "1")?;
        run.apply(&pod("stranger", &reference, None)).await?;
        let why = kubectl
            .until(
                "the pull to be refused",
                PATIENCE,
                &["get", "pod", "stranger"],
                |pod| {
                    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
                    let reason = waiting["reason"].as_str()?;
                    matches!(reason, "ErrImagePull" | "ImagePullBackOff")
                        .then(|| waiting["message"].as_str().unwrap_or_default().to_owned())
                },
            )
            .await?;
        ensure!(
            why.contains("wants credentials for"),
            "the reason does not tell: {why}"
        );

        kubectl
            .run(&[
                "create",
                "secret",
                "docker-registry",
                "registry-key",
                &format!("--docker-server={}", guarded.address),
                &format!("--docker-username={USER}"),
                &format!("--docker-password={PASSWORD}"),
            ])
            .await?;
        run.apply(&pod("friend", &reference, Some("registry-key")))
            .await?;
        is_running(&kubectl, "friend").await
    });
}

const MODEL: &str = "apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {name: thermometer, namespace: default}
spec: {protocol: mqtt, properties: [{name: temperature, type: DOUBLE, accessMode: ReadOnly}]}
---
";
/// How often mosquitto is killed.
const KILLS: u64 = 6;
const STREAM: &str = "twin/default/thermometer";
const UPDATE: &str = "$hw/events/device/default/thermometer/twin/update";

fn thermometer() -> String {
    format!(
        "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: thermometer, namespace: default}}
spec:
  deviceModelRef: {{name: thermometer}}
  nodeName: {NODE}
  protocol: {{protocolName: mqtt}}
  properties: [{{name: temperature, reportToCloud: true}}]
"
    )
}

/// Publishes one reading; mosquitto has it when this returns.
async fn publish(broker: &Mosquitto, n: u64) -> Result<()> {
    let body = json!({
        "event_id": format!("reading-{n}"), "timestamp": 0,
        "twin": {"temperature": {"actual": {"value": n.to_string()}, "metadata": {"type": "int"}}},
    });
    broker.publish(UPDATE, &body.to_string()).await
}

/// Listens for results; its log has them. Returns once the subscription stands.
async fn listen(broker: &Mosquitto, log: &Path) -> Result<Process> {
    broker.listen(&format!("{UPDATE}/result"), log).await
}

/// The runtime answered this reading, so it is on its disk.
async fn is_answered(listener: &Process, n: u64) -> Result<()> {
    let wanted = format!("\"reading-{n}\"");
    wait::until(
        &format!("the result of reading {n}"),
        PATIENCE,
        async || Ok(listener.log().contains(&wanted).then_some(())),
    )
    .await
}

async fn external_is(world: &World, connected: bool) -> Result<()> {
    wait::until("the external broker's state", PATIENCE, async || {
        let status = world.status()?;
        Ok((status["mqtt"]["externalConnected"] == connected).then_some(()))
    })
    .await
}

#[test]
fn an_external_broker_may_die_again_and_again_and_nothing_answered_is_lost() {
    let address = free_port().unwrap();
    let settings = vec![
        ("modules.eventBus.mqttMode", "2".to_owned()),
        (
            "modules.eventBus.mqttServerExternal",
            format!("tcp://{address}"),
        ),
    ];
    scenario_with("mosquitto", settings, async |run| {
        let world = &mut run.world;
        let dir = run.dir.path().join("mosquitto");
        std::fs::create_dir_all(&dir)?;
        let mut broker = Mosquitto::start(address, &dir)?;
        external_is(world, true).await?;
        let manifest = dir.join("device.yaml");
        std::fs::write(&manifest, format!("{MODEL}{}", thermometer()))?;
        let kubectl = world.kubectl();
        kubectl.run(&["apply", "-f", path(&manifest)?]).await?;
        wait::until("the device on the node", PATIENCE, async || {
            let status = world.status()?;
            Ok((status["devices"][0]["name"] == "thermometer").then_some(()))
        })
        .await?;

        let listener = listen(&broker, &dir.join("before")).await?;
        for n in 0..10 {
            publish(&broker, n).await?;
        }
        is_answered(&listener, 9).await?;
        // Answered with the hub away: what the runtime says must not depend on it.
        world.link()?.cut();
        for n in 10..20 {
            publish(&broker, n).await?;
        }
        is_answered(&listener, 19).await?;
        for kill in 0..KILLS {
            broker.kill9()?;
            external_is(world, false).await?;
            broker.start_again()?;
            external_is(world, true).await?;
            let listener = listen(&broker, &dir.join(format!("after-{kill}"))).await?;
            let first = 20 + kill * 5;
            for n in first..first + 5 {
                publish(&broker, n).await?;
            }
            is_answered(&listener, first + 4).await?;
        }
        world.link()?.restore();

        let expected: Vec<String> = (0..20 + KILLS * 5).map(|n| n.to_string()).collect();
        let ledger_path = format!("/outpost/v1/ledger/{NODE}");
        let values = kubectl
            .until(
                "every reading at the hub",
                PATIENCE,
                &["get", "--raw", &ledger_path],
                |ledger| {
                    let values = ledger::values(ledger, STREAM, "temperature");
                    (values.len() >= expected.len()).then_some(values)
                },
            )
            .await?;
        ensure!(values == expected, "the hub has {values:?}");
        Ok(())
    });
}

/// Everything an admin does to a pod in a day, by one kubectl.
async fn a_day_of(kubectl: &Kubectl, name: &str, dir: &Path) -> Result<()> {
    let file = dir.join(format!("{name}.json"));
    let file = path(&file)?;
    std::fs::write(file, pod(name, IMAGE, None))?;
    let get = ["get", "pod", name];

    let mut watch = Process::start(
        "kubectl get -w",
        &dir.join(format!("{name}.watch")),
        &mut kubectl.command(&["get", "pods", "-w", "--output-watch-events"]),
    )?;
    let said = kubectl.run(&["apply", "-f", file]).await?;
    ensure!(said.contains(&format!("pod/{name} created")), "{said}");
    let said = kubectl.run(&["apply", "-f", file]).await?;
    ensure!(said.contains("unchanged"), "{said}");
    kubectl
        .run(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=60s",
            &format!("pod/{name}"),
        ])
        .await?;
    let wide = kubectl.run(&[&get[..], &["-o", "wide"]].concat()).await?;
    ensure!(wide.contains("Running") && wide.contains(NODE), "{wide}");
    let yaml = kubectl.run(&[&get[..], &["-o", "yaml"]].concat()).await?;
    ensure!(yaml.contains("phase: Running"), "{yaml}");
    let told = kubectl.run(&["describe", "pod", name]).await?;
    for expected in ["Started", "Ready", IMAGE, NODE] {
        ensure!(told.contains(expected), "no {expected} in:\n{told}");
    }

    kubectl.run(&["label", "pod", name, "tier=gold"]).await?;
    let said = kubectl
        .edit("sed -i s/gold/silver/", &["pod", name])
        .await?;
    ensure!(said.contains("edited"), "{said}");
    for (kind, patch) in [
        ("strategic", r#"{"metadata":{"labels":{"a":"1"}}}"#),
        ("merge", r#"{"metadata":{"labels":{"b":"2"}}}"#),
        (
            "json",
            r#"[{"op":"add","path":"/metadata/labels/c","value":"3"}]"#,
        ),
    ] {
        kubectl
            .run(&["patch", "pod", name, "--type", kind, "-p", patch])
            .await?;
    }
    let selector = "tier=silver,a=1,b in (2),c";
    let found = kubectl
        .run(&["get", "pods", "-l", selector, "-o", "name"])
        .await?;
    ensure!(found.trim() == format!("pod/{name}"), "{found}");
    kubectl.run(&["label", "pod", name, "tier-"]).await?;

    let map = format!("{name}-map");
    kubectl
        .run(&["create", "configmap", &map, "--from-literal=k=v"])
        .await?;
    let refused = kubectl
        .run(&["create", "configmap", &map, "--from-literal=k=v"])
        .await;
    let refused = refused.err().context("created twice")?.to_string();
    ensure!(refused.contains("already exists"), "{refused}");
    kubectl.run(&["delete", "configmap", &map]).await?;

    kubectl
        .run(&["delete", "pod", name, "--wait=false"])
        .await?;
    // A pod that went already is what was waited for.
    let gone = kubectl
        .run(&[
            "wait",
            "--for=delete",
            "--timeout=60s",
            &format!("pod/{name}"),
        ])
        .await;
    if let Err(error) = gone {
        let said = error.to_string();
        let is_gone = said.contains("not found") || said.contains("no matching resources");
        ensure!(is_gone, "{error:#}");
    }
    let missing = kubectl.run(&get).await.err().context("still there")?;
    ensure!(missing.to_string().contains("NotFound"), "{missing:#}");
    for event in ["ADDED", "MODIFIED", "DELETED"] {
        let what = format!("{event} in the watch");
        let seen = wait::until(&what, PATIENCE, async || {
            watch.check()?;
            let seen = watch.log();
            let mut lines = seen.lines().filter(|line| line.contains(name));
            Ok(lines.any(|line| line.starts_with(event)).then_some(()))
        });
        seen.await.with_context(|| watch.log())?;
    }
    Ok(())
}

#[test]
fn the_kubectls_of_the_machine_and_of_debian_do_a_days_work() {
    scenario("kubectls", async |run| {
        run.image()?;
        let dir = run.dir.path();
        a_day_of(&run.world.kubectl_by(kubectl::on_path()), "machine", dir).await?;
        if let Some(program) = kubectl::debian() {
            return a_day_of(&run.world.kubectl_by(program), "debian", dir).await;
        }
        containerd::left_out(Some(
            "no kubectl of Debian's: run scripts/setup.sh".to_owned(),
        ));
        Ok(())
    });
}

/// One command of `edgecore`: exit code, standard output, standard error.
fn edgecore(args: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(bins().unwrap().join("edgecore"))
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

fn findings(said: &str) -> Vec<Value> {
    let parsed: Value = serde_json::from_str(said).unwrap_or_else(|e| panic!("{e}: {said}"));
    parsed.as_array().unwrap().clone()
}

#[test]
fn check_and_status_tell_a_running_node_from_one_that_stopped() {
    scenario("check", async |run| {
        let config = run.world.edge_config();
        let config = path(&config)?.to_owned();
        let check = ["check", "--config", &config];
        let (code, table, _) = edgecore(&check);
        ensure!(code == Some(0), "{table}");
        ensure!(table.contains("served by edgecore"), "{table}");
        ensure!(!table.contains("FAIL"), "{table}");

        run.world.link()?.cut();
        let (code, told, _) = edgecore(&["status", "--config", &config]);
        ensure!(code == Some(0) && told.contains(NODE), "{told}");
        for line in ["link ", "mqtt ", "memory ", "disk "] {
            ensure!(told.contains(line), "no `{line}` in:\n{told}");
        }
        run.world.link()?.restore();

        run.world.edge()?.stop().await?;
        let (code, _, told) = edgecore(&["status", "-o", "json", "--config", &config]);
        ensure!(code == Some(69), "{code:?}: {told}");
        ensure!(told.contains("not running"), "{told}");
        let (code, said, _) = edgecore(&[&check[..], &["-o", "json"]].concat());
        ensure!(code == Some(0), "{said}");
        let free = findings(&said)
            .iter()
            .any(|f| f["detail"].as_str().is_some_and(|d| d.contains("is free")));
        ensure!(free, "{said}");
        run.world.edge_up()?;
        run.world.node_is("True", PATIENCE).await?;
        Ok(())
    });
}

#[test]
fn every_failed_check_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("file"), "").unwrap();
    std::fs::create_dir(at("cni")).unwrap();
    std::fs::write(at("cni/10.conf"), r#"{"type": "no-such-plugin"}"#).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let (closed, hub) = (free_port().unwrap(), free_port().unwrap());
    let config = json!({
        "database": {"dataSource": at("file/edgecore.db")},
        "modules": {
            "edgeHub": {
                "websocket": {"server": hub.to_string()},
                "tlsCertFile": at("no.crt"), "tlsPrivateKeyFile": at("no.key"),
                "tlsCaFile": at("no-ca.crt"),
            },
            "edged": {
                "hostnameOverride": "n1", "rootDirectory": at("file/pods"),
                "tailoredKubeletConfig": {
                    "containerRuntimeEndpoint": format!("unix://{}", at("no.sock")),
                },
            },
            "eventBus": {
                "mqttMode": 1, "mqttServerInternal": format!("tcp://{taken}"),
                "mqttServerExternal": format!("tcp://{closed}"),
            },
        },
        "outpost": {"cniConfDirectory": at("cni"), "runDirectory": at("run")},
    });
    std::fs::write(at("edgecore.yaml"), config.to_string()).unwrap();
    let config = at("edgecore.yaml");

    let (code, said, told) = edgecore(&["check", "-o", "json", "--config", &config]);
    assert_eq!(code, Some(1), "{said}{told}");
    let found = findings(&said);
    let bad: Vec<&Value> = found.iter().filter(|f| f["verdict"] != "pass").collect();
    for finding in &bad {
        let advice = finding["advice"].as_str().unwrap_or_default();
        assert!(!advice.is_empty(), "{finding} says nothing to do");
    }
    let failed = |check: &str| {
        bad.iter()
            .filter(|f| f["check"] == check && f["verdict"] == "fail")
            .count()
    };
    for (check, count) in [
        ("disk", 2),
        ("containerd", 1),
        ("cni", 1),
        ("certificate", 1),
        ("ports", 2),
    ] {
        assert_eq!(failed(check), count, "{check}: {said}");
    }
    let offline = bad
        .iter()
        .any(|f| f["verdict"] == "warn" && f["check"] == "ports");
    assert!(offline, "a hub that is away is no failure: {said}");

    let (code, table, _) = edgecore(&["check", "--config", &config]);
    assert_eq!(code, Some(1));
    let marks = |mark: &str| table.lines().filter(|line| line.starts_with(mark)).count();
    assert_eq!(marks("FAIL"), 7, "{table}");
    let advice = table
        .lines()
        .filter(|l| l.trim_start().starts_with("->"))
        .count();
    assert_eq!(advice, bad.len(), "{table}");
}
