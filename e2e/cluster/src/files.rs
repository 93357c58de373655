//! Files of a cluster that lives for minutes.

use std::{fs::File, io::Write, path::Path};

use anyhow::Context;

/// Writes a file whole; nobody reads it yet.
pub(crate) fn write(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let written = File::create(path).and_then(|mut file| file.write_all(content.as_ref()));
    written.with_context(|| format!("cannot write `{}`", path.display()))
}
