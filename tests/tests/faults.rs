//! What is given to the daemons wrong, and what breaks around them: each says what is wrong, nothing
//! that was acknowledged is lost, nobody else is hurt.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use outpost_tests::containerd::{self, PrivateContainerd};
use outpost_tests::device::Thermometer;
use outpost_tests::process::{Process, tail};
use outpost_tests::world::{NODE, Place, World, bins, condition, free_port, path};
use outpost_tests::{containers, ledger, oci, wait};

const PATIENCE: Duration = Duration::from_secs(60);
const IMAGE: &str = "docker.io/library/busybox:faults";

/// A hub and a directory; the node comes when the story asks for it.
struct Stage {
    world: World,
    dir: tempfile::TempDir,
}

impl Stage {
    async fn new(name: &str) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(&format!("outpost-{name}-"))
            .tempdir()?;
        let place = Place {
            bins: bins()?,
            dir: dir.path().to_owned(),
            containerd: dir.path().join("containerd/containerd.sock"),
            namespace: format!("{name}-{}", std::process::id()),
            mqtt: free_port()?,
        };
        let world = World::start_hub(place).await?;
        Ok(Self { world, dir })
    }

    async fn node(&mut self) -> Result<()> {
        let token = self.world.token()?;
        self.world.join(&token).await?;
        self.world.edge_up()?;
        self.linked().await
    }

    async fn linked(&self) -> Result<()> {
        self.status("the link", |status| status["link"]["state"] == "connected")
            .await
    }

    async fn status(&self, what: &str, is: impl Fn(&serde_json::Value) -> bool) -> Result<()> {
        wait::until(what, PATIENCE, async || {
            Ok(self.world.status().is_ok_and(|s| is(&s)).then_some(()))
        })
        .await
    }

    fn run(&self, program: &str, args: &[&str]) -> Result<Output> {
        // What should have been refused at once must not run for ever.
        Ok(Command::new("timeout")
            .args(["--kill-after=1", "20"])
            .arg(self.world.place.bins.join(program))
            .env_remove("RUST_LOG")
            .args(args)
            .output()?)
    }

    /// What a program says when it refuses.
    fn refused(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.run(program, args)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{program} {args:?} was accepted");
        Ok(said)
    }

    fn token(&self, node: &str, more: &[&str]) -> Result<String> {
        let hub = self.world.hub_dir();
        let mut args = vec!["token", "create", "--node", node, "--data-dir", path(&hub)?];
        args.extend(more);
        let output = self.run("cloudhub", &args)?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    async fn apply(&self, manifest: &str) -> Result<String> {
        let file = self.dir.path().join("manifest.yaml");
        std::fs::write(&file, manifest)?;
        let kubectl = self.world.kubectl();
        kubectl.run(&["apply", "-f", path(&file)?]).await
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn scenario(name: &str, story: impl AsyncFnOnce(&mut Stage) -> Result<()>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut stage = Stage::new(name).await.unwrap();
        let outcome = story(&mut stage).await;
        for log in ["cloudhub.log", "edgecore.log"] {
            let text = stage.log(log);
            assert!(!text.contains("panicked"), "{log}:\n{text}");
            if outcome.is_err() {
                eprintln!("--- {log}\n{}", tail(&text, 40));
            }
        }
        if let Err(error) = outcome {
            panic!("{error:#}");
        }
    });
}

fn says(text: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(text.contains(word), "`{word}` is missing in: {text}");
    }
    Ok(())
}

#[test]
fn what_is_refused_says_what_is_wrong_and_what_to_do() {
    scenario("refused", async |stage| {
        let file = stage.dir.path().join("wrong.yaml");
        for (program, text, words) in [
            ("cloudhub", "listen:\n  apii: 1\n", ["listen", "apii"]),
            (
                "cloudhub",
                "session:\n  nodesMax: many\n",
                ["session.nodesMax", "many"],
            ),
            (
                "edgecore",
                "modules:\n  edgeHub:\n    heartbeet: 3\n",
                ["modules.edgeHub", "heartbeet"],
            ),
            (
                "edgecore",
                "modules:\n  edgeHub:\n    heartbeat: often\n",
                ["modules.edgeHub.heartbeat", "often"],
            ),
        ] {
            std::fs::write(&file, text)?;
            let said = stage.refused(program, &["run", "--config", path(&file)?])?;
            says(&said, &words).context(program)?;
        }
        for (spec, words) in [
            ("{containrs: []}", "spec.containrs"),
            (
                "{containers: [{name: a, image: b, ports: [{containerPort: many}]}]}",
                "containerPort",
            ),
            ("{containers: [{name: a, image: b, env: {A: b}}]}", "env"),
        ] {
            let manifest =
                format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {spec}\n");
            let said = stage
                .apply(&manifest)
                .await
                .err()
                .context(words)?
                .to_string();
            says(&said, &[words])?;
        }
        tokens(stage).await?;
        not_a_database(stage).await
    });
}

