//! Keeps the allocator's hold on memory small: one heap for all threads, and free pages given back
//! to the kernel after a burst.
//!
//! glibc gives every busy thread a heap of its own and keeps what was freed in it. On a node of
//! 128 MB that is memory which nothing uses: a burst of 30 pods left 8 MiB behind. mimalloc and
//! jemalloc were measured on the same burst and kept more.

use std::time::Duration;

/// How often it looks, and how much the process must have grown since the last time to be worth
/// walking the heap (about a millisecond).
const LOOK_EVERY: Duration = Duration::from_secs(10);
const GROWN_BYTES: usize = 512 << 10;

/// One heap for the whole process. To be called before a second thread starts; a heap that exists
/// already stays.
pub fn share_one() {
    glibc::share_one();
}

/// Gives pages back whenever the process has grown. Never returns; may be dropped at any moment.
pub(crate) async fn keep_small() {
    let mut floor = resident();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if resident() > floor.saturating_add(GROWN_BYTES) {
            glibc::trim();
            floor = resident();
        }
    }
}

/// Resident bytes of this process; 0 where the kernel does not tell (proc(5), `VmRSS`).
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<usize>().ok())
        .map_or(0, |kib| kib.saturating_mul(1 << 10))
}

#[cfg(target_env = "gnu")]
mod glibc {
    #![expect(
        unsafe_code,
        reason = "glibc's settings of its allocator have no safe binding"
    )]

    pub(super) fn share_one() {
        // SAFETY: mallopt(3) takes two integers and keeps no pointer. A refusal (0) changes nothing.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    }

    pub(super) fn trim() {
        // SAFETY: malloc_trim(3) is thread-safe and touches only memory that is free.
        unsafe { libc::malloc_trim(0) };
    }
}

#[cfg(not(target_env = "gnu"))]
mod glibc {
    pub(super) fn share_one() {}
    pub(super) fn trim() {}
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_env = "gnu")]
    fn freed_memory_goes_back_to_the_kernel() {
        const BLOCK: usize = 1 << 10;
        let held = |n: usize| (0..n).map(|_| vec![1_u8; BLOCK]).collect::<Vec<_>>();
        let many = held(16 << 10);
        // Above what is freed: the heap's top cannot shrink by itself.
        let last = held(1);
        let full = super::resident();
        drop(many);
        super::glibc::trim();
        let after = super::resident();
        assert!(after + (8 << 20) < full, "{full} bytes, {after} after");
        drop(last);
    }
}
