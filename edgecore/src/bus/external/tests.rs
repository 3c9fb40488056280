//! A broker by script: it dies where the test wants it to.

use bytes::BytesMut;
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, SubAck, SubscribeReasonCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::bus::{self, BusHandle};
use crate::config::BusMode;
use crate::config::MqttConfig;

const PATIENCE: Duration = Duration::from_secs(20);
const UPDATE: &str = "$hw/events/device/default/t1/twin/update";

struct Script {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Script {
    /// Takes the node's connection to the point where its subscriptions stand.
    async fn accept(listener: &TcpListener, session_present: bool) -> Self {
        let (stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut script = Self {
            stream,
            buffer: BytesMut::new(),
        };
        assert!(matches!(script.next().await, Packet::Connect(_)));
        let mut out = BytesMut::new();
        let code = ConnectReturnCode::Success;
        ConnAck::new(code, session_present).write(&mut out).unwrap();
        script.send(&out).await;
        let Packet::Subscribe(subscribe) = script.next().await else {
            panic!("something else came before the subscriptions");
        };
        let mut out = BytesMut::new();
        let codes = vec![SubscribeReasonCode::Success(QoS::AtLeastOnce); subscribe.filters.len()];
        SubAck::new(subscribe.pkid, codes).write(&mut out).unwrap();
        script.send(&out).await;
        script
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    async fn acknowledge(&mut self, id: u16) {
        let mut out = BytesMut::new();
        PubAck::new(id).write(&mut out).unwrap();
        self.send(&out).await;
    }

    async fn next(&mut self) -> Packet {
        loop {
            match Packet::read(&mut self.buffer, PACKET_BYTES_MAX) {
                Ok(packet) => return packet,
                Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("{error}"),
            }
            let read = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await;
            assert!(read.unwrap().unwrap() > 0, "the node closed the connection");
        }
    }

    /// The next result: its packet id and number.
    async fn result(&mut self) -> (u16, u64) {
        let Packet::Publish(publish) = self.next().await else {
            panic!("no result");
        };
        let number = std::str::from_utf8(&publish.payload).unwrap();
        (publish.pkid, number.parse().unwrap())
    }
}

struct Node {
    bus: BusHandle,
    store: Store,
    stop: CancellationToken,
    serving: tokio::task::JoinHandle<()>,
    _routes: watch::Sender<Arc<Routes>>,
    _dir: tempfile::TempDir,
}

impl Node {
    async fn start(listener: &TcpListener) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (store, _thread, _) = Store::open(&dir.path().join("edge.db")).unwrap();
        let config = BusConfig {
            mode: BusMode::External,
            listen: String::new(),
            external: format!("tcp://{}", listener.local_addr().unwrap()),
            client_id: "edgecore-test".into(),
            username: String::new(),
            password: String::new(),
            tls: None,
            inside: MqttConfig::default(),
        };
        let stop = CancellationToken::new();
        let wake = Arc::new(Notify::new());
        let (routes, wanted) = watch::channel(Arc::default());
        let (bus, serving) = bus::start(&config, store.clone(), wake, wanted, stop.clone())
            .await
            .unwrap();
        Self {
            bus,
            store,
            stop,
            serving: tokio::spawn(serving),
            _routes: routes,
            _dir: dir,
        }
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.serving).await.unwrap().unwrap();
        drop((self.bus, self.store));
    }
}

#[tokio::test]
async fn results_reach_a_broker_that_dies_again_and_again() {
    const RESULTS: u64 = 400;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::start(&listener).await;
    let mut script = Script::accept(&listener, false).await;
    for n in 0..RESULTS {
        node.bus.publish(LocalPublish {
            topic: "said".into(),
            payload: n.to_string().into_bytes(),
        });
    }
    // Each time the broker dies with a full window, after some acknowledgements or none; it may
    // have lost its sessions.
    let mut first = 0;
    for (acknowledged, keeps_session) in
        [(30, true), (0, false), (77, true), (1, false), (99, true)]
    {
        let mut got = Vec::new();
        while got.len() < usize::from(IN_FLIGHT_MAX) {
            got.push(script.result().await);
        }
        let numbers: Vec<u64> = got.iter().map(|(_, n)| *n).collect();
        let wanted: Vec<u64> = (first..first + u64::from(IN_FLIGHT_MAX)).collect();
        assert_eq!(numbers, wanted);
        for (id, _) in &got[..acknowledged] {
            script.acknowledge(*id).await;
        }
        // The acknowledgements were heard: as many others follow.
        for n in 0..acknowledged as u64 {
            assert_eq!(
                script.result().await.1,
                first + u64::from(IN_FLIGHT_MAX) + n
            );
        }
        first += acknowledged as u64;
        drop(script);
        script = Script::accept(&listener, keeps_session).await;
    }
    while first < RESULTS {
        let (id, n) = script.result().await;
        assert_eq!(n, first);
        script.acknowledge(id).await;
        first += 1;
    }
    assert_eq!(node.bus.status().publishes_dropped, 0);
    node.stop().await;
}

#[tokio::test]
async fn an_acknowledgement_never_crosses_to_the_next_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::start(&listener).await;
    let mut script = Script::accept(&listener, false).await;
    // Read at once with the end of the connection: most of them are still with rumqttc then.
    let mut out = BytesMut::new();
    for id in 1..=20 {
        let mut publish = Publish::new(UPDATE, QoS::AtLeastOnce, "{}");
        publish.pkid = id;
        publish.write(&mut out).unwrap();
    }
    script.send(&out).await;
    script.stream.shutdown().await.unwrap();
    let mut script = Script::accept(&listener, true).await;
    let mut out = BytesMut::new();
    let mut publish = Publish::new(UPDATE, QoS::AtLeastOnce, "{}");
    publish.pkid = 500;
    publish.write(&mut out).unwrap();
    script.send(&out).await;
    loop {
        match script.next().await {
            Packet::PubAck(ack) => {
                assert_eq!(ack.pkid, 500);
                break;
            }
            Packet::Publish(result) => script.acknowledge(result.pkid).await,
            other => panic!("{other:?}"),
        }
    }
    node.stop().await;
}

/// mosquitto sends all that it remembers of a session at once after a restart, whatever its window.
#[tokio::test]
async fn results_of_many_messages_at_once_all_arrive() {
    const MESSAGES: u16 = 1_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Node::start(&listener).await;
    let mut script = Script::accept(&listener, false).await;
    let mut out = BytesMut::new();
    for id in 1..=MESSAGES {
        let body = format!(r#"{{"event_id":"{id}","twin":{{}}}}"#);
        let mut publish = Publish::new(UPDATE, QoS::AtLeastOnce, body);
        publish.pkid = id;
        publish.write(&mut out).unwrap();
    }
    // Nothing is read from the node meanwhile.
    script.send(&out).await;
    let (mut results, mut acknowledged) = (0, 0);
    while results < MESSAGES || acknowledged < MESSAGES {
        match script.next().await {
            Packet::Publish(result) => {
                results += 1;
                script.acknowledge(result.pkid).await;
            }
            Packet::PubAck(ack) => {
                acknowledged += 1;
                assert_eq!(ack.pkid, acknowledged);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(node.bus.status().publishes_dropped, 0);
    node.stop().await;
}
