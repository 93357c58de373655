//! `kerf release-gpu`: has the agent let go of a GPU, so that it can be reset.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::{machine::MachineArgs, orders};
use crate::telemetry::orders::{Answer, Order};

/// Arguments of `kerf release-gpu`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GPU, by index or UUID as `nvidia-smi` shows them.
    gpu: String,
    /// For how long at most, in seconds; it ends earlier when this command does.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 600)]
    seconds: u64,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Asks for the GPU, waits, and gives it back.
///
/// # Errors
/// No agent; a GPU that cannot be let go; a writer that fails.
pub fn run(args: &Args, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut agent =
        orders::Agent::connect(&args.machine).context("nothing of Kerf holds the GPU")?;
    let uuid = match agent.order(&Order::Release(args.gpu.clone()))? {
        Answer::Released(uuid) => uuid,
        Answer::Refused(reason) => bail!("{reason}"),
        Answer::Served(_) => bail!("the agent answered something else"),
    };
    // Who reads that it is released may end this at once.
    let end = End::new()?;
    writeln!(
        out,
        "GPU {} ({uuid}) is released: reset it now, as with `nvidia-smi --gpu-reset -i {uuid}`\n\
         it is taken up again in {} s, or when this command ends (Ctrl-C)",
        args.gpu, args.seconds
    )?;
    out.flush()?;
    end.wait(Duration::from_secs(args.seconds));
    match agent.give_back()? {
        Answer::Served(findings) => orders::served(out, &args.gpu, &findings)?,
        Answer::Released(_) | Answer::Refused(_) => bail!("the agent answered something else"),
    }
    Ok(ExitCode::SUCCESS)
}

/// What ends the command early.
struct End {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let inside = runtime.enter();
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        drop(inside);
        Ok(Self { runtime, interrupt, terminate })
    }

    /// Until the time is over, or somebody says that it is.
    fn wait(mut self, time: Duration) {
        self.runtime.block_on(async {
            tokio::select! {
                () = sleep(time) => {}
                _ = self.interrupt.recv() => {}
                _ = self.terminate.recv() => {}
            }
        });
    }
}
