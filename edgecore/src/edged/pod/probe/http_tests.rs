use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn get(port: u16, path: &str) -> Get {
    Get {
        https: false,
        host: None,
        port,
        path: path.to_owned(),
        headers: Vec::new(),
    }
}

/// Answers one connection after the other with these texts; what was asked.
async fn serve(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            asked.push(String::from_utf8(head).unwrap());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    });
    (port, task)
}

#[tokio::test]
async fn statuses_are_judged_as_kubelet_does() {
    let answers = vec![
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 503 Oh no\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: http://elsewhere.example/\r\n\r\n",
        "HTTP/1.1 302 Found\r\nLocation: /other?x=1\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\n\r\n",
        "",
    ];
    let (port, server) = serve(answers).await;
    let mut outcomes = Vec::new();
    for path in ["healthz", "/b", "/c", "/d", "/e"] {
        let mut get = get(port, path);
        get.headers = vec![
            ("X-One".to_owned(), "1".to_owned()),
            ("Host".to_owned(), "web.example".to_owned()),
        ];
        outcomes.push(probe(&get, "127.0.0.1", PATIENCE).await);
    }
    let failure = |text: &str| Outcome::Failure(text.to_owned());
    assert_eq!(
        outcomes[..4],
        [
            Outcome::Success,
            failure("HTTP probe failed with statuscode: 503"),
            Outcome::Success,
            failure("HTTP probe failed with statuscode: 404"),
        ]
    );
    let Outcome::Failure(cut) = &outcomes[4] else {
        panic!("{:?}", outcomes[4]);
    };
    assert!(
        cut.starts_with(&format!("Get \"http://127.0.0.1:{port}/e\": ")),
        "{cut}"
    );
    let asked = server.await.unwrap();
    let first = asked[0].to_ascii_lowercase();
    assert!(first.starts_with("get /healthz http/1.1\r\n"), "{first}");
    for line in [
        "host: web.example",
        "x-one: 1",
        "user-agent: kube-probe",
        "accept: */*",
    ] {
        assert!(first.contains(&format!("{line}\r\n")), "{line} in {first}");
    }
    assert!(asked[4].starts_with("GET /other?x=1 "), "{}", asked[4]);
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_are_told_as_go_does() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = probe(&get(port, "/"), "127.0.0.1", Duration::from_millis(50)).await;
    let expected = format!(
        "Get \"http://127.0.0.1:{port}/\": context deadline exceeded \
         (Client.Timeout exceeded while awaiting headers)"
    );
    assert_eq!(silent, Outcome::Failure(expected));
    drop(listener);
    let refused = probe(&get(port, "/"), "127.0.0.1", PATIENCE).await;
    let expected = format!(
        "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
    );
    assert_eq!(refused, Outcome::Failure(expected));
}

#[tokio::test]
async fn any_certificate_will_do() {
    let signed = rcgen::generate_simple_self_signed(vec!["nobody".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = acceptor.accept(stream).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut get = get(port, "/");
    get.https = true;
    assert_eq!(probe(&get, "127.0.0.1", PATIENCE).await, Outcome::Success);
    server.await.unwrap();
}
