//! `update-ldcache --folder <directory>…`: has the container's dynamic linker find the libraries there.
//!
//! No `ldconfig` is run, neither the host's nor the image's: entries are added to the image's own cache,
//! which stays as it is otherwise. Where ldconfig is run later, in the container, it finds the folders
//! in a file of `/etc/ld.so.conf.d`.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::{ffi::OsStrExt, fs::FileExt},
    path::Path,
};

use anyhow::Context;
use kerf::model::linker::{
    self,
    cache::{self, Cache},
    elf::Elf,
};

use crate::{
    arguments::Arguments,
    compat, musl,
    root::{Directory, Named, Root},
    warn,
};

const CACHE: &str = "/etc/ld.so.cache";
/// Files that name directories of libraries to ldconfig, in the order of their names.
pub(crate) const CONFIGURATIONS: &str = "/etc/ld.so.conf.d";
/// The last of them: folders that the image names itself keep their order.
const CONFIGURATION: &str = "zz-kerf.conf";

/// glibc's loader, which programs name.
const LOADER: &str = if cfg!(target_arch = "aarch64") {
    "/lib/ld-linux-aarch64.so.1"
} else {
    "/lib64/ld-linux-x86-64.so.2"
};

/// Adds what is in the folders to the caches of the image's C libraries.
///
/// # Errors
/// A cache cannot be written, or a folder not be read.
pub(crate) fn update(root: &Root, arguments: &Arguments) -> anyhow::Result<()> {
    // CDI files may name an ldconfig; none is run.
    arguments.only(&["--folder", "--ldconfig-path"]);
    let folders: Vec<&str> = arguments.values("--folder").collect();
    if musl::is_there(root)? {
        musl::add(root, &folders)?;
        if root.found(Path::new(LOADER))?.is_none() {
            return Ok(());
        }
    }
    if let Some(content) = updated(root, &folders)? {
        let (directory, name) = root.make_parent(Path::new(CACHE))?;
        directory.put_file(name, &content)?;
    }
    // Only a later ldconfig needs it.
    configure(root, &folders).unwrap_or_else(|error| warn(format_args!("{error:#}")));
    Ok(())
}

/// The cache with the libraries of the folders; `None` if it has them.
fn updated(root: &Root, folders: &[&str]) -> anyhow::Result<Option<Vec<u8>>> {
    let old = root.read(Path::new(CACHE), cache::LARGEST).unwrap_or_else(|error| {
        warn(format_args!("{error:#}; a new cache takes its place"));
        None
    });
    let known = old.as_deref().map(Cache::parse);
    if known == Some(None) {
        warn(format_args!(
            "`{CACHE}` in the container is no linker cache; a new one takes its place"
        ));
    }
    let mut cache = known.flatten().unwrap_or_default();
    if !extend(&mut cache, root, folders)? {
        return Ok(None);
    }
    if let Some(content) = cache.encode() {
        return Ok(Some(content));
    }
    warn(format_args!("`{CACHE}` in the container is too large; a new one takes its place"));
    let mut cache = Cache::default();
    extend(&mut cache, root, folders)?;
    cache.encode().map(Some).context("there are too many libraries for a linker cache")
}

/// Says whether that changed anything.
fn extend(cache: &mut Cache<'_>, root: &Root, folders: &[&str]) -> anyhow::Result<bool> {
    let mut changed = false;
    // What is added later comes before: the first folder goes before all.
    for folder in folders.iter().rev() {
        for (name, path) in libraries(root, folder, cache)? {
            changed |= cache.add(&name, &path);
        }
    }
    if compat::is_enabled(root)? {
        for (name, path) in libraries(root, compat::DIRECTORY, &Cache::default())? {
            changed |= cache.prefer(&name, &path);
        }
    }
    Ok(changed)
}

/// The names by which programs ask for what is in a folder, and the paths to which they lead, less
/// those that the cache knows: SONAMEs, and bare names (`libcuda.so`), which are links.
fn libraries(
    root: &Root,
    folder: &str,
    cache: &Cache<'_>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let Some(directory) = root.directory(Path::new(folder))? else { return Ok(BTreeMap::new()) };
    let known = known(root, &directory, cache);
    let is_known = |name: &str| known.contains(name.as_bytes());
    let path = |name: &str| format!("{}/{name}", folder.trim_end_matches('/'));
    let mut found = BTreeMap::new();
    let mut highest = BTreeMap::<String, String>::new();
    let files = directory.names()?.into_iter();
    for file in files.filter(|file| is_library_name(&file.name) && !is_known(&file.name)) {
        let Named { name, is_link } = file;
        // What cannot be read cannot be loaded either.
        let Ok(Some(soname)) = soname(root, &path(&name), &name) else { continue };
        if soname == name || (is_link && is_bare(&name, &soname)) {
            found.insert(name.clone(), path(&name));
        } else {
            let best = highest.entry(soname).or_default();
            if linker::order(best.as_bytes(), name.as_bytes()).is_lt() {
                *best = name;
            }
        }
    }
    // Files that nothing of their SONAME leads to; of several the highest version, as ldconfig has it.
    highest.retain(|soname, _| !found.contains_key(soname) && !is_known(soname));
    found.extend(highest.into_iter().map(|(soname, name)| (soname, path(&name))));
    Ok(found)
}

/// The names that the cache has lead into a directory, by whatever path: often `/lib` is `/usr/lib`.
fn known<'c>(root: &Root, directory: &Directory, cache: &'c Cache<'_>) -> BTreeSet<&'c [u8]> {
    let mut is_it = BTreeMap::new();
    let libraries = cache.libraries().filter(|&(name, path)| {
        let Some(parent) = path.strip_suffix(name) else { return false };
        *is_it.entry(parent).or_insert_with(|| {
            let found = root.directory(Path::new(OsStr::from_bytes(parent)));
            found.is_ok_and(|found| found.is_some_and(|found| found.is_same(directory)))
        })
    });
    libraries.map(|(name, _)| name).collect()
}

fn is_library_name(name: &str) -> bool {
    name.starts_with("lib") && (name.ends_with(".so") || name.contains(".so."))
}

/// Whether a link is what programs were linked by, such as `libcuda.so` for `libcuda.so.1`.
fn is_bare(name: &str, soname: &str) -> bool {
    name.ends_with(".so") && soname.starts_with(name)
}

/// By which name programs ask for a library; `None` for a file that is none of this architecture.
fn soname(root: &Root, path: &str, name: &str) -> anyhow::Result<Option<String>> {
    let Some(file) = root.file(Path::new(path))? else { return Ok(None) };
    let elf = Elf::new(|buffer, offset| file.read_at(buffer, offset))?;
    let Some(elf) = elf.filter(Elf::is_native_library) else { return Ok(None) };
    Ok(Some(elf.soname()?.unwrap_or_else(|| name.to_owned())))
}

/// Names the folders where ldconfig looks, if the image has such a place.
fn configure(root: &Root, folders: &[&str]) -> anyhow::Result<()> {
    let directory = Path::new(CONFIGURATIONS);
    let Some(found) = root.directory(directory)? else { return Ok(()) };
    let content = folders.iter().map(|folder| format!("{folder}\n")).collect::<String>();
    let there = root.read(&directory.join(CONFIGURATION), content.len());
    if there.is_ok_and(|there| there.is_some_and(|there| there == content.as_bytes())) {
        return Ok(());
    }
    found.put_file(CONFIGURATION, content.as_bytes())
}
