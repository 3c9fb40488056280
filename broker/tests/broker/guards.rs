//! What keeps clients from hurting the broker and each other: logins, sessions of users, aliases,
//! paces, bounds of everything together, `$SYS`, listeners that are upgraded.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use broker::{
    Access, AllowAll, Broker, ConnectRequest, Grant, Limits, Listener, MemoryStorage, Refused,
    Rights, Upgrade, UpgradeFuture, Upgraded,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::support::{
    Harness, PATIENCE, Raw, packet, publish, read_publish, subscribe, text, wait_until,
};

const PUBACK: u8 = 0x40;
const CONNACK: u8 = 0x20;

/// The password is the user's name; nobody comes without one.
struct Users;

impl Access for Users {
    fn connect(&self, request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        let user = request.certificate.or(request.username);
        let user = user.ok_or(Refused::NotAuthorized)?;
        let is_right = request.certificate.is_some() || request.password == Some(user.as_bytes());
        is_right
            .then(|| Grant {
                user: Some(user.into()),
                rights: Arc::new(AllowAll),
            })
            .ok_or(Refused::Credentials)
    }
}

fn connect_as(user: &str, password: &str, is_v5: bool, is_clean: bool) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([
        if is_v5 { 5 } else { 4 },
        0xc0 | u8::from(is_clean) << 1,
        0,
        0,
    ]);
    if is_v5 {
        body.push(0);
    }
    body.extend(text("same"));
    body.extend(text(user));
    body.extend(text(password));
    packet(0x10, &body)
}

#[tokio::test]
async fn a_wrong_password_is_told_and_a_right_one_is_let_in() {
    let harness = Harness::with(MemoryStorage::default(), Limits::default(), Users).await;
    for (is_v5, code) in [(true, vec![0, 0x86, 0]), (false, vec![0, 4])] {
        let mut raw = Raw::open(harness.addr).await;
        raw.send(&connect_as("ann", "guess", is_v5, true)).await;
        assert_eq!(raw.packet().await, (CONNACK, code));
        raw.assert_closed().await;
        let mut raw = Raw::open(harness.addr).await;
        raw.send(&connect_as("ann", "ann", is_v5, true)).await;
        assert_eq!(raw.packet().await.1[1], 0);
    }
    assert_eq!(harness.handle.stats().refused, 2);
    harness.stop().await;
}

#[tokio::test]
async fn a_client_identifier_is_no_key_to_another_users_session() {
    let harness = Harness::with(MemoryStorage::default(), Limits::default(), Users).await;
    let mut ann = Raw::open(harness.addr).await;
    ann.send(&connect_as("ann", "ann", false, false)).await;
    assert_eq!(ann.packet().await, (CONNACK, vec![0, 0]));
    ann.subscribe_v311("for/ann", 1).await;

    let mut bob = Raw::open(harness.addr).await;
    bob.send(&connect_as("bob", "bob", false, false)).await;
    assert_eq!(
        bob.packet().await,
        (CONNACK, vec![0, 0]),
        "a session of his own"
    );
    bob.send(&publish("for/ann", b"v", 1, false, 1, false))
        .await;
    assert_eq!(bob.packet().await.0, PUBACK);
    bob.assert_silent().await;
    let (kind, body) = ann.packet().await;
    assert_eq!(read_publish(kind, &body, false).0, "for/ann");
    harness.stop().await;
}

#[tokio::test]
async fn a_client_identifier_cannot_hold_a_users_name() {
    let harness = Harness::start(MemoryStorage::default()).await;
    let mut raw = Raw::open(harness.addr).await;
    raw.send(&crate::support::connect_v311("ann\u{1f}same", false))
        .await;
    assert_eq!(raw.packet().await, (CONNACK, vec![0, 2]));
    harness.stop().await;
}

/// Whoever may read `private/#` is decided at each connect.
struct Changing(Arc<AtomicBool>);

#[derive(Debug)]
struct MayReadPrivate(bool);

impl Access for Changing {
    fn connect(&self, _request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        let may = MayReadPrivate(self.0.load(Ordering::Relaxed));
        Ok(Grant::anonymous(Arc::new(may)))
    }
}

impl Rights for MayReadPrivate {
    fn may_publish(&self, _topic: &str) -> bool {
        true
    }
    fn may_subscribe(&self, filter: &str) -> bool {
        self.0 || !filter.starts_with("private/")
    }
}

