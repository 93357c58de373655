//! What Kerf keeps on disk: a record for each claim, the numbers of GPUs, the choice of a configuration,
//! and the CDI files.
//!
//! Files are replaced as a whole, by rename, so that neither a crash nor a reader ever sees half of
//! one. Nothing is synced: what records describe does not outlive a boot either.

mod predecessor;
mod unread;

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use thiserror::Error;

pub use self::predecessor::Predecessor;
use crate::model::{
    cdi::{self, Spec},
    gpu::{Gpu, GpuUuid},
    health::Saved,
    holder::Holder,
    plugin::choice::Remembered,
    record::Record,
    unread::{Told, Unread},
};
use crate::node::kernel_log::Entry;

/// Records name what users run; CDI files are read by runtimes that may not be root.
const RECORD_MODE: u32 = 0o600;
const SPEC_MODE: u32 = 0o644;

/// Folders of records.
const CLAIMS: &str = "claims";
const CONTAINERS: &str = "containers";

/// The file of [`Numbers`].
const NUMBERS: &str = "names.json";
/// The file of [`Remembered`].
const CHOICE: &str = "plugin-config.json";
/// The file of [`Kept`].
const HEALTH: &str = "health.json";

/// Longer UIDs would make file names that not every file system takes.
const LONGEST_UID: usize = 128;

type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something could not be kept, found or taken away.
#[derive(Debug, Error)]
pub enum Error {
    /// The file system said no.
    #[error("cannot {operation} `{}`", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A UID that cannot be part of a file name, and which no API server makes.
    #[error("`{uid}` is neither UID of a claim nor ID of a device")]
    Uid {
        /// As it came.
        uid: String,
    },
    /// A value that does not become JSON.
    #[error("cannot encode `{}`", path.display())]
    Encode {
        /// The file that it was for.
        path: PathBuf,
        /// The encoder's answer.
        source: serde_json::Error,
    },
    /// A CDI document that runtimes would not read.
    #[error("cannot write `{}`: the document is not valid CDI", path.display())]
    Spec {
        /// The file that it was for.
        path: PathBuf,
        /// The rule that it breaks.
        source: cdi::Invalid,
    },
}

impl Error {
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { operation, path: path.to_owned(), source }
    }
}

/// A file that could not be read as what it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now.
    pub path: PathBuf,
    /// What is wrong with it, in one line.
    pub reason: String,
}

/// The N of `gpu-N` for each GPU, which must not change while the machine is up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Numbers {
    /// The boot for which they hold.
    pub boot_id: String,
    /// Numbers by GPU.
    pub gpus: BTreeMap<GpuUuid, u32>,
    /// The GPUs as they were read: one that is lost does not even say which it is.
    #[serde(default)]
    pub described: Vec<Gpu>,
}

/// What is known of the GPUs' health.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// What is wrong, and what has ended not long ago.
    pub health: Saved,
    /// How far the kernel's log was read, by the time since the boot: what earlier versions go by.
    pub log_read: Duration,
    /// How far it was read, by the number of the record; earlier versions did not write it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_sequence: Option<u64>,
}

impl Kept {
    /// Whether a record of the kernel's log was taken in by an agent before. Times tell only where there is no
    /// number: two records may have the same. What comes while the log is read is new.
    pub fn has_read(&self, entry: &Entry) -> bool {
        entry.history
            && match self.log_sequence {
                Some(sequence) => entry.sequence <= sequence,
                None => entry.since_boot <= self.log_read,
            }
    }

    /// Notes that a record was taken in.
    pub fn note_read(&mut self, entry: &Entry) {
        self.log_read = self.log_read.max(entry.since_boot);
        self.log_sequence = Some(entry.sequence);
    }
}

/// The directories that Kerf writes to. One agent at a time may do so.
#[derive(Clone, Debug)]
pub struct Store {
    claims: PathBuf,
    containers: PathBuf,
    locks: PathBuf,
    numbers: PathBuf,
    choice: PathBuf,
    health: PathBuf,
    cdi: PathBuf,
}