async fn tokens(stage: &mut Stage) -> Result<()> {
    let short = stage.token(NODE, &["--ttl", "1s"])?;
    let made = SystemTime::now();
    let other = stage.token("edge-2", &[])?;
    let said = stage
        .world
        .join_from_elsewhere(&other)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["edge-2", NODE, "--node-name"])?;
    wait::until("the token's end", PATIENCE, async || {
        Ok((made.elapsed()? > Duration::from_secs(2)).then_some(()))
    })
    .await?;
    let said = stage
        .world
        .join_from_elsewhere(&short)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["expired", "cloudhub token create"])?;

    let token = stage.world.token()?;
    stage.world.join(&token).await?;
    stage.world.edge_up()?;
    stage.linked().await?;
    let said = stage
        .world
        .join_from_elsewhere(&token)
        .err()
        .context("joined")?;
    says(&said.to_string(), &["already used", "--replace"])?;

    // A second machine of the same name: nobody gets it by accident, and the first is told.
    let hub = stage.world.hub_dir();
    let create = ["token", "create", "--node", NODE, "--data-dir", path(&hub)?];
    says(
        &stage.refused("cloudhub", &create)?,
        &["has already joined", "--replace"],
    )?;
    stage
        .world
        .join_from_elsewhere(&stage.token(NODE, &["--replace"])?)?;
    stage.world.edge()?.kill9()?;
    stage.world.edge_up()?;
    stage
        .status("the reason at the first machine", |status| {
            status["link"]
                .to_string()
                .contains("replaced by a later join")
        })
        .await?;
    says(
        &stage.log("cloudhub.log"),
        &["node refused", "replaced by a later join"],
    )
}

async fn not_a_database(stage: &mut Stage) -> Result<()> {
    stage.world.edge()?.stop().await?;
    stage.world.hub()?.stop().await?;
    let hub = stage.world.hub_dir();
    let file = hub.join("hub.db");
    let garbage = b"this is no database\n".repeat(400);
    // A log beside it would show the old state over the garbage.
    for side in ["hub.db-wal", "hub.db-shm"] {
        let _ = std::fs::remove_file(hub.join(side));
    }
    std::fs::write(&file, &garbage)?;
    let any = "127.0.0.1:0";
    let said = stage.refused(
        "cloudhub",
        &[
            "run",
            "--data-dir",
            path(&hub)?,
            "--api-listen",
            any,
            "--websocket-listen",
            any,
            "--bootstrap-listen",
            any,
        ],
    )?;
    says(
        &said,
        &[path(&file)?, "not a database", "restore", "move it"],
    )?;
    ensure!(std::fs::read(&file)? == garbage, "the file was touched");

    let file = stage.world.edge_dir().join("edgecore.db");
    std::fs::write(&file, &garbage)?;
    std::fs::write(file.with_extension("db-wal"), b"the log beside it")?;
    stage.world.edge_up()?;
    stage.status("a node with a new database", |_| true).await?;
    says(
        &stage.log("edgecore.log"),
        &["not a database", "was set aside as"],
    )?;
    let kept: Vec<Vec<u8>> = std::fs::read_dir(stage.world.edge_dir())?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("corrupt-"))
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .collect();
    ensure!(kept.contains(&garbage), "the old database is gone");
    ensure!(
        kept.contains(&b"the log beside it".to_vec()),
        "its log is gone"
    );
    Ok(())
}

fn device(namespace: &str) -> String {
    format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: {namespace}}}
---
apiVersion: devices.kubeedge.io/v1beta1
kind: DeviceModel
metadata: {{name: thermometer, namespace: {namespace}}}
spec:
  protocol: mqtt
  properties: [{{name: temperature, type: INT, accessMode: ReadOnly}}]
