//! The link against a hub of the wire crate's other half, over real TLS on loopback.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message as Ws;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_util::sync::CancellationToken;
use wire::body;
use wire::extension::{self, Extensions};
use wire::message::{Content, Message, Operation, Route};
use wire::session::hub::{Event, HubSession};
use wire::session::{Ids, Transmit};

use super::*;
use crate::config::{HubConfig, TlsFiles};
use crate::edged::{DesiredState, StatusSink};
use crate::meta::{MetaHandle, Sealer};
use crate::store::Store;
use crate::{clock, outbox};

/// A hub that stores in memory what it is sent.
struct Hub {
    listener: TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    extensions: Extensions,
}

/// What the test tells the hub to do, and what it saw.
enum Do {
    Push(Box<Message>),
    /// Says that everything has been offered.
    Synced,
    /// Stops reading and drops the socket without a word.
    Cut,
}

struct Pki {
    files: TlsFiles,
    acceptor: tokio_rustls::TlsAcceptor,
}

fn pki(dir: &std::path::Path) -> Pki {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let issue = |name: &str, san: &[String]| {
        let mut params = CertificateParams::new(san.to_vec()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &ca).unwrap();
        (cert, key)
    };
    let (node, node_key) = issue("system:node:n1", &[]);
    let (server, server_key) = issue("hub", &["127.0.0.1".to_owned()]);
    let files = TlsFiles {
        ca: dir.join("ca.crt"),
        cert: dir.join("node.crt"),
        key: dir.join("node.key"),
    };
    std::fs::write(&files.ca, ca.pem()).unwrap();
    std::fs::write(&files.cert, node.pem()).unwrap();
    std::fs::write(&files.key, node_key.serialize_pem()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from(ca.der().to_vec())).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(
            vec![server.der().clone()],
            PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
        )
        .unwrap();
    Pki {
        files,
        acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)),
    }
}

impl Hub {
    /// Serves one connection until it is cut or the node leaves. Everything that the session
    /// reports goes to `seen`.
    async fn serve(&self, stored: u64, todo: &mut mpsc::Receiver<Do>, seen: &mpsc::Sender<Event>) {
        let (tcp, _) = self.listener.accept().await.unwrap();
        let tls = self.acceptor.accept(tcp).await.unwrap();
        let mut epoch = String::new();
        let answer = self.extensions.to_header();
        #[expect(
            clippy::result_large_err,
            reason = "the callback's type is the library's"
        )]
        let upgrade = |request: &Request, mut response: Response| {
            assert_eq!(request.headers()["node_id"], "n1");
            assert_eq!(request.headers()["connectionuse"], "msg");
            epoch = request.headers()[extension::HEADER_EPOCH]
                .to_str()
                .unwrap()
                .to_owned();
            if !answer.is_empty() {
                let headers = response.headers_mut();
                headers.insert(extension::HEADER, answer.parse().unwrap());
                headers.insert(extension::HEADER_ACKED, stored.to_string().parse().unwrap());
            }
            Ok::<_, ErrorResponse>(response)
        };
        let mut socket = tokio_tungstenite::accept_hdr_async(tls, upgrade)
            .await
            .unwrap();
        let mut session = HubSession::new(Ids::new("hub"), self.extensions, clock::monotonic())
            .with_stored(epoch, stored);
        loop {
            while let Some(event) = session.poll_event() {
                if let Event::Batch(batch) = &event
                    && let Some(last) = batch.entries.last()
                {
                    session.ack_batch(&batch.epoch, last.seq);
                }
                if let Event::Request(request) = &event {
                    answer_request(&mut session, request);
                }
                seen.send(event).await.unwrap();
            }
            while let Some(transmit) = session.poll_transmit(clock::monotonic()) {
                if let Transmit::Message(message) = transmit {
                    let text = String::from_utf8(message.encode()).unwrap();
                    // The node may have left while its last message was being answered.
                    if socket.send(Ws::text(text)).await.is_err() {
                        return;
                    }
                }
            }
            tokio::select! {
                frame = socket.next() => match frame {
                    Some(Ok(Ws::Text(text))) => {
                        let message = Message::decode(text.as_bytes()).unwrap();
                        session.handle_message(message, clock::monotonic());
                    }
                    Some(Ok(Ws::Close(_)) | Err(_)) | None => return,
                    Some(Ok(_)) => session.handle_heard(clock::monotonic()),
                },
                Some(what) = todo.recv() => match what {
                    Do::Push(message) => session.offer(message.route.resource.clone(), *message),
                    Do::Synced => session.tell_synced(),
                    Do::Cut => return,
                },
            }
        }
    }
}

