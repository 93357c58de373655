//! A value in a file that processes share: a look costs one `pread` while nobody has changed it, a
//! change is one `pwrite` under a lock, so that whoever is killed leaves the old or the new value. The
//! file is never replaced: it may have other names, and be mounted elsewhere by itself.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::fs::{
    FlockOperation, flock,
    inotify::{self, WatchFlags},
};
use serde::{Serialize, de::DeserializeOwned};

/// Generation and length, little-endian, before the JSON text.
const HEADER: usize = 16;

/// The value, as this process last saw it, and its file.
pub(crate) struct Cell<T> {
    file: File,
    seen: Mutex<Option<(u64, Arc<T>)>>,
    /// Threads of one process share the file's lock, so they take turns here.
    turn: Mutex<()>,
}

impl<T: Serialize + DeserializeOwned + Clone + PartialEq> Cell<T> {
    /// Makes the file, in place of any that is there.
    pub(crate) fn create(path: &Path, value: &T) -> io::Result<Self> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(true).clone();
        let cell = Self::of(options.open(path)?);
        cell.write(1, value)?;
        Ok(cell)
    }

    /// The value of a file that exists.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(OpenOptions::new().read(true).write(true).open(path)?))
    }

    /// The same, for who may not change it.
    pub(crate) fn open_to_read(path: &Path) -> io::Result<Self> {
        Ok(Self::of(File::open(path)?))
    }

    fn of(file: File) -> Self {
        Self { file, seen: Mutex::new(None), turn: Mutex::new(()) }
    }

    /// The value as it is now.
    pub(crate) fn read(&self) -> io::Result<Arc<T>> {
        let mut generation = [0; 8];
        self.file.read_exact_at(&mut generation, 0)?;
        if let Some(value) = self.known(u64::from_le_bytes(generation)) {
            return Ok(value);
        }
        let _turn = locked(&self.turn);
        let _lock = FileLock::take(&self.file, FlockOperation::LockShared)?;
        Ok(self.load()?.1)
    }

    /// Has an inotify descriptor tell of each change. The file may be mounted by itself, so this one is named,
    /// not its path.
    pub(crate) fn tell(&self, changes: &OwnedFd) -> io::Result<()> {
        let file = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        inotify::add_watch(changes, file, WatchFlags::MODIFY)?;
        Ok(())
    }

    /// Changes the value. `change` works on a copy and leaves all as it is with an error; `settle` is
    /// given the old and the new value, still under the lock, after a change is written.
    pub(crate) fn update<R, E: From<io::Error>>(
        &self,
        change: impl FnOnce(&mut T) -> Result<R, E>,
        settle: impl FnOnce(&T, &T) -> io::Result<()>,
    ) -> Result<R, E> {
        let _turn = locked(&self.turn);
        let _lock = FileLock::take(&self.file, FlockOperation::LockExclusive)?;
        let (generation, old) = self.load()?;
        let mut new = T::clone(&old);
        let result = change(&mut new)?;
        if new != *old {
            self.write(generation + 1, &new)?;
            settle(&old, &new)?;
        }
        Ok(result)
    }

    fn known(&self, generation: u64) -> Option<Arc<T>> {
        let seen = locked(&self.seen);
        seen.as_ref().filter(|(at, _)| *at == generation).map(|(_, value)| Arc::clone(value))
    }

    /// The value, while no other writes it.
    fn load(&self) -> io::Result<(u64, Arc<T>)> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, 0)?;
        let (generation, length) = numbers(header);
        if let Some(value) = self.known(generation) {
            return Ok((generation, value));
        }
        let mut text = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut text, HEADER as u64)?;
        let value: Arc<T> = Arc::new(serde_json::from_slice(&text)?);
        *locked(&self.seen) = Some((generation, Arc::clone(&value)));
        Ok((generation, value))
    }

    fn write(&self, generation: u64, value: &T) -> io::Result<()> {
        let mut bytes = vec![0; HEADER];
        serde_json::to_writer(&mut bytes, value)?;
        let length = (bytes.len() - HEADER) as u64;
        bytes[..8].copy_from_slice(&generation.to_le_bytes());
        bytes[8..HEADER].copy_from_slice(&length.to_le_bytes());
        self.file.write_all_at(&bytes, 0)?;
        *locked(&self.seen) = Some((generation, Arc::new(value.clone())));
        Ok(())
    }
}

fn numbers(header: [u8; HEADER]) -> (u64, u64) {
    let (mut generation, mut length) = ([0; 8], [0; 8]);
    generation.copy_from_slice(&header[..8]);
    length.copy_from_slice(&header[8..]);
    (u64::from_le_bytes(generation), u64::from_le_bytes(length))
}

/// The guard; a thread that panicked while it held one has left a whole value.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A lock on a file, until it is dropped.
struct FileLock<'f>(&'f File);

impl<'f> FileLock<'f> {
    fn take(file: &'f File, how: FlockOperation) -> io::Result<Self> {
        while let Err(error) = flock(file, how) {
            if error != rustix::io::Errno::INTR {
                return Err(error.into());
            }
        }
        Ok(Self(file))
    }
}

impl Drop for FileLock<'_> {
    fn drop(&mut self) {
        // Closing the file would do it too; unlocking what is locked does not fail.
        let _ = flock(self.0, FlockOperation::Unlock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit<T: Serialize + DeserializeOwned + Clone + PartialEq>(
        cell: &Cell<T>,
        change: impl FnOnce(&mut T),
    ) {
        let change = |value: &mut T| {
            change(value);
            Ok::<_, io::Error>(())
        };
        cell.update(change, |_, _| Ok(())).unwrap();
    }

    #[test]
    fn two_openings_see_each_others_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cell");
        let one = Cell::create(&path, &vec![1]).unwrap();
        let two = Cell::<Vec<u32>>::open(&path).unwrap();
        edit(&two, |value| value.push(2));
        edit(&one, |value| *value = Vec::new());
        edit(&one, |value| value.push(3));
        assert_eq!(*two.read().unwrap(), [3]);
    }

    #[test]
    fn an_error_leaves_the_value() {
        let dir = tempfile::tempdir().unwrap();
        let cell = Cell::create(&dir.path().join("cell"), &1).unwrap();
        let change = |value: &mut u32| {
            *value = 2;
            Err::<(), _>(io::Error::other("no"))
        };
        assert!(cell.update(change, |_, _| Ok(())).is_err());
        assert_eq!(*cell.read().unwrap(), 1);
    }

    #[test]
    fn threads_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cell");
        let cells = [Cell::create(&path, &0_u32).unwrap(), Cell::open(&path).unwrap()];
        let add = |cell: &Cell<u32>| (0..100).for_each(|_| edit(cell, |value| *value += 1));
        std::thread::scope(|scope| {
            for turn in 0..4 {
                let cell = &cells[turn % 2];
                scope.spawn(move || add(cell));
            }
        });
        assert_eq!(*cells[0].read().unwrap(), 400);
    }
}
