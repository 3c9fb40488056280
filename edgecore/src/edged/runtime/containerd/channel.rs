//! The connection to containerd: one lazy channel, one interceptor that names the namespace (and
//! the lease), a deadline on every call, and errors that can be asked what they mean.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::sandbox::store_client::StoreClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::tonic;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::edged::runtime::RuntimeError;

/// Deadline of an ordinary call.
pub(super) const CALL: Duration = Duration::from_secs(10);
/// Deadline of a call that starts processes: shim and runc under load.
pub(super) const TASK: Duration = Duration::from_secs(60);
/// Deadline of a task delete: the shim waits up to 12 s for the logger to drain.
pub(super) const DELETE: Duration = Duration::from_secs(30);
/// Deadline of one step of a pull (unpacking a big layer on a slow card).
pub(super) const PULL: Duration = Duration::from_secs(120);

/// containerd sends up to 16 MiB (its own send limit); tonic's default of 4 MiB would refuse a
/// long container list.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Puts namespace and lease into every request.
#[derive(Clone, Debug)]
pub(super) struct Headers {
    namespace: MetadataValue<Ascii>,
    lease: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        if let Some(lease) = &self.lease {
            metadata.insert("containerd-lease", lease.clone());
        }
        Ok(request)
    }
}

type Wire = InterceptedService<Channel, Headers>;

/// The daemon as seen from one containerd namespace, optionally under a lease. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    channel: Channel,
    headers: Headers,
    address: Arc<str>,
}