impl Store {
    /// Makes the directories that are not there yet.
    pub fn open(state_dir: &Path, cdi_root: &Path) -> Result<Self> {
        let claims = state_dir.join(CLAIMS);
        let containers = state_dir.join(CONTAINERS);
        let locks = state_dir.join("locks");
        for dir in [state_dir, &containers, &locks, cdi_root] {
            fs::create_dir_all(dir).map_err(Error::file("make the directory", dir))?;
        }
        let [numbers, choice, health] = [NUMBERS, CHOICE, HEALTH].map(|name| state_dir.join(name));
        let cdi = cdi_root.to_owned();
        let store = Self { claims, containers, locks, numbers, choice, health, cdi };
        store.make_claims()?;
        Ok(store)
    }

    /// All records, those of claims first, in the order of their keys, and those that cannot be read,
    /// which stay where they are. What an agent that was killed left of files that it was writing is
    /// removed.
    pub fn records(&self) -> Result<(Vec<Record>, Vec<Unread>)> {
        remove_stale(&self.claims, |_| true)?;
        remove_stale(&self.containers, |_| true)?;
        remove_stale(&self.cdi, |name| {
            let of_claim = cdi::claim_of_file(name).or(cdi::claim_of_predecessors_file(name));
            of_claim.is_some() || name == cdi::PLUGIN_FILE
        })?;
        self.remove_stale_notes()?;
        let (mut records, mut unread) = read_records(&self.claims, unread::of_claim)?;
        for claim in &mut unread {
            claim.told = self.told_by_spec(claim.holder.key());
        }
        let of_containers = read_records(&self.containers, unread::of_container)?;
        records.extend(of_containers.0);
        unread.extend(of_containers.1);
        Ok((records, unread))
    }

    /// Writes a record.
    pub fn save(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.plan.holder)?;
        let bytes = encode(&path, record)?;
        write_again(&path, &bytes, RECORD_MODE)
    }

    /// Removes a holder's record, if there is one.
    pub fn forget(&self, holder: &Holder) -> Result<()> {
        remove(&self.record_path(holder)?)
    }

    /// Writes a claim's CDI file, if runtimes would read it.
    pub fn write_spec(&self, uid: &str, spec: &Spec) -> Result<()> {
        let path = self.spec_path(uid)?;
        write_again(&path, &encode_spec(&path, spec)?, SPEC_MODE)
    }

    /// Whether a claim's CDI file is there.
    pub fn has_spec(&self, uid: &str) -> Result<bool> {
        let path = self.spec_path(uid)?;
        match fs::symlink_metadata(&path) {
            Ok(metadata) => Ok(metadata.is_file()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::file("look at", &path)(error)),
        }
    }

    /// Removes a claim's CDI file, if there is one.
    pub fn remove_spec(&self, uid: &str) -> Result<()> {
        remove(&self.spec_path(uid)?)
    }

    /// The claims whose CDI files are there, in order; files of others are not looked at.
    pub fn spec_uids(&self) -> Result<Vec<String>> {
        let names = names(&self.cdi)?;
        let uids = names.iter().filter_map(|name| cdi::claim_of_file(name));
        Ok(uids.filter(|uid| is_uid(uid)).map(str::to_owned).collect())
    }

    /// Writes the CDI file of the device plugin, if runtimes would read it and it says something else now.
    pub fn write_plugin_spec(&self, spec: &Spec) -> Result<()> {
        let path = self.cdi.join(cdi::PLUGIN_FILE);
        let bytes = encode_spec(&path, spec)?;
        match fs::read(&path) {
            Ok(found) if found == bytes => Ok(()),
            _ => write_again(&path, &bytes, SPEC_MODE),
        }
    }

    /// Removes the CDI file of the device plugin, if there is one.
    pub fn remove_plugin_spec(&self) -> Result<()> {
        remove(&self.cdi.join(cdi::PLUGIN_FILE))
    }

    /// The numbers of GPUs as last saved; none before that. A file that cannot be read is renamed.
    pub fn numbers(&self) -> Result<(Numbers, Option<SetAside>)> {
        let (numbers, unreadable) = read_or_set_aside(&self.numbers)?;
        Ok((numbers.unwrap_or_default(), unreadable))
    }

    /// Writes the numbers of GPUs.
    pub fn save_numbers(&self, numbers: &Numbers) -> Result<()> {
        let bytes = encode(&self.numbers, numbers)?;
        write_again(&self.numbers, &bytes, RECORD_MODE)
    }

    /// The configuration that was chosen last, if one was. A file that cannot be read is renamed.
    pub fn choice(&self) -> Result<(Option<Remembered>, Option<SetAside>)> {
        read_or_set_aside(&self.choice)
    }

    /// Writes which configuration is chosen.
    pub fn save_choice(&self, choice: &Remembered) -> Result<()> {
        write_again(&self.choice, &encode(&self.choice, choice)?, RECORD_MODE)
    }

    /// What was last known of the GPUs' health. A file that cannot be read is renamed.
    pub fn health(&self) -> Result<(Option<Kept>, Option<SetAside>)> {
        read_or_set_aside(&self.health)
    }

    /// Writes what is known of the GPUs' health.
    pub fn save_health(&self, kept: &Kept) -> Result<()> {
        write_again(&self.health, &encode(&self.health, kept)?, RECORD_MODE)
    }

    /// The file that is locked while a GPU is changed.
    pub fn gpu_lock(&self, gpu: &GpuUuid) -> PathBuf {
        self.locks.join(&gpu.0)
    }

    fn record_path(&self, holder: &Holder) -> Result<PathBuf> {
        let dir = match holder {
            Holder::Claim(_) => &self.claims,
            Holder::Container(_) => &self.containers,
        };
        Ok(dir.join(format!("{}.json", checked(holder.key())?)))
    }

    fn spec_path(&self, uid: &str) -> Result<PathBuf> {
        Ok(self.cdi.join(cdi::file_name(checked(uid)?)))
    }
}

