//! The two counters of a value.

use serde::{Deserialize, Serialize};

/// How often a value was written by the cloud and by the edge. Neither counter goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// Raised by the cloud: for desired values from a Device object, its resource version.
    pub cloud: i64,
    /// Raised by the edge on each local write.
    pub edge: i64,
}

impl Version {
    /// Whether a value of this version may replace one of `local`: neither counter goes back
    /// (KubeEdge `dtmanager/twin.go`, `dealVersion`).
    pub fn covers(self, local: Self) -> bool {
        self.cloud >= local.cloud && self.edge >= local.edge
    }

    /// After one more write at the edge.
    pub fn after_edge_write(self) -> Self {
        Self {
            cloud: self.cloud,
            edge: self.edge.saturating_add(1),
        }
    }

    /// After a write by the cloud at `cloud`.
    pub fn after_cloud_write(self, cloud: i64) -> Self {
        Self {
            cloud: self.cloud.max(cloud),
            edge: self.edge,
        }
    }
}
