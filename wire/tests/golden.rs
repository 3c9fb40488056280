//! Golden bytes captured from KubeEdge 1.23's encoder (`tests/golden/vectors.jsonl`): every one
//! decodes to the header and route it was made from and encodes to the same bytes. Object bodies
//! keep Go's key order because content is carried as text.

use serde::Deserialize;
use wire::message::Message;
use wire::{packed, tunnel};

#[derive(Deserialize)]
struct Vector {
    name: String,
    kind: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    hex: String,
    #[serde(default)]
    msg_id: String,
    #[serde(default)]
    parent_msg_id: String,
    #[serde(default)]
    timestamp: i64,
    #[serde(default)]
    resourceversion: String,
    #[serde(default)]
    source: String,
    #[serde(default)]
    group: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    resource: String,
    #[serde(default)]
    connect_id: u64,
    #[serde(default)]
    message_type: u64,
}

fn vectors() -> Vec<Vector> {
    include_str!("golden/vectors.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
        .collect()
}

fn check(message: &Message, vector: &Vector) {
    let name = &vector.name;
    assert_eq!(message.header.id, vector.msg_id, "{name}");
    assert_eq!(message.header.parent_id, vector.parent_msg_id, "{name}");
    assert_eq!(message.header.timestamp, vector.timestamp, "{name}");
    assert_eq!(
        message.header.resource_version, vector.resourceversion,
        "{name}"
    );
    assert_eq!(message.route.source, vector.source, "{name}");
    assert_eq!(message.route.group, vector.group, "{name}");
    assert_eq!(message.route.operation, vector.operation, "{name}");
    assert_eq!(
        message.route.operation().as_str(),
        vector.operation,
        "{name}"
    );
    assert_eq!(message.route.resource, vector.resource, "{name}");
    let path = wire::resource::ResourcePath::parse(&vector.resource);
    assert_eq!(path.to_string(), vector.resource, "{name}");
}

#[test]
fn all_83_vectors_decode_and_messages_encode_to_the_same_bytes() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 83);
    for vector in &vectors {
        match vector.kind.as_str() {
            "message" => {
                let message = Message::decode(vector.text.as_bytes()).unwrap();
                check(&message, vector);
                let again = String::from_utf8(message.encode()).unwrap();
                assert_eq!(again, vector.text, "{}", vector.name);
            }
            "packed" => check(&packed::decode(&bytes(&vector.hex)).unwrap(), vector),
            "tunnel" => {
                let wire = bytes(&vector.hex);
                let frame = tunnel::Frame::decode(&wire).unwrap();
                assert_eq!(frame.connection, vector.connect_id, "{}", vector.name);
                assert_eq!(
                    frame.frame_type as u64, vector.message_type,
                    "{}",
                    vector.name
                );
                assert_eq!(frame.encode(), wire, "{}", vector.name);
            }
            other => panic!("{}: kind {other} is not known", vector.name),
        }
    }
}

#[test]
fn what_a_peer_of_ours_sends_is_built_to_the_same_bytes() {
    use wire::message::{Content, Operation, Route};
    let find = |name: &str| vectors().into_iter().find(|v| v.name == name).unwrap();
    let built = |name: &str, route: Route, content: Content| {
        let vector = find(name);
        let message = Message::new(vector.msg_id.clone(), vector.timestamp, route, content);
        assert_eq!(
            String::from_utf8(message.encode()).unwrap(),
            vector.text,
            "{name}"
        );
    };
    built(
        "keepalive",
        Route::new("websocket", "resource", &Operation::Keepalive, "node"),
        Content::string("ping"),
    );
    built(
        "lease_query",
        Route::new(
            "edged",
            "meta",
            &Operation::Query,
            "kube-node-lease/lease/edge-1",
        ),
        Content::null(),
    );
    let push = Message::decode(find("pod_insert").text.as_bytes()).unwrap();
    let ack = find("pod_insert_ack");
    let built = push.acknowledgement(ack.msg_id.clone(), ack.timestamp);
    assert_eq!(String::from_utf8(built.encode()).unwrap(), ack.text);
    let error = find("error_feedback");
    let built = push.negative(
        error.msg_id.clone(),
        error.timestamp,
        "insert or update meta failed, disk full",
    );
    assert_eq!(String::from_utf8(built.encode()).unwrap(), error.text);
}
