use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Node {
    bus: BusHandle,
    store: Store,
    link_wake: Arc<Notify>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// The last outbox row before the test began.
    baseline: outbox::Seq,
    _dir: tempfile::TempDir,
}

fn config(mode: BusMode, external: &str) -> BusConfig {
    BusConfig {
        mode,
        listen: "127.0.0.1:0".into(),
        external: external.into(),
        client_id: "edgecore-test".into(),
        username: String::new(),
        password: String::new(),
        tls: None,
    }
}

impl Node {
    async fn start(config: &BusConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, told) = Store::open(&dir.path().join("edge.db")).unwrap();
        assert!(told.is_none());
        let device = json!({
            "apiVersion": "devices.kubeedge.io/v1beta1", "kind": "Device",
            "metadata": {"namespace": "default", "name": "t1"},
            "spec": {"properties": [{"name": "temp", "desired": {"value": "20", "metadata": {"type": "string"}}}]},
        });
        let baseline = store
            .write(move |tx| {
                twin::device_upserted(tx, &device, 1)?;
                Ok(outbox::pending(tx, 0, 100)?.last().map_or(0, |p| p.seq))
            })
            .await
            .unwrap();
        let (link_wake, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let (bus, serving) = start(config, store.clone(), Arc::clone(&link_wake), stop.clone())
            .await
            .unwrap();
        Self {
            bus,
            store,
            link_wake,
            stop,
            serving: tokio::spawn(serving),
            baseline,
            _dir: dir,
        }
    }

    fn port(&self) -> u16 {
        self.bus.listen_addr().unwrap().port()
    }

    async fn outbox(&self) -> Vec<outbox::Pending> {
        let baseline = self.baseline;
        self.store
            .write(move |tx| outbox::pending(tx, baseline, 100))
            .await
            .unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
    }
}

struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    async fn connect(port: u16, id: &str) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options.set_keep_alive(Duration::from_secs(30));
        let (client, events) = AsyncClient::new(options, 16);
        let mut device = Self { client, events };
        device.until(|p| matches!(p, Packet::ConnAck(_))).await;
        device
    }

    async fn subscribe(&mut self, filter: &str) {
        self.client
            .subscribe(filter, QoS::AtLeastOnce)
            .await
            .unwrap();
        self.until(|p| matches!(p, Packet::SubAck(_))).await;
    }

    async fn publish(&self, topic: &str, payload: &str) {
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }

    async fn until(&mut self, is_it: impl Fn(&Packet) -> bool) -> Packet {
        let wait = async {
            loop {
                if let Event::Incoming(packet) = self.events.poll().await.unwrap()
                    && is_it(&packet)
                {
                    return packet;
                }
            }
        };
        timeout(PATIENCE, wait).await.expect("not in time")
    }

    async fn next_on(&mut self, topic: &str) -> Value {
        let packet = self
            .until(|p| matches!(p, Packet::Publish(p) if p.topic == topic))
            .await;
        let Packet::Publish(publish) = packet else {
            unreachable!("filtered above")
        };
        serde_json::from_slice(&publish.payload).unwrap()
    }
}

const UPDATE: &str = "$hw/events/device/default/t1/twin/update";
const REPORT: &str = r#"{"event_id":"e1","timestamp":0,"twin":{"temp":{"actual":{"value":"21"}}}}"#;

#[tokio::test]
async fn a_report_is_on_disk_answered_and_wakes_the_link() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let mut reader = Device::connect(node.port(), "reader").await;
    reader.subscribe("$hw/events/device/+/+/twin/#").await;
    let mut device = Device::connect(node.port(), "t1").await;
    let woken = node.link_wake.notified();
    device.publish(UPDATE, REPORT).await;
    device.until(|p| matches!(p, Packet::PubAck(_))).await;
    timeout(PATIENCE, woken).await.unwrap();
    let rows = node.outbox().await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].stream, "twin/default/t1");
    let result = reader
        .next_on("$hw/events/device/default/t1/twin/update/result")
        .await;
    assert_eq!(result["event_id"], "e1");
    assert_eq!(result["twin"]["temp"]["actual"]["value"], "21");
    reader
        .next_on("$hw/events/device/default/t1/twin/update/document")
        .await;
    let delta = reader
        .next_on("$hw/events/device/default/t1/twin/update/delta")
        .await;
    assert_eq!(delta["delta"]["temp"], "20");
    node.stop().await;
}

