//! The broker's counters as messages below `$SYS/broker`, with mosquitto's names where it has one
//! (mosquitto(8), "Broker status").
//!
//! They are kept nowhere: a new subscription is given the numbers of that moment, and later
//! changes at an interval, while anybody is subscribed. QoS 0, so that no session stores them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::message::{Message, Qos};
use crate::stats::Stats;

/// Name and value of each counter.
pub(crate) fn topics(stats: &Stats, uptime_secs: u64) -> Vec<(&'static str, String)> {
    vec![
        (
            "$SYS/broker/version",
            concat!("outpost ", env!("CARGO_PKG_VERSION")).into(),
        ),
        ("$SYS/broker/uptime", format!("{uptime_secs} seconds")),
        ("$SYS/broker/clients/connected", stats.clients.to_string()),
        ("$SYS/broker/clients/total", stats.sessions.to_string()),
        (
            "$SYS/broker/clients/disconnected",
            stats.sessions.saturating_sub(stats.clients).to_string(),
        ),
        ("$SYS/broker/clients/refused", stats.refused.to_string()),
        (
            "$SYS/broker/clients/turned-away",
            stats.turned_away.to_string(),
        ),
        (
            "$SYS/broker/clients/protocol-errors",
            stats.protocol_errors.to_string(),
        ),
        (
            "$SYS/broker/subscriptions/count",
            stats.subscriptions.to_string(),
        ),
        (
            "$SYS/broker/retained messages/count",
            stats.retained.to_string(),
        ),
        ("$SYS/broker/store/messages/count", stats.queued.to_string()),
        (
            "$SYS/broker/store/messages/bytes",
            stats.queued_bytes.to_string(),
        ),
        (
            "$SYS/broker/store/commits/failed",
            stats.commits_failed.to_string(),
        ),
        (
            "$SYS/broker/publish/messages/received",
            stats.messages_in.to_string(),
        ),
        (
            "$SYS/broker/publish/messages/sent",
            stats.messages_out.to_string(),
        ),
        (
            "$SYS/broker/publish/messages/dropped",
            stats.messages_dropped.to_string(),
        ),
        (
            "$SYS/broker/publish/bytes/received",
            stats.bytes_in.to_string(),
        ),
        (
            "$SYS/broker/publish/bytes/sent",
            stats.bytes_out.to_string(),
        ),
    ]
}

/// The counters now, as messages.
pub(crate) fn messages(stats: &Stats, uptime_secs: u64) -> Vec<Message> {
    let topics = topics(stats, uptime_secs);
    topics
        .into_iter()
        .map(|(topic, value)| Message::new(topic, value, Qos::AtMostOnce, false))
        .collect()
}

/// Publishes what has changed, while anybody is subscribed.
pub(crate) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut last: Vec<Message> = Vec::new();
    loop {
        // Both arms only wait.
        tokio::select! {
            () = next(&core) => {}
            () = stop.cancelled() => return,
        }
        let mut router = core.router();
        let stats = core.counters.read(router.held());
        let now = messages(&stats, core.uptime_secs());
        for message in now.iter().filter(|message| !last.contains(message)) {
            router.publish_unkept(message.clone());
        }
        drop(router);
        last = now;
    }
}

/// Sleeps for ever while nobody listens, else for an interval.
async fn next(core: &Core) {
    loop {
        if core.router().has_sys_listeners() {
            return tokio::time::sleep(core.limits.sys_interval).await;
        }
        core.sys_wanted.notified().await;
    }
}
