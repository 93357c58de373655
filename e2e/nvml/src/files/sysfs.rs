//! sysfs: where each GPU is plugged in, and what machine that is.

use std::{
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use super::put;
use crate::hardware::{Facts, Hardware};

/// PCI class of a 3D controller, and NVIDIA's vendor id.
const CLASS: &str = "0x030200\n";
const VENDOR: &str = "0x10de\n";

/// What firmware calls the machine.
const PRODUCT: &str = "Simulated GPU Server\n";

/// `bus/pci/devices` with links into `devices`, and the machine's name.
pub(super) fn lay_out(sys: &Path, hardware: &Hardware) -> io::Result<()> {
    put(&sys.join("class/dmi/id/product_name"), 0o444, PRODUCT)?;
    fs::create_dir_all(sys.join("bus/pci/devices"))?;
    for gpu in &hardware.gpus {
        let dir = plug_in(sys, &gpu.facts)?;
        if !hardware.node.for_containers {
            show(&dir, &gpu.facts)?;
        }
    }
    Ok(())
}

/// The answer is the device's directory.
fn plug_in(sys: &Path, facts: &Facts) -> io::Result<PathBuf> {
    let address = facts.address();
    let place = match &facts.pcie_root {
        Some(root) => format!("devices/{root}/0000:{:02x}:01.0/{address}", facts.bus - 1),
        None => format!("devices/platform/{address}"),
    };
    let dir = sys.join(&place);
    let numa = facts.numa.map_or("-1".to_owned(), |node| node.to_string());
    put(&dir.join("class"), 0o444, CLASS)?;
    put(&dir.join("vendor"), 0o444, VENDOR)?;
    put(&dir.join("device"), 0o444, format!("0x{:04x}\n", facts.spec.pci_device))?;
    put(&dir.join("numa_node"), 0o644, format!("{numa}\n"))?;
    symlink(format!("../../../{place}"), sys.join("bus/pci/devices").join(address))?;
    Ok(dir)
}

/// What DRM makes of a GPU.
fn show(dir: &Path, facts: &Facts) -> io::Result<()> {
    for name in [format!("card{}", facts.index + 1), format!("renderD{}", 128 + facts.index)] {
        let number = format!("226:{}\n", drm_minor(&name));
        put(&dir.join("drm").join(&name).join("dev"), 0o444, number)?;
    }
    Ok(())
}

/// The number at the end of a DRM node's name.
fn drm_minor(name: &str) -> &str {
    name.trim_start_matches(|letter: char| !letter.is_ascii_digit())
}
