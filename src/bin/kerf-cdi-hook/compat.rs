//! `enable-cuda-compat --host-driver-version=<version>`: newer libraries of the driver that the image
//! brings, which work with the kernel modules of some older drivers.
//!
//! <https://docs.nvidia.com/deploy/cuda-compatibility/>. They are enabled by a file that names their
//! directory first of all; `update-ldcache`, which runs after this, goes by it.

use std::{os::unix::fs::FileExt, path::Path};

use anyhow::Context;
use kerf::model::linker::elf::{self, Elf};
use serde::Deserialize;

use crate::{arguments::Arguments, ldcache, root::Root, warn};

/// Where images have them.
pub(crate) const DIRECTORY: &str = "/usr/local/cuda/compat";
/// The first of all by its name.
const CONFIGURATION: &str = "00-kerf-cuda-compat.conf";
/// In which a library says which drivers it works with.
const SECTION: &str = ".note.cuda.fwd_compatibility";
const OWNER: &str = "NVIDIA Corporation";

/// What the note says; more of it is not looked at.
#[derive(Deserialize)]
struct Note {
    /// Major versions of drivers.
    #[serde(rename = "Driver", default)]
    drivers: Vec<u64>,
}

/// Enables the image's libraries if they are newer than the host's and fit its driver, and no others.
///
/// # Errors
/// The decision cannot be written down.
pub(crate) fn enable(root: &Root, arguments: &Arguments) -> anyhow::Result<()> {
    const VERSION: &str = "--host-driver-version";
    arguments.only(&[VERSION]);
    let host = arguments.values(VERSION).last().and_then(version);
    let wanted = host.is_some_and(|host| {
        // Containers run without these libraries too.
        fits(root, &host).unwrap_or_else(|error| {
            warn(format_args!("the image's `{DIRECTORY}` is not used: {error:#}"));
            false
        })
    });
    match (wanted, is_enabled(root)?) {
        (true, false) => {
            let directory = root.make_directory(Path::new(ldcache::CONFIGURATIONS))?;
            directory.put_file(CONFIGURATION, format!("{DIRECTORY}\n").as_bytes())
        }
        // The image was made from a container of an older host.
        (false, true) => match root.directory(Path::new(ldcache::CONFIGURATIONS))? {
            Some(directory) => directory.remove(CONFIGURATION),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Whether [`enable`] decided so.
///
/// # Errors
/// The file's path cannot be followed.
pub(crate) fn is_enabled(root: &Root) -> anyhow::Result<bool> {
    let path = Path::new(ldcache::CONFIGURATIONS).join(CONFIGURATION);
    Ok(root.found(&path)?.is_some())
}

/// Whether the image's only `libcuda` is newer than the host's, and made for its driver.
fn fits(root: &Root, host: &[u64]) -> anyhow::Result<bool> {
    let Some(directory) = root.directory(Path::new(DIRECTORY))? else { return Ok(false) };
    let names = directory.names()?;
    let versions = names.iter().filter_map(|file| {
        let version = file.name.strip_prefix("libcuda.so.")?;
        version.contains('.').then_some((&file.name, version))
    });
    let [(name, compat)] = versions.collect::<Vec<_>>()[..] else { return Ok(false) };
    let compat = version(compat).with_context(|| format!("`{name}` has no version"))?;
    if *compat <= *host {
        return Ok(false);
    }
    let fits = |note: Note| host.first().is_some_and(|major| note.drivers.contains(major));
    Ok(note(root, name)?.map_or(compat[0] > host[0], fits))
}

/// The note of a library; `None` if it has none, as older ones do.
fn note(root: &Root, name: &str) -> anyhow::Result<Option<Note>> {
    let Some(file) = root.file(&Path::new(DIRECTORY).join(name))? else { return Ok(None) };
    let elf = Elf::new(|buffer, offset| file.read_at(buffer, offset))?;
    let elf = elf.with_context(|| format!("`{name}` is no ELF file"))?;
    let Some(section) = elf.section(SECTION)? else { return Ok(None) };
    let broken = || format!("`{SECTION}` of `{name}` is broken");
    let text = elf::note(&section, OWNER).with_context(broken)?;
    let note = serde_json::from_slice::<Note>(text).with_context(broken)?;
    Ok(Some(note).filter(|note| !note.drivers.is_empty()))
}

/// The numbers of a version such as `580.95.05`.
fn version(text: &str) -> Option<Vec<u64>> {
    text.split('.').map(|part| part.parse().ok()).collect()
}
