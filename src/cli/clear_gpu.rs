//! `kerf clear-gpu`: has the agent forget what is wrong with a GPU.

use std::{io::Write, process::ExitCode};

use anyhow::bail;

use super::{machine::MachineArgs, orders};
use crate::telemetry::orders::{Answer, Order};

/// Arguments of `kerf clear-gpu`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GPU, by index or UUID as `nvidia-smi` shows them.
    gpu: String,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Gives the order, and says what is found wrong at once.
///
/// # Errors
/// No agent, or no such GPU; a writer that fails.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut agent = orders::Agent::connect(&args.machine)?;
    match agent.order(&Order::Clear(args.gpu.clone()))? {
        Answer::Served(findings) => orders::served(out, &args.gpu, &findings)?,
        Answer::Refused(reason) => bail!("{reason}"),
        Answer::Released(_) => bail!("the agent answered something else"),
    }
    Ok(ExitCode::SUCCESS)
}
