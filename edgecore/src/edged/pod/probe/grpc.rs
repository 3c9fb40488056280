//! gRPC health checks (`grpc.health.v1.Health/Check`). The two messages are small enough to be
//! written by hand.

use std::time::Duration;

use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::Endpoint;
use tonic::{Code, Request};
use tonic_prost::ProstCodec;

use super::Outcome;
use super::check::join;

const CHECK: &str = "/grpc.health.v1.Health/Check";

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(enumeration = "ServingStatus", tag = "1")]
    status: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum ServingStatus {
    Unknown = 0,
    Serving = 1,
    NotServing = 2,
    ServiceUnknown = 3,
}

impl ServingStatus {
    const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "UNKNOWN",
            Self::Serving => "SERVING",
            Self::NotServing => "NOT_SERVING",
            Self::ServiceUnknown => "SERVICE_UNKNOWN",
        }
    }
}

/// Asks for the health of a service; the texts are those of `pkg/probe/grpc`.
pub(super) async fn probe(address: &str, port: u16, service: &str, timeout: Duration) -> Outcome {
    let target = join(address, port);
    let late = || {
        Outcome::Failure(format!(
            "timeout: health rpc did not complete within {}s",
            timeout.as_secs()
        ))
    };
    let asking = ask(&target, service, timeout);
    match tokio::time::timeout(timeout, asking).await {
        Err(_) => late(),
        Ok(Err(message)) => Outcome::Failure(message),
        Ok(Ok(Ok(response))) if response.status() == ServingStatus::Serving => Outcome::Success,
        Ok(Ok(Ok(response))) => Outcome::Failure(format!(
            "service unhealthy (responded with \"{}\")",
            response.status().name()
        )),
        Ok(Ok(Err(status))) if status.code() == Code::Unimplemented => Outcome::Failure(format!(
            "this server does not implement the grpc health protocol (grpc.health.v1.Health): {}",
            status.message()
        )),
        Ok(Ok(Err(status))) if status.code() == Code::DeadlineExceeded => late(),
        Ok(Ok(Err(status))) => Outcome::Failure(format!(
            "rpc error: code = {:?} desc = {}",
            status.code(),
            status.message()
        )),
    }
}

async fn ask(
    target: &str,
    service: &str,
    timeout: Duration,
) -> Result<Result<HealthCheckResponse, tonic::Status>, String> {
    let unreachable = |why: String| {
        format!(
            "timeout: failed to connect service \"{target}\" within {}s: {why}",
            timeout.as_secs()
        )
    };
    let endpoint = Endpoint::from_shared(format!("http://{target}"))
        .and_then(|endpoint| endpoint.user_agent("kube-probe"))
        .map_err(|error| unreachable(error.to_string()))?
        .connect_timeout(timeout);
    let channel = endpoint.connect().await.map_err(|error| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        unreachable(source.unwrap_or_else(|| error.to_string()))
    })?;
    let mut client = Grpc::new(channel);
    if let Err(error) = client.ready().await {
        return Err(unreachable(error.to_string()));
    }
    let request = Request::new(HealthCheckRequest {
        service: service.to_owned(),
    });
    let path = PathAndQuery::from_static(CHECK);
    let codec: ProstCodec<HealthCheckRequest, HealthCheckResponse> = ProstCodec::default();
    let answer = client.unary(request, path, codec).await;
    Ok(answer.map(tonic::Response::into_inner))
}

#[cfg(test)]
#[path = "grpc_tests.rs"]
mod tests;
