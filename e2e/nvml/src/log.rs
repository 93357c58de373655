//! The kernel's log: one record a line, as `/dev/kmsg` gives them, in a file that begins with the boot.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    clock,
    hardware::{Facts, Hardware},
    state::{Driver, GpuState, Process},
};

/// Facility "kernel", level "warning".
const PRIORITY: u32 = 4;

/// The file.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join("kmsg")
}

/// Begins the log of a new boot: a new file, so that who reads the old one is at its end.
pub(crate) fn begin(dir: &Path) -> io::Result<()> {
    let new = dir.join("kmsg.new");
    File::create(&new)?;
    fs::rename(new, path(dir))
}

impl Hardware {
    /// Appends a record, whose number no other has in this boot.
    pub(crate) fn log(&self, text: &str) -> io::Result<()> {
        let count = |driver: &mut Driver| {
            driver.logged += 1;
            Ok(())
        };
        let append = |old: &Driver, _: &Driver| {
            let since_boot = clock::now().saturating_sub(old.booted);
            let record = format!("{PRIORITY},{},{since_boot},-;{text}\n", old.logged);
            OpenOptions::new().append(true).open(path(&self.dir))?.write_all(record.as_bytes())
        };
        self.driver.update(count, append)
    }
}

/// The driver's line for an XID, with the ids of GPU and compute instance as far as they are known.
pub(crate) fn xid(
    facts: &Facts,
    state: &GpuState,
    xid: u64,
    (gi, ci): (Option<u32>, Option<u32>),
) -> String {
    let of = match (gi, ci) {
        (Some(gi), Some(ci)) => format!(" GPU-I:{gi:02} GPU-CI:{ci:02}"),
        (Some(gi), None) => format!(" GPU-I:{gi:02}"),
        (None, _) => String::new(),
    };
    let here = |process: &&Process| {
        let (in_gi, in_ci) = process.instance.unzip();
        (gi.is_none() || in_gi == gi) && (ci.is_none() || in_ci == ci)
    };
    let culprit = state.processes.iter().find(here).map_or_else(
        || "pid='<unknown>', name=<unknown>".to_owned(),
        |process| format!("pid={}, name={}", process.pid, process.name),
    );
    format!("NVRM: Xid ({}{of}): {xid}, {culprit}, {}", place(facts), meaning(xid))
}

/// The driver's line for XID 154, which no process is to blame for.
pub(crate) fn recovery_action(facts: &Facts, old: u32, new: u32) -> String {
    let [from, to] = [old, new].map(|action| format!("0x{action:x} ({})", action_name(action)));
    format!("NVRM: Xid ({}): 154, GPU recovery action changed from {from} to {to}", place(facts))
}

fn place(facts: &Facts) -> String {
    format!("PCI:0000:{:02x}:00", facts.bus)
}

fn action_name(action: u32) -> &'static str {
    match action {
        0 => "None",
        1 => "GPU Reset Required",
        2 => "Node Reboot Required",
        3 => "Drain P2P",
        4 => "Drain and Reset",
        5 => "Recover IMEX Domain",
        6 => "Bus Reset Required",
        7 => "System Reboot Required",
        _ => "Unknown",
    }
}

/// How such a line may go on.
fn meaning(xid: u64) -> &'static str {
    match xid {
        13 => "Graphics SM Warp Exception on (GPC 2, TPC 4, SM 1): Illegal Instruction Encoding",
        31 => "Ch 00000012, intr 00000000. MMU Fault: FAULT_PDE ACCESS_TYPE_VIRT_READ",
        43 => "Ch 00000012",
        45 => "Ch 00000012, errorString CTX SWITCH TIMEOUT",
        48 => "An uncorrectable double bit error (DBE) has been detected on GPU in the framebuffer",
        62 => "PMU Halt Error, 2a5f 1f48 0000 0000",
        63 => "Row Remapper: New row marked for remapping, reset gpu to activate.",
        64 => "Row Remapper: Error recording the row for remapping",
        74 => "NVLink: fatal error detected on link 3(0x10000, 0x0, 0x0, 0x0, 0x0, 0x0, 0x0)",
        79 => "GPU has fallen off the bus.",
        92 => "High single-bit ECC error rate",
        94 => "Contained: SM (0x1). RST: No, D-RST: No",
        95 => "Uncontained: LTC TAG (0x2,0x0). RST: Yes, D-RST: No",
        119 => "Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76",
        120 => "GSP task timeout @ pc:0x4c9c1a2, task: 1",
        140 => "Uncorrectable ECC error before it could be retired",
        143 => "GPU initialization failed",
        _ => "Error",
    }
}
