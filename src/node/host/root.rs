//! A directory that is `/` to the programs installed in it, and may be mounted elsewhere here.

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    path::{Component, Path, PathBuf},
};

use super::{Error, if_there, utf8};

/// As many links in one path as Linux follows.
const MOST_LINKS: u32 = 40;

/// The driver root, in the two namespaces that know it from outside. Paths given and returned are
/// those of programs inside of it, and begin with `/`.
pub(super) struct Root<'a> {
    here: &'a Path,
    host: &'a str,
}

impl<'a> Root<'a> {
    /// `here` as this process sees it, `host` as the host does.
    pub(super) fn new(here: &'a Path, host: &'a Path) -> Result<Self, Error> {
        Ok(Self { here, host: utf8(host)? })
    }

    /// The directory itself, as this process sees it.
    pub(super) fn here(&self) -> &Path {
        self.here
    }

    /// As this process sees it.
    pub(super) fn at(&self, path: &Path) -> PathBuf {
        self.here.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// As the host sees it.
    pub(super) fn on_host(&self, path: &str) -> String {
        format!("{}{path}", self.host.trim_end_matches('/'))
    }

    /// The path without links: they are followed as in a process whose `/` this directory is, so none
    /// leads out of it. `None` where nothing is, or links go in a circle.
    pub(super) fn resolve(&self, path: &Path) -> Result<Option<PathBuf>, Error> {
        let mut ahead: VecDeque<OsString> = parts(path).collect();
        let mut done = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = ahead.pop_front() {
            if part == ".." {
                done.pop();
                continue;
            }
            done.push(part);
            let here = self.at(&done);
            match link_target(&here).map_err(Error::read(here))? {
                Lookup::Nothing => return Ok(None),
                Lookup::NoLink => {}
                Lookup::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Ok(None);
                    }
                    done.pop();
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    ahead = parts(&target).chain(ahead).collect();
                }
            }
        }
        Ok(Some(done))
    }

    /// The regular file, or with `sockets` any file but a directory, that a path leads to.
    pub(super) fn file(&self, path: &Path, sockets: bool) -> Result<Option<PathBuf>, Error> {
        let Some(resolved) = self.resolve(path)? else { return Ok(None) };
        let here = self.at(&resolved);
        let metadata = if_there(fs::symlink_metadata(&here)).map_err(Error::read(here))?;
        let fits = |metadata: fs::Metadata| metadata.is_file() || (sockets && !metadata.is_dir());
        Ok(metadata.is_some_and(fits).then_some(resolved))
    }

    /// The content of a regular file; `None` where there is none.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Error> {
        let Some(resolved) = self.file(path, false)? else { return Ok(None) };
        let here = self.at(&resolved);
        if_there(fs::read(&here)).map_err(Error::read(here))
    }

    /// Whether a path is a link, wherever that leads.
    pub(super) fn is_link(&self, path: &Path) -> bool {
        self.at(path).is_symlink()
    }

    /// The names in a directory, in order; none where it is not one. Names that are not UTF-8 are
    /// none of the driver's.
    pub(super) fn names(&self, directory: &Path) -> Result<Vec<String>, Error> {
        let Some(directory) = self.resolve(directory)? else { return Ok(Vec::new()) };
        let here = self.at(&directory);
        let Some(entries) = if_there(fs::read_dir(&here)).map_err(Error::read(&here))? else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(Error::read(&here))?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }
}

enum Lookup {
    Nothing,
    NoLink,
    Link(PathBuf),
}

fn link_target(path: &Path) -> io::Result<Lookup> {
    match if_there(fs::read_link(path)) {
        Ok(Some(target)) => Ok(Lookup::Link(target)),
        Ok(None) => Ok(Lookup::Nothing),
        // What `readlink` says of anything that is there and no link.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(Lookup::NoLink),
        Err(error) => Err(error),
    }
}

/// What a path is made of, without `/` and `.`.
fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
    })
}
