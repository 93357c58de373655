//! Which sockets come and go in `plugins_registry`, as the kubelet's plugin watcher sees it:
//! recursively, names with a leading dot and other files ignored, a name that appears again is new.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::fd::pollable;

/// A change of one socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It was made, or moved here.
    Appeared(PathBuf),
    /// It was removed. Moving it away is not a removal for the kubelet either.
    Removed(PathBuf),
}

/// An inotify instance on a directory and those below it.
#[derive(Debug)]
pub(super) struct Sockets {
    fd: AsyncFd<OwnedFd>,
    folders: BTreeMap<i32, PathBuf>,
}

struct Raw {
    folder: i32,
    flags: ReadFlags,
    name: PathBuf,
}

impl Sockets {
    /// Starts to watch; the sockets that are there already come with it.
    pub(super) fn watch(dir: &Path) -> io::Result<(Self, Vec<PathBuf>)> {
        let fd = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut sockets = Self { fd: pollable(fd)?, folders: BTreeMap::new() };
        let mut found = sockets.scan(dir)?;
        // What was made between the watch and the scan would be seen twice.
        for change in sockets.changes_until_now()? {
            match change {
                Change::Appeared(path) if found.contains(&path) => {}
                Change::Appeared(path) => found.push(path),
                Change::Removed(path) => found.retain(|known| *known != path),
            }
        }
        Ok((sockets, found))
    }

    /// The next changes, in order; at least one.
    pub(super) async fn next(&mut self) -> io::Result<Vec<Change>> {
        loop {
            let raw = {
                let mut ready = self.fd.readable().await?;
                match ready.try_io(|fd| read(fd.get_ref())) {
                    Ok(raw) => raw?,
                    Err(_would_block) => continue,
                }
            };
            let changes = self.changes(raw);
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }

    fn changes_until_now(&mut self) -> io::Result<Vec<Change>> {
        match read(self.fd.get_ref()) {
            Ok(raw) => Ok(self.changes(raw)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(vec![]),
            Err(error) => Err(error),
        }
    }

    fn changes(&mut self, raw: Vec<Raw>) -> Vec<Change> {
        let mut changes = vec![];
        for Raw { folder, flags, name } in raw {
            let Some(folder) = self.folders.get(&folder) else { continue };
            let path = folder.join(&name);
            if flags.intersects(ReadFlags::DELETE) {
                changes.push(Change::Removed(path));
            } else if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) {
                changes.extend(self.look(&path).into_iter().map(Change::Appeared));
            }
        }
        changes
    }

    /// The sockets at or below a path; none when it is gone again, or is nothing of ours.
    fn look(&mut self, path: &Path) -> Vec<PathBuf> {
        let hidden = path.file_name().is_none_or(|name| name.as_bytes().starts_with(b"."));
        match path.metadata() {
            Ok(_) if hidden => vec![],
            Ok(file) if file.file_type().is_socket() => vec![path.to_path_buf()],
            Ok(file) if file.is_dir() => self.scan(path).unwrap_or_default(),
            _ => vec![],
        }
    }

    fn scan(&mut self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::DELETE;
        let watch = inotify::add_watch(self.fd.get_ref(), dir, flags)?;
        self.folders.insert(watch, dir.to_path_buf());
        let mut found = vec![];
        for entry in dir.read_dir()? {
            found.extend(self.look(&entry?.path()));
        }
        Ok(found)
    }
}

fn read(fd: &OwnedFd) -> io::Result<Vec<Raw>> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = Reader::new(fd.as_fd(), &mut buffer);
    let mut events = vec![];
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map_or(&[][..], |name| name.to_bytes());
                let name = PathBuf::from(OsStr::from_bytes(name));
                events.push(Raw { folder: event.wd(), flags: event.events(), name });
            }
            Err(Errno::AGAIN) if !events.is_empty() => return Ok(events),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn sockets_come_and_go_in_order_and_below() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _there = UnixListener::bind(path("there.sock")).unwrap();
        let _hidden = UnixListener::bind(path(".hidden.sock")).unwrap();
        let (mut sockets, found) = Sockets::watch(dir.path()).unwrap();
        assert_eq!(found, [path("there.sock")]);

        fs::File::create(path("plain")).unwrap();
        let _new = UnixListener::bind(path("new.sock")).unwrap();
        fs::remove_file(path("there.sock")).unwrap();
        let _again = UnixListener::bind(path("there.sock")).unwrap();
        fs::rename(path(".hidden.sock"), path("shown.sock")).unwrap();
        assert_eq!(
            sockets.next().await.unwrap(),
            [
                Change::Appeared(path("new.sock")),
                Change::Removed(path("there.sock")),
                Change::Appeared(path("there.sock")),
                Change::Appeared(path("shown.sock")),
            ]
        );

        fs::create_dir(path("sub")).unwrap();
        let _below = UnixListener::bind(path("sub/below.sock")).unwrap();
        assert_eq!(sockets.next().await.unwrap(), [Change::Appeared(path("sub/below.sock"))]);
    }
}
