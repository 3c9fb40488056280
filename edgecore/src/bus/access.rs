//! What network clients of the broker inside may do.

use std::sync::Arc;

use broker::{Access, ConnectRequest, Grant, Refused, Rights};

/// Everybody on the loopback may connect and read; topics that only the runtime writes are closed,
/// so that no client passes for it (design D10).
#[derive(Clone, Copy, Debug)]
pub(super) struct BusAccess;

impl Access for BusAccess {
    fn connect(&self, _request: &ConnectRequest<'_>) -> Result<Grant, Refused> {
        Ok(Grant::anonymous(Arc::new(Self)))
    }
}

impl Rights for BusAccess {
    fn may_publish(&self, topic: &str) -> bool {
        !wire::topic::is_runtime_only(topic)
    }

    fn may_subscribe(&self, _filter: &str) -> bool {
        true
    }
}
