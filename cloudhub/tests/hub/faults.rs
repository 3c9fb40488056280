//! What a valid node and a stranger may throw at the hub, as a process: it hurts nobody else.

use futures_util::SinkExt;
use http::{Method, StatusCode};
use tokio_tungstenite::tungstenite::Message as WsMessage;
use wire::message::{Content, Operation};

use crate::harness::{Identity, TestHub, TestNode};

async fn answers(node: &mut TestNode) {
    node.request(Operation::Query, "null/node/good", Content::null())
        .await;
}

/// Sends something bad; how the hub closed, if the close frame outran the reset.
async fn thrown(hub: &TestHub, bad: &Identity, message: WsMessage) -> Option<u16> {
    let mut node = hub.connect(bad, None).await;
    // The hub closes in the middle of what is too big.
    let is_sent = node.ws.send(message).await.is_ok();
    if is_sent {
        return Some(node.closed().await.0);
    }
    None
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_end_their_session_only() {
    let hub = TestHub::start_process().await;
    let (good, bad) = (hub.join("good").await, hub.join("bad").await);
    let mut neighbour = hub.connect(&good, None).await;
    neighbour.register(true).await;
    let before = hub.memory_kib();
    let deep = |open: &str| format!("{{\"content\":{}", open.repeat(200_000));
    for (name, message, code) in [
        ("no JSON", WsMessage::text("hello"), 1007),
        ("binary", WsMessage::binary(vec![0xff; 1000]), 1007),
        ("no message", WsMessage::text("[1,2,3]"), 1007),
        ("deep arrays", WsMessage::text(deep("[")), 1007),
        ("deep objects", WsMessage::text(deep("{\"a\":")), 1007),
        (
            "ill-typed",
            WsMessage::text(r#"{"header":7,"route":[]}"#),
            1007,
        ),
        ("64 MB", WsMessage::text("x".repeat(64 << 20)), 1009),
    ] {
        let closed = thrown(&hub, &bad, message).await;
        assert!(
            closed == Some(code) || (closed.is_none() && code == 1009),
            "{name}: {closed:?}"
        );
        answers(&mut neighbour).await;
    }
    let grown = hub.memory_kib().saturating_sub(before);
    assert!(grown < 32 << 10, "the hub grew by {grown} KiB");
    // The node that sent all this may come back.
    let mut back = hub.connect(&bad, None).await;
    back.register(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_authority_is_nobody_at_the_api() {
    let (hub, other) = (TestHub::start().await, TestHub::start().await);
    let path = "/api/v1/namespaces";
    assert!(hub.get(path).await.is_some());
    // The other hub's administrator, with its own certificate and token, asks this hub.
    let kubeconfig = other.dir.path().join("admin.kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).unwrap();
    let (theirs, ours) = (other.ports.api.to_string(), hub.ports.api.to_string());
    let authority = |text: &str| {
        let line = text
            .lines()
            .find(|l| l.contains("certificate-authority-data"));
        line.unwrap().to_owned()
    };
    let own = std::fs::read_to_string(hub.dir.path().join("admin.kubeconfig")).unwrap();
    // It trusts the hub; the hub must not trust it.
    let text = text
        .replace(&theirs, &ours)
        .replace(&authority(&text), &authority(&own));
    std::fs::write(&kubeconfig, text).unwrap();
    let stranger = cloudhub::cli::client::Client::from_kubeconfig(&kubeconfig).unwrap();
    let refused = stranger.call(Method::GET, path, None).await.err().unwrap();
    let said = format!("{refused:#}");
    // Its own handshake is done by then: it is the hub that hangs up.
    assert!(stranger.connect().await.is_ok(), "{said}");
    // Nor does it get a certificate by renewing.
    let foreign = other.join("e1").await;
    assert!(!hub.is_let_in(&foreign).await);
    let refused = hub.enroll("e1", None, None).await.err().unwrap();
    assert_eq!(refused.0, StatusCode::UNAUTHORIZED);
}
