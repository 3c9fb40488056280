//! Serves the API over plain HTTP to anybody who asks, as `system:masters`. For trying it out:
//!
//! ```text
//! cargo run -p apiserver --example serve -- 127.0.0.1:8001
//! kubectl --server http://127.0.0.1:8001 get namespaces
//! ```

use std::sync::Arc;

use anyhow::Context;
use apiserver::authn::{AllowMasters, MASTERS, User};
use apiserver::store::SqliteStore;
use apiserver::{Api, Options, http::Service};
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use tokio::net::TcpListener;

#[tokio::main(flavor = "current_thread")]
#[expect(
    clippy::print_stdout,
    reason = "the address is what the caller waits for"
)]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:8001".into());
    let dir = tempfile::tempdir().context("a place for the database")?;
    let store = SqliteStore::open(&dir.path().join("hub.db"))?;
    let api = Api::open(Arc::new(store), Options::default()).await?;
    let service = Service::new(api.clone(), Arc::new(AllowMasters));
    let listener = TcpListener::bind(&address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    println!("{}", listener.local_addr()?);
    let mut connections = tokio::task::JoinSet::new();
    connections.spawn(async move { api.run().await });
    loop {
        let (socket, _) = listener.accept().await?;
        let service = service.clone();
        connections.spawn(async move {
            let answer = service_fn(move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(User {
                    name: "admin".into(),
                    groups: vec![MASTERS.into(), "system:authenticated".into()],
                    uid: String::new(),
                });
                hyper::service::Service::call(&service, request)
            });
            // A client that goes away is no news here.
            drop(
                Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(socket), answer)
                    .await,
            );
        });
    }
}
