//! The container's root, to which whatever is in the image is confined.
//!
//! Every path is resolved by the kernel below an open directory (`openat2` with `RESOLVE_IN_ROOT` and
//! `RESOLVE_NO_MAGICLINKS`): links and `..` end at the root whatever others do to the image meanwhile.
//! What is changed is a name in an open directory, never a path, and a link of that name is replaced
//! and not followed. Files are looked at before they are opened, so that no device or pipe ever is, and
//! nothing of the kernel's own file systems, which are mounted in a container too. Text that is copied has to be
//! for everybody to read, or an image's link could have it copied out of a volume.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use anyhow::{Context, bail, ensure};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fchmod, fstat, mkdirat, openat,
        openat2, readlinkat, renameat, symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::kernel;

/// How often the kernel may say that somebody was moving directories meanwhile.
const ATTEMPTS: u32 = 100;
/// More files than any directory of libraries has.
const MOST_FILES: usize = 1 << 16;

/// The container's root.
pub(crate) struct Root(OwnedFd);

/// A directory in the container.
pub(crate) struct Directory {
    fd: OwnedFd,
    /// By which path it was found, as the container sees it.
    path: PathBuf,
}

/// A file as it stands in a directory.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) is_link: bool,
}

impl Root {
    /// The directory at a path of the host.
    ///
    /// # Errors
    /// It is no directory, is the host's own root, or the kernel has no `openat2`.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path: &Path| openat2(CWD, path, flags, Mode::empty(), ResolveFlags::empty());
        let root = match open(path) {
            Err(Errno::NOSYS) => bail!(
                "this kernel has no `openat2`, without which links in an image may lead out of it: \
                 use Linux 5.6 or later, or run `kerf node` with `--no-cdi-hooks`"
            ),
            root => root.with_context(|| format!("cannot open the root `{}`", path.display()))?,
        };
        let is_hosts = is_same(&root, &open(Path::new("/"))?);
        ensure!(!is_hosts, "`{}` is the host's own root: nothing is changed", path.display());
        Ok(Self(root))
    }

    /// A directory; `None` if there is nothing.
    ///
    /// # Errors
    /// There is something else, or a link that leads nowhere allowed.
    pub(crate) fn directory(&self, path: &Path) -> anyhow::Result<Option<Directory>> {
        let found = self.look(path, OFlags::DIRECTORY).map_err(in_container("open", path))?;
        Ok(found.map(|fd| Directory { fd, path: path.to_owned() }))
    }

    /// A directory, made where there is none, with those above it.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn make_directory(&self, path: &Path) -> anyhow::Result<Directory> {
        if let Some(found) = self.directory(path)? {
            return Ok(found);
        }
        let (parent, name) = self.make_parent(path)?;
        kernel::refuse(&parent.fd, &parent.path)?;
        match mkdirat(&parent.fd, name, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(in_container("make", path)(error)),
        }
        let made = self.directory(path)?;
        made.with_context(|| {
            format!("`{}` in the container is a link that leads nowhere", path.display())
        })
    }

    /// The directory of a path, made where there is none, and the last part of the path.
    ///
    /// # Errors
    /// It cannot be made, or the path ends in no name.
    pub(crate) fn make_parent<'p>(&self, path: &'p Path) -> anyhow::Result<(Directory, &'p str)> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("`{}` ends in no name", path.display()))?;
        let parent = path.parent().filter(|parent| *parent != Path::new(""));
        let parent = parent.unwrap_or(Path::new("/"));
        Ok((self.make_directory(parent)?, name))
    }

    /// A regular file, opened to be read; `None` if there is nothing.
    ///
    /// # Errors
    /// There is something else, or it is the kernel's, or it cannot be opened.
    pub(crate) fn file(&self, path: &Path) -> anyhow::Result<Option<File>> {
        let Some(found) = self.regular(path)? else { return Ok(None) };
        kernel::refuse(&found, path)?;
        reopen(&found, path).map(Some)
    }

    /// The content of a file that the kernel shows in procfs; `None` if there is nothing.
    ///
    /// # Errors
    /// As for [`Root::read`].
    pub(crate) fn read_procfs(&self, path: &Path, limit: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(found) = self.regular(path)? else { return Ok(None) };
        content(reopen(&found, path)?, path, limit).map(Some)
    }

    fn regular(&self, path: &Path) -> anyhow::Result<Option<OwnedFd>> {
        let Some(found) = self.found(path)? else { return Ok(None) };
        let kind = FileType::from_raw_mode(fstat(&found)?.st_mode);
        ensure!(kind.is_file(), "`{}` in the container is not a file", path.display());
        Ok(Some(found))
    }
    /// The content of a regular file; `None` if there is nothing.
    ///
    /// # Errors
    /// There is something else, or more than `limit` bytes of it, or not everybody may read it, or it cannot
    /// be read.
    pub(crate) fn read(&self, path: &Path, limit: usize) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(file) = self.file(path)? else { return Ok(None) };
        content(file, path, limit).map(Some)
    }

    /// Whatever is at a path, not opened; `None` if there is nothing.
    ///
    /// # Errors
    /// The path leads through what is no directory, or through a link that may not be followed.
    pub(crate) fn found(&self, path: &Path) -> anyhow::Result<Option<OwnedFd>> {
        self.look(path, OFlags::empty()).map_err(in_container("open", path))
    }

    fn look(&self, path: &Path, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..ATTEMPTS {
            match openat2(&self.0, path, flags, Mode::empty(), resolve) {
                Ok(found) => return Ok(Some(found)),
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
        }
        Err(Errno::AGAIN)
    }
}

