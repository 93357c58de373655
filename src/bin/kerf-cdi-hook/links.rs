//! `create-symlinks --link <target>::<path>…`: the links by which libraries and devices are looked up.

use std::path::Path;

use anyhow::Context;

use crate::{arguments::Arguments, root::Root};

/// Makes each link, and the directories above it; one that is there already stays as it is.
///
/// # Errors
/// A link cannot be made.
pub(crate) fn create(root: &Root, arguments: &Arguments) -> anyhow::Result<()> {
    arguments.only(&["--link"]);
    for link in arguments.values("--link") {
        let (target, path) = link
            .split_once("::")
            .with_context(|| format!("`{link}` is not a link: write `<target>::<path>`"))?;
        let (directory, name) = root.make_parent(Path::new(path))?;
        if directory.link(name).as_deref() != Some(target.as_bytes()) {
            directory.put_link(name, target)?;
        }
    }
    Ok(())
}
