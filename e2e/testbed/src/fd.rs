//! Waits for file descriptors that tokio has no type for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

/// A descriptor whose readability can be awaited. It must not block.
///
/// # Errors
/// When the descriptor cannot be polled.
#[expect(
    deprecated,
    reason = "`register` is unsafe; an OwnedFd stays the same open file, which is what it asks for"
)]
pub(crate) fn pollable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}
