//! Running programs to their end, with errors that say what they said.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use anyhow::{Context, bail};

/// To its end, successfully.
pub(crate) trait Run {
    /// Fails with the end of what it said.
    fn run(&mut self) -> anyhow::Result<()>;
}

impl Run for Command {
    fn run(&mut self) -> anyhow::Result<()> {
        output(self).map(drop)
    }
}

/// What it prints.
pub(crate) fn output(command: &mut Command) -> anyhow::Result<String> {
    let line = line(command);
    let done = command.stdin(Stdio::null()).output().with_context(|| format!("run `{line}`"))?;
    if !done.status.success() {
        let said = [done.stdout, done.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let last = said.len().saturating_sub(2000);
        let last = said.ceil_char_boundary(last);
        bail!("`{line}`: {}: {}", done.status, &said[last..]);
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// The command as a person would type it, cut where it is long.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(OsStr::to_string_lossy).collect();
    let line = words.join(" ");
    match line.char_indices().nth(160) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