#[tokio::test]
async fn a_session_keeps_no_right_that_its_user_lost() {
    let may = Arc::new(AtomicBool::new(true));
    let access = Changing(Arc::clone(&may));
    let harness = Harness::with(MemoryStorage::default(), Limits::default(), access).await;
    let (mut reader, _) = Raw::connect_v311(harness.addr, "reader", false).await;
    assert_eq!(reader.subscribe_v311("private/#", 1).await, 1);
    assert_eq!(reader.subscribe_v311("open/#", 1).await, 1);
    drop(reader);
    wait_until("gone", || harness.handle.stats().clients == 0).await;
    let (mut source, _) = Raw::connect_v311(harness.addr, "source", true).await;
    for (id, topic) in [(1, "private/a"), (2, "open/a")] {
        source
            .send(&publish(topic, b"v", 1, false, id, false))
            .await;
        assert_eq!(source.packet().await.0, PUBACK);
    }
    may.store(false, Ordering::Relaxed);
    let (mut reader, is_present) = Raw::connect_v311(harness.addr, "reader", false).await;
    assert!(is_present);
    let (kind, body) = reader.packet().await;
    assert_eq!(read_publish(kind, &body, false).0, "open/a");
    source
        .send(&publish("private/b", b"v", 1, false, 3, false))
        .await;
    assert_eq!(source.packet().await.0, PUBACK);
    reader.assert_silent().await;
    harness.stop().await;
}

#[tokio::test]
async fn topic_aliases_stand_for_their_topics() {
    let harness = Harness::start(MemoryStorage::default()).await;
    let mut raw = Raw::connect_v5(harness.addr, "a", true, 0).await;
    raw.subscribe_v5("#", 0).await;
    let aliased = |topic: &str, alias: u8| {
        let mut body = text(topic);
        body.extend([3, 0x23, 0, alias]);
        body.push(b'v');
        packet(0x30, &body)
    };
    for (sent, expected) in [("x/y", "x/y"), ("", "x/y"), ("z", "z"), ("", "z")] {
        raw.send(&aliased(sent, 16)).await;
        let (kind, body) = raw.packet().await;
        assert_eq!(read_publish(kind, &body, true).0, expected);
    }
    for (topic, alias) in [("", 1), ("x", 17)] {
        let mut raw = Raw::connect_v5(harness.addr, "b", true, 0).await;
        raw.send(&aliased(topic, alias)).await;
        assert_eq!(raw.packet().await, (0xe0, vec![0x94, 0]), "{topic} {alias}");
    }
    harness.stop().await;
}

