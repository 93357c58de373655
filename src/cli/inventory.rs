//! `kerf inventory`: the machine as it is, asked directly: no cluster, no agent.

use std::{io::Write, process::ExitCode};

use clap::ValueEnum;
use serde::Serialize;

use crate::{
    cli::{
        devices::GpuDevices,
        look::{self, Kept},
        machine::MachineArgs,
        output,
        picture::{picture, unreadable},
        slices,
        style::{Paint, Style},
    },
    model::{
        gpu::{DriverVersions, Inventory, Unreadable},
        record::Held,
        status::ClaimStatus,
    },
};

/// Arguments of `kerf inventory`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    machine: MachineArgs,
    /// Name of the node; the host name if not given.
    #[arg(long, env = "NODE_NAME")]
    node_name: Option<String>,
    /// For people, or for programs; `slices` are the ResourceSlices that an agent would publish.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
    Slices,
}

/// Shows the GPUs, how they are cut and which claims hold what.
///
/// # Errors
/// No driver to ask, or a writer that fails, unless its reader has gone away.
pub fn run(args: &Args, out: &mut dyn Write, style: Style) -> anyhow::Result<ExitCode> {
    output::quiet_pipe(show(args, out, style))
}

fn show(args: &Args, out: &mut dyn Write, style: Style) -> anyhow::Result<ExitCode> {
    let node = node_name(args);
    let inventory = look::inventory(&args.machine)?;
    let kept = look::kept(&args.machine);
    let view = View { node: &node, inventory: &inventory, kept: &kept };
    let held = view.held().unwrap_or_default();
    match args.output {
        Format::Table => out.write_all(view.render(style).as_bytes())?,
        Format::Json => output::json(out, &view.document(&held))?,
        Format::Yaml => output::yaml(out, &view.document(&held))?,
        Format::Slices => view.slices(out)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// As the kubelet names its node, unless told otherwise.
fn node_name(args: &Args) -> String {
    let host = || rustix::system::uname().nodename().to_string_lossy().trim().to_lowercase();
    args.node_name.clone().unwrap_or_else(host)
}

/// All that there is to show.
struct View<'a> {
    node: &'a str,
    inventory: &'a Inventory,
    kept: &'a Kept,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    node: &'a str,
    driver: &'a DriverVersions,
    gpus: Vec<GpuDevices<'a>>,
    unreadable: &'a [Unreadable],
    /// Null where nobody can tell.
    claims: Option<Vec<ClaimStatus>>,
    /// What is missing or wrong with the records.
    notes: &'a [String],
}

impl<'a> View<'a> {
    /// What claims hold; `None` where nobody can tell.
    fn held(&self) -> Option<Vec<Held<'a>>> {
        let records = self.kept.records.as_ref()?;
        Some(records.iter().flat_map(|record| record.held()).collect())
    }

    fn document<'d>(&'d self, held: &'d [Held<'d>]) -> Document<'d> {
        let records = self.kept.records.as_ref();
        Document {
            node: self.node,
            driver: &self.inventory.driver,
            gpus: self.inventory.gpus.iter().map(|gpu| GpuDevices::of(gpu, held)).collect(),
            unreadable: &self.inventory.unreadable,
            claims: records.map(|records| ClaimStatus::of(records, &self.kept.boot_id)),
            notes: &self.kept.notes,
        }
    }

    fn slices(&self, out: &mut dyn Write) -> anyhow::Result<()> {
        for note in &self.kept.notes {
            writeln!(out, "# {note}")?;
        }
        for slice in slices::slices(self.node, self.inventory, &self.held().unwrap_or_default()) {
            writeln!(out, "---")?;
            output::yaml(out, &slice)?;
        }
        Ok(())
    }

    fn render(&self, style: Style) -> String {
        let mut text = self.header(style);
        for note in &self.kept.notes {
            text.push_str(&format!("{} {note}\n", style.paint(Paint::Yellow, "note:")));
        }
        let mut after_picture = true;
        for (_, entry) in self.entries(style) {
            // Pictures stand apart; lines stand together.
            let is_picture = entry.lines().count() > 1;
            if is_picture || after_picture {
                text.push('\n');
            }
            text.push_str(&entry);
            after_picture = is_picture;
        }
        text
    }

    /// The GPUs as `nvidia-smi` counts them, whether they answered or not.
    fn entries(&self, style: Style) -> Vec<(u32, String)> {
        let held = self.held();
        let gpus = self.inventory.gpus.iter();
        let read = gpus.map(|gpu| (gpu.index, picture(gpu, held.as_deref(), style)));
        let failed = self.inventory.unreadable.iter();
        let failed = failed
            .map(|gpu| (gpu.index, unreadable(gpu.index, gpu.uuid.as_ref(), &gpu.reason, style)));
        let mut entries: Vec<_> = read.chain(failed).collect();
        entries.sort_by_key(|(index, _)| *index);
        entries
    }

    fn header(&self, style: Style) -> String {
        let Inventory { driver, gpus, unreadable } = self.inventory;
        let mut count = match gpus.len() + unreadable.len() {
            0 => "no GPUs".to_owned(),
            1 => "1 GPU".to_owned(),
            several => format!("{several} GPUs"),
        };
        let with_mig = gpus.iter().filter(|gpu| gpu.mig.is_some()).count();
        let parts = [(with_mig, "MIG-capable"), (unreadable.len(), "unreadable")];
        for (number, what) in parts.into_iter().filter(|(number, _)| *number > 0) {
            count.push_str(&format!(", {number} {what}"));
        }
        let parts = [
            style.paint(Paint::Bold, &format!("node {}", self.node)),
            format!("driver {}", driver.driver),
            format!("CUDA {}.{}", driver.cuda.0, driver.cuda.1),
            count,
        ];
        format!("{}\n", parts.join(style.separator()))
    }
}

#[cfg(test)]
mod tests;