---
apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata: {{name: t1, namespace: {namespace}}}
spec:
  deviceModelRef: {{name: thermometer}}
  nodeName: {NODE}
  protocol: {{protocolName: mqtt}}
  properties: [{{name: temperature, reportToCloud: true}}]
"
    )
}

/// A small disk of its own at `at`, as long as this lives.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn mount(at: &Path, size: &str) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        let disk = Self { at: at.to_owned() };
        disk.call(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])?;
        Ok(disk)
    }

    fn resize(&self, size: &str) -> Result<()> {
        self.call(&["-o", &format!("remount,size={size}")])
    }

    fn call(&self, args: &[&str]) -> Result<()> {
        let output = Command::new("mount").args(args).arg(&self.at).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "mount {args:?}: {said}");
        Ok(())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a daemon that a failed test leaves behind may still hold it for a moment.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn may_mount(name: &str) -> bool {
    let missing = containerd::missing();
    if let Some(why) = &missing {
        assert!(
            std::env::var_os("OUTPOST_REQUIRE_NEIGHBOURS").is_none_or(|v| v == "0"),
            "{name}: {why}"
        );
        eprintln!("SKIPPED {name}: {why}");
    }
    missing.is_none()
}

#[test]
fn a_full_disk_stops_acknowledgements_and_nothing_else() {
    if !may_mount("a full disk") {
        return;
    }
    scenario("full", async |stage| {
        let disk = SmallDisk::mount(&stage.world.edge_dir(), "2m")?;
        stage.node().await?;
        stage.apply(&device("dev")).await?;
        stage
            .status("the device", |s| s["devices"].to_string().contains("t1"))
            .await?;
        nonsense_on_mqtt(stage).await?;

        // Nothing drains the outbox until the disk is full.
        stage.world.link()?.cut();
        let count = 3000;
        let mut thermometer = Thermometer::new(stage.world.place.mqtt, "dev/t1");
        let progress = Arc::clone(&thermometer.progress);
        let not_stored = "a message was not stored";
        let fill = async {
            wait::until("a full disk", PATIENCE, async || {
                Ok(stage.log("edgecore.log").contains(not_stored).then_some(()))
            })
            .await?;
            let stuck = progress.load(Ordering::Relaxed);
            ensure!(stuck < count, "the disk never filled");
            stage
                .status("a node that answers", |s| {
                    s["devices"].to_string().contains("t1")
                })
                .await?;
            disk.resize("64m")?;
            stage.world.link()?.restore();
            anyhow::Ok(())
        };
        let (published, filled) =
            tokio::join!(thermometer.publish(1..count + 1, 3000, PATIENCE), fill);
        filled?;
        published?;
        stage.world.edge()?.check()?;
        let ledger_path = format!("/outpost/v1/ledger/{NODE}");
        let wanted: Vec<String> = (1..=count).map(|n| n.to_string()).collect();
        let kubectl = stage.world.kubectl();
        let got = kubectl
            .until(
                "every reading",
                PATIENCE,
                &["get", "--raw", &ledger_path],
                |found| {
                    let values = ledger::values(found, "twin/dev/t1", "temperature");
                    (values.len() >= wanted.len()).then_some(values)
                },
            )
            .await?;
        let wrong = wanted.iter().zip(&got).position(|(a, b)| a != b);
        ensure!(
            got == wanted,
            "{} readings; first difference at {wrong:?}",
            got.len()
        );
        stage.world.edge()?.stop().await?;
        Ok(())
    });
}

/// Frames of MQTT by hand.
mod mqtt {
    use std::io::{Read, Write};

    use super::*;

