//! The two halves of the sync session, side by side, as state machines without IO.
//!
//! A shell owns the socket and the clock. It calls `handle_*` with what happened and `now`, then
//! drains `poll_event` and `poll_transmit`, and sleeps until `poll_timeout`. The daemons drive
//! them over TLS, the simulator over a faulty network; the code is the same.
//!
//! ```text
//!        edge                                        hub
//!  outbox ─push→ ┌───────────┐  batch / message  ┌──────────┐ ─Batch→ one transaction
//!  status ─set_latest→       │ ────────────────→ │          │ ←─ack_batch─┘
//!                │EdgeSession│                   │HubSession│
//!  store ←─Push─ │           │ ←──────────────── │          │ ←─offer── desired state
//!     └────ack→  └───────────┘  object, one in   └──────────┘ ─Acked→
//!                               flight each
//! ```
//!
//! **Invariant:** what was pushed leaves [`edge::EdgeSession`] only as `Delivered`, on the hub's
//! acknowledgement; what was offered leaves [`hub::HubSession`] only as `Acked`. A broken link
//! puts everything unacknowledged back in order.

pub mod edge;
pub mod hub;
mod ids;

pub use ids::Ids;

/// What a shell must put on the socket, in this order.
#[derive(Clone, Debug, PartialEq)]
pub enum Transmit {
    /// One WebSocket text message.
    Message(Box<crate::message::Message>),
    /// A WebSocket ping.
    Ping,
    /// A WebSocket close frame with this reason; then the socket is closed.
    Close(&'static str),
}
