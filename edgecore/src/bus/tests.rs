use std::time::Duration;

use rumqttc::{AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// A directory and what was written to it before.
pub(super) struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn open(&self) -> (Store, std::thread::JoinHandle<()>) {
        let (store, thread, told) = Store::open(&self.dir.path().join("edge.db")).unwrap();
        assert!(told.is_none());
        (store, thread)
    }
}

pub(super) struct Node {
    pub(super) bus: BusHandle,
    disk: Disk,
    writer: std::thread::JoinHandle<()>,
    store: Store,
    link_wake: Arc<Notify>,
    pub(super) routes: watch::Sender<Arc<Routes>>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    /// The last outbox row before the test began.
    baseline: outbox::Seq,
}

pub(super) fn config(mode: BusMode, external: &str) -> BusConfig {
    BusConfig {
        mode,
        listen: "127.0.0.1:0".into(),
        external: external.into(),
        client_id: "edgecore-test".into(),
        username: String::new(),
        password: String::new(),
        tls: None,
        inside: MqttConfig::default(),
    }
}

impl Node {
    pub(super) async fn start(config: &BusConfig) -> Self {
        Self::on(Disk::new(), config).await
    }

    /// What the session at the external broker may hold, as written.
    pub(super) async fn external_filters(&self) -> Vec<String> {
        let text: String = self
            .store
            .read(|conn| {
                let sql = "SELECT value FROM facts WHERE name = 'mqtt_external_filters'";
                Ok(conn.query_row(sql, [], |row| row.get(0))?)
            })
            .await
            .unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        serde_json::from_value(record["filters"].clone()).unwrap()
    }

    pub(super) async fn on(disk: Disk, config: &BusConfig) -> Self {
        let (store, writer) = disk.open();
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
        let (routes, wanted) = watch::channel(Arc::default());
        let wake = Arc::clone(&link_wake);
        let (bus, serving) = start(config, store.clone(), wake, wanted, stop.clone())
            .await
            .unwrap();
        Self {
            bus,
            store,
            link_wake,
            routes,
            stop,
            serving: tokio::spawn(serving),
            baseline,
            disk,
            writer,
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.bus.listen_addr().unwrap().port()
    }

    pub(super) async fn outbox(&self) -> Vec<outbox::Pending> {
        let baseline = self.baseline;
        self.store
            .write(move |tx| outbox::pending(tx, baseline, 100))
            .await
            .unwrap()
    }

    pub(super) async fn stop(self) -> Disk {
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
        drop((self.bus, self.store));
        self.writer.join().unwrap();
        self.disk
    }
}

pub(super) struct Device {
    client: AsyncClient,
    events: EventLoop,
}

impl Device {
    pub(super) async fn connect(port: u16, id: &str) -> Self {
        Self::with(port, id, true).await
    }

