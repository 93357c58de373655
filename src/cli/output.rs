//! Values as documents, and what becomes of a command whose reader went away.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

/// Writes one JSON document.
///
/// # Errors
/// A value that is no JSON, or a writer that fails.
pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(io::Error::from)?;
    writeln!(out)?;
    Ok(())
}

/// Writes one YAML document, which readers of YAML 1.1 and 1.2 understand alike.
///
/// # Errors
/// A value that is no YAML, or a writer that fails.
pub(super) fn yaml(out: &mut dyn Write, value: &impl Serialize) -> anyhow::Result<()> {
    // A string stays in its line, as it does in a Kubernetes manifest.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    out.write_all(serde_saphyr::to_string_with_options(value, options)?.as_bytes())?;
    Ok(())
}

/// A reader that has seen enough, such as `head`, is no failure.
///
/// # Errors
/// Every other.
pub(super) fn quiet_pipe(done: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match done {
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        done => done,
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
