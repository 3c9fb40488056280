//! Every bound of the broker, with its reason and what happens at "full".

use std::time::Duration;

/// Default bound of one MQTT packet. Telemetry is small; a bigger packet is closed with 0x95.
pub const PACKET_BYTES_MAX: u32 = 256 << 10;
/// Bound of the CONNECT packet, will included: what a stranger may make the broker hold.
pub const CONNECT_BYTES_MAX: u32 = 16 << 10;
/// Connections that have not sent CONNECT, or whose password is being compared; one more is closed
/// at accept. They cannot take the places of known clients.
pub const ARRIVALS_MAX: usize = 128;
/// Passwords compared at once; the others wait.
pub const LOGINS_MAX: usize = 2;
/// Topic aliases of one client (MQTT 5 Topic Alias Maximum).
pub const TOPIC_ALIASES_MAX: u16 = 16;
/// Unacknowledged QoS 1/2 publishes taken from one client (MQTT 5 Receive Maximum). A 3.1.1 client
/// is not told; its socket is not read while this many wait for the disk. 256 keeps a disk of
/// 5 ms a commit busy with 50,000 messages a second.
pub const RECEIVE_MAXIMUM: u16 = 256;
/// Bytes of one client's publishes waiting for the disk; beyond it the socket is not read.
pub const RECEIVE_BYTES_MAX: usize = 1 << 20;
/// Commits the whole broker keeps in the storage's queue; beyond it sockets are not read.
pub const COMMITS_IN_FLIGHT_MAX: usize = 512;
/// Connections at once; one more is closed at accept.
pub const CLIENTS_MAX: usize = 1024;
/// Sessions, connected or not; one more is refused with 0x97 (3.1.1: 0x03).
pub const SESSIONS_MAX: usize = 2048;
/// Messages waiting for one session. Full: the oldest QoS 0 message gives way; QoS 1/2 is refused
/// for that session and counted, and a connected session without persistence is closed (0x97).
pub const QUEUE_MESSAGES_MAX: usize = 1000;
/// Payload and topic bytes waiting for one session; the same answer.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
/// Bytes waiting for all sessions together; beyond it a session that holds more than
/// [`QUEUE_BYTES_SHARE`] is full.
pub const QUEUE_BYTES_TOTAL_MAX: usize = 64 << 20;
/// What every session may hold however much the others do.
pub const QUEUE_BYTES_SHARE: usize = 16 << 10;
/// QoS 1/2 messages sent to one client and not acknowledged; the client's own Receive Maximum may
/// lower it.
pub const INFLIGHT_MAX: u16 = 64;
/// Subscriptions of one session; one more is answered with 0x97 (3.1.1: 0x80).
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Topic levels of all subscriptions together, each a node of the tree; beyond it a session that
/// has more than [`SUBSCRIPTION_LEVELS_SHARE`] is refused more (0x97).
pub const SUBSCRIPTION_LEVELS_TOTAL_MAX: usize = 65_536;
/// What every session may have however much the others do.
pub const SUBSCRIPTION_LEVELS_SHARE: usize = 64;
/// Retained messages; one more is delivered but not retained, and counted.
pub const RETAINED_MESSAGES_MAX: usize = 4096;
/// Bytes of retained messages; the same answer.
pub const RETAINED_BYTES_MAX: usize = 8 << 20;
/// Time for the CONNECT packet to arrive.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time a client may leave our bytes unread while we have some to write; then it is closed.
pub const WRITE_STALL_MAX: Duration = Duration::from_secs(30);
/// Bytes encoded for one client and not yet taken by its socket; its session's queue holds the
/// rest.
pub const OUTBOX_BYTES: usize = 64 << 10;
/// Bytes read from a socket before other connections get their turn.
pub const READ_BYTES: usize = 8 << 10;
/// Publishes of the embedding program that need a commit and wait for it; full is an error to the
/// caller. One group commit of 512 device events can cause three publishes each.
pub const INLET_MESSAGES_MAX: usize = 2048;
/// Topic levels; bounds recursion in the subscription tree.
pub const TOPIC_LEVELS_MAX: usize = 64;
/// Bytes of a topic name or filter.
pub const TOPIC_BYTES_MAX: usize = 2048;
/// Bytes of a client identifier.
pub const CLIENT_ID_BYTES_MAX: usize = 256;
/// Acknowledged rows that may stay in the storage until the next commit. After a crash at most
/// this many messages are sent a second time.
pub const STALE_ROWS_MAX: usize = 128;
/// Pause before a busy storage is asked again when nothing of ours will wake us.
pub const BUSY_RETRY: Duration = Duration::from_millis(2);

