//! `kerf release-gpu`: has the agent let go of a GPU, so that it can be reset.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use futures::{FutureExt, future::BoxFuture};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

use super::machine::MachineArgs;
use crate::{
    driver::Driver,
    model::{gpu::GpuUuid, health::Finding},
    telemetry::release::{Answer, Release},
};

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
    // Who reads that it is released may end this at once.
    let end = End::new()?;
    writeln!(
        out,
        "GPU {} ({uuid}) is released: reset it now, as with `nvidia-smi --gpu-reset -i {uuid}`\n\
         it is taken up again in {} s, or when this command ends (Ctrl-C)",
        args.gpu, args.seconds
    )?;
    end.wait(Duration::from_secs(args.seconds));
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

/// The driver, as who asks for GPUs sees it.
pub(super) struct Gpus(pub(super) Arc<Driver>);

impl Release for Gpus {
    fn release<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<String, String>> {
        async move {
            let released = self.0.release_gpu(gpu).await;
            released.map(|uuid| uuid.0).map_err(|error| error.line())
        }
        .boxed()
    }

    fn take_up<'a>(&'a self, uuid: &'a str) -> BoxFuture<'a, Vec<String>> {
        async move {
            let uuid = GpuUuid(uuid.to_owned());
            self.0.take_up_gpu(&uuid).await;
            self.0.findings().of_gpu(&uuid).iter().map(Finding::line).collect()
        }
        .boxed()
    }
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
