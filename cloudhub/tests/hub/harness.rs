//! A hub in this process on free ports, and a node made of a certificate and a WebSocket.

use std::{sync::Arc, time::Duration};

use crate::wait;
use cloudhub::{
    app::{Hub, Ports},
    cli::{client::Client, token},
    config::Config,
};
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_tungstenite::{WebSocketStream, client_async, tungstenite};
use tokio_util::sync::CancellationToken;
use wire::message::{Content, Message, Operation, Route};

/// Nothing here takes longer; a test that waits so long fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct TestHub {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) ports: Ports,
    pub(crate) admin: Client,
    running: Running,
}

enum Running {
    Here(CancellationToken, tokio::task::JoinHandle<()>),
    Process(std::process::Child),
}

impl Drop for TestHub {
    fn drop(&mut self) {
        if let Running::Process(child) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl TestHub {
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    pub(crate) async fn start_in(dir: tempfile::TempDir) -> Self {
        Self::start_with(dir, |_| {}).await
    }

    pub(crate) async fn start_with(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config {
            data_dir: dir.path().to_owned(),
            ..Config::default()
        };
        let any = "127.0.0.1:0".parse().unwrap();
        config.listen.api = any;
        config.listen.websocket = any;
        config.listen.bootstrap = any;
        config.session.gone_secs = 1;
        change(&mut config);
        let stop = CancellationToken::new();
        let hub = Hub::start(config, stop.clone()).await.unwrap();
        let ports = hub.ports.clone();
        let task = tokio::spawn(async move {
            hub.run().await;
        });
        let admin = Client::from_kubeconfig(&dir.path().join("admin.kubeconfig")).unwrap();
        Self {
            dir,
            ports,
            admin,
            running: Running::Here(stop, task),
        }
    }

    /// The real binary as a process of its own.
    pub(crate) async fn start_process() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let child = std::process::Command::new(env!("CARGO_BIN_EXE_cloudhub"))
            .args(["run", "--data-dir"])
            .arg(dir.path())
            .args(["--api-listen", any, "--websocket-listen", any])
            .args(["--bootstrap-listen", any, "--log", "warn"])
            .spawn()
            .unwrap();
        let ports = dir.path().join("ports.json");
        let ports = wait::until("the hub to note its ports", PATIENCE, async || {
            Ok(Some(serde_json::from_slice(&std::fs::read(&ports)?)?))
        })
        .await
        .unwrap();
        let admin = Client::from_kubeconfig(&dir.path().join("admin.kubeconfig")).unwrap();
        let running = Running::Process(child);
        Self {
            dir,
            ports,
            admin,
            running,
        }
    }

    /// Resident and private memory of the hub's process, in KiB.
    pub(crate) fn memory_kib(&self) -> u64 {
        let Running::Process(child) = &self.running else {
            panic!("the hub is no process of its own");
        };
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = text.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Stops the hub and starts it again on the same data.
    pub(crate) async fn restart(self) -> Self {
        Self::start_in(self.halt().await).await
    }

    /// Stops the hub, loses its store but not its keys, and starts it again.
    pub(crate) async fn restart_without_store(self) -> Self {
        let dir = self.halt().await;
        for name in ["hub.db", "hub.db-wal", "hub.db-shm"] {
            let _ = std::fs::remove_file(dir.path().join(name));
        }
        Self::start_in(dir).await
    }

    /// `kill -9`; the directory is what a machine would find after it.
    pub(crate) fn kill(mut self) -> tempfile::TempDir {
        let Running::Process(child) = &mut self.running else {
            panic!("the hub is no process of its own");
        };
        child.kill().unwrap();
        child.wait().unwrap();
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    pub(crate) async fn halt(mut self) -> tempfile::TempDir {
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        if let Running::Here(stop, task) = &mut self.running {
            stop.cancel();
            task.await.unwrap();
        }
        dir
    }

    pub(crate) async fn get(&self, path: &str) -> Option<Value> {
        self.admin.call(Method::GET, path, None).await.ok()
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Value {
        self.admin
            .call(Method::POST, path, Some(object))
            .await
            .unwrap()
    }

    pub(crate) async fn delete(&self, path: &str) {
        self.admin.call(Method::DELETE, path, None).await.unwrap();
    }

    /// Reads until the object is as it should be.
    pub(crate) async fn wait(&self, path: &str, is: impl Fn(&Value) -> bool) -> Value {
        let mut last = None;
        let waited = wait::until(path, PATIENCE, async || {
            last = self.get(path).await;
            Ok(last.clone().filter(&is))
        })
        .await;
        waited.unwrap_or_else(|error| panic!("{error:#}; last seen: {last:?}"))
    }

    pub(crate) async fn token(&self, node: &str) -> String {
        let created = token::create(&self.admin, node, 60, false).await.unwrap();
        created.token.split_once('.').unwrap().1.to_owned()
    }

    fn ca(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_file(self.dir.path().join("ca.crt")).unwrap()
    }

    fn tls(&self, identity: Option<&Identity>) -> TlsConnector {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.ca()).unwrap();
        let builder =
            rustls::ClientConfig::builder_with_provider(cloudhub::listen::tls::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
        TlsConnector::from(Arc::new(match identity {
            Some(id) => builder
                .with_client_auth_cert(vec![id.certificate.clone()], id.key.clone_key())
                .unwrap(),
            None => builder.with_no_client_auth(),
        }))
    }

    async fn dial(&self, port: u16, identity: Option<&Identity>) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        self.tls(identity).connect(name, stream).await.unwrap()
    }

    /// Asks for a certificate; the body is the certificate or the refusal.
    pub(crate) async fn enroll(
        &self,
        node: &str,
        token: Option<&str>,
        identity: Option<&Identity>,
    ) -> Result<Identity, (StatusCode, String)> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap();
        let stream = self.dial(self.ports.bootstrap, identity).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(Method::GET)
            .uri("/edge.crt")
            .header("host", "hub")
            .header("NodeName", node);
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let body = Full::new(bytes::Bytes::from(csr.der().to_vec()));
        let response = sender
            .send_request(request.body(body).unwrap())
            .await
            .unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        if status != StatusCode::OK {
            return Err((status, String::from_utf8_lossy(&body).into_owned()));
        }
        Ok(Identity {
            node: node.to_owned(),
            certificate: CertificateDer::from(body.to_vec()),
            key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        })
    }

    pub(crate) async fn join(&self, node: &str) -> Identity {
        let token = self.token(node).await;
        self.enroll(node, Some(&token), None).await.unwrap()
    }

    /// A node that has joined, with a session open.
    pub(crate) async fn joined(&self, node: &str, extensions: Option<&str>) -> TestNode {
        let identity = self.join(node).await;
        let mut node = self.connect(&identity, extensions).await;
        node.register(true).await;
        node
    }

    /// Whether a TLS handshake with this certificate ends in an answer to anything.
    pub(crate) async fn is_let_in(&self, identity: &Identity) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = self.dial(self.ports.websocket, Some(identity)).await;
        let request =
            b"GET / HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
        let asked = stream.write_all(request).await;
        asked.is_ok() && matches!(stream.read(&mut [0; 64]).await, Ok(n) if n > 0)
    }

    /// Opens a session; `extensions` is the request header.
    pub(crate) async fn connect(&self, identity: &Identity, extensions: Option<&str>) -> TestNode {
        self.connect_as(identity, &identity.node, extensions).await
    }

    pub(crate) async fn connect_as(
        &self,
        identity: &Identity,
        node_id: &str,
        extensions: Option<&str>,
    ) -> TestNode {
        let stream = self.dial(self.ports.websocket, Some(identity)).await;
        let mut request = Request::builder()
            .uri(format!(
                "wss://hub/e632aba927ea4ac2b575ec1603d56f10/{node_id}/events"
            ))
            .header("Host", "hub")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header(
                "Sec-WebSocket-Key",
                tungstenite::handshake::client::generate_key(),
            )
            .header("Node_id", node_id)
            .header("Connectionuse", "msg");
        if let Some(extensions) = extensions {
            request = request
                .header("outpost-extensions", extensions)
                .header("outpost-epoch", "epoch-1");
        }
        let (ws, response) = client_async(request.body(()).unwrap(), stream)
            .await
            .unwrap();
        let header = |name: &str| {
            response
                .headers()
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        TestNode {
            node: identity.node.clone(),
            acked: header("outpost-acked"),
            extensions: header("outpost-extensions"),
            ws,
            next: 0,
            passed: Vec::new(),
        }
    }
}

pub(crate) struct Identity {
    pub(crate) node: String,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) key: PrivateKeyDer<'static>,
}

pub(crate) struct TestNode {
    pub(crate) node: String,
    pub(crate) acked: Option<String>,
    pub(crate) extensions: Option<String>,
    pub(crate) ws: WebSocketStream<TlsStream<TcpStream>>,
    next: u64,
    /// Everything received that nobody has waited for.
    pub(crate) passed: Vec<Message>,
}

impl TestNode {
    pub(crate) async fn send_raw(&mut self, text: &str) {
        self.ws
            .send(tungstenite::Message::text(text))
            .await
            .unwrap();
    }