    async fn with(port: u16, id: &str, is_clean: bool) -> Self {
        let mut options = MqttOptions::new(id, "127.0.0.1", port);
        options
            .set_keep_alive(Duration::from_secs(30))
            .set_clean_session(is_clean);
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

    pub(super) async fn publish(&self, topic: &str, payload: &str) {
        self.client
            .publish(topic, QoS::AtLeastOnce, false, payload)
            .await
            .unwrap();
    }

    pub(super) async fn puback(&mut self) {
        self.until(|p| matches!(p, Packet::PubAck(_))).await;
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

#[tokio::test]
async fn results_wait_for_a_persistent_session_through_a_restart() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let mut reader = Device::with(node.port(), "reader", false).await;
    reader
        .subscribe("$hw/events/device/+/+/twin/update/result")
        .await;
    drop(reader);
    let mut device = Device::connect(node.port(), "t1").await;
    device.publish(UPDATE, REPORT).await;
    device.until(|p| matches!(p, Packet::PubAck(_))).await;
    // The result is published after the commit that PUBACK tells of, and kept by one of its own.
    let kept = |tx: &Connection| {
        Ok(tx.query_row("SELECT count(*) FROM mqtt_queue", [], |row| {
            row.get::<_, u32>(0)
        })?)
    };
    let queued = async { while node.store.write(kept).await.unwrap() == 0 {} };
    timeout(PATIENCE, queued).await.unwrap();
    let disk = node.stop().await;

    let node = Node::on(disk, &config(BusMode::Internal, "")).await;
    let mut reader = Device::with(node.port(), "reader", false).await;
    let result = reader
        .next_on("$hw/events/device/default/t1/twin/update/result")
        .await;
    assert_eq!(result["event_id"], "e1");
    let balance = node.store.write(outbox::ledger).await.unwrap();
    assert!(balance.iter().all(outbox::Balance::is_balanced));
    node.stop().await;
}

/// A database that takes no more outbox rows until it is told to.
async fn block_outbox(store: &Store, is_blocked: bool) {
    let sql = if is_blocked {
        "CREATE TRIGGER no_more BEFORE INSERT ON outbox BEGIN SELECT RAISE(ABORT, 'no'); END"
    } else {
        "DROP TRIGGER no_more"
    };
    store
        .write(move |tx| Ok(tx.execute_batch(sql)?))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_cannot_be_stored_is_not_acknowledged() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    block_outbox(&node.store, true).await;
    let mut device = Device::connect(node.port(), "t1").await;
    device.publish(UPDATE, REPORT).await;
    let closed = async {
        loop {
            match device.events.poll().await {
                Ok(Event::Incoming(packet)) => assert!(!matches!(packet, Packet::PubAck(_))),
                Ok(Event::Outgoing(_)) => {}
                Err(_) => return,
            }
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    let document = node
        .store
        .write(|tx| twin::document(tx, "default", "t1"))
        .await
        .unwrap();
    let document = serde_json::to_string(&document).unwrap_or_default();
    assert!(
        !document.contains("21"),
        "the twin is undone too: {document}"
    );
    node.stop().await;
}

#[tokio::test]
async fn after_a_reading_that_was_not_stored_none_is_until_the_device_connects_again() {
    let node = Node::start(&config(BusMode::Internal, "")).await;
    let refuse =
        "CREATE TRIGGER no_more BEFORE INSERT ON outbox WHEN instr(NEW.message, 'reading-3')
        BEGIN SELECT RAISE(ABORT, 'no'); END";
    node.store
        .write(move |tx| Ok(tx.execute_batch(refuse)?))
        .await
        .unwrap();
    let readings = async || -> Vec<String> {
        let of = |row: &outbox::Pending| {
            let message = Message::decode(&row.message).unwrap();
            message.content.text().unwrap_or_default()
        };
        node.outbox().await.iter().map(of).collect()
    };
    let mut device = Device::connect(node.port(), "t1").await;
    let publish_all = async |device: &Device, range: std::ops::Range<u32>| {
        for n in range {
            device
                .publish("acme/user/line", &format!("reading-{n}"))
                .await;
        }
    };
    publish_all(&device, 1..9).await;
    let mut acknowledged = 0;
    let closed = async {
        loop {
            match device.events.poll().await {
                Ok(Event::Incoming(Packet::PubAck(_))) => acknowledged += 1,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    };
    timeout(PATIENCE, closed).await.unwrap();
    assert!(acknowledged <= 2, "{acknowledged}");
    assert_eq!(readings().await, ["reading-1", "reading-2"]);

    block_outbox(&node.store, false).await;
    let mut device = Device::connect(node.port(), "t1").await;
    publish_all(&device, 3..9).await;
    for _ in 3..9 {
        device.until(|p| matches!(p, Packet::PubAck(_))).await;
    }
    let wanted: Vec<String> = (1..9).map(|n| format!("reading-{n}")).collect();
    assert_eq!(readings().await, wanted);
    node.stop().await;
}

#[tokio::test]
async fn an_external_broker_is_asked_again_for_what_could_not_be_stored() {
    let (port, stop_other, _) = other_broker().await;
    let external = format!("tcp://127.0.0.1:{port}");
    let node = Node::start(&config(BusMode::External, &external)).await;
    block_outbox(&node.store, true).await;
    let mut device = Device::connect(port, "t1").await;
    device
        .client
        .publish(UPDATE, QoS::AtLeastOnce, true, REPORT)
        .await
        .unwrap();
    device.until(|p| matches!(p, Packet::PubAck(_))).await;
    let came = async {
        while node.bus.status().external_in == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, came).await.unwrap();
    assert!(node.outbox().await.is_empty());
    block_outbox(&node.store, false).await;
    let stored = async {
        while node.outbox().await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, stored).await.unwrap();
    node.stop().await;
    stop_other.cancel();
}

pub(super) async fn other_broker() -> (u16, CancellationToken, broker::MemoryStorage) {
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

#[tokio::test]
async fn fault_05_what_the_runtime_says_waits_for_an_external_broker_that_is_away() {
    let (port, stop_other, storage) = other_broker().await;
    let mut device = Device::with(port, "t1", false).await;
    device.subscribe("said").await;
    drop(device);
    stop_other.cancel();
    let listener = async {
        loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => return listener,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    let listener = timeout(PATIENCE, listener).await.unwrap();
    let external = format!("tcp://127.0.0.1:{port}");
    let node = Node::start(&config(BusMode::External, &external)).await;
    for n in 0..100 {
        node.bus.publish(LocalPublish {
            topic: "said".into(),
            payload: format!(r#"{{"n":{n}}}"#).into_bytes(),
        });
    }
    assert_eq!(node.bus.status().external_connected, Some(false));
    let access = Arc::new(broker::AllowAll);
    let again = Broker::load(Limits::default(), Arc::new(storage), access)
        .await
        .unwrap();
    let stop_again = CancellationToken::new();
    tokio::spawn(again.serve(vec![listener], stop_again.clone()));
    let mut device = Device::with(port, "t1", false).await;
    for n in 0..100 {
        assert_eq!(device.next_on("said").await["n"], n);
    }
    assert_eq!(node.bus.status().publishes_dropped, 0);
    node.stop().await;
    stop_again.cancel();
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
