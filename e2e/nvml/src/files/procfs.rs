//! procfs: what the kernel says of itself, and what the driver adds while it is loaded.

use std::{
    fs, io,
    io::ErrorKind::NotFound,
    path::{Path, PathBuf},
};

use super::{capabilities, put, unless};
use crate::{
    hardware::{Facts, Hardware},
    numbers::Numbers,
};

/// All of it, with or without a driver as the machine's state says.
pub(crate) fn lay_out(hardware: &Hardware) -> io::Result<()> {
    let proc = hardware.dir.join("proc");
    let driver = hardware.driver.read()?;
    put(&proc.join("sys/kernel/random/boot_id"), 0o644, format!("{}\n", driver.boot_id))?;
    put(&proc.join("sys/kernel/osrelease"), 0o644, "6.8.0-60-generic\n")?;
    put(&proc.join("devices"), 0o644, devices(hardware, driver.loaded))?;
    remove_processes(&proc)?;
    unless(NotFound, fs::remove_dir_all(proc.join("driver/nvidia")))?;
    unless(NotFound, fs::remove_dir_all(proc.join("driver/nvidia-caps")))?;
    if !driver.loaded {
        return fs::create_dir_all(proc.join("driver"));
    }
    let nvidia = proc.join("driver/nvidia");
    put(&nvidia.join("version"), 0o444, version(&hardware.node.driver))?;
    put(&nvidia.join("params"), 0o444, PARAMS)?;
    for gpu in &hardware.gpus {
        information(&nvidia, &gpu.facts)?;
    }
    capabilities::lay_out(hardware)
}

/// A process that runs.
pub(crate) fn add_process(hardware: &Hardware, pid: u32, name: &str) -> io::Result<()> {
    put(&directory(hardware, pid).join("comm"), 0o644, format!("{name}\n"))
}

/// A process that has ended.
pub(crate) fn remove_process(hardware: &Hardware, pid: u32) -> io::Result<()> {
    unless(NotFound, fs::remove_dir_all(directory(hardware, pid)))
}

fn directory(hardware: &Hardware, pid: u32) -> PathBuf {
    hardware.dir.join("proc").join(pid.to_string())
}

/// Nobody uses the GPUs of a driver that is just loaded, or not.
fn remove_processes(proc: &Path) -> io::Result<()> {
    for entry in fs::read_dir(proc)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().parse::<u32>().is_ok() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn devices(hardware: &Hardware, driver: bool) -> String {
    let mut text = "Character devices:\n  1 mem\n  5 /dev/tty\n 10 misc\n".to_owned();
    if driver {
        for (major, name) in owners(hardware) {
            text += &format!("{major:3} {name}\n");
        }
    }
    text + "\nBlock devices:\n259 blkext\n"
}

/// Who owns which major number.
fn owners(hardware: &Hardware) -> Vec<(u32, &'static str)> {
    let Numbers { nvidia, uvm, caps, .. } = hardware.numbers;
    let all = [
        (nvidia, "nvidia"),
        (nvidia, "nvidia-modeset"),
        (nvidia, "nvidiactl"),
        (226, "drm"),
        (uvm, "nvidia-uvm"),
        (caps, "nvidia-caps"),
    ];
    let mut owners = all.to_vec();
    owners.retain(|(_, name)| {
        !hardware.node.for_containers || !["nvidia-modeset", "drm"].contains(name)
    });
    owners
}

fn version(driver: &str) -> String {
    format!(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build  \
         (builder)  Thu Jan  1 00:00:00 UTC 2026\nGCC version:  gcc version 13.3.0\n"
    )
}

const PARAMS: &str = "\
ModifyDeviceFiles: 1
DeviceFileUID: 0
DeviceFileGID: 0
DeviceFileMode: 438
InitializeSystemMemoryAllocations: 1
EnableMSI: 1
PreserveVideoMemoryAllocations: 0
EnableGpuFirmware: 18
";

fn information(nvidia: &Path, facts: &Facts) -> io::Result<()> {
    let address = facts.address();
    let text = format!(
        "Model: \t\t {}\nIRQ:   \t\t {}\nGPU UUID: \t {}\nVideo BIOS: \t 96.00.74.00.01\n\
         Bus Type: \t PCIe\nDMA Size: \t 52 bits\nDMA Mask: \t 0xfffffffffffff\n\
         Bus Location: \t {address}\nDevice Minor: \t {}\nGPU Excluded:\t No\n",
        facts.spec.name,
        100 + facts.index,
        facts.uuid,
        facts.minor,
    );
    put(&nvidia.join("gpus").join(address).join("information"), 0o444, text)
}
