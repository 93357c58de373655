//! `kerf release-gpu`: has the agent let go of a GPU, so that it can be reset.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::{runtime, signal, time::sleep};

use super::machine::MachineArgs;
use crate::telemetry::release::Answer;

/// Socket in the agent's data directory.
pub(super) const SOCKET: &str = "release.sock";

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
    let socket = args.machine.state_dir().join(SOCKET);
    let mut agent = Agent::connect(&socket)?;
    let uuid = match agent.ask(&args.gpu)? {
        Answer::Released(uuid) => uuid,
        Answer::Refused(reason) => bail!("{reason}"),
        Answer::TakenUp(_) => bail!("the agent answered something else"),
    };
    writeln!(
        out,
        "GPU {} ({uuid}) is released: reset it now, as with `nvidia-smi --gpu-reset -i {uuid}`\n\
         it is taken up again in {} s, or when this command ends (Ctrl-C)",
        args.gpu, args.seconds
    )?;
    wait(Duration::from_secs(args.seconds))?;
    match agent.ask("")? {
        Answer::TakenUp(findings) if findings.is_empty() => {
            writeln!(out, "GPU {} is served again", args.gpu)?;
        }
        Answer::TakenUp(findings) => {
            writeln!(out, "GPU {} is taken up again, and is not well yet:", args.gpu)?;
            findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))?;
        }
        Answer::Released(_) | Answer::Refused(_) => bail!("the agent answered something else"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the time is over, or somebody says that it is.
fn wait(time: Duration) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())?;
        tokio::select! {
            () = sleep(time) => {}
            told = signal::ctrl_c() => told?,
            _ = terminate.recv() => {}
        }
        Ok(())
    })
}

struct Agent {
    stream: BufReader<UnixStream>,
}

impl Agent {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).with_context(|| {
            format!("no agent answers on `{}`; nothing holds the GPU then", socket.display())
        })?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn ask(&mut self, line: &str) -> anyhow::Result<Answer> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("the agent went away")?;
        serde_json::from_str(&answer).context("the agent went away")
    }
}
