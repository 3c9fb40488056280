//! The MQTT port is free or ours, and the hub's port answers.

use std::time::Duration;

use super::Finding;
use crate::config::{BusMode, Config};

const CHECK: &str = "ports";
const CONNECT_WITHIN: Duration = Duration::from_secs(3);

pub(super) async fn check(config: &Config) -> Vec<Finding> {
    let mut found = Vec::new();
    let is_running = tokio::net::UnixStream::connect(config.socket())
        .await
        .is_ok();
    if let Some(bus) = &config.bus {
        if bus.mode != BusMode::External {
            found.push(mqtt(&bus.listen, is_running).await);
        }
        if bus.mode != BusMode::Internal {
            found.push(external(&bus.external).await);
        }
    }
    if let Some(hub) = &config.hub {
        found.push(hub_port(&hub.server).await);
    }
    found
}

async fn mqtt(listen: &str, is_running: bool) -> Finding {
    match tokio::net::TcpListener::bind(listen).await {
        Ok(_) => Finding::pass(CHECK, format!("MQTT {listen} is free")),
        Err(error) if is_running && error.kind() == std::io::ErrorKind::AddrInUse => {
            Finding::pass(CHECK, format!("MQTT {listen} is served by edgecore"))
        }
        Err(error) => Finding::fail(
            CHECK,
            format!("MQTT {listen}: {error}"),
            "another broker may hold it (`ss -ltnp`): stop it, set \
             modules.eventBus.mqttServerInternal, or use it with mqttMode: 2",
        ),
    }
}

async fn external(url: &str) -> Finding {
    let address = url.split_once("://").map_or(url, |(_, rest)| rest);
    match connect(address).await {
        Ok(()) => Finding::pass(CHECK, format!("external broker {address} answers")),
        Err(reason) => Finding::fail(
            CHECK,
            format!("external broker {address}: {reason}"),
            "start it, or set modules.eventBus.mqttMode: 0 for the broker inside",
        ),
    }
}

async fn hub_port(server: &str) -> Finding {
    match connect(server).await {
        Ok(()) => Finding::pass(CHECK, format!("hub {server} answers")),
        Err(reason) => Finding::warn(
            CHECK,
            format!("hub {server}: {reason}"),
            "the node works offline; everything is kept and sent when the hub is back",
        ),
    }
}

async fn connect(address: &str) -> Result<(), String> {
    match tokio::time::timeout(CONNECT_WITHIN, tokio::net::TcpStream::connect(address)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {CONNECT_WITHIN:?}")),
    }
}