/// All records below an agent's data directory, and what cannot be read as such, for those who only
/// want to look: nothing is changed, and an agent may be writing at the same time.
pub fn look(state_dir: &Path) -> Result<(Vec<Record>, Vec<Unread>)> {
    let (mut records, mut unread) = read_records(&state_dir.join(CLAIMS), unread::of_claim)?;
    let of_containers = read_records(&state_dir.join(CONTAINERS), unread::of_container)?;
    records.extend(of_containers.0);
    unread.extend(of_containers.1);
    Ok((records, unread))
}

/// The numbers of GPUs below an agent's data directory, for those who only want to look; none where
/// there are none that can be read.
pub fn look_at_numbers(state_dir: &Path) -> Result<Numbers> {
    let numbers = read_json(&state_dir.join(NUMBERS))?;
    Ok(numbers.and_then(|numbers| numbers.ok()).unwrap_or_default())
}

/// Replaces a file as a whole: a reader sees what was there before or all of this, whenever the
/// writer dies. A directory that is gone is not made again.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let (temporary, file) = open_temporary(path)?;
    let written = fill(file, bytes, mode)
        .map_err(Error::file("write", &temporary))
        .and_then(|()| fs::rename(&temporary, path).map_err(Error::file("replace", path)));
    if written.is_err() {
        // The first error is the one to tell; what is left over goes with the next start.
        _ = fs::remove_file(&temporary);
    }
    written
}

/// A new file beside `path`, whose name begins with a dot and ends in `.tmp`: no runtime reads it.
fn open_temporary(path: &Path) -> Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().display();
    loop {
        // A process in a container often has the same id as the one before, and may find its files.
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{}-{count}.tmp", process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::file("write", path)(error)),
        }
    }
}

fn fill(mut file: File, bytes: &[u8], mode: u32) -> io::Result<()> {
    file.write_all(bytes)?;
    // Not left to `open`, which heeds the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))
}

/// As [`write_atomic`], and makes the directory if someone took it away: `/run` is emptied by some.
fn write_again(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    match (write_atomic(path, bytes, mode), path.parent()) {
        (Err(Error::File { source, .. }), Some(dir))
            if source.kind() == io::ErrorKind::NotFound =>
        {
            fs::create_dir_all(dir).map_err(Error::file("make the directory", dir))?;
            write_atomic(path, bytes, mode)
        }
        (written, _) => written,
    }
}

fn encode(path: &Path, value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|source| Error::Encode { path: path.to_owned(), source })
}

