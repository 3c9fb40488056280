//! Asking a container how it is.

use std::net::IpAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use super::http::Get;
use super::{Outcome, grpc, http};
use crate::edged::runtime::{Runtime, RuntimeError};

/// A probe that could not be carried out is tried this often in all (`prober.go:
/// maxProbeRetries`).
const ATTEMPTS: u32 = 3;

/// What to ask; a host that is not given is the pod's own address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) enum Check {
    Exec(Vec<String>),
    Http(Get),
    Tcp { host: Option<String>, port: u16 },
    Grpc { port: u16, service: String },
}

/// Carries a probe out. `address` is where the pod is reached.
pub(in super::super) async fn run(
    runtime: &dyn Runtime,
    id: &str,
    check: &Check,
    address: &str,
    timeout: Duration,
) -> Outcome {
    let mut outcome = Outcome::Error(String::new());
    for _ in 0..ATTEMPTS {
        outcome = match check {
            Check::Exec(command) => exec(runtime, id, command, timeout).await,
            Check::Http(get) => http::probe(get, address, timeout).await,
            Check::Tcp { host, port } => {
                let host = host.as_deref().unwrap_or(address);
                match connect(host, *port, timeout).await {
                    Ok(_) => Outcome::Success,
                    Err(message) => Outcome::Failure(message),
                }
            }
            Check::Grpc { port, service } => grpc::probe(address, *port, service, timeout).await,
        };
        if !matches!(outcome, Outcome::Error(_)) {
            break;
        }
    }
    outcome
}

async fn exec(runtime: &dyn Runtime, id: &str, command: &[String], timeout: Duration) -> Outcome {
    match runtime.exec_sync(id, command, timeout).await {
        Ok(output) if output.exit_code == 0 => Outcome::Success,
        Ok(output) => Outcome::Failure(String::from_utf8_lossy(&output.output).into_owned()),
        Err(RuntimeError::Timeout { .. }) => Outcome::Failure(format!(
            "command timed out: \"{}\" timed out after {}s",
            command.join(" "),
            timeout.as_secs()
        )),
        Err(error) => Outcome::Error(error.to_string()),
    }
}

/// Opens a connection; the error in the words of Go's dialler, which people know from events.
pub(super) async fn connect(host: &str, port: u16, timeout: Duration) -> Result<TcpStream, String> {
    let target = join(host, port);
    let connecting = TcpStream::connect((host, port));
    match tokio::time::timeout(timeout, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(format!("dial tcp {target}: {}", words(&error))),
        Err(_) => Err(format!("dial tcp {target}: i/o timeout")),
    }
}

/// `host:port`, an IPv6 address in brackets.
pub(super) fn join(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(_)) => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

fn words(error: &std::io::Error) -> String {
    use std::io::ErrorKind;
    let known = [
        (ErrorKind::ConnectionRefused, "connection refused"),
        (ErrorKind::HostUnreachable, "no route to host"),
        (ErrorKind::NetworkUnreachable, "network is unreachable"),
        (ErrorKind::ConnectionReset, "connection reset by peer"),
    ];
    let found = known.iter().find(|(kind, _)| *kind == error.kind());
    found.map_or_else(|| error.to_string(), |(_, text)| format!("connect: {text}"))
}