impl Directory {
    /// Whether both are one directory, by whatever paths they were found.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        is_same(&self.fd, &other.fd)
    }

    /// What is in it, in the order of names; names that are not UTF-8 are left out.
    ///
    /// # Errors
    /// It cannot be read, or has more in it than any real one.
    pub(crate) fn names(&self) -> anyhow::Result<Vec<Named>> {
        let fail = || in_container("list", &self.path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let listed = openat(&self.fd, ".", flags, Mode::empty()).and_then(Dir::new);
        let mut names = Vec::new();
        for entry in listed.map_err(fail())? {
            let entry = entry.map_err(fail())?;
            ensure!(names.len() < MOST_FILES, "`{}` has too many files", self.path.display());
            if let Ok(name) = entry.file_name().to_str() {
                let is_link = match entry.file_type() {
                    FileType::Unknown => self.link(name).is_some(),
                    kind => kind.is_symlink(),
                };
                names.push(Named { name: name.to_owned(), is_link });
            }
        }
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    /// What a link says; `None` if there is no link of this name.
    pub(crate) fn link(&self, name: &str) -> Option<Vec<u8>> {
        readlinkat(&self.fd, name, Vec::new()).ok().map(|target| target.into_bytes())
    }

    /// Puts a link in the place of whatever has this name.
    ///
    /// # Errors
    /// It cannot be made, or a directory has the name.
    pub(crate) fn put_link(&self, name: &str, target: &str) -> anyhow::Result<()> {
        kernel::refuse(&self.fd, &self.path)?;
        let path = self.path.join(name);
        let (temporary, ()) = self
            .temporary(|temporary| symlinkat(target, &self.fd, temporary))
            .map_err(in_container("make the link", &path))?;
        self.rename(&temporary, name)
    }

    /// Puts a file in the place of whatever has this name, for everybody to read.
    ///
    /// # Errors
    /// It cannot be written, or a directory has the name.
    pub(crate) fn put_file(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        kernel::refuse(&self.fd, &self.path)?;
        let path = self.path.join(name);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let create = |temporary: &str| openat(&self.fd, temporary, flags, Mode::RUSR);
        let (temporary, file) = self.temporary(create).map_err(in_container("write", &path))?;
        fill(file.into(), content).map_err(|error| {
            self.take_away(&temporary);
            in_container("write", &path)(error)
        })?;
        self.rename(&temporary, name)
    }

    /// Removes a file or link of this name, if there is one.
    ///
    /// # Errors
    /// It cannot be removed.
    pub(crate) fn remove(&self, name: &str) -> anyhow::Result<()> {
        kernel::refuse(&self.fd, &self.path)?;
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(in_container("remove", &self.path.join(name))(error)),
        }
    }

    /// Makes something under a name that nothing has yet.
    fn temporary<T>(&self, make: impl Fn(&str) -> Result<T, Errno>) -> Result<(String, T), Errno> {
        for attempt in 0..ATTEMPTS {
            let name = format!(".kerf-cdi-hook.{}.{attempt}", process::id());
            match make(&name) {
                Err(Errno::EXIST) => {}
                made => return made.map(|made| (name, made)),
            }
        }
        Err(Errno::EXIST)
    }

    fn rename(&self, temporary: &str, name: &str) -> anyhow::Result<()> {
        renameat(&self.fd, temporary, &self.fd, name).map_err(|error| {
            self.take_away(temporary);
            in_container("replace", &self.path.join(name))(error)
        })
    }

    /// As far as that is possible: what went wrong before is what is told.
    fn take_away(&self, name: &str) {
        let _ = unlinkat(&self.fd, name, AtFlags::empty());
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The same file again, and none that was put in its place; the host's procfs is still seen.
fn reopen(found: &OwnedFd, path: &Path) -> anyhow::Result<File> {
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(again, flags, Mode::empty());
    Ok(file.map_err(in_container("read", path))?.into())
}

/// All of a file that everybody may read, up to `limit` bytes.
fn content(file: File, path: &Path, limit: usize) -> anyhow::Result<Vec<u8>> {
    let mode = Mode::from_raw_mode(fstat(&file)?.st_mode);
    ensure!(
        mode.contains(Mode::ROTH),
        "`{}` in the container is not for all to read",
        path.display()
    );
    let mut bytes = Vec::new();
    let read = file.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(in_container("read", path))?;
    ensure!(bytes.len() <= limit, "`{}` in the container is too large", path.display());
    Ok(bytes)
}

fn is_same(a: &OwnedFd, b: &OwnedFd) -> bool {
    let id = |fd| fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    id(a).is_some() && id(a) == id(b)
}

fn fill(mut file: File, content: &[u8]) -> io::Result<()> {
    file.write_all(content)?;
    Ok(fchmod(&file, Mode::from_raw_mode(0o644))?)
}

fn in_container<E: Into<io::Error>>(doing: &str, path: &Path) -> impl FnOnce(E) -> anyhow::Error {
    move |error| {
        let (error, path) = (error.into(), path.display());
        let why = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem => {
                ", which is read-only there when hooks run: some releases of crun have it so with \
                 `readOnlyRootFilesystem`, and volumes may be"
            }
            _ => "",
        };
        anyhow::Error::from(error).context(format!("cannot {doing} `{path}` in the container{why}"))
    }
}
