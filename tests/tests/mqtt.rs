//! The broker inside edgecore, as a daemon of its own without a hub: real clients on all its
//! listeners, who may do what, what survives `kill -9`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use outpost_tests::ground::Ground;
use outpost_tests::process::{Process, tail};
use outpost_tests::wait;
use outpost_tests::world::{bins, free_port, path};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node that is alone, with every listener.
struct Node {
    dir: Ground,
    process: Option<Process>,
    plain: SocketAddr,
    tls: SocketAddr,
    web_socket: SocketAddr,
    web_socket_tls: SocketAddr,
}

impl Node {
    /// `more` are keys below `outpost.mqtt`.
    async fn start(more: Value) -> Result<Self> {
        let dir = Ground::temporary("outpost-mqtt-")?;
        let mut node = Self {
            dir,
            process: None,
            plain: free_port()?,
            tls: free_port()?,
            web_socket: free_port()?,
            web_socket_tls: free_port()?,
        };
        node.certificates()?;
        let at = |name: &str| node.file(name);
        let mut mqtt = json!({
            "tlsListen": node.tls, "webSocketListen": node.web_socket,
            "webSocketTlsListen": node.web_socket_tls,
            "tlsCertFile": at("server.crt"), "tlsKeyFile": at("server.key"),
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            mqtt[key] = value.clone();
        }
        // JSON is YAML.
        let config = json!({
            "apiVersion": "edgecore.config.kubeedge.io/v1alpha2", "kind": "EdgeCore",
            "database": {"dataSource": at("edge.db")},
            "modules": {
                "edgeHub": {"enable": false},
                "edged": {"enable": false, "hostnameOverride": "edge-1"},
                "eventBus": {"mqttServerInternal": format!("tcp://{}", node.plain)},
            },
            "outpost": {"runDirectory": at("run"), "mqtt": mqtt},
        });
        std::fs::write(at("edgecore.yaml"), config.to_string())?;
        node.up().await?;
        Ok(node)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    async fn up(&mut self) -> Result<()> {
        let mut command = Command::new(bins()?.join("edgecore"));
        command
            .args(["run", "--config", path(&self.file("edgecore.yaml"))?])
            .env_remove("RUST_LOG");
        self.process = Some(Process::start(
            "edgecore",
            &self.file("edgecore.log"),
            &mut command,
        )?);
        wait::until("the broker", PATIENCE, async || {
            if let Err(error) = self.process.as_mut().context("no process")?.check() {
                return Ok(Some(Err(error)));
            }
            let stream = std::net::TcpStream::connect(self.plain);
            Ok(stream.ok().map(|_| Ok(())))
        })
        .await?
    }

    async fn kill_and_up(&mut self) -> Result<()> {
        self.process.as_mut().context("no process")?.kill9()?;
        self.up().await
    }

    /// An authority, and what it says about the server and a device.
    fn certificates(&self) -> Result<()> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        let ca_key = KeyPair::generate()?;
        let ca = params.self_signed(&ca_key)?;
        std::fs::write(self.file("ca.crt"), ca.pem())?;
        let issuer = Issuer::new(params, ca_key);
        for (name, common_name) in [("server", "server"), ("t1", "default.t1")] {
            let mut params = CertificateParams::new(Vec::new())?;
            params
                .distinguished_name
                .push(DnType::CommonName, common_name);
            params.subject_alt_names = vec![
                SanType::IpAddress([127, 0, 0, 1].into()),
                SanType::DnsName("localhost".try_into()?),
            ];
            let key = KeyPair::generate()?;
            let certificate = params.signed_by(&key, &issuer)?;
            std::fs::write(self.file(&format!("{name}.crt")), certificate.pem())?;
            std::fs::write(self.file(&format!("{name}.key")), key.serialize_pem())?;
        }
        Ok(())
    }

    /// `mosquitto_pub` or `mosquitto_sub` on the plain listener.
    fn mosquitto(&self, program: &str, args: &[&str]) -> Result<Output> {
        let port = self.plain.port().to_string();
        Ok(Command::new("timeout")
            .args(["20", program, "-h", "127.0.0.1", "-p", &port])
            .args(args)
            .output()?)
    }

    /// Whether the server shows what this authority says, and takes the message.
    fn publish_over_tls(&self, ca: &str, with_certificate: bool, topic: &str) -> Result<bool> {
        let port = self.tls.port().to_string();
        let (ca, cert, key) = (self.file(ca), self.file("t1.crt"), self.file("t1.key"));
        let mut command = Command::new("timeout");
        command.args(["20", "mosquitto_pub", "-h", "127.0.0.1", "-p", &port]);
        command.args(["--cafile", path(&ca)?, "-V", "mqttv5", "-q", "1"]);
        if with_certificate {
            command.args(["--cert", path(&cert)?, "--key", path(&key)?]);
        }
        let output = command.args(["-t", topic, "-m", "{}"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        Ok(output.status.success() && !said.contains("failed"))
    }

    /// Changes a section of the configuration and starts the daemon anew.
    async fn reconfigure(&mut self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let config = std::fs::read_to_string(self.file("edgecore.yaml"))?;
        let mut config: Value = serde_json::from_str(&config)?;
        change(&mut config["outpost"]);
        std::fs::write(self.file("edgecore.yaml"), config.to_string())?;
        self.kill_and_up().await
    }

    fn publish_as(&self, login: &[&str], topic: &str) -> Result<Output> {
        let more = ["-V", "mqttv5", "-q", "1", "-t", topic, "-m", "{}"];
        self.mosquitto("mosquitto_pub", &[login, &more].concat())
    }
}

fn story(what: impl AsyncFnOnce() -> Result<Node>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        match what().await {
            Ok(node) => {
                let log = node.process.as_ref().map(Process::log).unwrap_or_default();
                assert!(!log.contains("panicked"), "{}", tail(&log, 40));
            }
            Err(error) => panic!("{error:#}"),
        }
    });
}

/// Clients that `scripts/setup.sh` installs; `None` where they are missing and nobody insists.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let python = tools.join("paho/bin/python");
    let node = tools.join("mqttjs/node_modules");
    let found = python.exists() && node.exists();
    assert!(
        found || std::env::var_os("OUTPOST_REQUIRE_NEIGHBOURS").is_none(),
        "paho-mqtt or mqtt.js is missing: scripts/setup.sh"
    );
    if !found {
        eprintln!("skipped: paho-mqtt or mqtt.js is missing");
    }
    found.then_some((python, node))
}

