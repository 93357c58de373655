//! The command line: `kerf-cdi-hook <sub-command> [--flag value | --flag=value]…`.

use std::ffi::OsString;

use anyhow::{Context, anyhow};

use crate::warn;

/// Flags without a value, which `nvidia-cdi-hook` takes anywhere.
const SWITCHES: [&str; 2] = ["--debug", "--quiet"];

/// A sub-command and its flags.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    command: String,
    flags: Vec<(String, String)>,
}

impl Arguments {
    /// Takes the command line apart; the program's name is not part of it.
    ///
    /// # Errors
    /// There is no sub-command, or something that is not text.
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> anyhow::Result<Self> {
        let arguments = arguments
            .map(|argument| argument.into_string().map_err(|raw| anyhow!("{raw:?} is not text")));
        let arguments = arguments.collect::<anyhow::Result<Vec<_>>>()?;
        let mut arguments =
            arguments.into_iter().filter(|argument| !SWITCHES.contains(&&**argument)).peekable();
        let command = arguments.next().context("name a sub-command, such as `create-symlinks`")?;
        let mut flags = Vec::new();
        while let Some(argument) = arguments.next() {
            if let Some((flag, value)) = argument.split_once('=').filter(|_| is_flag(&argument)) {
                flags.push((flag.to_owned(), value.to_owned()));
            } else if is_flag(&argument) {
                let value = arguments.next_if(|next| !is_flag(next)).unwrap_or_default();
                flags.push((argument, value));
            } else {
                warn(format_args!("`{argument}` belongs to no flag and is ignored"));
            }
        }
        Ok(Self { command, flags })
    }

    pub(crate) fn command(&self) -> &str {
        &self.command
    }

    /// The values of a flag, in order.
    pub(crate) fn values(&self, flag: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(name, _)| name == flag).map(|(_, value)| &**value)
    }

    /// Warns of flags that are not among these: those of a later version.
    pub(crate) fn only(&self, known: &[&str]) {
        for (flag, _) in self.flags.iter().filter(|(flag, _)| !known.contains(&&**flag)) {
            warn(format_args!("`{flag}` is not a flag of this version and is ignored"));
        }
    }
}

fn is_flag(argument: &str) -> bool {
    argument.starts_with("--")
}
