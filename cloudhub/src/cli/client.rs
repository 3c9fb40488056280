//! A small HTTPS client towards the hub's API.

use std::{path::Path, sync::Arc};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1::SendRequest};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::Deserialize;
use tokio_util::task::AbortOnDropHandle;

/// The parts of a kubeconfig that we write ourselves.
#[derive(Debug, Deserialize)]
struct Kubeconfig {
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    cluster: Cluster,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    user: User,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate_data: String,
    client_key_data: String,
}

/// A client of one hub.
pub struct Client {
    uri: Uri,
    tls: Arc<rustls::ClientConfig>,
}

impl Client {
    /// Reads a kubeconfig as the hub writes it.
    pub fn from_kubeconfig(path: &Path) -> Result<Self, anyhow::Error> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "`{}` could not be read: has the hub been started?",
                path.display()
            )
        })?;
        let config: Kubeconfig = serde_saphyr::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{error}"))
            .with_context(|| format!("`{}` is not the hub's kubeconfig", path.display()))?;
        let cluster = &config
            .clusters
            .first()
            .context("kubeconfig has no cluster")?
            .cluster;
        let user = &config.users.first().context("kubeconfig has no user")?.user;
        let mut roots = rustls::RootCertStore::empty();
        let ca = STANDARD.decode(&cluster.certificate_authority_data)?;
        roots.add(CertificateDer::from_pem_slice(&ca)?)?;
        let certificate =
            CertificateDer::from_pem_slice(&STANDARD.decode(&user.client_certificate_data)?)?;
        let key = PrivateKeyDer::from_pem_slice(&STANDARD.decode(&user.client_key_data)?)?;
        let tls = rustls::ClientConfig::builder_with_provider(crate::listen::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        Ok(Self {
            uri: cluster.server.parse()?,
            tls: Arc::new(tls),
        })
    }

    /// Sends one request on a connection of its own.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, anyhow::Error> {
        self.connect().await?.call(method, path, body).await
    }

    /// Opens a connection that serves many requests, one after the other.
    pub async fn connect(&self) -> Result<Connection, anyhow::Error> {
        let host = self
            .uri
            .host()
            .context("kubeconfig names no server")?
            .to_owned();
        let port = self.uri.port_u16().unwrap_or(443);
        let plain = host.trim_matches(['[', ']']).to_owned();
        let stream = tokio::net::TcpStream::connect((plain.as_str(), port))
            .await
            .with_context(|| format!("no hub answers at {host}:{port}"))?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(plain)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(name, stream)
            .await?;
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = AbortOnDropHandle::new(tokio::spawn(connection));
        Ok(Connection {
            host,
            sender,
            _driver: driver,
        })
    }
}

/// An open connection to the hub's API.
pub struct Connection {
    host: String,
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<Result<(), hyper::Error>>,
}

impl Connection {
    /// Sends one request; the body of a refusal becomes the error.
    pub async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<serde_json::Value, anyhow::Error> {
        let response = self.send(method, path, body).await?;
        let status = response.status();
        let bytes = response.into_body().collect().await?.to_bytes();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if status == StatusCode::OK || status == StatusCode::CREATED {
            return Ok(value);
        }
        let message = value
            .get("message")
            .and_then(|m| m.as_str())
            .unwrap_or(status.as_str());
        bail!("{message}")
    }

    /// Sends one request and hands over the response with its body unread: a watch, a log.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&serde_json::Value>,
    ) -> Result<Response<Incoming>, anyhow::Error> {
        let bytes = body
            .map(serde_json::to_vec)
            .transpose()?
            .unwrap_or_default();
        let content = if method == Method::PATCH {
            "application/merge-patch+json"
        } else {
            "application/json"
        };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, &self.host)
            .header(http::header::CONTENT_TYPE, content)
            .body(Full::new(Bytes::from(bytes)))?;
        self.sender.ready().await?;
        Ok(self.sender.send_request(request).await?)
    }
}