    pub(crate) async fn send(&mut self, message: &Message) {
        let text = String::from_utf8(message.encode()).unwrap();
        self.send_raw(&text).await;
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("{}-{}", self.node, self.next)
    }

    /// Sends without waiting for an answer.
    pub(crate) async fn tell(&mut self, operation: Operation, resource: &str, body: Content) {
        let route = Route::new("edged", "meta", &operation, resource);
        let id = self.id();
        self.send(&Message::new(id, 1, route, body)).await;
    }

    pub(crate) async fn request(
        &mut self,
        operation: Operation,
        resource: &str,
        body: Content,
    ) -> Message {
        let route = Route::new("edged", "meta", &operation, resource);
        let id = self.id();
        self.send(&Message::new(id.clone(), 1, route, body)).await;
        self.until(|m| m.header.parent_id == id).await
    }

    /// The next message that fits; pushes are acknowledged.
    pub(crate) async fn until(&mut self, fits: impl Fn(&Message) -> bool) -> Message {
        if let Some(at) = self.passed.iter().position(&fits) {
            return self.passed.remove(at);
        }
        let wait = async {
            loop {
                let message = self.receive().await.expect("connection closed");
                if fits(&message) {
                    return message;
                }
                self.passed.push(message);
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the message did not come")
    }

    pub(crate) async fn push(&mut self, operation: &str, resource: &str) -> Message {
        self.until(|m| m.route.operation == operation && m.route.resource == resource)
            .await
    }

    async fn receive(&mut self) -> Option<Message> {
        while let Some(received) = self.ws.next().await {
            if let tungstenite::Message::Text(text) = received.ok()? {
                let message = Message::decode(text.as_bytes()).unwrap();
                if message.header.parent_id.is_empty() && message.route.group == "resource" {
                    let id = self.id();
                    self.send(&message.acknowledgement(id, 1)).await;
                }
                return Some(message);
            }
        }
        None
    }

    /// The reason of the close frame.
    pub(crate) async fn closed(&mut self) -> (u16, String) {
        let wait = async {
            loop {
                match self.ws.next().await {
                    Some(Ok(tungstenite::Message::Close(Some(frame)))) => {
                        return (frame.code.into(), frame.reason.to_string());
                    }
                    Some(Ok(_)) => {}
                    other => panic!("no close frame: {other:?}"),
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("the session was not closed")
    }

    pub(crate) async fn register(&mut self, ready: bool) {
        let node = json!({
            "metadata": {"name": self.node, "labels": {
                "node-role.kubernetes.io/edge": "", "kubernetes.io/hostname": self.node}},
            "status": {
                "nodeInfo": {"kubeletVersion": "v1.32.10-outpost"},
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" },
                                "reason": "EdgeReady"}],
            },
        });
        let path = format!("null/node/{}", self.node);
        let reply = self
            .request(Operation::Insert, &path, Content::json(&node).unwrap())
            .await;
        assert!(
            reply.content.raw().contains("\"Err\":null"),
            "{}",
            reply.content.raw()
        );
    }
}