fn is_ok(output: &Output, what: &str) -> Result<()> {
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && said.trim().ends_with("ok"),
        "{what}: {} {said} {complained}",
        output.status
    );
    Ok(())
}

#[test]
fn paho_and_mqttjs_work_on_every_listener_in_both_versions() {
    let Some((python, node_modules)) = tools() else {
        return;
    };
    story(async || {
        let node = Node::start(json!({})).await?;
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        for (scheme, addr, transport) in [
            ("mqtt", node.plain, "tcp"),
            ("mqtts", node.tls, "tcp"),
            ("ws", node.web_socket, "websockets"),
            ("wss", node.web_socket_tls, "websockets"),
        ] {
            let ca = scheme.ends_with('s') && scheme != "ws";
            for version in [4, 5] {
                let what = format!("{scheme} {version}");
                let mut args = json!({
                    "host": "127.0.0.1", "port": addr.port(), "transport": transport,
                    "version": version, "url": format!("{scheme}://127.0.0.1:{}/mqtt", addr.port()),
                });
                if ca {
                    args["ca"] = json!(node.file("ca.crt"));
                }
                let output = Command::new("timeout")
                    .args(["60", path(&python)?, path(&scripts.join("paho_matrix.py"))?])
                    .arg(args.to_string())
                    .output()?;
                is_ok(&output, &format!("paho {what}"))?;
                let output = Command::new("timeout")
                    .args(["60", "node", path(&scripts.join("mqttjs_matrix.cjs"))?])
                    .arg(args.to_string())
                    .env("NODE_PATH", &node_modules)
                    .output()?;
                is_ok(&output, &format!("mqtt.js {what}"))?;
            }
        }
        Ok(node)
    });
}

