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

/// Below this the counters are.
const ROOT: &str = "$SYS/broker/";

/// Name and value of each counter.
pub(crate) fn topics(stats: &Stats, uptime_secs: u64) -> Vec<(String, String)> {
    let gone = stats.sessions.saturating_sub(stats.clients);
    let counts: [(&str, &dyn std::fmt::Display); 16] = [
        ("clients/connected", &stats.clients),
        ("clients/total", &stats.sessions),
        ("clients/disconnected", &gone),
        ("clients/refused", &stats.refused),
        ("clients/turned-away", &stats.turned_away),
        ("clients/protocol-errors", &stats.protocol_errors),
        ("subscriptions/count", &stats.subscriptions),
        ("retained messages/count", &stats.retained),
        ("store/messages/count", &stats.queued),
        ("store/messages/bytes", &stats.queued_bytes),
        ("store/commits/failed", &stats.commits_failed),
        ("publish/messages/received", &stats.messages_in),
        ("publish/messages/sent", &stats.messages_out),
        ("publish/messages/dropped", &stats.messages_dropped),
        ("publish/bytes/received", &stats.bytes_in),
        ("publish/bytes/sent", &stats.bytes_out),
    ];
    let words = [
        (
            "version",
            concat!("outpost ", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
        ("uptime", format!("{uptime_secs} seconds")),
    ];
    let counts = counts.map(|(name, count)| (name, count.to_string()));
    let all = words.into_iter().chain(counts);
    all.map(|(name, value)| (format!("{ROOT}{name}"), value))
        .collect()
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
