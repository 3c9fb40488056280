//! What both ends of the link agree on: messages, resource paths, bodies, topics, and the two
//! halves of the sync session.
//!
//! The protocol is KubeEdge's (JSON text frames on a WebSocket); section numbers in the
//! documentation refer to `docs/protocol.md`. Nothing here does IO, reads a clock or spawns
//! anything: sessions are sans-IO state machines that are handed frames and `now`.
//!
//! ```
//! use wire::message::Message;
//! let bytes = br#"{"header":{"msg_id":"1","timestamp":5},"route":{"source":"websocket","group":"resource","operation":"keepalive","resource":"node"},"content":"ping"}"#;
//! let message = Message::decode(bytes)?;
//! assert_eq!(message.content.text().as_deref(), Some("ping"));
//! assert_eq!(message.encode().trim_ascii_end(), bytes);
//! # Ok::<(), wire::message::DecodeError>(())
//! ```
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod body;
pub mod delivery;
pub mod extension;
pub mod limits;
pub mod message;
pub mod packed;
pub mod resource;
pub mod rules;
pub mod session;
pub mod topic;
pub mod tunnel;
pub mod twin;
