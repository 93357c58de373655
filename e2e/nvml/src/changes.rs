//! Waiting until a process changes something of the machine.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify::{self, CreateFlags},
    io::{Errno, read},
};

use crate::hardware::Hardware;

/// Tells of changes of a machine's driver, its events and its GPUs.
pub(crate) struct Changes(OwnedFd);

impl Changes {
    /// All changes from now on.
    ///
    /// # Errors
    /// The kernel gives a user no more of these, or a container has no `/proc`.
    pub(crate) fn of(hardware: &Hardware) -> io::Result<Self> {
        let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        hardware.driver.tell(&changes)?;
        hardware.events.tell(&changes)?;
        hardware.gpus.iter().try_for_each(|gpu| gpu.state.tell(&changes))?;
        Ok(Self(changes))
    }

    /// Blocks until there was a change since the last time, or for this long; less if a signal comes.
    pub(crate) fn wait(&self, most: Duration) -> io::Result<()> {
        let most = Timespec::try_from(most).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&most)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut told = [0; 4096];
        loop {
            match read(&self.0, &mut told) {
                Ok(0) | Err(Errno::AGAIN) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
