//! Sysfs: where a GPU sits, its DRM devices, where the kernel looks for firmware.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{Error, Host, if_there};

impl Host {
    /// The NUMA node that a PCI device is near to; `None` where there are none.
    pub fn numa_node(&self, pci: &str) -> Option<u32> {
        let text = fs::read_to_string(self.pci_device(pci).join("numa_node")).ok()?;
        // The kernel says -1 for none.
        text.trim().parse().ok()
    }

    /// The class of a PCI device in sysfs's spelling, such as `0x030200`.
    pub fn pci_class(&self, pci: &str) -> Option<String> {
        let text = fs::read_to_string(self.pci_device(pci).join("class")).ok()?;
        Some(text.trim().to_owned())
    }

    /// The root complex above a PCI device, such as `pci0000:1a`: the first part of the device's path
    /// that names one.
    pub fn pcie_root(&self, pci: &str) -> Option<String> {
        let device = fs::canonicalize(self.pci_device(pci)).ok()?;
        let sys = fs::canonicalize(&self.sys_root).ok()?;
        let below = device.strip_prefix(&sys).unwrap_or(&device);
        let mut parts = below.iter().filter_map(|part| part.to_str());
        parts.find(|part| is_pcie_root(part)).map(str::to_owned)
    }

    /// Names of the DRM devices of a GPU, such as `card0` and `renderD128`, in order.
    pub(super) fn drm_names(&self, pci: &str) -> Result<Vec<String>, Error> {
        let directory = self.pci_device(pci).join("drm");
        let Some(entries) = if_there(fs::read_dir(&directory)).map_err(Error::read(&directory))?
        else {
            return Ok(Vec::new());
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(Error::read(&directory))?.file_name().into_string());
        }
        names.retain(|name| {
            ["card", "renderD", "controlD"].iter().any(|kind| name.starts_with(kind))
        });
        names.sort();
        Ok(names)
    }

    /// Directories in which the kernel looks for firmware, best first, as programs below the driver
    /// root see them: <https://docs.kernel.org/driver-api/firmware/fw_search_path.html>.
    pub(super) fn firmware_dirs(&self) -> Result<Vec<PathBuf>, Error> {
        let path = self.sys_root.join("module/firmware_class/parameters/path");
        let chosen = if_there(fs::read_to_string(&path)).map_err(Error::read(path))?;
        let chosen = chosen.map(|text| PathBuf::from(text.trim())).filter(|dir| dir.is_absolute());
        let release = self.kernel_release()?;
        let common = ["/lib/firmware/updates", "/lib/firmware"].into_iter().flat_map(|dir| {
            let of_release = release.as_ref().map(|release| Path::new(dir).join(release));
            of_release.into_iter().chain([PathBuf::from(dir)])
        });
        Ok(chosen.into_iter().chain(common).collect())
    }

    pub(super) fn pci_device(&self, pci: &str) -> PathBuf {
        self.sys_root.join("bus/pci/devices").join(pci)
    }
}

/// `pci`, a domain of at least four hexadecimal digits, and a bus of two.
fn is_pcie_root(part: &str) -> bool {
    let is_hex = |text: &str| text.chars().all(|c| c.is_ascii_hexdigit());
    part.strip_prefix("pci").and_then(|rest| rest.split_once(':')).is_some_and(|(domain, bus)| {
        domain.len() >= 4 && bus.len() == 2 && is_hex(domain) && is_hex(bus)
    })
}
