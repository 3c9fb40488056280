//! Every bound of the protocol with its reason. `docs/limits.md` lists them for operators.

use std::time::Duration;

/// Largest message either end accepts, in bytes. The largest Kubernetes object is 1.5 MiB in etcd
/// and 3 MiB in a request; twice that with JSON escapes stays below this.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Largest WebSocket frame sent, in bytes: receivers keep a buffer of the largest frame seen for
/// the life of the connection, and a hub has many connections.
pub const FRAME_BYTES_MAX: usize = 4 << 10;

/// Objects in flight downstream per node, one per object. KubeEdge's hub has 1.
pub const DOWNSTREAM_WINDOW: usize = 64;

/// Durable upstream entries in flight (sent, not yet acknowledged).
pub const UPSTREAM_WINDOW: usize = 1024;

/// Durable entries in one batch message.
pub const BATCH_ENTRIES_MAX: usize = 256;

/// Bytes of entries after which a batch is closed.
pub const BATCH_BYTES_MAX: usize = 256 << 10;

/// Acknowledged pushes whose ids the edge remembers per connection, so that one which comes again
/// is acknowledged and not applied again: twice the window.
pub const SEEN_PUSHES_MAX: usize = 2 * DOWNSTREAM_WINDOW;

/// Keyed latest-only messages held at the edge (pod and node status). A node has at most a few
/// hundred pods; beyond this the oldest key is refused.
pub const LATEST_KEYS_MAX: usize = 2048;

/// Best-effort messages (events) waiting for the link; the oldest goes first when full.
pub const BEST_EFFORT_MAX: usize = 256;

/// Their bytes: answers of HTTP services are among them, and a slow link must not fill the node's
/// memory with them. Four of the largest messages.
pub const BEST_EFFORT_BYTES_MAX: usize = 4 * MESSAGE_BYTES_MAX;

/// Requests waiting for a reply at the edge.
pub const REQUESTS_MAX: usize = 64;

/// Replies and notices queued by the hub for one node that does not read.
pub const REPLIES_MAX: usize = 1024;

/// KubeEdge's application keepalive (`edgehub` heartbeat).
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(15);

/// Silence after which our edge pings.
pub const PING_AFTER: Duration = Duration::from_secs(6);

/// Time a ping may stay unanswered before the link is given up. With [`PING_AFTER`] a half-open
/// link is found within 9 s.
pub const PONG_WITHIN: Duration = Duration::from_secs(3);

/// Silence after which the hub closes the session of a plain KubeEdge edge
/// (`cloudhub` keepaliveInterval).
pub const PLAIN_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Silence after which the hub closes the session of one of our edges: two missed pings.
pub const EXTENDED_SILENCE_MAX: Duration = Duration::from_secs(15);

/// Time after the upgrade in which one of our edges must have said what it holds.
pub const INVENTORY_WITHIN: Duration = Duration::from_secs(10);

/// Time without acknowledgement after which a downstream object is sent again
/// (`cloudhub` resend interval).
pub const RESEND_AFTER: Duration = Duration::from_secs(5);

/// Time without acknowledgement after which our edge sends durable batches and newest states again
/// on a link that is alive: an acknowledgement was lost above TCP.
pub const CONFIRM_WITHIN: Duration = Duration::from_secs(10);

/// Time without confirmation after which a plain hub is sent a durable message again.
pub const PLAIN_CONFIRM_WITHIN: Duration = Duration::from_secs(30);

/// Transmissions of one durable message to a plain hub before it is given up: a real cloudcore
/// never answers a report it cannot apply.
pub const PLAIN_TRANSMISSIONS_MAX: u32 = 5;

/// Time a request waits for its reply (`metamanager` remoteQueryTimeout).
pub const REPLY_WITHIN: Duration = Duration::from_secs(60);
