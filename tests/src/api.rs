//! The hub's API without the start-up time of kubectl: for what is measured.

use std::path::Path;

use anyhow::{Context, Result};
use cloudhub::cli::client::{Client, Connection};
use http::Method;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;

/// A connection for calls.
pub async fn connect(kubeconfig: &Path) -> Result<Connection> {
    Client::from_kubeconfig(kubeconfig)?.connect().await
}

/// A watch: objects as they change.
pub struct Watch {
    _connection: Connection,
    body: Incoming,
    buffer: Vec<u8>,
}

impl Watch {
    /// `path` without a query, e.g. `/api/v1/namespaces/default/pods`. Starts with what is there.
    pub async fn start(kubeconfig: &Path, path: &str) -> Result<Self> {
        let mut connection = connect(kubeconfig).await?;
        let path = format!("{path}?watch=true&resourceVersion=0");
        let body = connection.send(Method::GET, &path, None).await?.into_body();
        Ok(Self {
            _connection: connection,
            body,
            buffer: Vec::new(),
        })
    }

    /// The next event's type and object.
    pub async fn next(&mut self) -> Result<(String, Value)> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let mut event: Value = serde_json::from_slice(&line)?;
                let kind = event["type"].as_str().unwrap_or_default().to_owned();
                return Ok((kind, event["object"].take()));
            }
            let frame = self.body.frame().await.context("the watch ended")??;
            if let Some(data) = frame.data_ref() {
                self.buffer.extend_from_slice(data);
            }
        }
    }

    /// Waits for an object that `accept` likes.
    pub async fn until<T>(&mut self, mut accept: impl FnMut(&Value) -> Option<T>) -> Result<T> {
        loop {
            let (_, object) = self.next().await?;
            if let Some(value) = accept(&object) {
                return Ok(value);
            }
        }
    }
}
