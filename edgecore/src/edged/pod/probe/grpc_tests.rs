use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::header::{HeaderMap, HeaderValue};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message as _;
use tokio::net::TcpListener;

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// A server that answers one connection so.
async fn serve(status: Option<ServingStatus>, code: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = service_fn(move |request: hyper::Request<Incoming>| async move {
            assert_eq!(request.uri().path(), CHECK);
            let mut frames = Vec::new();
            if let Some(status) = status {
                let message = HealthCheckResponse {
                    status: i32::from(status),
                };
                let message = message.encode_to_vec();
                let mut frame = vec![0, 0, 0, 0, u8::try_from(message.len()).unwrap()];
                frame.extend(message);
                frames.push(Ok::<_, Infallible>(Frame::data(Bytes::from(frame))));
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static(code));
            frames.push(Ok(Frame::trailers(trailers)));
            hyper::Response::builder()
                .header("content-type", "application/grpc")
                .body(StreamBody::new(stream::iter(frames)))
        });
        let server = http2::Builder::new(TokioExecutor::new());
        // The client hangs up when it has its answer.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    });
    port
}

#[tokio::test]
async fn answers_are_judged_as_kubelet_does() {
    for (status, code, failure) in [
        (Some(ServingStatus::Serving), "0", None),
        (
            Some(ServingStatus::NotServing),
            "0",
            Some("service unhealthy (responded with \"NOT_SERVING\")"),
        ),
        (
            Some(ServingStatus::Unknown),
            "0",
            Some("service unhealthy (responded with \"UNKNOWN\")"),
        ),
        (
            None,
            "12",
            Some(
                "this server does not implement the grpc health protocol (grpc.health.v1.Health): ",
            ),
        ),
        (None, "5", Some("rpc error: code = NotFound desc = ")),
    ] {
        let port = serve(status, code).await;
        let outcome = probe("127.0.0.1", port, "web", PATIENCE).await;
        let expected = failure.map_or(Outcome::Success, |text| Outcome::Failure(text.to_owned()));
        assert_eq!(outcome, expected, "{status:?} {code}");
    }
}

#[tokio::test]
async fn nobody_there_and_nobody_answering_fail() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silent = probe("127.0.0.1", port, "", Duration::from_millis(50)).await;
    assert!(matches!(silent, Outcome::Failure(_)), "{silent:?}");
    drop(listener);
    let Outcome::Failure(refused) = probe("127.0.0.1", port, "", PATIENCE).await else {
        panic!("nobody answered");
    };
    let expected = format!("timeout: failed to connect service \"127.0.0.1:{port}\" within 5s: ");
    assert!(refused.starts_with(&expected), "{refused}");
}
