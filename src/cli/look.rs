//! Looking at a machine without changing it: its GPUs, and the records of its agent.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::{
    cli::machine::MachineArgs,
    model::{
        gpu::{Gpu, Inventory, Unreadable},
        record::Record,
        unread::Unread,
    },
    node::{
        nvml::{Calls, Nvml},
        store::{self, Numbers},
    },
};

/// A GPU that takes longer is shown as one that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What an agent kept about claims, as far as it can be read.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// `None` where nobody can tell.
    pub(super) records: Option<Vec<Record>>,
    /// This boot; empty where there are no records to compare with it.
    pub(super) boot_id: String,
    /// What is missing or wrong, one line each.
    pub(super) notes: Vec<String>,
}

/// Reads the records below the state directory.
pub(super) fn kept(machine: &MachineArgs) -> Kept {
    let dir = machine.state_dir();
    let unknown = |error: anyhow::Error| Kept {
        notes: vec![format!("{error:#}; who holds what is not known")],
        ..Kept::default()
    };
    let (records, unread) = match store::look(&dir) {
        Ok(found) => found,
        Err(error) => return unknown(error.into()),
    };
    let mut notes: Vec<_> = unread
        .iter()
        .map(|unread| {
            let Unread { file, reason, .. } = unread;
            format!("record `{file}` cannot be read, and what it holds is not known: {reason}")
        })
        .collect();
    if records.is_empty() {
        if notes.is_empty() && !dir.join("claims").exists() {
            notes.push(format!("no agent has kept records in `{}`", dir.display()));
        }
        return Kept { records: Some(records), boot_id: String::new(), notes };
    }
    match machine.host().boot_id() {
        Ok(boot_id) => Kept { records: Some(records), boot_id, notes },
        Err(error) => unknown(error.into()),
    }
}

/// Reads all GPUs side by side, so that one that hangs delays no other for long.
///
/// # Errors
/// No driver, or one that does not even say how many GPUs there are.
pub(super) fn inventory(machine: &MachineArgs) -> anyhow::Result<Inventory> {
    let calls = Calls::default();
    let library = machine.nvml_library.clone().or_else(|| machine.host().library());
    let nvml = Nvml::load(library.as_deref(), calls.clone()).context(
        "cannot ask the NVIDIA driver; load it, or name its library with `--nvml-library`",
    )?;
    let nvml = Arc::new(nvml);
    let driver = nvml.versions().context("cannot ask the NVIDIA driver")?;
    let count = nvml.count().context("cannot ask the NVIDIA driver")?;
    let mut inventory = Inventory { driver, ..Inventory::default() };
    for (index, read) in (0..count).zip(read_all(&nvml, count)) {
        match read {
            Some(Ok(gpu)) => inventory.gpus.push(gpu),
            Some(Err(unreadable)) => inventory.unreadable.push(unreadable),
            None => inventory.unreadable.push(unanswered(&calls, index)),
        }
    }
    complete(machine, &mut inventory.gpus);
    Ok(inventory)
}

/// The GPUs by index; `None` for one that did not answer in time.
fn read_all(nvml: &Arc<Nvml>, count: u32) -> Vec<Option<Result<Gpu, Unreadable>>> {
    let answers: Vec<_> = (0..count)
        .map(|index| {
            let (answer, answered) = mpsc::sync_channel(1);
            let nvml = nvml.clone();
            // Not joined: a call that hangs ends with the process. Nobody may wait for the answer.
            thread::spawn(move || drop(answer.send(nvml.gpu(index))));
            answered
        })
        .collect();
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.saturating_duration_since(Instant::now());
    answers.into_iter().map(|answered| answered.recv_timeout(left()).ok()).collect()
}

fn unanswered(calls: &Calls, index: u32) -> Unreadable {
    let calls = calls.longer_than(Duration::ZERO);
    let call = calls.iter().find(|call| call.gpu == Some(index));
    let slow = || format!("not read within {} s", PATIENCE.as_secs());
    let reason = call.map_or_else(slow, ToString::to_string);
    Unreadable::silent(index, None, reason)
}

/// Adds what NVML does not tell: the place in the machine, and the numbers that an agent gave.
fn complete(machine: &MachineArgs, gpus: &mut [Gpu]) {
    let host = machine.host();
    let numbers = numbers(machine);
    for gpu in gpus {
        gpu.numa_node = host.numa_node(&gpu.pci);
        gpu.pci_class = host.pci_class(&gpu.pci);
        gpu.pcie_root = host.pcie_root(&gpu.pci);
        gpu.number = numbers.gpus.get(&gpu.uuid).copied().unwrap_or(gpu.number);
    }
}

/// None where no agent ran in this boot, or none that may be read: devices then go by the numbers
/// that the driver gives, as they would for a new agent.
fn numbers(machine: &MachineArgs) -> Numbers {
    let boot_id = machine.host().boot_id().unwrap_or_default();
    let numbers = store::look_at_numbers(&machine.state_dir()).unwrap_or_default();
    if numbers.boot_id == boot_id { numbers } else { Numbers::default() }
}
