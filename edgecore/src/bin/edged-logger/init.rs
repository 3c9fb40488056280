//! The end of the container's first process. After it, what is in the pipes is all there is: the shim
//! keeps their other ends open until the task is deleted, which may be much later.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The runtime has written the process's number by then, or never will.
const APPEARS_WITHIN: Duration = Duration::from_secs(30);
/// Where runc leaves it (containerd's shim: `--pid-file`), in the directory we are started in.
const PID_FILE: &str = "init.pid";

/// What is known of it.
pub(super) enum Init {
    /// Not there yet.
    Awaited {
        until: Instant,
    },
    Alive(OwnedFd),
    /// It has ended, and the pipes are being emptied.
    Ended,
    /// Nobody will tell, or everything has been written.
    Over,
}

impl Init {
    pub(super) fn awaited() -> Self {
        let until = Instant::now() + APPEARS_WITHIN;
        Self::Awaited { until }
    }

    /// The process, to be waited for.
    pub(super) fn process(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Alive(process) => Some(process.as_fd()),
            Self::Awaited { .. } | Self::Ended | Self::Over => None,
        }
    }

    /// Looks for the process in `bundle`, while it is awaited.
    pub(super) fn look(&mut self, bundle: &Path) {
        let Self::Awaited { until } = self else {
            return;
        };
        if Instant::now() > *until {
            *self = Self::Over;
        }
        let Ok(text) = std::fs::read_to_string(bundle.join(PID_FILE)) else {
            return;
        };
        let pid = text.trim().parse().ok().and_then(Pid::from_raw);
        *self = match pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(process)) => Self::Alive(process),
            Some(Err(rustix::io::Errno::SRCH)) => Self::Ended,
            // A kernel without it, or a file that is not ours to understand.
            Some(Err(_)) | None => Self::Over,
        };
    }
}
