//! What network clients of the broker inside may do.

use broker::{Access, ConnectRequest};

/// Everybody on the loopback may connect and read; topics that only the runtime writes are closed,
/// so that no client passes for it (design D10).
#[derive(Clone, Copy, Debug)]
pub(super) struct BusAccess;

impl Access for BusAccess {
    fn may_connect(&self, _request: &ConnectRequest<'_>) -> bool {
        true
    }

    fn may_publish(&self, _client: &str, topic: &str) -> bool {
        !wire::topic::is_runtime_only(topic)
    }

    fn may_subscribe(&self, _client: &str, _filter: &str) -> bool {
        true
    }
}
