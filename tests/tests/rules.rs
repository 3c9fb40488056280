//! Rules by kubectl on a real hub and a real node: `examples/rules/`, with an HTTP service on the
//! node, one in the cloud, and MQTT clients.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outpost_tests::ground::Ground;
use outpost_tests::mosquitto::Mosquitto;
use outpost_tests::process::{Process, tail};
use outpost_tests::wait;
use outpost_tests::world::{NODE, Place, World, free_port, path};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(60);
const REST: &str = "/apis/rules.outpost.dev/v1/rest/edge-1/default";

/// An HTTP service that keeps what it was sent and answers with it.
struct Service {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Service {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: Request<Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        let text = String::from_utf8_lossy(&body);
                        let line = format!("{} {} {text}", head.method, head.uri);
                        kept.lock().unwrap().push(line.clone());
                        let answer =
                            format!("{{\"got\":{:?}}}", format!("{} {}", head.method, head.uri));
                        let mut response = Response::new(Full::new(Bytes::from(answer)));
                        let json = http::HeaderValue::from_static("application/json");
                        response.headers_mut().insert("content-type", json);
                        if head.uri.path().ends_with("/missing") {
                            *response.status_mut() = http::StatusCode::NOT_FOUND;
                        }
                        anyhow::Ok(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Ok(Self { address, seen })
    }

    fn has(&self, line: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|one| one.as_str() == line).count()
    }

    async fn until(&self, line: &str) -> Result<()> {
        wait::until(line, PATIENCE, async || {
            Ok((self.has(line) > 0).then_some(()))
        })
        .await
        .with_context(|| format!("{:?}", self.seen.lock().unwrap()))
    }
}

/// A hub and a node without pods, a service on the node, and one in the cloud.
struct Run {
    world: World,
    app: Service,
    cloud: Service,
    service_bus: SocketAddr,
    dir: Ground,
}

impl Run {
    async fn start(name: &str, more: Vec<(&'static str, String)>) -> Result<Self> {
        let dir = Ground::temporary(&format!("outpost-{name}-"))?;
        let place = Place::new(name, dir.path())?;
        let service_bus = free_port()?;
        let mut world = World::start_hub(place).await?;
        world.more = vec![
            ("modules.edged.enable", "false".into()),
            ("modules.serviceBus.enable", "true".into()),
            ("modules.serviceBus.port", service_bus.port().to_string()),
        ];
        world.more.extend(more);
        let token = world.token()?;
        world.join(&token).await?;
        world.edge_up()?;
        let run = Self {
            world,
            app: Service::start().await?,
            cloud: Service::start().await?,
            service_bus,
            dir,
        };
        run.link_is("connected").await?;
        run.apply("endpoints").await?;
        Ok(run)
    }

    async fn link_is(&self, phase: &str) -> Result<()> {
        wait::until(&format!("the link to be {phase}"), PATIENCE, async || {
            Ok((self.world.status()?["link"]["state"] == phase).then_some(()))
        })
        .await
    }

    /// `kubectl apply` of an example, with the ports of this run.
    async fn apply(&self, example: &str) -> Result<()> {
        let file = format!(
            "{}/../examples/rules/{example}.yaml",
            env!("CARGO_MANIFEST_DIR")
        );
        let manifest = std::fs::read_to_string(&file)
            .with_context(|| file.clone())?
            .replace("127.0.0.1:8090", &self.cloud.address.to_string())
            .replace("\"8080\"", &format!("\"{}\"", self.app.address.port()));
        let here = self.dir.path().join(format!("{example}.yaml"));
        std::fs::write(&here, manifest)?;
        let apply = ["apply", "-f", path(&here)?];
        self.world.kubectl().run(&apply).await?;
        Ok(())
    }

    async fn delete(&self, rule: &str) -> Result<()> {
        self.world.kubectl().run(&["delete", "rule", rule]).await?;
        Ok(())
    }

    async fn counts(&self, rule: &str, succeeded: u64, failed: u64) -> Result<Value> {
        self.world
            .kubectl()
            .until(
                &format!("{succeeded} and {failed} of {rule}"),
                PATIENCE,
                &["get", "rule", rule],
                |rule| {
                    let count = |name: &str| rule["status"][name].as_u64().unwrap_or(0);
                    let is =
                        count("successMessages") == succeeded && count("failMessages") == failed;
                    is.then(|| rule.clone())
                },
            )
            .await
    }

    async fn end(mut self) -> Result<()> {
        self.world.edge()?.stop().await?;
        self.world.hub()?.stop().await?;
        self.world.no_complaints()
    }
}

/// Runs a story; a failure shows both logs.
fn story(
    name: &str,
    more: Vec<(&'static str, String)>,
    tell: impl AsyncFnOnce(&mut Run) -> Result<()>,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut run = Run::start(name, more).await.unwrap();
        if let Err(error) = tell(&mut run).await {
            let log = |name: &str| {
                let text = std::fs::read_to_string(run.dir.path().join(name)).unwrap_or_default();
                format!("--- {name}\n{}", tail(&text, 40))
            };
            panic!(
                "{error:#}\n{}\n{}",
                log("cloudhub.log"),
                log("edgecore.log")
            );
        }
        run.end().await.unwrap();
    });
}