/// KubeEdge's broker knows no users: any local client writes any twin and speaks for the cloud.
#[test]
fn fault_24_a_device_writes_its_own_topics_and_nobody_the_runtimes() {
    story(async || {
        let dir = Ground::temporary("outpost-mqtt-pw-")?;
        let passwords = dir.path().join("passwords");
        let node = Node::start(json!({
            "passwordFile": passwords, "clientCaFile": "/will/be/replaced",
        }))
        .await;
        ensure!(node.is_err(), "a listener without its authority came up");
        let node = Node::start(json!({
            "passwordFile": passwords,
            "users": [
                {"name": "ops", "admin": true},
                {"name": "gateway", "devices": ["default/t1", "default/t2"], "publish": ["plant/user/#"]},
            ],
        }))
        .await?;
        let set = |user: &str, password: &str| -> Result<()> {
            let mut child = Command::new(bins()?.join("edgecore"))
                .args(["mqtt", "passwd", user, "--file", path(&passwords)?])
                .stdin(std::process::Stdio::piped())
                .spawn()?;
            let stdin = child.stdin.take().context("no stdin")?;
            std::io::Write::write_all(&mut { stdin }, format!("{password}\n").as_bytes())?;
            ensure!(child.wait()?.success());
            Ok(())
        };
        // The daemon runs already: it sees a changed file at the next login.
        for user in ["ops", "gateway", "default/t1"] {
            set(user, "right")?;
        }
        let update = |device: &str| format!("$hw/events/device/default/{device}/twin/update");
        let ops: &[&str] = &["-u", "ops", "-P", "right"];
        let gateway: &[&str] = &["-u", "gateway", "-P", "right"];
        let t1: &[&str] = &["-u", "default/t1", "-P", "right"];
        for (who, topic, may) in [
            (&[][..], update("t1"), false),
            (&["-u", "ops", "-P", "wrong"], update("t1"), false),
            (&["-u", "nobody", "-P", "right"], update("t1"), false),
            (ops, update("t3"), true),
            (gateway, update("t2"), true),
            (gateway, update("t3"), false),
            (gateway, "plant/user/line".into(), true),
            (t1, update("t1"), true),
            (t1, update("t2"), false),
            (t1, "plant/user/line".into(), false),
            (ops, update("t1") + "/result", false),
            (ops, update("t1") + "/document", false),
            (ops, update("t1") + "/delta", false),
            (
                t1,
                "$hw/events/device/default/t1/twin/cloud_updated".into(),
                false,
            ),
            (ops, "$SYS/broker/uptime".into(), false),
        ] {
            let output = node.publish_as(who, &topic)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            let was_taken = output.status.success() && !said.contains("failed");
            ensure!(
                was_taken == may,
                "{who:?} {topic}: {} {said}",
                output.status
            );
        }
        set("default/t1", "new")?;
        ensure!(
            !node.publish_as(t1, &update("t1"))?.status.success(),
            "the old password"
        );
        let eavesdrop = ["-V", "mqttv5", "-W", "2", "-t", "#", "-C", "1"];
        let output = node.mosquitto("mosquitto_sub", &[gateway, &eavesdrop[..]].concat())?;
        ensure!(
            String::from_utf8_lossy(&output.stderr).contains("denied"),
            "a gateway reads everything: {output:?}"
        );
        Ok(node)
    });
}

