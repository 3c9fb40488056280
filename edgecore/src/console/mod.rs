//! The commands for a person on the node: `pods`, `logs`, `exec`, `attach`, `top`. They ask the
//! daemon over the local API; without a daemon they ask containerd itself, and logs are files in
//! any case. Nothing here needs a hub.
//!
//! These functions are given what was asked and return what to print or the exit code; flags and
//! exit codes are `main.rs`' matter.

mod detach;
mod devices;
mod logs;
mod pods;
mod source;
mod table;
mod talk;
mod terminal;
mod top;

use std::path::PathBuf;

use crate::api::client::AskError;
use crate::api::target::TargetError;
use crate::edged::logs::LogError;
use crate::edged::runtime::RuntimeError;
use crate::outbox::report::Report;
use crate::store::StoreError;

pub use detach::{DEFAULT as DETACH_KEYS, DetachKeys, KeyError};
pub use devices::{device, devices, find, history};
pub use logs::{LogsRequest, logs};
pub use pods::{Shape, pods};
pub use source::Source;
pub use talk::{Ended, TalkRequest, attach, exec};
pub use top::{top_node, top_pods};

/// The ledger as a table.
pub fn ledger(report: &Report) -> String {
    let (heads, rows) = report.table();
    table::table(heads, &rows) + &report.footer()
}

/// Why a command could not be carried out. The text says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    #[error("this node runs no pods (modules.edged.enable is false)")]
    NoPods,
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "edgecore is not running and containerd does not answer at `{containerd}`; \
         `edgecore check` says what is wrong"
    )]
    Nobody { containerd: PathBuf },
    #[error("there is no database `{path}` yet; the first start of edgecore makes it")]
    NoDatabase { path: PathBuf },
    #[error("cannot read the log directory `{path}`")]
    LogDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("container {container} of pod {pod} has no {}log yet", if *previous { "previous " } else { "" })]
    NoLog {
        pod: String,
        container: String,
        previous: bool,
    },
    #[error("cannot use the terminal")]
    Terminal(#[source] std::io::Error),
    #[error("{0}")]
    Device(String),
    #[error("the session broke: {0}")]
    Broken(String),
}

impl ConsoleError {
    /// The exit code that a shell would have given, where there is one.
    pub fn exit_code(&self) -> Option<i32> {
        if let Self::Ask(AskError::Refused { exit_code, .. }) = self {
            return *exit_code;
        }
        if let Self::Runtime(RuntimeError::Exec { exit_code, .. }) = self {
            return Some(*exit_code);
        }
        None
    }

    /// Neither edgecore nor containerd answers.
    pub fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Nobody { .. }
                | Self::Ask(AskError::NotRunning { .. } | AskError::NoAnswer { .. })
                | Self::Runtime(RuntimeError::Unavailable { .. })
        )
    }
}