fn encode_spec(path: &Path, spec: &Spec) -> Result<Vec<u8>> {
    match spec.validate() {
        Ok(()) => encode(path, spec),
        Err(source) => Err(Error::Spec { path: path.to_owned(), source }),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// Keys come from outside and become names of files: letters, digits, `-`, `_`, `.` and `:`, first of them
/// a letter or digit, which leaves no way out of a directory and no hidden file.
fn checked(uid: &str) -> Result<&str> {
    if is_uid(uid) { Ok(uid) } else { Err(Error::Uid { uid: uid.to_owned() }) }
}

fn is_uid(uid: &str) -> bool {
    uid.len() <= LONGEST_UID
        && uid.starts_with(|c: char| c.is_ascii_alphanumeric())
        && uid.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:".contains(c))
}

/// Names of the files in a directory, in order; of one that is not there, none.
fn names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries.map_err(Error::file("list", dir))?,
    };
    for entry in entries {
        let name = entry.map_err(Error::file("list", dir))?.file_name();
        // A name that is not UTF-8 is none that Kerf gave.
        names.extend(name.into_string());
    }
    names.sort();
    Ok(names)
}

/// The records in a directory. Names of files that are none of a record are not looked at.
fn read_records(dir: &Path, holder: fn(&str) -> Holder) -> Result<(Vec<Record>, Vec<Unread>)> {
    let (mut records, mut unread) = (Vec::new(), Vec::new());
    for name in names(dir)? {
        let Some(key) = name.strip_suffix(".json").filter(|key| is_uid(key)) else { continue };
        let path = dir.join(&name);
        match read_record(&path, key)? {
            Some(Ok(record)) => records.push(record),
            Some(Err(reason)) => {
                let (holder, file) = (holder(key), path.display().to_string());
                unread.push(Unread { holder, file, reason, told: None });
            }
            None => {}
        }
    }
    Ok((records, unread))
}

/// The record in a file, or what is wrong with it; `None` if there is no file.
fn read_record(path: &Path, key: &str) -> Result<Option<Result<Record, String>>> {
    let read = read_json::<Record>(path)?;
    Ok(read.map(|record| match record {
        Ok(record) if record.plan.holder.key() == key => Ok(record),
        Ok(record) => Err(format!("it is of `{}`", record.plan.holder.key())),
        Err(reason) => Err(reason),
    }))
}

/// The value in a file, or what is wrong with the file; `None` if there is none.
fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<Result<T, String>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| error.to_string()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Not the file's fault, and true of the next one as well.
        Err(error) if is_shortage(&error) => Err(Error::file("read", path)(error)),
        Err(error) => Ok(Some(Err(error.to_string()))),
    }
}

/// The value in a file, if there is one; a file that cannot be read is renamed.
fn read_or_set_aside<T: DeserializeOwned>(path: &Path) -> Result<(Option<T>, Option<SetAside>)> {
    match read_json(path)? {
        None => Ok((None, None)),
        Some(Ok(value)) => Ok((Some(value), None)),
        Some(Err(reason)) => Ok((None, Some(SetAside { path: set_aside(path)?, reason }))),
    }
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let number = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(number, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::INTR))
}

/// Renames a file to `<name>.unreadable-<n>`, with the first number that is free.
fn set_aside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().unwrap_or_default().display();
    let mut numbered = (1u32..).map(|n| path.with_file_name(format!("{name}.unreadable-{n}")));
    let free = numbered.find(|path| fs::symlink_metadata(path).is_err());
    let free = free.unwrap_or_else(|| path.to_owned());
    fs::rename(path, &free).map_err(Error::file("rename", path))?;
    Ok(free)
}

/// Removes temporary files of [`write_atomic`] that were to become files of such names.
fn remove_stale(dir: &Path, ours: impl Fn(&str) -> bool) -> Result<()> {
    for name in names(dir)? {
        let inner = name.strip_prefix('.').and_then(|name| name.strip_suffix(".tmp"));
        let target = inner.and_then(|inner| inner.rsplit_once('.')).map(|(target, _)| target);
        if target.is_some_and(&ours) {
            remove(&dir.join(&name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