#[test]
fn a_certificate_names_the_device() {
    story(async || {
        let mut node = Node::start(json!({})).await?;
        // Now with an authority: nobody comes without a certificate any more.
        let ca = json!(node.file("ca.crt"));
        node.reconfigure(|outpost| outpost["mqtt"]["clientCaFile"] = ca)
            .await?;
        let publish = |topic: &str, with_certificate: bool| {
            node.publish_over_tls("ca.crt", with_certificate, topic)
        };
        let own = "$hw/events/device/default/t1/twin/get";
        ensure!(publish(own, true)?, "its own topic");
        ensure!(
            !publish("$hw/events/device/default/t2/twin/get", true)?,
            "another's"
        );
        ensure!(!publish(own, false)?, "without a certificate");
        ensure!(
            !node.publish_as(&[], own)?.status.success(),
            "on the plain listener"
        );
        Ok(node)
    });
}

#[test]
fn a_renewed_certificate_is_shown_without_a_restart() {
    story(async || {
        let node = Node::start(json!({})).await?;
        let publish = |ca: &str| node.publish_over_tls(ca, false, "plant/user/line");
        ensure!(publish("ca.crt")?, "the first certificate");
        std::fs::copy(node.file("ca.crt"), node.file("old.crt"))?;
        node.certificates()?;
        ensure!(publish("ca.crt")?, "the renewed certificate is not shown");
        ensure!(!publish("old.crt")?, "the old certificate is shown");
        // Half of a renewal changes nothing.
        std::fs::write(node.file("server.crt"), "nonsense")?;
        ensure!(publish("ca.crt")?, "nonsense took the listener down");
        Ok(node)
    });
}

#[test]
fn a_refusal_by_quota_is_told_and_the_connection_goes_on() {
    story(async || {
        let mut node = Node::start(json!({})).await?;
        node.reconfigure(|outpost| {
            outpost["streams"] =
                json!([{"match": "upload/#", "bytes": "4Ki", "whenFull": "refuse"}]);
        })
        .await?;
        let lines = node.file("lines");
        std::fs::write(&lines, format!("{}\n", "x".repeat(1000)).repeat(20))?;
        let output = Command::new("timeout")
            .args([
                "20",
                "mosquitto_pub",
                "-h",
                "127.0.0.1",
                "-d",
                "-V",
                "mqttv5",
            ])
            .args([
                "-p",
                &node.plain.port().to_string(),
                "-q",
                "1",
                "-t",
                "plant/user/line",
                "-l",
            ])
            .stdin(std::fs::File::open(&lines)?)
            .output()?;
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        let count = |word: &str| said.lines().filter(|line| line.contains(word)).count();
        ensure!(count("received CONNACK") == 1, "{said}");
        ensure!(count("received PUBACK") == 20, "{said}");
        ensure!(count("RC:151") >= 15, "{said}");
        Ok(node)
    });
}

/// What a broker has taken for later is still owed after `kill -9`, and nothing else is.
#[test]
fn a_will_survives_kill_9_and_a_message_that_is_too_old_does_not() {
    const TOO_OLD: Duration = Duration::from_secs(8);
    story(async || {
        let mut node = Node::start(json!({})).await?;
        let session = ["-i", "reader", "-c", "-q", "1", "-t", "owed/#"];
        let start = [&session[..], &["-E"]].concat();
        ensure!(node.mosquitto("mosquitto_sub", &start)?.status.success());
        let expiring = ["-D", "publish", "message-expiry-interval"];
        let seconds = TOO_OLD.as_secs().to_string();
        let old = ["-V", "mqttv5", "-q", "1", "-t", "owed/old", "-m", "old"];
        let old = [&expiring[..], &[seconds.as_str()], &old].concat();
        ensure!(node.mosquitto("mosquitto_pub", &old)?.status.success());
        let published = std::time::Instant::now();
        let fresh = ["-q", "1", "-t", "owed/fresh", "-m", "fresh"];
        ensure!(node.mosquitto("mosquitto_pub", &fresh)?.status.success());

        let mut device = Command::new("stdbuf");
        device
            .args([
                "-oL",
                "mosquitto_sub",
                "-d",
                "-h",
                "127.0.0.1",
                "-t",
                "orders",
            ])
            .args(["-p", &node.plain.port().to_string(), "-i", "device"])
            .args(["--will-topic", "owed/will", "--will-qos", "1"])
            .args(["--will-payload", "gone"]);
        let mut device = Process::start("mosquitto_sub", &node.file("device.log"), &mut device)?;
        wait::until("the device", PATIENCE, async || {
            Ok(device.log().contains("Subscribed").then_some(()))
        })
        .await?;
        node.process.as_mut().context("no process")?.kill9()?;
        device.kill9()?;
        wait::until("the message to be too old", PATIENCE, async || {
            Ok((published.elapsed() > TOO_OLD).then_some(()))
        })
        .await?;
        node.up().await?;
        let read = [&session[..], &["-C", "2"]].concat();
        let output = node.mosquitto("mosquitto_sub", &read)?;
        ensure!(output.stdout == b"fresh\ngone\n", "{output:?}");
        Ok(node)
    });
}

