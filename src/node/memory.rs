//! How much memory the allocator keeps. An agent rests for most of its life, on every GPU node.
#![expect(unsafe_code, reason = "the C library's allocator is set through its C functions")]

/// Has all threads share one heap. Each that ever blocks for the driver would else get one of its own,
/// none of which shrinks again.
pub fn share_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number in the allocator; glibc does so under its lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives back to the system what is free.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