fn answer_request(session: &mut HubSession, request: &Message) {
    let is_query = request.route.operation() == Operation::Query;
    let content = if is_query && request.route.resource.ends_with("/there") {
        Content::json(&json!({"metadata": {"name": "there", "uid": "c"}, "data": {"k": "v"}}))
            .unwrap()
    } else if is_query {
        body::error(&body::Status {
            reason: "NotFound".into(),
            code: 404,
            ..body::Status::default()
        })
    } else {
        body::object_response(&json!({"metadata": {}})).unwrap()
    };
    session.send(request.reply("r", 1, "edgecontroller", content));
}

struct Edge {
    hub: HubHandle,
    meta: MetaHandle,
    store: Store,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

async fn edge(extensions: Extensions) -> (Edge, Hub) {
    edge_with(extensions, false).await
}

/// An edge that knows, or does not, that its store replaces a lost one.
async fn edge_with(extensions: Extensions, is_lost: bool) -> (Edge, Hub) {
    let dir = tempfile::tempdir().unwrap();
    let pki = pki(dir.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = HubConfig {
        history_rows_per_second: 10_000,
        server: listener.local_addr().unwrap().to_string(),
        http_server: "https://127.0.0.1:1".into(),
        project_id: "p".into(),
        heartbeat: Duration::from_secs(15),
        handshake_timeout: Duration::from_secs(10),
        write_deadline: Duration::from_secs(10),
        query_timeout: Duration::from_secs(10),
        rotate_certificates: false,
        tls: pki.files,
        token: String::new(),
    };
    let (store, _thread, _) = Store::open(&dir.path().join("edge.db")).unwrap();
    store
        .write(move |tx| {
            if is_lost {
                crate::meta::mark_if_rebuilt(tx, true)?;
            }
            Ok(())
        })
        .await
        .unwrap();
    let (hub, link) = Link::new();
    let sealer = Arc::new(Sealer::new(&[1; 32]).unwrap());
    let meta = MetaHandle::open(store.clone(), sealer, "n1", hub.clone())
        .await
        .unwrap();
    let stop = CancellationToken::new();
    let parts = LinkParts {
        config,
        node: "n1".into(),
        store: store.clone(),
        meta: meta.clone(),
        publish: Box::new(|_| {}),
        calls: crate::servicebus::Calls::disabled(),
        floor: tls::Floor::default(),
    };
    tokio::spawn(link.run(parts, stop.clone()));
    let edge = Edge {
        hub,
        meta,
        store,
        stop,
        _dir: dir,
    };
    let hub = Hub {
        listener,
        acceptor: pki.acceptor,
        extensions,
    };
    (edge, hub)
}

impl Edge {
    async fn reading(&self, n: u64) {
        let route = Route::new("bus", "user", &Operation::Upload, "SYS/dis/upload_records");
        let message = Message::new(format!("m{n}"), 1, route, Content::string(&n.to_string()));
        self.store
            .write(move |tx| outbox::append(tx, "upload/t", &message.encode(), 1))
            .await
            .unwrap();
        self.hub.outbox_wake().notify_one();
    }

    async fn pending(&self) -> usize {
        self.store
            .read(|tx| outbox::pending(tx, 0, 1000))
            .await
            .unwrap()
            .len()
    }
}

/// The next event that `pick` wants.
async fn next<T>(seen: &mut mpsc::Receiver<Event>, pick: impl Fn(&Event) -> Option<T>) -> T {
    let wait = async {
        loop {
            let event = seen.recv().await.unwrap();
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait)
        .await
        .expect("the hub saw nothing of the kind")
}

fn batch(event: &Event) -> Option<Vec<u64>> {
    let Event::Batch(batch) = event else {
        return None;
    };
    Some(batch.entries.iter().map(|entry| entry.seq).collect())
}

fn request(event: &Event) -> Option<&Message> {
    let Event::Request(message) = event else {
        return None;
    };
    Some(message)
}

fn pod_push() -> Box<Message> {
    let pod = json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]}});
    let route = Route::new(
        "edgecontroller",
        "resource",
        &Operation::Insert,
        "default/pod/p",
    );
    let message = Message::new("push", 1, route, Content::json(&pod).unwrap());
    Box::new(message.with_resource_version("7"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_store_is_filled_when_the_hub_says_so_or_falls_silent() {
    let older = Extensions {
        synced: false,
        ..Extensions::ALL
    };
    for (extensions, is_told) in [(Extensions::ALL, true), (older, false)] {
        let (edge, hub) = edge_with(extensions, true).await;
        let mut generation = edge.meta.generation();
        let (say, mut todo) = mpsc::channel(8);
        let (see, mut seen) = mpsc::channel(256);
        let serving = tokio::spawn(async move { hub.serve(0, &mut todo, &see).await });
        say.send(Do::Push(pod_push())).await.unwrap();
        next(&mut seen, |event| {
            matches!(event, Event::Acked { .. }).then_some(())
        })
        .await;
        assert!(!edge.meta.is_complete());
        if is_told {
            say.send(Do::Synced).await.unwrap();
        }
        let filled = async {
            while !edge.meta.is_complete() {
                generation.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(20), filled)
            .await
            .expect("the store never counts as filled");
        assert_eq!(edge.meta.pods().await.unwrap().len(), 1);
        say.send(Do::Cut).await.unwrap();
        serving.await.unwrap();
        edge.stop.cancel();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_01_readings_pushes_statuses_and_queries_survive_a_cut() {
    let (edge, hub) = edge(Extensions::ALL).await;
    let mut generation = edge.meta.generation();
    generation.mark_unchanged();
    edge.hub
        .node_status(json!({"metadata": {"name": "n1"}, "status": {"phase": "x"}}));
    for n in 1..=3 {
        edge.reading(n).await;
    }
    let (say, mut todo) = mpsc::channel(8);
    let (see, mut seen) = mpsc::channel(256);
    let serving = tokio::spawn(async move {
        hub.serve(0, &mut todo, &see).await;
        hub.serve(3, &mut todo, &see).await;
        hub
    });

    let mut stored = Vec::new();
    while stored.len() < 3 {
        stored.extend(next(&mut seen, batch).await);
    }
    assert_eq!(stored, [1, 2, 3]);

    say.send(Do::Push(pod_push())).await.unwrap();
    let acked = next(&mut seen, |event| {
        let Event::Acked { key, version } = event else {
            return None;
        };
        Some((key.clone(), version.clone()))
    });
    assert_eq!(acked.await, ("default/pod/p".to_owned(), "7".to_owned()));
    tokio::time::timeout(Duration::from_secs(10), generation.changed())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(edge.meta.pods().await.unwrap().len(), 1);

    let found = edge.meta.configmap("default", "there").await.unwrap();
    assert_eq!(found.unwrap().data.unwrap()["k"], "v");
    assert!(
        edge.meta
            .configmap("default", "gone")
            .await
            .unwrap()
            .is_none()
    );
    // For what it does not have it is not asked again at once.
    let again = edge.meta.configmap("default", "gone").await.unwrap();
    assert!(again.is_none());
    edge.meta.configmap("elsewhere", "there").await.unwrap();
    let query = |event: &Event| match event {
        Event::Request(request) => Some(request.route.resource.clone()),
        _ => None,
    };
    let mut asked = 0;
    loop {
        let resource = next(&mut seen, query).await;
        asked += usize::from(resource == "default/configmap/gone");
        if resource.starts_with("elsewhere/") {
            break;
        }
    }
    assert_eq!(asked, 1);

    edge.hub
        .pod_status("default", "p", "u", json!({"phase": "Running"}));
    let patch = |event: &Event| {
        request(event)
            .filter(|message| message.route.resource == "default/podpatch/p")
            .map(|message| message.content.document().into_owned())
    };
    assert!(next(&mut seen, patch).await.contains("Running"));

    // The cable is cut without a word; what is made meanwhile arrives after, and only that.
    say.send(Do::Cut).await.unwrap();
    edge.reading(4).await;
    edge.reading(5).await;
    // The status is told again, before the readings; nothing is repeated.
    assert!(next(&mut seen, patch).await.contains("Running"));
    let mut stored = Vec::new();
    while stored.len() < 2 {
        stored.extend(next(&mut seen, batch).await);
    }
    assert_eq!(stored, [4, 5]);
    let mut link = edge.hub.link();
    link.wait_for(|state| state.connects == 2).await.unwrap();
    let emptied = async {
        while edge.pending().await > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), emptied)
        .await
        .expect("acknowledged rows leave the outbox");
    edge.stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_database_loses_no_reading() {
    let (edge, hub) = edge(Extensions::ALL).await;
    let before = edge.store.write(outbox::epoch).await.unwrap();
    for n in 1..=3 {
        edge.reading(n).await;
    }
    let (_say, mut todo) = mpsc::channel(8);
    let (see, mut seen) = mpsc::channel(256);
    let serving = tokio::spawn(async move {
        // What the copy's original had sent; 1 to 3 here are other readings.
        hub.serve(500, &mut todo, &see).await;
        hub.serve(0, &mut todo, &see).await;
    });
    let mut stored = Vec::new();
    while stored.len() < 3 {
        let (epoch, seqs) = next(&mut seen, |event| {
            let Event::Batch(found) = event else {
                return None;
            };
            Some((found.epoch.clone(), batch(event)?))
        })
        .await;
        assert_ne!(epoch, before);
        stored.extend(seqs);
    }
    assert_eq!(stored, [1, 2, 3]);
    assert_ne!(edge.store.write(outbox::epoch).await.unwrap(), before);
    edge.stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_gone_is_told_once_and_forgotten() {
    let (edge, hub) = edge(Extensions::ALL).await;
    let (say, mut todo) = mpsc::channel(8);
    let (see, mut seen) = mpsc::channel(256);
    let serving = tokio::spawn(async move {
        hub.serve(0, &mut todo, &see).await;
        hub.serve(0, &mut todo, &see).await;
    });
    let told = |event: &Event| {
        let route = &request(event)?.route;
        Some((route.operation.clone(), route.resource.clone()))
    };
    edge.hub
        .pod_status("default", "p", "u", json!({"phase": "Failed"}));
    edge.hub.pod_gone("default", "p", "u");
    while next(&mut seen, told).await.0 != "delete" {}
    // Answers come in order: after this one the deletion is known to be confirmed.
    edge.meta.configmap("default", "there").await.unwrap();
    say.send(Do::Cut).await.unwrap();
    let mut link = edge.hub.link();
    link.wait_for(|state| state.connects == 2).await.unwrap();
    edge.hub
        .pod_status("default", "q", "v", json!({"phase": "Running"}));
    loop {
        let (operation, resource) = next(&mut seen, told).await;
        assert_ne!(operation, "delete", "{resource} is told again");
        if resource == "default/podpatch/q" {
            break;
        }
    }
    edge.stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_hub_gets_keepalives_a_lease_and_single_messages() {
    let (edge, hub) = edge(Extensions::NONE).await;
    edge.hub
        .node_status(json!({"metadata": {"name": "n1"}, "status": {}}));
    edge.reading(1).await;
    let (_say, mut todo) = mpsc::channel(8);
    let (see, mut seen) = mpsc::channel(256);
    let serving = tokio::spawn(async move { hub.serve(0, &mut todo, &see).await });
    let mut wanted = vec![
        ("insert", "null/node/n1"),
        ("patch", "null/nodepatch/n1"),
        ("insert", "kube-node-lease/lease/n1"),
        ("update", "kube-node-lease/lease/n1"),
        ("upload", "SYS/dis/upload_records"),
    ];
    while !wanted.is_empty() {
        let (operation, resource) = next(&mut seen, |event| {
            request(event).map(|message| {
                let route = message.route.clone();
                (route.operation, route.resource)
            })
        })
        .await;
        wanted.retain(|(o, r)| (*o, *r) != (operation.as_str(), resource.as_str()));
    }
    edge.stop.cancel();
    serving.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_an_outage_are_on_disk_and_told_afterwards_the_newest_of_each() {
    let (edge, hub) = edge(Extensions::ALL).await;
    let event = |name: &str, count: u64| {
        let route = Route::new(
            "edged",
            "meta",
            &Operation::Update,
            format!("ns/event/{name}"),
        );
        let body = json!({"metadata": {"name": name, "namespace": "ns"}, "count": count});
        let id = format!("{name}-{count}");
        Message::new(id, 1, route, Content::json(&body).unwrap())
    };
    for (name, count) in [("backoff", 1), ("killed", 1), ("backoff", 2)] {
        edge.hub.event(event(name, count));
    }
    // The daemon ends before there is a hub: what waits is written at once.
    let ending = CancellationToken::new();
    ending.cancel();
    let Ok(()) = keep_events(edge.hub.clone(), edge.store.clone(), ending).await;
    assert_eq!(edge.pending().await, 2);
    let keeping = keep_events(edge.hub.clone(), edge.store.clone(), edge.stop.clone());
    let keeping = tokio::spawn(keeping);
    let (_say, mut todo) = mpsc::channel(8);
    let (see, mut seen) = mpsc::channel(256);
    let serving = tokio::spawn(async move { hub.serve(0, &mut todo, &see).await });
    let told = |found: &Event| match found {
        Event::Batch(batch) => Some(batch.entries.clone()),
        _ => None,
    };
    let ids = |entries: Vec<extension::Entry>| -> Vec<String> {
        assert!(entries.iter().all(|entry| entry.stream == "events"));
        let ids = entries.into_iter().map(|entry| entry.message.header.id);
        ids.collect()
    };
    assert_eq!(ids(next(&mut seen, told).await), ["killed-1", "backoff-2"]);
    edge.hub.event(event("pulled", 1));
    assert_eq!(ids(next(&mut seen, told).await), ["pulled-1"]);
    edge.stop.cancel();
    keeping.await.unwrap().unwrap();
    serving.await.unwrap();
}

#[tokio::test]
async fn a_request_without_a_link_fails_at_once() {
    let hub = HubHandle::disabled();
    let message = Message::new("1", 1, Route::default(), Content::null());
    assert_eq!(hub.request(message).await, Err(RequestError::Disabled));
}
