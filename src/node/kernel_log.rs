//! The kernel's log, record by record, as `/dev/kmsg` gives it.

mod follow;
mod record;

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use follow::Follow;
use rustix::{
    fs::{FileType, Mode, OFlags},
    io::Errno,
};
use tokio::io::unix::AsyncFd;

use super::watch::readable;

/// Longer than any record (`PRINTK_MESSAGE_MAX`); a shorter buffer would lose those that do not fit.
const LONGEST: usize = 8192;

/// A record that the kernel itself has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its text, in which the kernel writes what cannot be printed as `\x0a`.
    pub text: String,
    /// Its number, which no other record of this boot has.
    pub sequence: u64,
    /// When, since the boot. Records may have the same time, or an earlier one than those before.
    pub since_boot: Duration,
    /// Whether it was there before the log was opened: of this boot, maybe known to an earlier process.
    pub history: bool,
}

/// The log of this boot, from its first record that is kept on.
#[derive(Debug)]
pub struct KernelLog {
    source: Source,
    history: bool,
}

#[derive(Debug)]
enum Source {
    Device(Device),
    File(Follow),
}

/// `/dev/kmsg`: each read is one record.
#[derive(Debug)]
struct Device {
    descriptor: AsyncFd<OwnedFd>,
    buffer: Box<[u8; LONGEST]>,
}

impl KernelLog {
    /// Opens a device such as `/dev/kmsg`, or a file that grows by records and may be replaced by another
    /// at a boot.
    ///
    /// # Errors
    /// There is none, or this process may not read it (`dmesg_restrict`, `CAP_SYSLOG`).
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&descriptor)?.st_mode);
        let source = match kind {
            FileType::RegularFile => Source::File(Follow::new(path)?),
            _ => {
                let buffer = Box::new([0; LONGEST]);
                Source::Device(Device { descriptor: readable(descriptor)?, buffer })
            }
        };
        Ok(Self { source, history: true })
    }

    /// The next record; waits for it. What is no record, or none of the kernel's own, is passed over: any
    /// program that may write to the device can say anything there. Nothing is lost when this is dropped
    /// before it returns.
    ///
    /// # Errors
    /// The log cannot be read any more.
    pub async fn next(&mut self) -> io::Result<Entry> {
        loop {
            let Some(line) = self.read()? else {
                // What is there by now was not there before.
                self.history = false;
                self.more().await?;
                continue;
            };
            if let Some(record) = record::parse(&line) {
                let record::Record { text, sequence, since_boot } = record;
                return Ok(Entry { text, sequence, since_boot, history: self.history });
            }
        }
    }

    /// `None` when all that is there was read.
    fn read(&mut self) -> io::Result<Option<String>> {
        match &mut self.source {
            Source::Device(device) => device.read(),
            Source::File(file) => file.read(),
        }
    }

    async fn more(&mut self) -> io::Result<()> {
        match &mut self.source {
            Source::Device(device) => device.more().await,
            Source::File(file) => file.more().await,
        }
    }
}

impl Device {
    fn read(&mut self) -> io::Result<Option<String>> {
        loop {
            match rustix::io::read(self.descriptor.get_ref(), &mut *self.buffer) {
                // No device ends; what does is no log.
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => {
                    return Ok(Some(String::from_utf8_lossy(&self.buffer[..length]).into_owned()));
                }
                Err(Errno::AGAIN) => return Ok(None),
                // Some records were overwritten before they were read, or one is too long: the next read
                // gives the one after.
                Err(Errno::PIPE | Errno::INVAL | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn more(&self) -> io::Result<()> {
        let mut ready = self.descriptor.readable().await?;
        ready.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
