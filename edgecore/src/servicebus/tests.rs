use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use wire::message::{Content, Operation, Route};
use wire::rules::{
    Base64, Failure, GROUP, HTTP_BODY_BYTES_MAX, HttpRequest, NODE_ERROR, SERVICE_BUS,
    TO_SERVICE_BUS,
};

use super::*;
use crate::hub::RequestError;

const PATIENCE: Duration = Duration::from_secs(10);

/// A service of the node: says what it was asked, and does some things by its path.
async fn service() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(echo)),
            );
        }
    });
    port
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = |name: &str| head.headers.get(name).map(|v| v.to_str().unwrap());
    let told = json!({
        "method": head.method.as_str(), "uri": head.uri.to_string(),
        "x": header("x-y"), "accept": header("accept"), "te": header("te"),
        "host": header("host"), "body": String::from_utf8_lossy(&body),
    });
    let told = if head.uri.path() == "/large" {
        vec![b'x'; HTTP_BODY_BYTES_MAX + 1]
    } else {
        told.to_string().into_bytes()
    };
    let mut response = Response::new(Full::new(told.into()));
    if head.uri.path() == "/missing" {
        *response.status_mut() = http::StatusCode::NOT_FOUND;
    }
    response
        .headers_mut()
        .insert("x-from", "app".parse().unwrap());
    Ok(response)
}

fn call_of(resource: &str, method: &str, content: Content) -> Message {
    let operation = Operation::Other(method.to_owned());
    let route = Route::new(TO_SERVICE_BUS, GROUP, &operation, resource);
    Message::new("call-1", 0, route, content)
}

fn request(method: &str, body: &[u8]) -> Content {
    let header = [
        ("X-Y".to_owned(), vec!["z".to_owned()]),
        ("TE".to_owned(), vec!["trailers".to_owned()]),
        ("Host".to_owned(), vec!["elsewhere".to_owned()]),
    ];
    Content::json(&HttpRequest {
        header: header.into(),
        body: Base64(body.to_vec()),
        method: method.to_owned(),
        url: String::new(),
    })
    .unwrap()
}

#[tokio::test]
async fn a_call_of_the_cloud_reaches_the_service_and_its_answer_comes_back() {
    let port = service().await;
    let resource = format!("{port}:/things/7?a=b:c");
    let message = call_of(&resource, "POST", request("POST", b"hello"));
    let reply = call::call(&message, Some(9060)).await;
    assert_eq!(reply.status_code, 200);
    assert_eq!(reply.header["x-from"], ["app"]);
    assert!(!reply.header.contains_key("content-length"));
    let told: Value = serde_json::from_slice(&reply.body.0).unwrap();
    assert_eq!(
        told,
        json!({"method": "POST", "uri": "/things/7?a=b:c", "x": "z", "accept": "*/*", "te": null,
               "host": format!("127.0.0.1:{port}"), "body": "hello"})
    );
    // A service's own refusal is its answer, not ours.
    let message = call_of(&format!("{port}:/missing"), "GET", request("GET", b""));
    let reply = call::call(&message, None).await;
    assert_eq!(reply.status_code, 404);
    assert!(!reply.header.contains_key(NODE_ERROR));
}

