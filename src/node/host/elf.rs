//! The name by which programs look up a shared library of the driver.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use crate::model::linker::elf::Elf;

/// The library's SONAME; `None` for a file that has none or is no such library.
pub(super) fn soname(path: &Path) -> io::Result<Option<String>> {
    let file = File::open(path)?;
    match Elf::new(|buffer, offset| file.read_at(buffer, offset))? {
        Some(elf) => elf.soname(),
        None => Ok(None),
    }
}
