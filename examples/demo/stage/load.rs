//! Work on the devices that pods have, and what the agent sees of it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::Context;
use clap::Parser;
use kerf::{
    cli::{
        status::{self, Args},
        style::Style,
    },
    model::{
        device::Target,
        gpu::GpuUuid,
        plan::Origin,
        record::{Held, Record},
        status::Status,
    },
};
use kerf_nvml::Load;
use tokio::time::{sleep, timeout};

use super::{PATIENCE, Stage};

/// The process on the first device; the others count on.
const FIRST: u32 = 4711;

/// Percent of the time that processes keep their devices busy.
const BUSY: [u32; 5] = [97, 64, 88, 41, 73];

/// Bytes of memory of a process on a whole GPU, and on a part.
const MEMORY: (u64, u64) = (52 << 30, 7 << 30);

/// How often the agent is asked whether it has looked.
const ASK: Duration = Duration::from_millis(50);

/// A process on a device.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// NVML's index of the GPU, which is also the machine's.
    pub(super) gpu: usize,
    uuid: GpuUuid,
    /// First memory slice of a MIG device; absent on a whole GPU.
    start: Option<u32>,
    pub(crate) device: String,
    pub(super) pid: u32,
}

impl Place {
    /// Whether it is all of its GPU.
    pub(super) fn is_whole(&self) -> bool {
        self.start.is_none()
    }

    /// Whether the device is the whole one here, or a part of it.
    pub(super) fn has(&self, device: &str) -> bool {
        let rest = device.strip_prefix(&self.device);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }
}

/// `kerf status`.
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: Args,
}

impl Stage {
    /// Starts a process on each device that pods have, and returns when the agent has seen all of them work.
    pub(crate) async fn start_work(&mut self) -> anyhow::Result<()> {
        self.work = self.places()?;
        for (place, utilization) in self.work.iter().zip(BUSY.into_iter().cycle()) {
            let memory = if place.is_whole() { MEMORY.0 } else { MEMORY.1 };
            let machine = &self.testbed.machine;
            machine.start_process(place.gpu, place.start, place.pid, "train")?;
            machine.set_load(place.pid, Load { utilization, memory })?;
        }
        let seen = async {
            while !self.all_seen()? {
                sleep(ASK).await;
            }
            Ok(())
        };
        timeout(PATIENCE, seen).await.context("the agent sees no work")?
    }

    /// Ends all of it.
    pub(crate) fn end_work(&mut self) -> anyhow::Result<()> {
        for place in self.work.drain(..) {
            self.testbed.machine.stop_process(place.pid)?;
        }
        Ok(())
    }

    /// What `kerf status` says of the agent and of the GPUs; claims are below that.
    pub(crate) fn status_of_gpus(&self, style: Style) -> anyhow::Result<String> {
        let text = String::from_utf8(self.status("table", style)?)?;
        let parts: Vec<_> = text.split("\n\n").take(2).collect();
        Ok(parts.join("\n\n") + "\n")
    }

    fn all_seen(&self) -> anyhow::Result<bool> {
        let status: Status = serde_json::from_slice(&self.status("json", Style::default())?)?;
        let working: BTreeSet<_> = self.work.iter().map(|place| &place.uuid).collect();
        let mut gpus = status.gpus.iter().filter(|gpu| working.contains(&gpu.uuid));
        Ok(gpus.all(|gpu| {
            let load = gpu.load.unwrap_or_default();
            load.utilization.is_some_and(|percent| percent > 0)
        }))
    }

    fn status(&self, output: &str, style: Style) -> anyhow::Result<Vec<u8>> {
        let state_dir = self.testbed.state_dir();
        let state_dir = state_dir.to_str().context("a path that is no text")?;
        let command = ["status", "--state-dir", state_dir, "--output", output];
        let Command { args } = Command::try_parse_from(command)?;
        let mut text = Vec::new();
        status::run(&args, &mut text, style)?;
        Ok(text)
    }

    /// Each device that somebody has, once.
    fn places(&self) -> anyhow::Result<Vec<Place>> {
        let snapshot = self.testbed.machine.snapshot()?;
        let records = self.records()?;
        let held = records.iter().flat_map(Record::held);
        let held = held.filter(|held: &Held<'_>| held.origin != Origin::Observed);
        let devices: BTreeSet<_> = held.map(|held| (held.device, held.target)).collect();
        let places = (FIRST..).zip(devices).map(|(pid, (device, target))| {
            let uuid = target.gpu();
            let gpu = snapshot.gpus.iter().position(|gpu| gpu.uuid == uuid.0);
            let start = match target {
                Target::Gpu { .. } => None,
                Target::Mig { placement, .. } => Some(placement.start),
            };
            Ok(Place {
                gpu: gpu.with_context(|| format!("no GPU `{}`", uuid.0))?,
                uuid: uuid.clone(),
                start,
                device: device.to_owned(),
                pid,
            })
        });
        places.collect()
    }
}