#[tokio::test]
async fn fault_28_what_cannot_be_called_is_answered_and_says_why() {
    let port = service().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = closed.local_addr().unwrap().port();
    drop(closed);
    let good = || request("GET", b"");
    let at = |path: &str| format!("{port}:{path}");
    for (resource, method, content, code, words) in [
        ("no-port".to_owned(), "GET", good(), 400, "<port>:<path>"),
        ("0:/x".to_owned(), "GET", good(), 400, "<port>:<path>"),
        ("70000:/x".to_owned(), "GET", good(), 400, "<port>:<path>"),
        (at("/a b"), "GET", good(), 400, "<port>:<path>"),
        (at("/x"), "CONNECT", request("", b""), 400, "CONNECT"),
        (at("/x"), "GET", Content::string("no"), 400, "readable"),
        (
            format!("{nobody}:/x"),
            "GET",
            good(),
            502,
            "nothing answers",
        ),
        (at("/large"), "GET", good(), 502, "larger"),
        ("9060:/x".to_owned(), "GET", good(), 400, "itself"),
    ] {
        let message = call_of(&resource, method, content);
        let reply = call::call(&message, Some(9060)).await;
        assert_eq!(reply.status_code, code, "{resource}");
        let said = &reply.header[NODE_ERROR][0];
        assert!(said.contains(words), "{resource}: {said}");
        // With the operation that lets the hub find who waits.
        let answer = answer(&message, reply);
        assert_eq!(answer.route.operation(), Operation::Upload);
        assert_eq!(answer.header.parent_id, "call-1");
        assert_eq!(answer.route.source, SERVICE_BUS);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_silent_ends_in_504() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let message = call_of(&format!("{port}:/x"), "GET", request("GET", b""));
    let reply = call::call(&message, None).await;
    assert_eq!(reply.status_code, 504);
}

#[tokio::test]
async fn calls_beyond_the_bound_are_refused_at_once() {
    let (_routes, wanted) = watch::channel(Arc::default());
    let config = config_at("127.0.0.1:1".parse().unwrap());
    let (calls, _bus) = ServiceBus::new(config, HubHandle::disabled(), wanted);
    let message = || call_of("80:/x", "GET", request("GET", b""));
    for _ in 0..CALLS_WAITING_MAX {
        assert!(calls.take(message()).is_ok());
    }
    for calls in [calls, Calls::disabled()] {
        let refused = calls.take(message()).unwrap_err();
        let reply: HttpReply = refused.content.decode().unwrap();
        assert_eq!(reply.status_code, 503);
        assert_eq!(refused.header.parent_id, "call-1");
    }
}

fn config_at(listen: SocketAddr) -> ServiceBusConfig {
    ServiceBusConfig {
        listen: listen.to_string(),
        timeout: PATIENCE,
        tls: None,
    }
}

/// Where a ServiceBus can listen: nobody does now.
async fn free() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Asks as an application does; `None`: nobody listens.
async fn ask(at: SocketAddr, body: &[u8]) -> Option<Value> {
    let mut stream = TcpStream::connect(at).await.ok()?;
    let head = format!(
        "POST /any HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    Some(serde_json::from_str(body).unwrap())
}

fn routes(urls: &[&str]) -> Arc<Routes> {
    Arc::new(Routes {
        urls: urls.iter().map(|&url| url.to_owned()).collect(),
        ..Routes::default()
    })
}

/// Until somebody listens, or nobody does.
async fn until_open(at: SocketAddr, is_open: bool) {
    let changed = async {
        while TcpStream::connect(at).await.is_ok() != is_open {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, changed).await.unwrap();
}

#[tokio::test]
async fn an_application_asks_for_a_url_while_a_rule_opens_it() {
    let url = "http://cloud/app";
    let hub = HubHandle::answering(move |message| {
        assert_eq!(message.route.resource, url);
        assert_eq!(message.route.operation(), Operation::Upload);
        let asked: Base64 = serde_json::from_str(message.content.raw()).unwrap();
        let asked = String::from_utf8(asked.0).unwrap();
        match asked.as_str() {
            text if text.contains("lost") => Err(RequestError::Lost),
            text if text.contains("refuse") => {
                let failure = Failure {
                    code: 502,
                    message: "endpoint answered 500".into(),
                    body: "oops".into(),
                };
                let mut reply = message.reply("r", 0, "router", Content::json(&failure).unwrap());
                reply.route.operation = "error".into();
                Ok(reply)
            }
            text => Ok(message.reply("r", 0, "router", Content::string(text))),
        }
    });
    let at = free().await;
    let (sender, wanted) = watch::channel(routes(&[]));
    let (_calls, bus) = ServiceBus::new(config_at(at), hub, wanted);
    let stop = CancellationToken::new();
    let running = tokio::spawn(bus.run(stop.clone()));
    assert!(ask(at, b"{}").await.is_none(), "no rule, no port");
    sender.send_replace(routes(&[url]));
    until_open(at, true).await;
    let asked =
        |payload: &str| format!(r#"{{"method":"POST","targetURL":"{url}","payload":"{payload}"}}"#);
    let good = asked("21.5");
    assert_eq!(
        ask(at, good.as_bytes()).await.unwrap(),
        json!({"code": 200, "msg": "receive response from cloud successfully", "body": good})
    );
    for (body, code, msg) in [
        (
            asked("lost"),
            504,
            "the hub did not answer, or the link broke",
        ),
        (asked("refuse"), 502, "endpoint answered 500"),
        ("[]".to_owned(), 400, "invalid params"),
        (
            r#"{"method":"GET","targetURL":"http://other/"}"#.to_owned(),
            400,
            "url http://other/ is not allowed and please make a rule for this url in the cloud",
        ),
        (
            "x".repeat(HTTP_BODY_BYTES_MAX + 1),
            400,
            "can't read data from body of the http's request",
        ),
    ] {
        let told = ask(at, body.as_bytes()).await.unwrap();
        assert_eq!((&told["code"], &told["msg"]), (&json!(code), &json!(msg)));
    }
    sender.send_replace(routes(&[]));
    until_open(at, false).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// Files of a server for 127.0.0.1 under an authority of its own; the authority's certificate comes
/// back.
fn certify(files: &ServerTls) -> String {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &issuer).unwrap();
    std::fs::write(&files.cert, certificate.pem()).unwrap();
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    authority
}

async fn ask_over_tls(at: SocketAddr, authority: &str) -> Result<Value, reqwest::Error> {
    let root = reqwest::Certificate::from_pem(authority.as_bytes()).unwrap();
    let client = reqwest::Client::builder()
        .tls_certs_only([root])
        .no_proxy()
        .build()
        .unwrap();
    let request = client
        .post(format!("https://{at}/any"))
        .body(r#"{"targetURL":"http://cloud/app"}"#);
    let answer = request.send().await?.bytes().await?;
    Ok(serde_json::from_slice(&answer).unwrap())
}

#[tokio::test]
async fn applications_ask_over_tls_and_a_changed_certificate_is_taken_at_the_next_connection() {
    // Somebody else in this process may have been first.
    let _ = crate::hub::tls::provider()
        .as_ref()
        .clone()
        .install_default();
    let dir = tempfile::tempdir().unwrap();
    let files = ServerTls {
        cert: dir.path().join("server.crt"),
        key: dir.path().join("server.key"),
        client_ca: None,
    };
    let first = certify(&files);
    let hub = HubHandle::answering(|message| {
        let content = Content::string("from the cloud");
        Ok(message.reply("r", 0, "router", content))
    });
    let at = free().await;
    let (_routes, wanted) = watch::channel(routes(&["http://cloud/app"]));
    let config = ServiceBusConfig {
        tls: Some(files.clone()),
        ..config_at(at)
    };
    let (_calls, bus) = ServiceBus::new(config, hub, wanted);
    let stop = CancellationToken::new();
    let running = tokio::spawn(bus.run(stop.clone()));
    until_open(at, true).await;

    let told = ask_over_tls(at, &first).await.unwrap();
    assert_eq!(told["body"], "from the cloud");
    let other = ServerTls {
        cert: dir.path().join("other.crt"),
        key: dir.path().join("other.key"),
        client_ca: None,
    };
    let stranger = certify(&other);
    let refused = ask_over_tls(at, &stranger).await.unwrap_err();
    assert!(refused.is_connect(), "{refused:?}");
    // Nobody is answered in clear, and whoever tries harms nobody.
    let mut plain = TcpStream::connect(at).await.unwrap();
    plain.write_all(b"POST / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good an end as a closed stream.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");

    // Half of a renewal: the earlier pair stays.
    std::fs::copy(&other.cert, &files.cert).unwrap();
    ask_over_tls(at, &first).await.unwrap();
    std::fs::copy(&other.key, &files.key).unwrap();
    ask_over_tls(at, &stranger).await.unwrap();
    assert!(ask_over_tls(at, &first).await.is_err());
    stop.cancel();
    tokio::time::timeout(PATIENCE, running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
}

/// Each text that is cut short, or in which one byte is another.
fn damaged(whole: &str) -> Vec<Vec<u8>> {
    let whole = whole.as_bytes();
    let cut = (0..whole.len()).map(|end| whole[..end].to_vec());
    let other = (0..whole.len()).map(|at| {
        let mut bytes = whole.to_vec();
        bytes[at] ^= 1 << (at % 8);
        bytes
    });
    cut.chain(other).collect()
}

#[tokio::test]
async fn damaged_requests_are_answered_each_and_the_next_good_one_is_served() {
    let hub = HubHandle::answering(|message| {
        let text = Content::string("ok");
        Ok(message.reply("r", 0, "router", text))
    });
    let at = free().await;
    let (_routes, wanted) = watch::channel(routes(&["http://cloud/app"]));
    let (_calls, bus) = ServiceBus::new(config_at(at), hub, wanted);
    let stop = CancellationToken::new();
    let running = tokio::spawn(bus.run(stop.clone()));
    until_open(at, true).await;
    let whole = r#"{"method":"POST","targetURL":"http://cloud/app","payload":"21.5"}"#;
    for body in damaged(whole) {
        let told = ask(at, &body).await.unwrap();
        let code = told["code"].as_u64().unwrap();
        assert!(code == 200 || code == 400 && told["msg"] != "", "{told}");
    }
    assert_eq!(ask(at, whole.as_bytes()).await.unwrap()["code"], 200);
    stop.cancel();
    tokio::time::timeout(PATIENCE, running)
        .await
        .unwrap()
        .unwrap()
        .unwrap();

    // The other direction: what the hub sends.
    let port = service().await;
    let whole = request("POST", b"hello");
    for content in damaged(whole.raw()) {
        let Ok(content) = serde_json::from_slice::<Content>(&content) else {
            continue;
        };
        let message = call_of(&format!("{port}:/x"), "POST", content);
        let reply = call::call(&message, None).await;
        assert!(matches!(reply.status_code, 200 | 400), "{reply:?}");
    }
    for resource in damaged(&format!("{port}:/things?a=b")) {
        let resource = String::from_utf8_lossy(&resource).into_owned();
        let reply = call::call(&call_of(&resource, "GET", request("GET", b"")), Some(port)).await;
        // Never the port of somebody else but by the hub's word, and never without an answer.
        assert!(matches!(reply.status_code, 200 | 400 | 502), "{resource}");
    }
}