    pub(super) fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        let mut out = vec![kind];
        let mut len = body.len();
        loop {
            let low = u8::try_from(len & 0x7f).unwrap();
            len >>= 7;
            out.push(if len > 0 { low | 0x80 } else { low });
            if len == 0 {
                break;
            }
        }
        out.extend(body);
        out
    }

    fn text(value: &[u8]) -> Vec<u8> {
        let mut out = u16::try_from(value.len()).unwrap().to_be_bytes().to_vec();
        out.extend(value);
        out
    }

    pub(super) fn connect(broker: SocketAddr, id: &str) -> Result<TcpStream> {
        let mut stream = TcpStream::connect(broker)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let id = text(id.as_bytes());
        stream.write_all(&packet(0x10, &[&text(b"MQTT"), &[4, 2, 0, 0], &id]))?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer)?;
        ensure!(answer == [0x20, 2, 0, 0], "{answer:?}");
        Ok(stream)
    }

    pub(super) fn subscribe(stream: &mut TcpStream, filter: &str) -> Result<()> {
        let filter = text(filter.as_bytes());
        stream.write_all(&packet(0x82, &[&[0, 9], &filter, &[0]]))?;
        Ok(())
    }

    pub(super) fn publish(topic: &[u8], payload: &[u8]) -> Vec<u8> {
        packet(0x32, &[&text(topic), &[0, 1], payload])
    }

    /// Whether a publish is acknowledged; `false` when the connection is closed for it.
    pub(super) fn is_acknowledged(
        broker: SocketAddr,
        topic: &[u8],
        payload: &[u8],
    ) -> Result<bool> {
        let mut stream = connect(broker, "nonsense")?;
        stream.write_all(&publish(topic, payload))?;
        let mut answer = [0; 4];
        match stream.read_exact(&mut answer) {
            Ok(()) => Ok(answer == [0x40, 2, 0, 1]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                anyhow::bail!("neither answered nor closed")
            }
            Err(_) => Ok(false),
        }
    }
}

async fn nonsense_on_mqtt(stage: &mut Stage) -> Result<()> {
    let broker = stage.world.place.mqtt;
    let update = b"$hw/events/device/dev/t1/twin/update".as_slice();
    for (topic, payload, is_taken) in [
        (
            b"$hw/events/device/dev/t1/twin/updatee".as_slice(),
            b"{}".as_slice(),
            false,
        ),
        (b"$hw/events/device//twin/update", b"{}", false),
        (b"$hw/events/device/none/such/twin/update", b"{}", true),
        (b"$hw/events/node/other/membership/get", b"{}", true),
        (b"a//b/", b"", true),
        // Bodies that are nothing are answered on the device's topic.
        (update, b"", true),
        (update, b"{", true),
        (
            update,
            b"{\"twin\":{\"temperature\":{\"actual\":{}}}}",
            true,
        ),
        (update, b"{\"actual\":{}}", true),
        (update, b"{\"twin\":{\"temperature\":null}}", true),
        (update, b"\xff\xfe\x00{\x80", true),
        (b"acme/user/line", b"\xff\xfe not text", true),
        // What the protocol forbids ends that connection.
        (b"$hw/events/device/+/t1/twin/update", b"{}", false),
        (b"a/#", b"{}", false),
        (b"", b"{}", false),
        (b"not \xff text", b"{}", false),
        // Only the runtime speaks there.
        (b"$hw/events/device/dev/t1/twin/update/delta", b"{}", false),
    ] {
        let taken = mqtt::is_acknowledged(broker, topic, payload)?;
        ensure!(
            taken == is_taken,
            "{}: {taken}",
            String::from_utf8_lossy(topic)
        );
    }
    let deep = format!("{{\"twin\":{}", "[".repeat(100_000));
    ensure!(
        mqtt::is_acknowledged(broker, update, deep.as_bytes())?,
        "a deep body"
    );

    // One that subscribes to everything and never reads.
    let mut deaf = mqtt::connect(broker, "deaf")?;
    mqtt::subscribe(&mut deaf, "#")?;
    let mut thermometer = Thermometer::new(broker, "dev/deaf");
    thermometer.publish(1..301, 2000, PATIENCE).await?;
    drop(deaf);
    stage.world.edge()?.check()
}

fn pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: {IMAGE}
      imagePullPolicy: IfNotPresent
      command: [sh, -c, \"trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done\"]
---
"
    )
}

async fn running(world: &World, name: &str) -> Result<()> {
    let ready = |pod: &serde_json::Value| {
        let is_ready = condition(pod, "Ready")? == "True" && pod["status"]["phase"] == "Running";
        is_ready.then_some(())
    };
    let what = format!("pod {name} Ready");
    let get = ["get", "pod", name];
    world.kubectl().until(&what, PATIENCE, &get, ready).await
}

