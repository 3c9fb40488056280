//! Neighbours of the hub: an HTTP endpoint, a broker.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::Response;
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;

use crate::{harness::PATIENCE, wait};

/// An HTTP endpoint that notes what it is sent, and answers what it is told to.
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) bodies: Arc<Mutex<Vec<String>>>,
}

impl Endpoint {
    /// The answers are given in turn, then 200.
    pub(crate) async fn start(answers: &[u16]) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
        let answers = Arc::new(Mutex::new(answers.to_vec()));
        let (seen, told) = (Arc::clone(&bodies), answers);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (seen, told) = (Arc::clone(&seen), Arc::clone(&told));
                let service = service_fn(move |request: http::Request<Incoming>| {
                    let (seen, told) = (Arc::clone(&seen), Arc::clone(&told));
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        seen.lock()
                            .unwrap()
                            .push(String::from_utf8_lossy(&body).into_owned());
                        let mut told = told.lock().unwrap();
                        let code = if told.is_empty() { 200 } else { told.remove(0) };
                        let mut response = Response::new(Full::new(bytes::Bytes::from("thanks")));
                        *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                        anyhow::Ok(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { address, bodies }
    }
}
/// A real mosquitto with nothing but a port.
pub(crate) struct Mosquitto {
    child: std::process::Child,
    listener: Option<std::process::Child>,
    port: u16,
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A subscription that is in place.
pub(crate) struct Subscriber {
    events: rumqttc::EventLoop,
    _client: rumqttc::AsyncClient,
}

impl Mosquitto {
    pub(crate) fn start(port: u16) -> Self {
        let child = std::process::Command::new("mosquitto")
            .args(["-p", &port.to_string()])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            listener: None,
            port,
        }
    }

    /// With TLS, by an authority of its own: `site-ca.crt` in `dir`.
    pub(crate) fn start_tls(port: u16, dir: &std::path::Path) -> Self {
        use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "site authority");
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = ca.self_signed(&key).unwrap();
        let issuer = Issuer::new(ca, key);
        let own = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let leaf = CertificateParams::new(names).unwrap();
        let leaf = leaf.signed_by(&own, &issuer).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        for (name, text) in [
            ("site-ca.crt", authority.pem()),
            ("site.crt", leaf.pem()),
            ("site.key", own.serialize_pem()),
        ] {
            std::fs::write(at(name), text).unwrap();
        }
        let config = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\ncertfile {}\nkeyfile {}\n",
            at("site.crt"),
            at("site.key")
        );
        std::fs::write(at("mosquitto.conf"), config).unwrap();
        let child = std::process::Command::new("mosquitto")
            .args(["-c", &at("mosquitto.conf")])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self {
            child,
            listener: None,
            port,
        }
    }

    /// Has `mosquitto_sub` listen over TLS; the file with what it hears, once it does.
    pub(crate) async fn listen_tls(
        &mut self,
        topic: &str,
        dir: &std::path::Path,
    ) -> std::path::PathBuf {
        let heard = dir.join("heard");
        let port = self.port.to_string();
        let ca = dir.join("site-ca.crt").display().to_string();
        let args = [
            "-h",
            "localhost",
            "-p",
            &port,
            "--cafile",
            &ca,
            "-d",
            "-t",
            topic,
        ];
        wait::until("mosquitto_sub", PATIENCE, async || {
            let is_there = std::fs::read_to_string(&heard).unwrap_or_default();
            if is_there.contains("Subscribed") {
                return Ok(Some(()));
            }
            let ended = match &mut self.listener {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            if ended {
                let file = std::fs::File::create(&heard)?;
                let child = std::process::Command::new("stdbuf")
                    .args(["-oL", "mosquitto_sub"])
                    .args(args)
                    .stdout(file)
                    .spawn()?;
                self.listener = Some(child);
            }
            Ok(None)
        })
        .await
        .unwrap();
        heard
    }

    pub(crate) fn stop(&mut self) {
        for child in [Some(&mut self.child), self.listener.as_mut()]
            .into_iter()
            .flatten()
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    pub(crate) async fn subscribe(&self, topic: &str) -> Subscriber {
        use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
        wait::until("mosquitto", PATIENCE, async || {
            let options = MqttOptions::new("watcher", "127.0.0.1", self.port);
            let (client, mut events) = AsyncClient::new(options, 16);
            client.subscribe(topic, QoS::AtLeastOnce).await?;
            loop {
                if let Event::Incoming(Packet::SubAck(_)) = events.poll().await? {
                    return Ok(Some(Subscriber {
                        events,
                        _client: client,
                    }));
                }
            }
        })
        .await
        .unwrap()
    }
}

impl Subscriber {
    pub(crate) async fn next(&mut self) -> String {
        use rumqttc::{Event, Packet};
        let next = async {
            loop {
                if let Event::Incoming(Packet::Publish(p)) = self.events.poll().await.unwrap() {
                    return String::from_utf8(p.payload.to_vec()).unwrap();
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(20), next)
            .await
            .unwrap()
    }
}
