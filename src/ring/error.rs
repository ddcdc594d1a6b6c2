//! Why a ring could not be opened, in words an operator can act on.

use std::fmt;
use std::io;

/// What was being done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `io_uring_setup` with the flags of a shard's ring.
    Setup,
    /// Asking which operations the kernel knows.
    Probe,
    /// Capping io-wq.
    Workers,
    /// Registering this many direct descriptors.
    DirectSlots(u32),
    /// Registering the receive buffers.
    RecvBuffers,
    /// Taking the memory of tables and pools beside the ring.
    Memory,
    /// An operation the kernel does not know.
    Missing(&'static str),
}

/// A ring that could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingError {
    step: Step,
    errno: i32,
}

impl RingError {
    pub(super) fn new(step: Step, error: &io::Error) -> Self {
        Self { step, errno: error.raw_os_error().unwrap_or(0) }
    }

    /// The memory beside a ring could not be had.
    pub fn memory(error: io::Error) -> Self {
        Self::new(Step::Memory, &error)
    }

    pub(super) fn missing(name: &'static str) -> Self {
        Self { step: Step::Missing(name), errno: 0 }
    }
}

const TOO_OLD: &str = "the kernel is older than Linux 6.1: run Linux 6.1 or newer";

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let system = io::Error::from_raw_os_error(self.errno);
        match (self.step, self.errno) {
            (Step::Setup, libc::ENOSYS) => write!(
                f,
                "this kernel or container has no io_uring ({system}): run Linux 6.1 or newer, and in a container allow \
                 io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile"
            ),
            (Step::Setup, libc::EPERM | libc::EACCES) => write!(
                f,
                "io_uring is forbidden here ({system}): set `sysctl kernel.io_uring_disabled=0`, and in a container \
                 allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile (Docker: \
                 --security-opt seccomp=FILE)"
            ),
            (Step::Setup, libc::EINVAL) => write!(f, "io_uring refuses the flags of a shard's ring: {TOO_OLD}"),
            (Step::Setup | Step::RecvBuffers, libc::ENOMEM) => {
                write!(
                    f,
                    "not enough locked memory (memlock) for a ring ({system}): raise `ulimit -l` or use fewer --shards"
                )
            }
            (Step::Setup, libc::EMFILE | libc::ENFILE) => {
                write!(f, "too few file descriptors for a ring ({system}): raise `ulimit -n`")
            }
            (Step::DirectSlots(slots), libc::EMFILE) => write!(
                f,
                "a table of {slots} sockets per shard exceeds the limit of open files: raise `ulimit -n` to {slots} or \
                 lower connections_per_shard_max"
            ),
            (Step::Memory, _) => write!(f, "the memory of a shard cannot be had ({system}): lower its bounds"),
            (Step::Missing(name), _) => write!(f, "io_uring here has no operation `{name}`: {TOO_OLD}"),
            (Step::Probe | Step::Workers | Step::DirectSlots(_) | Step::RecvBuffers, libc::EINVAL) => {
                write!(f, "io_uring lacks a needed feature ({:?}): {TOO_OLD}", self.step)
            }
            (step, _) => write!(f, "io_uring could not be set up ({step:?}): {system}"),
        }
    }
}

impl std::error::Error for RingError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_common_refusal_names_its_cure_on_one_line() {
        let cases = [
            (Step::Setup, libc::ENOSYS, "seccomp"),
            (Step::Setup, libc::EPERM, "kernel.io_uring_disabled=0"),
            (Step::Setup, libc::EINVAL, "Linux 6.1"),
            (Step::Setup, libc::ENOMEM, "ulimit -l"),
            (Step::Setup, libc::EMFILE, "ulimit -n"),
            (Step::DirectSlots(60_000), libc::EMFILE, "ulimit -n"),
            (Step::Missing("accept"), 0, "Linux 6.1"),
        ];
        for (step, errno, cure) in cases {
            let line = RingError { step, errno }.to_string();
            assert!(line.contains(cure), "{line}");
            assert!(!line.contains('\n'));
        }
    }
}