#[test]
fn pods_come_up_whatever_containerd_and_the_clock_do() {
    if !may_mount("containerd") {
        return;
    }
    scenario("containerd", async |stage| {
        let mut containerd = PrivateContainerd::start(&stage.dir.path().join("containerd"))?;
        stage.node().await?;
        let archive = stage.dir.path().join("busybox.tar");
        oci::write_archive(&oci::ImageSpec::busybox(IMAGE), &archive)?;
        stage.world.import(&archive)?;
        stage.world.edge()?.kill9()?;

        // Absent at the start.
        containerd.kill()?;
        std::fs::remove_file(containerd.address())?;
        stage.world.edge_up()?;
        stage.linked().await?;
        let config = stage.world.edge_config();
        let said = stage.run("edgecore", &["check", "--config", path(&config)?])?;
        says(
            &String::from_utf8_lossy(&said.stdout),
            &["containerd", "no socket at", "systemctl start"],
        )?;
        stage.apply(&pod("p0")).await?;
        stage.world.node_is("False", PATIENCE).await?;
        containerd.restart()?;
        running(&stage.world, "p0").await?;
        stage.world.node_is("True", PATIENCE).await?;

        // Restarted under a running pod.
        let before = containers::running(&stage.world, "p0")?;
        containerd.restart()?;
        // Killed while pods are being made.
        stage
            .apply(&format!("{}{}{}", pod("p1"), pod("p2"), pod("p3")))
            .await?;
        wait::until("the first record of a new pod", PATIENCE, async || {
            Ok((containers::all(&stage.world)?.len() > 1).then_some(()))
        })
        .await?;
        containerd.restart()?;
        for name in ["p1", "p2", "p3"] {
            running(&stage.world, name).await?;
        }
        ensure!(
            containers::running(&stage.world, "p0")? == before,
            "the restart of containerd restarted a pod"
        );
        in_1970(stage, before.pid).await?;
        let delete = ["delete", "pods", "--all", "--timeout=60s"];
        stage.world.kubectl().run(&delete).await?;
        let left = containers::all(&stage.world)?;
        ensure!(left.is_empty(), "left behind: {left:?}");
        stage.world.edge()?.stop().await?;
        Ok(())
    });
}

/// Where Debian puts the library that lies about the time.
fn faketime() -> Option<PathBuf> {
    let of = |arch: &str| {
        PathBuf::from(format!(
            "/usr/lib/{arch}-linux-gnu/faketime/libfaketimeMT.so.1"
        ))
    };
    ["x86_64", "aarch64"]
        .into_iter()
        .map(of)
        .find(|path| path.exists())
}

/// The node boots with a clock in 1970 while its hub is away, and meets it later.
async fn in_1970(stage: &mut Stage, pid: u32) -> Result<()> {
    let Some(library) = faketime() else {
        ensure!(
            std::env::var_os("OUTPOST_REQUIRE_NEIGHBOURS").is_none_or(|v| v == "0"),
            "libfaketime is missing: run scripts/setup.sh"
        );
        eprintln!("SKIPPED the clock in 1970: no libfaketime");
        return Ok(());
    };
    stage.world.edge()?.kill9()?;
    stage.world.link()?.cut();
    let killed = containers::running(&stage.world, "p1")?;
    Command::new("kill")
        .args(["-9", &killed.pid.to_string()])
        .status()?;
    let config = stage.world.edge_config();
    let mut command = Command::new(stage.world.place.bins.join("edgecore"));
    command
        .args(["run", "--config", path(&config)?])
        .env("LD_PRELOAD", &library)
        .env("FAKETIME", "@1970-01-02 00:00:00")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .env("DONT_FAKE_MONOTONIC", "1");
    let log = stage.dir.path().join("edgecore.log");
    stage.world.edge = Some(Process::start("edgecore", &log, &mut command)?);
    stage
        .status("every pod from the store", |status| {
            let pods = status["pods"].as_array().cloned().unwrap_or_default();
            pods.iter().filter(|pod| pod["phase"] == "Running").count() == 4
        })
        .await?;
    wait::until("the killed pod again", PATIENCE, async || {
        Ok(containers::running(&stage.world, "p1").ok())
    })
    .await?;
    ensure!(
        containers::running(&stage.world, "p0")?.pid == pid,
        "p0 was restarted"
    );
    let mut thermometer = Thermometer::new(stage.world.place.mqtt, "dev/clock");
    thermometer.publish(1..11, 100, PATIENCE).await?;
    stage.world.link()?.restore();
    stage.linked().await?;
    stage.world.node_is("True", PATIENCE).await?;
    running(&stage.world, "p1").await?;
    let log = stage.log("edgecore.log");
    ensure!(log.contains("1970-01-02"), "the clock was not in 1970");
    Ok(())
}