/// After a start: time for a client to come back before the will that it left before the restart is
/// published (MQTT 5 §3.1.2.5 lets a server defer it so).
pub const RETURN_WITHIN: Duration = Duration::from_secs(10);

/// How often the wall clock is compared with what sessions' rows say of their ends.
pub const CLOCK_LOOK: Duration = Duration::from_secs(60);
/// Beyond this difference a row is written again.
pub const CLOCK_STEP_MS: u64 = 60_000;
/// Rows of sessions written again in one commit.
pub const ENDS_WRITTEN_MAX: usize = 64;

/// How often changed counters are published below `$SYS/broker`, while somebody listens.
pub const SYS_INTERVAL: Duration = Duration::from_secs(10);

/// The bounds a program may set.
#[derive(Clone, Debug)]
pub struct Limits {
    /// See [`PACKET_BYTES_MAX`].
    pub packet_bytes_max: u32,
    /// See [`RECEIVE_MAXIMUM`].
    pub receive_maximum: u16,
    /// See [`CLIENTS_MAX`].
    pub clients_max: usize,
    /// See [`SESSIONS_MAX`].
    pub sessions_max: usize,
    /// See [`QUEUE_MESSAGES_MAX`]. At most 32,768: each queued message holds a packet id.
    pub queue_messages_max: usize,
    /// See [`QUEUE_BYTES_MAX`].
    pub queue_bytes_max: usize,
    /// See [`QUEUE_BYTES_TOTAL_MAX`].
    pub queue_bytes_total_max: usize,
    /// Packets a second that one client is heard, with one second of credit; 0 is no limit. A
    /// faster one is read from more slowly.
    pub packets_per_second: u32,
    /// Bytes a second, in the same way.
    pub bytes_per_second: u32,
    /// Longest time in seconds that a session outlives its connection, `u32::MAX` for ever. MQTT 5
    /// clients are told.
    pub session_expiry_max_secs: u32,
    /// See [`SUBSCRIPTIONS_MAX`].
    pub subscriptions_max: usize,
    /// See [`SUBSCRIPTION_LEVELS_TOTAL_MAX`].
    pub subscription_levels_total_max: usize,
    /// See [`RETAINED_MESSAGES_MAX`].
    pub retained_messages_max: usize,
    /// See [`RETAINED_BYTES_MAX`].
    pub retained_bytes_max: usize,
    /// See [`CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// See [`WRITE_STALL_MAX`].
    pub write_stall_max: Duration,
    /// See [`SYS_INTERVAL`].
    pub sys_interval: Duration,
    /// See [`RETURN_WITHIN`].
    pub return_within: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packet_bytes_max: PACKET_BYTES_MAX,
            receive_maximum: RECEIVE_MAXIMUM,
            clients_max: CLIENTS_MAX,
            sessions_max: SESSIONS_MAX,
            queue_messages_max: QUEUE_MESSAGES_MAX,
            queue_bytes_max: QUEUE_BYTES_MAX,
            queue_bytes_total_max: QUEUE_BYTES_TOTAL_MAX,
            packets_per_second: 0,
            bytes_per_second: 0,
            session_expiry_max_secs: u32::MAX,
            subscriptions_max: SUBSCRIPTIONS_MAX,
            subscription_levels_total_max: SUBSCRIPTION_LEVELS_TOTAL_MAX,
            retained_messages_max: RETAINED_MESSAGES_MAX,
            retained_bytes_max: RETAINED_BYTES_MAX,
            connect_timeout: CONNECT_TIMEOUT,
            write_stall_max: WRITE_STALL_MAX,
            sys_interval: SYS_INTERVAL,
            return_within: RETURN_WITHIN,
        }
    }
}

impl Limits {
    pub(crate) fn queue_messages(&self) -> usize {
        self.queue_messages_max.clamp(1, 32_768)
    }
}
