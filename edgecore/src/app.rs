//! The only place that makes channels and tasks.

use std::path::Path;

use crate::config::{Config, RuntimeConfig};

/// Why the daemon ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
}

/// Runs the daemon until it is told to stop or a core task ends.
pub fn run(config: Config, file: Option<&Path>) -> Result<(), AppError> {
    tracing::info!(node = %config.node_name, config = ?file, "edgecore starts");
    Ok(())
}

/// Imports an image archive into containerd.
pub async fn import_image(_runtime: &RuntimeConfig, _file: &Path) -> anyhow::Result<String> {
    anyhow::bail!("not available")
}
