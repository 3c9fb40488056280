//! The rules of reading and writing, over HTTP without a socket and through the in-process API.
//! Expected texts are those of a reference server (docs of the API's rules are in the modules).

mod fuzz;
mod kinds;
/// Shared with the end-to-end tests, which own the file.
#[path = "../../../tests/src/mangle.rs"]
#[expect(unreachable_pub, reason = "public in the crate that owns the file")]
mod mangle;
mod refused;
mod watches;
mod writes;

use std::sync::Arc;
use std::time::Duration;

use apiserver::authn::{AllowMasters, MASTERS, User};
use apiserver::http::Service;
use apiserver::store::{MemoryStore, Require, Txn};
use apiserver::{
    Api, DeleteOptions, Gvr, Options, Patch, PatchKind, WatchEvent, WatchOptions, WriteOptions,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};

struct Place {
    api: Api,
    service: Service,
}

async fn place() -> Place {
    let api = Api::open(Arc::new(MemoryStore::new()), Options::default())
        .await
        .unwrap();
    let service = Service::new(api.clone(), Arc::new(AllowMasters));
    Place { api, service }
}

impl Place {
    async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> http::Response<apiserver::http::Body> {
        self.raw_bytes(method, path, headers, body.to_owned()).await
    }

    async fn raw_bytes(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> http::Response<apiserver::http::Body> {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Full::new(body.into())).unwrap();
        request.extensions_mut().insert(User {
            name: "admin".into(),
            groups: vec![MASTERS.into()],
            uid: String::new(),
        });
        self.service.handle(request).await
    }

    async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let content_type = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let text = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let response = self
            .raw(method, path, &[("content-type", content_type)], &text)
            .await;
        let code = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    async fn ok(&self, method: &str, path: &str, body: Value) -> Value {
        let (code, answer) = self.ask(method, path, body).await;
        assert!((200..300).contains(&code), "{method} {path}: {answer}");
        answer
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
           "data": {"k": "v"}})
}

fn pod(name: &str, node: &str) -> Value {
    let mut pod = json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    if !node.is_empty() {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

fn rv(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|t| t.parse().ok()).unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), what)
        .await
        .expect("did not happen")
}
