//! Probes of containers: when one is due and what a row of results means (`track`, pure), and how
//! a container is asked (`check`, `http`, `grpc`). The worker holds the timer and acts.

pub(super) mod check;
mod grpc;
pub(super) mod http;
mod tls;
pub(super) mod track;

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

pub(super) use check::Check;
pub(super) use track::{Kind, Known, Outcome, Probes, Timing};

/// One probe as the pod asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: Kind,
    pub(super) timing: Timing,
    /// What to ask, without the address; or why that cannot be known.
    pub(super) check: Result<Check, String>,
}

/// The probes of a container.
pub(super) fn wanted(container: &Container) -> Vec<Wanted> {
    let kinds = [
        (Kind::Startup, &container.startup_probe),
        (Kind::Liveness, &container.liveness_probe),
        (Kind::Readiness, &container.readiness_probe),
    ];
    kinds
        .into_iter()
        .filter_map(|(kind, probe)| Some((kind, probe.as_ref()?)))
        .map(|(kind, probe)| Wanted {
            kind,
            timing: timing(probe),
            check: check(container, probe),
        })
        .collect()
}

/// The defaults of `k8s.io/api/core/v1: Probe`, should the API not have set them.
fn timing(probe: &Probe) -> Timing {
    let secs = |value: Option<i32>, default: u32| {
        let value = value.and_then(|v| u32::try_from(v).ok());
        Duration::from_secs(u64::from(value.filter(|v| *v > 0).unwrap_or(default)))
    };
    let times = |value: Option<i32>, default: u32| {
        let value = value.and_then(|v| u32::try_from(v).ok());
        value.filter(|v| *v > 0).unwrap_or(default)
    };
    Timing {
        initial_delay: secs(probe.initial_delay_seconds, 0),
        period: secs(probe.period_seconds, 10),
        timeout: secs(probe.timeout_seconds, 1),
        success: times(probe.success_threshold, 1),
        failure: times(probe.failure_threshold, 3),
        grace: probe
            .termination_grace_period_seconds
            .and_then(|s| u64::try_from(s).ok())
            .map(Duration::from_secs),
    }
}

fn check(container: &Container, probe: &Probe) -> Result<Check, String> {
    if let Some(exec) = &probe.exec {
        return Ok(Check::Exec(exec.command.clone().unwrap_or_default()));
    }
    if let Some(get) = &probe.http_get {
        return http_get(container, get).map(Check::Http);
    }
    if let Some(socket) = &probe.tcp_socket {
        return Ok(Check::Tcp {
            host: socket.host.clone().filter(|host| !host.is_empty()),
            port: port(container, &socket.port)?,
        });
    }
    if let Some(grpc) = &probe.grpc {
        return Ok(Check::Grpc {
            port: u16::try_from(grpc.port).map_err(|_| format!("invalid port {}", grpc.port))?,
            service: grpc.service.clone().unwrap_or_default(),
        });
    }
    Err(format!("missing probe handler for {}", container.name))
}

/// An HTTP request as the pod writes it, of a probe or of a hook.
pub(super) fn http_get(container: &Container, get: &HTTPGetAction) -> Result<http::Get, String> {
    let headers = get.http_headers.iter().flatten();
    Ok(http::Get {
        https: get
            .scheme
            .as_deref()
            .is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: get.host.clone().filter(|host| !host.is_empty()),
        port: port(container, &get.port)?,
        path: get.path.clone().unwrap_or_default(),
        headers: headers
            .map(|header| (header.name.clone(), header.value.clone()))
            .collect(),
    })
}

/// A port by number or by the name the container gives it (`kubelet/util: ResolvePort`).
fn port(container: &Container, wanted: &IntOrString) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten();
            let mut named = named.filter(|port| port.name.as_deref() == Some(name.as_str()));
            match (named.next(), name.parse::<i64>()) {
                (Some(port), _) => i64::from(port.container_port),
                (None, Ok(number)) => number,
                (None, Err(_)) => return Err(format!("couldn't find port: {name}")),
            }
        }
    };
    let number = u16::try_from(number).ok().filter(|port| *port > 0);
    number.ok_or_else(|| format!("invalid port: {wanted:?}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn probes_are_read_with_their_defaults() {
        let container: Container = serde_json::from_value(json!({
            "name": "c",
            "ports": [{"name": "web", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"port": "web", "path": "/healthz", "scheme": "HTTPS",
                "httpHeaders": [{"name": "X-A", "value": "b"}]},
                "periodSeconds": 3, "failureThreshold": 1, "terminationGracePeriodSeconds": 4},
            "readinessProbe": {"tcpSocket": {"port": "nothing"}},
            "startupProbe": {"grpc": {"port": 9000, "service": "s"}, "initialDelaySeconds": 5},
        }))
        .unwrap();
        let [startup, liveness, readiness] = wanted(&container).try_into().unwrap();
        assert_eq!(
            (startup.kind, startup.timing.initial_delay.as_secs()),
            (Kind::Startup, 5)
        );
        assert_eq!(
            startup.check,
            Ok(Check::Grpc {
                port: 9000,
                service: "s".to_owned()
            })
        );
        let timing = liveness.timing;
        assert_eq!((timing.period.as_secs(), timing.timeout.as_secs()), (3, 1));
        assert_eq!((timing.success, timing.failure), (1, 1));
        assert_eq!(timing.grace, Some(Duration::from_secs(4)));
        let Ok(Check::Http(get)) = liveness.check else {
            panic!("not an HTTP check");
        };
        assert_eq!(
            (get.https, get.port, get.path.as_str()),
            (true, 8080, "/healthz")
        );
        assert_eq!(
            readiness.check,
            Err("couldn't find port: nothing".to_owned())
        );
        assert_eq!(
            (readiness.timing.period.as_secs(), readiness.timing.failure),
            (10, 3)
        );
    }
}
