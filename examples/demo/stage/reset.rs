//! What an operator does about a GPU that asks for a reset, and that it is served again by itself.

use std::{
    io::{BufRead, BufReader, Lines},
    mem::take,
    path::Path,
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::Pod;
use kerf::model::record::Record;
use kerf_testbed::kubelet::Health;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

use super::{Fault, PATIENCE, Stage, fault::tainted};

/// For how long a GPU is released at most, should nobody end it.
const MOST: &str = "--for=30";

/// What was said of a GPU that was reset.
pub(crate) struct Healed {
    /// Pods that had the GPU and were ended, by name.
    pub(crate) ended: Vec<String>,
    /// What `kerf release-gpu` printed, line by line.
    pub(crate) command: Vec<String>,
    /// Reason and note of the event on the node.
    pub(crate) event: String,
    /// From the end of that command until nothing was tainted and the kubelet was told.
    pub(crate) healed_in: Duration,
}

impl Stage {
    /// Ends the pods that have the GPU, resets it while `kerf release-gpu` runs, and returns when it is served as
    /// before.
    pub(crate) async fn reset_gpu(&mut self, fault: &Fault) -> anyhow::Result<Healed> {
        let ended = self.end_pods_with(&fault.place.device).await?;
        let mut command = ReleaseGpu::start(fault.place.gpu, &self.testbed.state_dir())?;
        let mut lines = command.released()?;
        self.testbed.machine.reset_gpu(fault.place.gpu)?;
        lines.extend(command.end()?);
        let begin = Instant::now();
        let said = async {
            self.testbed.api.wait_until(|api| tainted(api).is_empty()).await;
            self.told(&fault.place, Health::Healthy).await;
            self.event("GpuHealthy").await
        };
        let event = timeout(PATIENCE, said).await.context("a GPU does not heal")?;
        Ok(Healed { ended, command: lines, event, healed_in: begin.elapsed() })
    }

    async fn end_pods_with(&mut self, device: &str) -> anyhow::Result<Vec<String>> {
        let records = self.records()?;
        let has = |record: &&Record| record.held().any(|held| held.device == device);
        let names: Vec<_> = records.iter().filter(has).flat_map(|it| &it.plan.pods).collect();
        let has = |name: Option<&String>| name.is_some_and(|name| names.contains(&name));
        let pods = take(&mut self.pods).into_iter();
        let (ending, others): (Vec<Pod>, _) = pods.partition(|pod| has(pod.metadata.name.as_ref()));
        self.pods = others;
        for pod in &ending {
            self.end(pod).await?;
        }
        Ok(ending.into_iter().filter_map(|pod| pod.metadata.name).collect())
    }
}

/// `kerf release-gpu`, while it runs.
struct ReleaseGpu {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl ReleaseGpu {
    fn start(gpu: usize, state_dir: &Path) -> anyhow::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["release-gpu", &gpu.to_string(), MOST, "--state-dir"]).arg(state_dir);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().context("no output of a command")?;
        Ok(Self { child, lines: BufReader::new(output).lines() })
    }

    /// Waits until the GPU is released, and returns what is said then.
    fn released(&mut self) -> anyhow::Result<Vec<String>> {
        let said: Vec<_> = self.lines.by_ref().take(2).collect::<Result<_, _>>()?;
        ensure!(said.len() == 2, "`kerf release-gpu` has not released the GPU");
        Ok(said)
    }

    /// Has the agent take the GPU up again, and returns what is said then.
    fn end(mut self) -> anyhow::Result<Vec<String>> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let said = self.lines.collect::<Result<_, _>>()?;
        let status = self.child.wait()?;
        ensure!(status.success(), "`kerf release-gpu` ended with {status}");
        Ok(said)
    }
}