/// KubeEdge's sessions are clean and its acknowledgements come before anything is stored.
#[test]
fn fault_04_sessions_and_what_was_acknowledged_survive_kill_9() {
    story(async || {
        let mut node = Node::start(json!({})).await?;
        let session = ["-i", "reader", "-c", "-q", "2", "-t", "jobs/#"];
        let start = [&session[..], &["-E"]].concat();
        ensure!(node.mosquitto("mosquitto_sub", &start)?.status.success());
        for round in 0..3 {
            for n in 0..10 {
                let (qos, text) = (["1", "2"][n % 2], format!("{round}-{n}"));
                let args = ["-q", qos, "-t", "jobs/print", "-m", &text];
                ensure!(node.mosquitto("mosquitto_pub", &args)?.status.success());
            }
            let kept = ["-q", "1", "-r", "-t", "state", "-m", &round.to_string()];
            ensure!(node.mosquitto("mosquitto_pub", &kept)?.status.success());
            node.kill_and_up().await?;
        }
        let read = [&session[..], &["-C", "30"]].concat();
        let output = node.mosquitto("mosquitto_sub", &read)?;
        let got = String::from_utf8(output.stdout)?;
        // In order among those of one QoS: of QoS 2 a client shows a message after PUBREL.
        for parity in [0, 1] {
            let wanted: Vec<String> = (0..3)
                .flat_map(|round| (0..5).map(move |n| format!("{round}-{}", 2 * n + parity)))
                .collect();
            let got: Vec<&str> = got
                .lines()
                .filter(|line| wanted.contains(&(*line).to_owned()))
                .collect();
            ensure!(got == wanted, "{got:?}");
        }
        ensure!(got.lines().count() == 30, "{got}");
        let output = node.mosquitto("mosquitto_sub", &["-t", "state", "-C", "1"])?;
        ensure!(output.stdout == b"2\n", "{output:?}");
        Ok(node)
    });
}

/// What a subscriber that is always too slow, strangers that say nothing and floods of two do to
/// a sensor that is well behaved.
#[test]
fn hostile_clients_do_not_keep_a_sensor_from_its_acknowledgements() {
    story(async || {
        let node = Node::start(json!({})).await?;
        let floods: Vec<_> = (0..2)
            .map(|n| {
                tokio::spawn(outpost_tests::device::flood(
                    node.plain, n, 20_000, PATIENCE,
                ))
            })
            .collect();
        let mut silent = Vec::new();
        for _ in 0..100 {
            silent.push(tokio::net::TcpStream::connect(node.plain).await?);
        }
        let mut sensor = outpost_tests::device::Thermometer::new(node.plain, "default/t1");
        sensor.publish(1..101, 50, PATIENCE).await?;
        let mut latencies = std::mem::take(&mut sensor.latencies);
        latencies.sort_unstable();
        let p90 = latencies[latencies.len() * 9 / 10];
        ensure!(p90 < Duration::from_secs(1), "p90 {p90:?}");
        for flood in floods {
            flood.await??;
        }
        Ok(node)
    });
}
