//! How a fault stops a caller.

use std::{io, thread, time::Duration};

use rustix::process::{Signal, getpid, kill_process};

use crate::hardware::Hardware;

/// Comes back when the faults of this epoch were cleared. It holds nothing that others wait for.
pub(super) fn until_cleared(hardware: &Hardware, epoch: u64) -> io::Result<()> {
    while hardware.faults.read()?.epoch == epoch {
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Kills this process as the kernel would: no destructor runs, nothing is told.
pub(super) fn kill() -> ! {
    // It cannot fail on oneself; if it did, stopping here still keeps the call from going on.
    let _ = kill_process(getpid(), Signal::KILL);
    loop {
        thread::park();
    }
}
