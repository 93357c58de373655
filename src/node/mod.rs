//! The machine: NVML, the kernel's log, the host's files, and what Kerf keeps on disk.

pub mod features;
pub mod hook;
pub mod host;
pub mod kernel_log;
pub mod lock;
pub mod memory;
pub mod nvml;
pub mod store;
pub mod watch;
