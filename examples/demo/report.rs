//! What the demo tells: a story for people, a report for programs.

use std::{
    io::{self, Write},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use kerf::{
    cli::{
        picture::picture,
        style::{Paint, Style},
    },
    model::{
        gpu::Gpu,
        record::{Held, Record},
    },
};
use serde::Serialize;

use crate::stage::{Act, Fault, Healed, Stage};

/// What `--output json` prints; names of fields stay. Times are in milliseconds.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    started_in_ms: f64,
    slices: usize,
    devices: usize,
    pods: Vec<PodReport>,
    fault: Option<FaultReport>,
    pub(crate) released_in_ms: f64,
    /// What should not be there at the end, one line each.
    pub(crate) left: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodReport {
    manifest: String,
    pod: String,
    scheduled_in_ms: f64,
    prepared_in_ms: f64,
    devices: Vec<DeviceReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceReport {
    claim: String,
    request: String,
    device: String,
    cdi: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FaultReport {
    device: String,
    tainted_devices: usize,
    said_in_ms: f64,
    healed_in_ms: f64,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl Report {
    pub(crate) fn new(stage: &Stage) -> Self {
        Self {
            started_in_ms: ms(stage.started_in),
            slices: stage.slices,
            devices: stage.devices,
            pods: Vec::new(),
            fault: None,
            released_in_ms: 0.0,
            left: Vec::new(),
        }
    }

    pub(crate) fn add(&mut self, manifest: &Path, act: &Act) {
        self.pods.extend(act.pods.iter().map(|pod| {
            PodReport {
                manifest: manifest.display().to_string(),
                pod: pod.name.clone(),
                scheduled_in_ms: ms(pod.scheduled_in),
                prepared_in_ms: ms(pod.prepared_in),
                devices: pod
                    .devices
                    .iter()
                    .map(|given| DeviceReport {
                        claim: given.claim.clone(),
                        request: given.request.clone(),
                        device: given.device.clone(),
                        cdi: given.cdi.clone(),
                    })
                    .collect(),
            }
        }));
    }

    pub(crate) fn health(&mut self, fault: &Fault, healed: &Healed) {
        self.fault = Some(FaultReport {
            device: fault.place.device.clone(),
            tainted_devices: fault.tainted,
            said_in_ms: ms(fault.said_in),
            healed_in_ms: ms(healed.healed_in),
        });
    }
}

/// Tells the story as it goes.
pub(crate) struct Story<'w> {
    out: &'w mut dyn Write,
    style: Style,
}

impl<'w> Story<'w> {
    pub(crate) fn new(out: &'w mut dyn Write, style: Style) -> Self {
        Self { out, style }
    }

    fn heading(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "\n{}", self.style.paint(Paint::Bold, text))
    }

    fn pictures<'g>(
        &mut self,
        gpus: impl Iterator<Item = &'g Gpu>,
        records: &[Record],
    ) -> io::Result<()> {
        let held: Vec<Held<'_>> = records.iter().flat_map(Record::held).collect();
        for gpu in gpus {
            write!(self.out, "{}", picture(gpu, Some(&held), self.style))?;
        }
        Ok(())
    }

    /// The node as it is.
    pub(crate) fn opening(&mut self, stage: &Stage) -> anyhow::Result<()> {
        self.heading("A simulated node, the real agent, nothing claimed yet")?;
        writeln!(
            self.out,
            "The agent was registered and its pool published {:.0} ms after its start: {} devices in \
             {} slices.",
            ms(stage.started_in),
            stage.devices,
            stage.slices
        )?;
        self.pictures(stage.inventory()?.gpus.iter(), &[])?;
        Ok(())
    }

    /// One manifest: what the scheduler chose, what was cut, what the container runtime gets.
    pub(crate) fn act(&mut self, file: &Path, act: &Act, stage: &Stage) -> anyhow::Result<()> {
        self.heading(&format!("kubectl apply -f {}", file.display()))?;
        writeln!(self.out, "{}", act.title)?;
        for pod in &act.pods {
            let (scheduled, prepared) = (ms(pod.scheduled_in), ms(pod.prepared_in));
            writeln!(
                self.out,
                "pod {}: scheduled in {scheduled:.1} ms, prepared in {prepared:.1} ms",
                pod.name
            )?;
            for given in &pod.devices {
                writeln!(self.out, "  {}: {}", given.request, given.device)?;
                for cdi in &given.cdi {
                    writeln!(self.out, "    {cdi}")?;
                }
            }
        }
        let inventory = stage.inventory()?;
        let changed = inventory.gpus.iter().filter(|gpu| act.changed.contains(&gpu.uuid));
        self.pictures(changed, &stage.records()?)?;
        Ok(())
    }

    /// All of it at once.
    pub(crate) fn meanwhile(&mut self, stage: &Stage) -> anyhow::Result<()> {
        self.heading("The node with all of them running")?;
        self.pictures(stage.inventory()?.gpus.iter(), &stage.records()?)?;
        Ok(())
    }

    /// What the GPUs do, with work on all that was given.
    pub(crate) fn under_load(&mut self, stage: &Stage) -> anyhow::Result<()> {
        self.heading("Each device with a process on it, as kerf status shows them")?;
        write!(self.out, "{}", stage.status_of_gpus(self.style)?)?;
        Ok(())
    }

    /// What is said of a GPU that has just failed.
    pub(crate) fn fault(&mut self, fault: &Fault, stage: &Stage) -> anyhow::Result<()> {
        let device = &fault.place.device;
        self.heading(&format!("The memory of {device} fails, and the others go on"))?;
        self.told("kernel log", &fault.log)?;
        writeln!(self.out, "and within {:.0} ms:", ms(fault.said_in))?;
        let parts = fault.tainted - 1;
        self.told(
            "ResourceSlices",
            &format!("{device} and {parts} parts of it: {}", fault.taints),
        )?;
        self.told("kubelet", &format!("{device} is unhealthy: {}", fault.told))?;
        self.told("event", &fault.event)?;
        write!(self.out, "\n{}", stage.status_of_gpus(self.style)?)?;
        Ok(())
    }

    /// How it was reset, and that it is well again.
    pub(crate) fn healed(&mut self, fault: &Fault, healed: &Healed) -> io::Result<()> {
        let device = &fault.place.device;
        self.heading(&format!(
            "Pod {} ends, and kerf release-gpu: {device} is reset",
            healed.ended.join(", ")
        ))?;
        for line in &healed.command {
            writeln!(self.out, "{line}")?;
        }
        writeln!(
            self.out,
            "and {:.1} s later, without anybody's doing:",
            ms(healed.healed_in) / 1e3
        )?;
        self.told("ResourceSlices", "no device is tainted")?;
        self.told("kubelet", &format!("{device} is healthy"))?;
        self.told("event", &healed.event)
    }

    /// What somebody is told.
    fn told(&mut self, who: &str, what: &str) -> io::Result<()> {
        writeln!(self.out, "  {who:<15} {what}")
    }

    /// The node once all is given back.
    pub(crate) fn afterwards(&mut self, report: &Report, stage: &Stage) -> anyhow::Result<()> {
        self.heading(&format!(
            "All pods ended, all claims released, in {:.0} ms",
            report.released_in_ms
        ))?;
        self.pictures(stage.inventory()?.gpus.iter(), &stage.records()?)
            .context("cannot show the node")
    }

    /// What is left, which should be nothing.
    pub(crate) fn end(&mut self, report: &Report) -> anyhow::Result<()> {
        for left in &report.left {
            writeln!(self.out, "{} {left}", self.style.paint(Paint::Red, "left behind:"))?;
        }
        if report.left.is_empty() {
            writeln!(
                self.out,
                "\nNothing is left: no MIG device, no record, no CDI file, no socket. Next, on a machine \
                 with a GPU: cargo run -- inventory"
            )?;
        }
        Ok(())
    }
}