#[tokio::test]
async fn an_upload_is_queued_as_kubeedge_words_it() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let mut device = Device::connect(node.port(), "t1").await;
    device.publish("acme/user/line", "<1>").await;
    device.until(|p| matches!(p, Packet::PubAck(_))).await;
    let rows = node.outbox().await;
    assert_eq!(rows[0].stream, "upload/acme/user/line");
    let message = Message::decode(&rows[0].message).unwrap();
    assert_eq!(message.route.source, "bus");
    assert_eq!(message.route.group, "user");
    assert_eq!(message.route.operation(), Operation::Upload);
    assert_eq!(message.route.resource, "acme/user/line");
    assert_eq!(message.content.text().as_deref(), Some("<1>"));
    node.stop().await;
}

#[tokio::test]
async fn nobody_may_speak_as_the_runtime() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    for topic in [
        "$hw/events/device/default/t1/twin/cloud_updated",
        "$hw/events/device/default/t1/twin/update/result",
    ] {
        let mut device = Device::connect(node.port(), "t1").await;
        device.publish(topic, REPORT).await;
        let closed = async { while device.events.poll().await.is_ok() {} };
        timeout(PATIENCE, closed).await.unwrap();
    }
    assert!(node.outbox().await.is_empty());
    assert_eq!(node.bus.status().internal.unwrap().refused, 2);
    node.stop().await;
}

#[tokio::test]
async fn local_talk_writes_nothing() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let mut device = Device::connect(node.port(), "t1").await;
    device.subscribe("chat").await;
    device.publish("chat", "1").await;
    assert_eq!(device.next_on("chat").await, 1);
    assert!(node.outbox().await.is_empty());
    node.stop().await;
}

async fn other_broker() -> (u16, CancellationToken, broker::MemoryStorage) {
    let storage = broker::MemoryStorage::default();
    let access = Arc::new(broker::AllowAll);
    let broker = Broker::load(Limits::default(), Arc::new(storage.clone()), access)
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    tokio::spawn(broker.serve(vec![listener], stop.clone()));
    (port, stop, storage)
}

#[tokio::test]
async fn an_external_broker_serves_the_same_devices() {
    let (port, stop_other, _) = other_broker().await;
    let external = format!("tcp://127.0.0.1:{port}");
    let mut device = Device::connect(port, "t1").await;
    device
        .subscribe("$hw/events/device/+/+/twin/update/result")
        .await;
    // Retained, so that it is there whenever the bus gets to subscribe.
    device
        .client
        .publish(UPDATE, QoS::AtLeastOnce, true, REPORT)
        .await
        .unwrap();
    device.until(|p| matches!(p, Packet::PubAck(_))).await;
    let node = Node::start(&config(BusMode::External, &external)).await;
    let result = device
        .next_on("$hw/events/device/default/t1/twin/update/result")
        .await;
    assert_eq!(result["event_id"], "e1");
    assert_eq!(node.outbox().await.len(), 1);
    assert_eq!(node.bus.status().external_connected, Some(true));
    assert_eq!(node.bus.listen_addr(), None);
    node.stop().await;
    stop_other.cancel();
}

#[test]
fn urls_of_external_brokers_are_checked() {
    let counters = Arc::new(Counters::default());
    for (url, is_ok) in [
        ("tcp://127.0.0.1:1883", true),
        ("mqtt://[::1]:1883", true),
        ("tcp://broker", true),
        ("http://broker", false),
        ("broker:1883", false),
        ("tcp://:1883", false),
        ("tcp://broker:x", false),
        ("ssl://broker", false),
    ] {
        let made = External::new(&config(BusMode::External, url), Arc::clone(&counters));
        assert_eq!(made.is_ok(), is_ok, "{url}");
    }
}
