//! What changes in a directory, as the kernel tells it.
#![expect(unsafe_code, reason = "tokio takes descriptors of others only on trust")]

use std::{
    collections::VecDeque,
    ffi::{CStr, OsString},
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Holds many events; one is a name and 16 bytes.
const BUFFER: usize = 4096;

/// A change in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// An entry was made or moved in.
    Appeared(OsString),
    /// A file that was open for writing was closed.
    Written(OsString),
    /// An entry's mode, owner, times or links changed.
    Touched(OsString),
    /// An entry was deleted or moved out.
    Vanished(OsString),
    /// Some changes came too fast and are not told: whoever listens has to look himself.
    Missed,
    /// The directory itself was deleted, moved or unmounted; nothing more is told.
    Gone,
}

/// The changes of one directory from a moment on. What the directory held then has to be read after that.
#[derive(Debug)]
pub struct Changes {
    inotify: AsyncFd<OwnedFd>,
    told: VecDeque<Change>,
}

impl Changes {
    /// Begins to listen.
    ///
    /// # Errors
    /// There is no such directory, or the user has no inotify instance or watch left.
    pub fn of(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let flags = WatchFlags::ONLYDIR
            | WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF;
        inotify::add_watch(&inotify, dir, flags)?;
        Ok(Self { inotify: readable(inotify)?, told: VecDeque::new() })
    }

    /// The next change. Nothing is lost when this is dropped before it returns.
    ///
    /// # Errors
    /// The kernel does not tell any more.
    pub async fn next(&mut self) -> io::Result<Change> {
        loop {
            if let Some(change) = self.told.pop_front() {
                return Ok(change);
            }
            let mut ready = self.inotify.readable().await?;
            if let Ok(read) = ready.try_io(|inotify| read(inotify.get_ref())) {
                self.told.extend(read?);
            }
        }
    }
}

/// A descriptor that does not block, to be read when there is something to read.
///
/// # Errors
/// It is of a kind that the kernel does not watch, such as a plain file.
pub(super) fn readable(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is ours alone and stays in its owner, which `AsyncFd` keeps.
    Ok(unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }?)
}

/// What is there to read now; all of it, so that none stays behind in the buffer.
fn read(inotify: impl AsFd) -> io::Result<Vec<Change>> {
    let mut buffer = [MaybeUninit::uninit(); BUFFER];
    let mut reader = Reader::new(inotify, &mut buffer);
    let mut changes = Vec::new();
    loop {
        match reader.next() {
            Ok(event) => changes.extend(change(event.events(), event.file_name())),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        if reader.is_buffer_empty() {
            return Ok(changes);
        }
    }
}

fn change(events: ReadFlags, name: Option<&CStr>) -> Option<Change> {
    if events.contains(ReadFlags::QUEUE_OVERFLOW) {
        return Some(Change::Missed);
    }
    let gone =
        ReadFlags::IGNORED | ReadFlags::UNMOUNT | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF;
    if events.intersects(gone) {
        return Some(Change::Gone);
    }
    // Without a name it is the directory's own mode or links.
    let name = OsString::from_vec(name?.to_bytes().to_owned());
    let of = [
        (ReadFlags::CREATE | ReadFlags::MOVED_TO, Change::Appeared as fn(OsString) -> Change),
        (ReadFlags::CLOSE_WRITE, Change::Written),
        (ReadFlags::ATTRIB, Change::Touched),
        (ReadFlags::DELETE | ReadFlags::MOVED_FROM, Change::Vanished),
    ];
    of.into_iter().find(|(flags, _)| events.intersects(*flags)).map(|(_, make)| make(name))
}

#[cfg(test)]
mod tests;
