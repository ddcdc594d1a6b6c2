//! What the operating system lets this process do.

use crate::config::LogFormat;
use tracing_subscriber::EnvFilter;

/// Sends log lines to stderr; stdout is for what programs read.
pub(super) fn log_to_stderr(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // It reports probes that a device does not support as errors; its faults reach us as results.
    let filter = match "glommio=off".parse() {
        Ok(directive) => filter.add_directive(directive),
        Err(_) => filter,
    };
    // A second server in one process (tests) keeps the first one's.
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Blocks from this size on are the kernel's again as soon as they are freed.
#[cfg(target_env = "gnu")]
const MAPPED_BYTES_MIN: libc::c_int = 1 << 20;

/// Makes the allocator map large blocks one by one. By itself it would keep the largest that was ever freed (an index that a job of the
/// background built, a table that has doubled) for the next ones, in each thread, and memory would not be what the plan says.
pub(super) fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call sets a number of the allocator, which takes it at any time.
    let known = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN) } == 1;
    #[cfg(target_env = "gnu")]
    debug_assert!(known, "glibc knows its own parameter");
}

/// Raises the limit of open files as far as it may go, and returns it.
pub(crate) fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable rlimit structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return 1024;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: `raised` is a readable rlimit structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0 {
        raised.rlim_cur
    } else {
        limit.rlim_cur
    }
}

/// Cores this process may run on.
pub(crate) fn cores() -> Vec<usize> {
    // SAFETY: a zeroed cpu_set_t is valid, and the call writes at most its size into it.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return Vec::new();
        }
        set
    };
    // SAFETY: `core` < CPU_SETSIZE, the number of bits of the set.
    (0..libc::CPU_SETSIZE as usize).filter(|core| unsafe { libc::CPU_ISSET(*core, &set) }).collect()
}

/// Binds the calling thread to one core. Where that is not allowed it runs where it may.
pub(crate) fn pin_to(core: usize) {
    // SAFETY: a zeroed cpu_set_t is valid; `core` comes from a set of the same size; the call only reads it.
    let failed = unsafe {
        let mut set = std::mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if failed != 0 {
        tracing::warn!(core, "the shard's thread could not be bound to its core");
    }
}