/// By the client program of mosquitto, at QoS 1.
async fn publish(broker: SocketAddr, topic: &str, body: &str) -> Result<()> {
    let output = tokio::process::Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &broker.port().to_string()])
        .args(["-q", "1", "-t", topic, "-m", body])
        .output()
        .await
        .context("mosquitto_pub (package mosquitto-clients)")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mosquitto_pub: {said}");
    Ok(())
}

/// What an application on the node is told; `None`: nobody listens.
async fn ask(at: SocketAddr, body: &str) -> Result<Option<Value>> {
    let Ok(mut stream) = TcpStream::connect(at).await else {
        return Ok(None);
    };
    let request = format!(
        "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(Some(serde_json::from_str(body)?))
}

#[test]
fn http_goes_to_a_service_of_the_node_and_from_its_applications_by_kubectls_rules() {
    story("rules-http", Vec::new(), async |run| {
        let kubectl = run.world.kubectl();
        run.apply("cloud-to-service").await?;
        let answer = kubectl
            .run(&["get", "--raw", &format!("{REST}/app/things/7?a=b")])
            .await?;
        ensure!(answer.contains("GET /v1/things/7?a=b"), "{answer}");
        let body = run.dir.path().join("body");
        std::fs::write(&body, "hello")?;
        let create = [
            "create",
            "--raw",
            &format!("{REST}/app"),
            "-f",
            path(&body)?,
        ];
        kubectl.run(&create).await?;
        ensure!(run.app.has("POST /v1 hello") == 1, "{:?}", run.app.seen);
        let missing = format!("{REST}/app/missing");
        ensure!(kubectl.run(&["get", "--raw", &missing]).await.is_err());
        ensure!(run.app.has("GET /v1/missing ") == 1, "asked once");
        let rule = run.counts("cloud-to-service", 2, 1).await?;
        ensure!(
            rule["status"]["errors"][0] == "the service answered 404",
            "{rule}"
        );
        let shown = kubectl.run(&["get", "rules"]).await?;
        ensure!(
            shown
                .lines()
                .any(|line| line.starts_with("cloud-to-service")),
            "{shown}"
        );

        // The other way: nobody listens before there is a rule.
        let request = r#"{"method":"POST","targetURL":"http://cloud/orders","payload":{"n":1}}"#;
        ensure!(ask(run.service_bus, request).await?.is_none());
        run.apply("service-to-cloud").await?;
        let told = wait::until("the ServiceBus", PATIENCE, async || {
            ask(run.service_bus, request).await
        })
        .await?;
        ensure!(
            told["code"] == 200 && told["body"] == "{\"got\":\"POST /orders\"}",
            "{told}"
        );
        ensure!(run.cloud.has(&format!("POST /orders {request}")) == 1);
        run.counts("service-to-cloud", 1, 0).await?;
        // Without the cloud it says so at once, and goes on when it is back.
        run.world.link()?.cut();
        run.link_is("offline").await?;
        let told = ask(run.service_bus, request).await?.context("closed")?;
        ensure!(told["code"] == 503, "{told}");
        run.world.link()?.restore();
        run.link_is("connected").await?;
        run.delete("service-to-cloud").await?;
        wait::until("the port to close", PATIENCE, async || {
            Ok(ask(run.service_bus, request).await?.is_none().then_some(()))
        })
        .await
    });
}

/// Publishes until one arrives: only that shows that the node knows the rule.
async fn until_known(run: &Run, broker: SocketAddr, topic: &str) -> Result<()> {
    wait::until("the first reading in the cloud", PATIENCE, async || {
        publish(broker, topic, "first").await?;
        Ok((run.cloud.has("POST /readings first") > 0).then_some(()))
    })
    .await
}

/// What holds for the broker inside and an external one.
async fn mqtt_rules(run: &mut Run, broker: SocketAddr, is_inside: bool) -> Result<()> {
    run.apply("mqtt-to-cloud").await?;
    until_known(run, broker, "default/plant/a").await?;
    // Away from the hub, and through the death of the node's daemon.
    run.world.link()?.cut();
    run.link_is("offline").await?;
    publish(broker, "default/plant/b", "offline").await?;
    run.world.edge()?.kill9()?;
    run.world.edge_up()?;
    wait::until("the node's broker", PATIENCE, async || {
        publish(broker, "default/plant/c", "restarted").await?;
        let external = run.world.status()?["mqtt"]["externalConnected"].clone();
        Ok((external != false).then_some(()))
    })
    .await?;
    publish(broker, "default/plant/d", "last").await?;
    run.world.link()?.restore();
    for body in ["offline", "restarted", "last"] {
        run.cloud.until(&format!("POST /readings {body}")).await?;
    }
    // An external broker sends again what the node could not acknowledge before it died.
    ensure!(
        !is_inside || run.cloud.has("POST /readings offline") == 1,
        "once"
    );

    // A rule that goes while the node is away is gone when it is back.
    run.link_is("connected").await?;
    run.world.link()?.cut();
    run.link_is("offline").await?;
    run.delete("mqtt-to-cloud").await?;
    run.world.link()?.restore();
    run.link_is("connected").await?;
    let accepted = async |run: &Run, topic: &str| -> Result<u64> {
        let status = run.world.status()?;
        let ledger = status["ledger"].as_array().cloned().unwrap_or_default();
        let stream = ledger
            .iter()
            .find(|s| s["stream"] == format!("upload/{topic}"));
        Ok(stream.map_or(0, |s| s["accepted"].as_u64().unwrap_or(0)))
    };
    let (late, marker) = ("default/plant/z", "default/user/marker");
    wait::until("the topic to be nobody's", PATIENCE, async || {
        let before = (accepted(run, late).await?, accepted(run, marker).await?);
        publish(broker, late, "late").await?;
        // A topic that is always taken comes after it, in the same order.
        publish(broker, marker, "m").await?;
        wait::until("the marker", PATIENCE, async || {
            Ok((accepted(run, marker).await? > before.1).then_some(()))
        })
        .await?;
        Ok((accepted(run, late).await? == before.0).then_some(()))
    })
    .await?;

    run.apply("cloud-to-mqtt").await?;
    let log = run.dir.path().join("heard");
    let mut command = std::process::Command::new("stdbuf");
    command
        .args(["-oL", "mosquitto_sub", "-d", "-v", "-h", "127.0.0.1"])
        .args(["-p", &broker.port().to_string(), "-t", "commands/#"]);
    let heard = Process::start("mosquitto_sub", &log, &mut command)?;
    wait::until("the subscription", PATIENCE, async || {
        Ok(heard.log().contains("Subscribed").then_some(()))
    })
    .await?;
    let body = run.dir.path().join("command");
    std::fs::write(&body, "faster")?;
    let to = format!("{REST}/commands/line-1");
    let create = ["create", "--raw", &to, "-f", path(&body)?];
    let answer = run.world.kubectl().run(&create).await?;
    ensure!(answer.contains("\"delivered\":true"), "{answer}");
    wait::until("the command", PATIENCE, async || {
        Ok(heard.log().contains("commands/line-1 faster").then_some(()))
    })
    .await?;
    run.counts("cloud-to-mqtt", 1, 0).await?;
    Ok(())
}

async fn external_is(run: &Run, connected: bool) -> Result<()> {
    wait::until("mosquitto and the node", PATIENCE, async || {
        let status = run.world.status()?;
        Ok((status["mqtt"]["externalConnected"] == connected).then_some(()))
    })
    .await
}

#[test]
fn mqtt_of_the_broker_inside_goes_to_the_cloud_and_back() {
    story("rules-mqtt", Vec::new(), async |run| {
        let broker = run.world.place.mqtt;
        mqtt_rules(run, broker, true).await
    });
}

#[test]
fn mqtt_of_an_external_mosquitto_goes_to_the_cloud_and_back() {
    let address = free_port().unwrap();
    let settings = vec![
        ("modules.eventBus.mqttMode", "2".to_owned()),
        (
            "modules.eventBus.mqttServerExternal",
            format!("tcp://{address}"),
        ),
    ];
    story("rules-mosquitto", settings, async |run| {
        let dir = run.dir.path().join("mosquitto");
        let mut broker = Mosquitto::start(address, &dir)?;
        external_is(run, true).await?;
        mqtt_rules(run, address, false).await?;

        // A rule that goes while mosquitto is away: its session there must not keep the topic.
        run.apply("mqtt-to-cloud").await?;
        wait::until("the rule on the node", PATIENCE, async || {
            publish(address, "default/plant/y", "again").await?;
            Ok((run.cloud.has("POST /readings again") > 0).then_some(()))
        })
        .await?;
        let filter = "default/plant/+";
        let before = broker.left(filter);
        broker.kill9()?;
        external_is(run, false).await?;
        run.delete("mqtt-to-cloud").await?;
        run.world.edge()?.kill9()?;
        run.world.edge_up()?;
        run.link_is("connected").await?;
        broker.start_again()?;
        external_is(run, true).await?;
        wait::until("the topic to be left", PATIENCE, async || {
            Ok((broker.left(filter) > before).then_some(()))
        })
        .await
    });
}

#[test]
fn an_annotation_that_the_node_cannot_use_is_an_event_at_the_device() {
    story("annotation", Vec::new(), async |run| {
        let manifest = run.dir.path().join("device.yaml");
        std::fs::write(
            &manifest,
            format!(
                "apiVersion: devices.kubeedge.io/v1beta1
kind: Device
metadata:
  name: thermometer
  namespace: default
  annotations: {{outpost.dev/stream-policy: 'bytes=lots'}}
spec: {{nodeName: {NODE}, deviceModelRef: {{name: thermo}}, properties: [{{name: c}}]}}
"
            ),
        )?;
        let kubectl = run.world.kubectl();
        kubectl.run(&["apply", "-f", path(&manifest)?]).await?;
        wait::until("the event at the device", PATIENCE, async || {
            let told = kubectl.run(&["describe", "device", "thermometer"]).await?;
            Ok(told.contains("AnnotationNotUsable").then_some(()))
        })
        .await
    });
}

#[test]
fn rules_that_cannot_work_say_why() {
    story("rules-wrong", Vec::new(), async |run| {
        let manifest = run.dir.path().join("wrong.yaml");
        std::fs::write(
            &manifest,
            format!(
                "apiVersion: rules.kubeedge.io/v1
kind: Rule
metadata: {{name: wrong, namespace: default}}
spec:
  source: mqtt
  sourceResource: {{topic: 'a#', node_name: {NODE}}}
  target: rest
  targetResource: {{resource: 'http://127.0.0.1:1/'}}
"
            ),
        )?;
        let kubectl = run.world.kubectl();
        kubectl.run(&["apply", "-f", path(&manifest)?]).await?;
        let told = kubectl
            .until(
                "the complaint",
                PATIENCE,
                &["get", "rule", "wrong"],
                |rule| rule["status"]["errors"][0].as_str().map(str::to_owned),
            )
            .await?;
        ensure!(
            told == "not usable: spec.sourceResource: `topic` \"a#\" is no MQTT filter",
            "{told}"
        );
        let described = kubectl.run(&["describe", "rule", "wrong"]).await?;
        ensure!(described.contains("RuleNotUsable"), "{described}");
        Ok(())
    });
}