impl Daemon {
    /// Builds the channel without connecting: the daemon may come later, and comes back by
    /// itself after a restart. Must be called inside a tokio runtime.
    pub(super) fn lazy(address: &str, namespace: &str) -> Result<Self, RuntimeError> {
        let invalid = |reason: String| RuntimeError::Other {
            step: "containerd configuration",
            reason,
        };
        let namespace_header = namespace
            .parse()
            .map_err(|_| invalid(format!("namespace `{namespace}` is not a header value")))?;
        let endpoint =
            Endpoint::try_from("http://[::]").map_err(|error| invalid(error.to_string()))?;
        let path: Arc<str> = Arc::from(address.trim_start_matches("unix://"));
        let target = Arc::clone(&path);
        let channel = endpoint.connect_with_connector_lazy(tower::service_fn(move |_| {
            let target = Arc::clone(&target);
            async move {
                let stream = tokio::net::UnixStream::connect(&*target).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }));
        Ok(Self {
            channel,
            headers: Headers {
                namespace: namespace_header,
                lease: None,
            },
            address: path,
        })
    }

    /// The same connection with every request under `lease`.
    pub(super) fn with_lease(&self, lease: &str) -> Result<Self, CallError> {
        let mut leased = self.clone();
        leased.headers.lease = Some(lease.parse().map_err(|_| CallError {
            step: "lease",
            address: Arc::clone(&self.address),
            kind: CallErrorKind::Timeout(Duration::ZERO),
        })?);
        Ok(leased)
    }

    /// The same connection in another containerd namespace.
    pub(super) fn with_namespace(&self, namespace: &str) -> Result<Self, RuntimeError> {
        let mut other = self.clone();
        other.headers.namespace = namespace.parse().map_err(|_| RuntimeError::Other {
            step: "containerd configuration",
            reason: format!("namespace `{namespace}` is not a header value"),
        })?;
        Ok(other)
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn containers(&self) -> ContainersClient<Wire> {
        ContainersClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn content(&self) -> ContentClient<Wire> {
        ContentClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn diff(&self) -> DiffClient<Wire> {
        DiffClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(super) fn events(&self) -> EventsClient<Wire> {
        EventsClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn images(&self) -> ImagesClient<Wire> {
        ImagesClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn introspection(&self) -> IntrospectionClient<Wire> {
        IntrospectionClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn leases(&self) -> LeasesClient<Wire> {
        LeasesClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(super) fn snapshots(&self) -> SnapshotsClient<Wire> {
        SnapshotsClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn tasks(&self) -> TasksClient<Wire> {
        TasksClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(super) fn exit_records(&self) -> StoreClient<Wire> {
        StoreClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    pub(super) fn version(&self) -> VersionClient<Wire> {
        VersionClient::with_interceptor(self.channel.clone(), self.headers.clone())
    }

    /// Awaits one call with its deadline.
    pub(super) async fn call<T>(
        &self,
        step: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let kind = match tokio::time::timeout(limit, call).await {
            Ok(Ok(response)) => return Ok(response.into_inner()),
            Ok(Err(status)) => CallErrorKind::Status(Box::new(status)),
            Err(_) => CallErrorKind::Timeout(limit),
        };
        Err(CallError {
            step,
            address: Arc::clone(&self.address),
            kind,
        })
    }
}

impl Daemon {
    /// The error of a call that failed after it had begun to answer.
    pub(super) fn failed(&self, step: &'static str, status: Status) -> CallError {
        CallError {
            step,
            address: Arc::clone(&self.address),
            kind: CallErrorKind::Status(Box::new(status)),
        }
    }
}

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {kind}")]
pub(super) struct CallError {
    step: &'static str,
    address: Arc<str>,
    kind: CallErrorKind,
}

#[derive(Debug, thiserror::Error)]
enum CallErrorKind {
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{}", .0.message())]
    Status(Box<Status>),
}

impl CallError {
    /// Only codes that every containerd from 1.6 on maps reliably are looked at; what runc says
    /// arrives as `Unknown` with a text.
    fn is(&self, code: Code) -> bool {
        matches!(&self.kind, CallErrorKind::Status(status) if status.code() == code)
    }

    pub(super) fn is_not_found(&self) -> bool {
        self.is(Code::NotFound)
    }

    pub(super) fn is_already_exists(&self) -> bool {
        self.is(Code::AlreadyExists)
    }

    pub(super) fn is_unimplemented(&self) -> bool {
        self.is(Code::Unimplemented)
    }

    pub(super) fn is_failed_precondition(&self) -> bool {
        self.is(Code::FailedPrecondition)
    }

    /// The sandbox store has no such entry; 1.7 has no code for it (bbolt `ErrBucketNotFound`).
    pub(super) fn is_no_entry(&self) -> bool {
        self.is_not_found()
            || matches!(&self.kind, CallErrorKind::Status(status)
                if status.code() == Code::Unknown && status.message().contains("bucket not found"))
    }

    /// The directory of a snapshot that was never finished, in the way of the next one
    /// (containerd `snapshots/overlay`: "failed to rename: rename <new> <directory>: file exists").
    pub(super) fn left_snapshot(&self) -> Option<PathBuf> {
        let CallErrorKind::Status(status) = &self.kind else {
            return None;
        };
        let paths = status.message().split_once("failed to rename: rename ")?.1;
        let (_, path) = paths.strip_suffix(": file exists")?.split_once(' ')?;
        let path = PathBuf::from(path);
        let number = path.file_name()?.to_str()?;
        let is_one = path.is_absolute()
            && path.parent()?.ends_with("snapshots")
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit());
        is_one.then_some(path)
    }

    /// Somebody else writes this blob (containerd `content/local/locks.go`: "ref … locked").
    pub(super) fn is_locked(&self) -> bool {
        matches!(&self.kind, CallErrorKind::Status(status)
            if status.code() == Code::Unavailable && status.message().contains("locked"))
    }

    /// The daemon itself is away: the caller tries again later, nothing is wrong with what was
    /// asked.
    pub(super) fn is_transport(&self) -> bool {
        match &self.kind {
            CallErrorKind::Timeout(_) => true,
            CallErrorKind::Status(status) => {
                status.code() == Code::Unavailable
                    || std::error::Error::source(status.as_ref())
                        .is_some_and(<dyn std::error::Error>::is::<tonic::transport::Error>)
            }
        }
    }

    /// What the daemon said, for a pod's status.
    pub(super) fn reason(&self) -> String {
        self.to_string()
    }

    /// Turns into `wrap(reason)` unless the daemon itself was away.
    pub(super) fn or(self, wrap: impl FnOnce(String) -> RuntimeError) -> RuntimeError {
        if self.is_transport() {
            self.into()
        } else {
            wrap(self.reason())
        }
    }
}

impl From<CallError> for RuntimeError {
    fn from(error: CallError) -> Self {
        match error.kind {
            CallErrorKind::Timeout(limit) => RuntimeError::Timeout {
                step: error.step,
                limit,
            },
            CallErrorKind::Status(ref status) if error.is_transport() => {
                RuntimeError::Unavailable {
                    address: error.address.to_string(),
                    source: Box::new(status.as_ref().clone()),
                }
            }
            CallErrorKind::Status(status) => RuntimeError::Other {
                step: error.step,
                reason: status.message().to_owned(),
            },
        }
    }
}

/// "Not there" counts as done.
pub(super) fn tolerate_missing<T>(result: Result<T, CallError>) -> Result<(), CallError> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Milliseconds since the epoch; `None` for Go's zero time (year 1), which running tasks carry.
pub(super) fn millis(time: Option<&prost_types::Timestamp>) -> Option<i64> {
    let time = time?;
    if time.seconds <= 0 {
        return None;
    }
    Some(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_zero_time_is_none() {
        let at = |seconds, nanos| millis(Some(&prost_types::Timestamp { seconds, nanos }));
        assert_eq!(at(-62_135_596_800, 0), None);
        assert_eq!(at(1_700_000_000, 250_000_000), Some(1_700_000_000_250));
        assert_eq!(millis(None), None);
    }

    #[tokio::test]
    async fn absent_daemon_is_unavailable() {
        let daemon = Daemon::lazy("/nonexistent/containerd.sock", "x").unwrap();
        let mut client = daemon.version();
        let error = daemon
            .call("version", CALL, client.version(()))
            .await
            .unwrap_err();
        assert!(error.is_transport(), "{error:?}");
        assert!(matches!(
            RuntimeError::from(error),
            RuntimeError::Unavailable { .. }
        ));
    }
}
