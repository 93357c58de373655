//! Images with musl, such as Alpine's: its linker has no cache but a list of directories.
//!
//! <https://musl.libc.org/doc/1.1.24/manual.html>: `/etc/ld-musl-<arch>.path`, paths by lines or colons.

use std::{env::consts::ARCH, path::Path};

use crate::{root::Root, warn};

/// Where musl looks when nobody names directories; a list takes the place of these.
const USUAL: &str = "/lib\n/usr/local/lib\n/usr/lib\n";
/// No list is longer.
const LARGEST: usize = 1 << 16;

/// Whether programs of the image may be linked with musl.
///
/// # Errors
/// The loader's path cannot be followed.
pub(crate) fn is_there(root: &Root) -> anyhow::Result<bool> {
    Ok(root.found(Path::new(&format!("/lib/ld-musl-{ARCH}.so.1")))?.is_some())
}

/// The directories of a list, one a line: absolute paths, and nothing else that a file may hold.
fn directories(list: &[u8]) -> Vec<u8> {
    let paths = list.split(|byte| b"\n:".contains(byte)).filter(|path| path.starts_with(b"/"));
    paths.flat_map(|path| [path, b"\n"].concat()).collect()
}

/// Adds folders to the list, after all that are in it.
///
/// # Errors
/// The list cannot be written.
pub(crate) fn add(root: &Root, folders: &[&str]) -> anyhow::Result<()> {
    let list = format!("/etc/ld-musl-{ARCH}.path");
    let old = root.read(Path::new(&list), LARGEST).unwrap_or_else(|error| {
        warn(format_args!("{error:#}; a new list takes its place"));
        None
    });
    let mut content = old.as_deref().map(directories).unwrap_or_default();
    if content.is_empty() {
        content = USUAL.into();
    }
    let mut changed = false;
    for folder in folders {
        let mut listed = content.split(|byte| *byte == b'\n');
        if !listed.any(|listed| listed == folder.as_bytes()) {
            content.extend(format!("{folder}\n").into_bytes());
            changed = true;
        }
    }
    if !changed {
        return Ok(());
    }
    let (directory, name) = root.make_parent(Path::new(&list))?;
    directory.put_file(name, &content)
}
