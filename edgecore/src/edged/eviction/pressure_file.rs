//! The kernel's own word that tasks wait for memory: a trigger on `/proc/pressure/memory`
//! (Documentation/accounting/psi.rst). Where the kernel has none, the timer alone looks.

#![expect(
    unsafe_code,
    reason = "a descriptor that is registered with the reactor must stay open, and does"
)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const PATH: &str = "/proc/pressure/memory";
/// 150 ms of waiting within 2 s. Windows of whole two seconds need no privilege.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// An armed trigger.
pub(super) struct PressureFile(AsyncFd<OwnedFd>);

impl PressureFile {
    /// Arms it; fails where the kernel keeps no such account.
    pub(super) fn open() -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let mut file: File = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(PATH)?;
        file.write_all(TRIGGER)?;
        let fd = OwnedFd::from(file);
        // SAFETY: the descriptor is owned, nothing takes it out, and it is closed only after it
        // was taken from the reactor.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }?;
        Ok(Self(fd))
    }

    /// Waits for the trigger; at most once in its window. Cancel-safe.
    pub(super) async fn fired(&self) -> io::Result<()> {
        let mut guard = self.0.ready(Interest::PRIORITY).await?;
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_calm_kernel_says_nothing() {
        let Ok(file) = PressureFile::open() else {
            return; // This kernel keeps no account of pressure.
        };
        let quiet = tokio::time::timeout(std::time::Duration::ZERO, file.fired()).await;
        assert!(quiet.is_err(), "armed, and not firing at once");
    }
}