#[tokio::test]
async fn a_client_that_is_too_fast_waits_and_others_do_not() {
    let limits = Limits {
        packets_per_second: 100,
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let (mut fast, _) = Raw::connect_v311(harness.addr, "fast", true).await;
    let started = Instant::now();
    for id in 1..=150 {
        fast.send(&publish("t", b"v", 1, false, id, false)).await;
    }
    let (mut calm, _) = Raw::connect_v311(harness.addr, "calm", true).await;
    calm.send(&publish("t", b"v", 1, false, 1, false)).await;
    assert_eq!(calm.packet().await.0, PUBACK);
    assert!(
        started.elapsed() < Duration::from_millis(400),
        "calm had to wait"
    );
    for _ in 0..150 {
        assert_eq!(fast.packet().await.0, PUBACK);
    }
    // 100 at once, 50 at 100 a second.
    assert!(
        started.elapsed() >= Duration::from_millis(450),
        "no pace was kept"
    );
    harness.stop().await;
}

#[tokio::test]
async fn all_sessions_together_are_bounded_and_each_keeps_its_share() {
    let limits = Limits {
        queue_bytes_total_max: 64 << 10,
        subscription_levels_total_max: 80,
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let (mut greedy, _) = Raw::connect_v311(harness.addr, "greedy", false).await;
    let mut granted = 0;
    for n in 0..100 {
        granted += u32::from(greedy.subscribe_v311(&format!("g/{n}"), 1).await == 1);
    }
    assert_eq!(granted, 40, "80 levels");
    let (mut modest, _) = Raw::connect_v311(harness.addr, "modest", false).await;
    assert_eq!(modest.subscribe_v311("m/1", 1).await, 1, "within its share");
    drop((greedy, modest));
    wait_until("both gone", || harness.handle.stats().clients == 0).await;

    let (mut source, _) = Raw::connect_v311(harness.addr, "source", true).await;
    let payload = vec![0; 4 << 10];
    for id in 1..=30 {
        source
            .send(&publish("g/1", &payload, 1, false, id, false))
            .await;
        assert_eq!(source.packet().await.0, PUBACK);
    }
    let stats = harness.handle.stats();
    assert!(stats.queued_bytes <= 64 << 10, "{stats:?}");
    assert!(stats.messages_dropped > 10, "{stats:?}");
    source
        .send(&publish("m/1", &payload, 1, false, 31, false))
        .await;
    assert_eq!(source.packet().await.0, PUBACK);
    assert_eq!(
        harness.handle.stats().messages_dropped,
        stats.messages_dropped
    );
    harness.stop().await;
}

#[tokio::test]
async fn sessions_last_no_longer_than_allowed_and_v5_clients_are_told() {
    let limits = Limits {
        session_expiry_max_secs: 1,
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let mut raw = Raw::open(harness.addr).await;
    raw.send(&crate::support::connect_v5("long", false, 3600))
        .await;
    let (_, body) = raw.packet().await;
    let expiry = [0x11, 0, 0, 0, 1];
    assert!(body.windows(5).any(|w| w == expiry), "{body:?}");
    drop(raw);
    wait_until("the session's end", || harness.handle.stats().sessions == 0).await;
    harness.stop().await;
}

#[tokio::test]
async fn counters_are_told_below_sys_and_only_the_broker_writes_there() {
    let limits = Limits {
        sys_interval: Duration::from_millis(50),
        ..Limits::default()
    };
    let harness = Harness::with(MemoryStorage::default(), limits, AllowAll).await;
    let (mut raw, _) = Raw::connect_v311(harness.addr, "ops", true).await;
    raw.send(&subscribe("$SYS/broker/clients/connected", 1, false))
        .await;
    assert_eq!(raw.packet().await.0, 0x90);
    let (kind, body) = raw.packet().await;
    assert_eq!(kind, 0x31, "like a retained message");
    assert_eq!(read_publish(kind, &body, false).2, b"1");
    let _other = Raw::connect_v311(harness.addr, "other", true).await;
    let (kind, body) = raw.packet().await;
    let told = read_publish(kind, &body, false);
    assert_eq!(
        (told.0.as_str(), &told.2[..]),
        ("$SYS/broker/clients/connected", &b"2"[..])
    );
    harness.stop().await;
}

#[tokio::test]
async fn strangers_cannot_take_the_places_of_clients() {
    let harness = Harness::start(MemoryStorage::default()).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(harness.addr).await.unwrap());
    }
    wait_until("some turned away", || {
        harness.handle.stats().turned_away > 0
    })
    .await;
    assert_eq!(harness.handle.stats().clients, 0);
    drop(silent);
    // Their places are free again as soon as they are gone.
    let started = Instant::now();
    loop {
        let mut raw = Raw::open(harness.addr).await;
        raw.send(&crate::support::connect_v311("d", true)).await;
        if let Some((kind, _)) = raw.try_packet().await {
            assert_eq!(kind, CONNACK);
            break;
        }
        assert!(started.elapsed() < PATIENCE);
    }
    harness.stop().await;
}

/// Asks for a word before MQTT; the word is the name.
struct Word;

impl Upgrade for Word {
    fn upgrade(&self, mut stream: TcpStream) -> UpgradeFuture {
        Box::pin(async move {
            let mut word = [0; 3];
            stream.read_exact(&mut word).await?;
            let name = String::from_utf8(word.to_vec()).map_err(io::Error::other)?;
            let (near, mut far) = tokio::io::duplex(64);
            let (mut stream, name) = (stream, name);
            tokio::spawn(async move {
                // Ends when either side closes.
                let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
            });
            Ok(Upgraded {
                transport: Box::new(near),
                certificate: Some(name),
            })
        })
    }
}

#[tokio::test]
async fn a_listener_may_begin_with_something_else_and_prove_a_name() {
    let broker = Broker::load(
        Limits::default(),
        Arc::new(MemoryStorage::default()),
        Arc::new(Users),
    )
    .await
    .unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let stop = CancellationToken::new();
    let listener = Listener::upgraded(tcp, Arc::new(Word));
    let serving = tokio::spawn(broker.serve(vec![listener], stop.clone()));
    let mut raw = Raw::open(addr).await;
    raw.send(b"ann").await;
    raw.send(&crate::support::connect_v311("c", true)).await;
    assert_eq!(raw.packet().await, (CONNACK, vec![0, 0]));
    raw.subscribe_v311("big", 0).await;
    // More than the transport holds at once, both ways.
    let payload = vec![7; 100_000];
    raw.send(&publish("big", &payload, 1, false, 1, false))
        .await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(raw.packet().await);
    }
    assert!(
        seen.iter().any(
            |(kind, body)| kind & 0xf0 == 0x30 && read_publish(*kind, body, false).2 == payload
        )
    );
    stop.cancel();
    serving.await.unwrap();
}
