//! A file that stands for a kernel's log: it grows by lines, and a boot may put another in its place.

use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Read, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::node::watch::{Change, Changes};

/// How much is read at a time.
const PIECE: usize = 8192;

/// The lines of a file, as it grows. Whoever writes has to close it to be seen.
#[derive(Debug)]
pub(super) struct Follow {
    path: PathBuf,
    name: OsString,
    changes: Changes,
    file: File,
    /// What was read and not given out, with a last line that may have no end yet.
    read: Vec<u8>,
}

impl Follow {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // First, so that no change is missed.
        let changes = Changes::of(dir)?;
        let (name, file) = (name.to_owned(), File::open(&path)?);
        Ok(Self { name, changes, file, read: Vec::new(), path })
    }

    /// The next line; `None` when there is no further one yet.
    pub(super) fn read(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.read.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let mut piece = [0; PIECE];
            match self.file.read(&mut piece) {
                Ok(0) if self.begins_anew()? => self.read.clear(),
                Ok(0) => return Ok(None),
                Ok(length) => self.read.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Turns to the file's new beginning, if it was replaced or cut short.
    fn begins_anew(&mut self) -> io::Result<bool> {
        let mine = self.file.metadata()?;
        let now = match fs::metadata(&self.path) {
            Ok(now) => now,
            // It is being replaced.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if (now.dev(), now.ino()) != (mine.dev(), mine.ino()) {
            self.file = File::open(&self.path)?;
            return Ok(true);
        }
        let cut = mine.len() < self.file.stream_position()?;
        if cut {
            self.file.rewind()?;
        }
        Ok(cut)
    }

    /// Returns when the file has changed.
    pub(super) async fn more(&mut self) -> io::Result<()> {
        loop {
            match self.changes.next().await? {
                Change::Appeared(name) | Change::Written(name) if name == self.name => {
                    return Ok(());
                }
                Change::Missed => return Ok(()),
                Change::Gone => return Err(io::ErrorKind::NotFound.into()),
                _ => {}
            }
        }
    }
}
