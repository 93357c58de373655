//! What an operator wants done with one GPU: how the agent is asked, and how it answers.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    sync::Arc,
};

use anyhow::Context;
use futures::{FutureExt, future::BoxFuture};

use super::machine::MachineArgs;
use crate::{
    driver::Driver,
    model::{gpu::GpuUuid, health::Finding},
    telemetry::orders::{Answer, Gpus, Order},
};

/// Socket in the agent's data directory.
pub(super) const SOCKET: &str = "orders.sock";

/// A connection to the agent of this node.
pub(super) struct Agent {
    stream: BufReader<UnixStream>,
}

impl Agent {
    pub(super) fn connect(machine: &MachineArgs) -> anyhow::Result<Self> {
        let socket = machine.state_dir().join(SOCKET);
        let stream = UnixStream::connect(&socket)
            .with_context(|| format!("no agent answers on `{}`", socket.display()))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub(super) fn order(&mut self, order: &Order) -> anyhow::Result<Answer> {
        self.say(&serde_json::to_string(order)?)
    }

    /// Says that a released GPU may be taken up again.
    pub(super) fn give_back(&mut self) -> anyhow::Result<Answer> {
        self.say("")
    }

    fn say(&mut self, line: &str) -> anyhow::Result<Answer> {
        self.stream.get_mut().write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        self.stream.read_line(&mut answer).context("the agent went away")?;
        serde_json::from_str(&answer).context("the agent went away")
    }
}

/// How a GPU is after an order, for people.
pub(super) fn served(out: &mut dyn Write, gpu: &str, findings: &[String]) -> std::io::Result<()> {
    if findings.is_empty() {
        return writeln!(out, "GPU {gpu} is served, and nothing is wrong with it");
    }
    writeln!(out, "GPU {gpu} is not well:")?;
    findings.iter().try_for_each(|finding| writeln!(out, "  {finding}"))
}

/// The driver, as who gives orders sees it.
pub(super) struct Orders(pub(super) Arc<Driver>);

impl Orders {
    fn findings(&self, uuid: &GpuUuid) -> Vec<String> {
        self.0.findings().of_gpu(uuid).iter().map(Finding::line).collect()
    }
}

impl Gpus for Orders {
    fn release<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<String, String>> {
        let released = self.0.release_gpu(gpu);
        async { released.await.map(|uuid| uuid.0).map_err(|error| error.line()) }.boxed()
    }

    fn take_up<'a>(&'a self, uuid: &'a str) -> BoxFuture<'a, Vec<String>> {
        async move {
            let uuid = GpuUuid(uuid.to_owned());
            self.0.take_up_gpu(&uuid).await;
            self.findings(&uuid)
        }
        .boxed()
    }

    fn clear<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>> {
        async move {
            let uuid = self.0.clear_gpu(gpu).await.map_err(|error| error.line())?;
            Ok(self.findings(&uuid))
        }
        .boxed()
    }
}
