//! A GPU's PCI configuration space, where a hypervisor says that it is a virtual one.

use std::fs;

use super::Host;
use crate::model::labels::{HostDriver, Vgpu};

/// Whether a device has capabilities, and where the first lies.
const STATUS: usize = 0x06;
const HAS_CAPABILITIES: u8 = 0x10;
const FIRST: usize = 0x34;

/// Capabilities that the vendor gives a meaning: id, next, length, then what a virtual GPU is known by.
const VENDOR_SPECIFIC: u8 = 0x09;
const SIGNATURE: &[u8] = b"VF";
const RECORDS: usize = 5;

/// As many capabilities as there is room for: more are a ring.
const MOST: usize = 48;

/// Kind of the record with version and branch of the hypervisor's driver, and the room that each has.
const HOST_DRIVER: u8 = 0;
const TEXT: usize = 10;

impl Host {
    /// Whether a GPU is a virtual one. `None` where the kernel does not show all of its configuration
    /// space: without privileges that ends after 64 bytes.
    pub fn vgpu(&self, pci: &str) -> Option<Vgpu> {
        let config = fs::read(self.pci_device(pci).join("config")).ok()?;
        config.get(..256).map(vgpu)
    }
}

fn vgpu(config: &[u8]) -> Vgpu {
    match capability(config) {
        None => Vgpu::Absent,
        Some(capability) => Vgpu::Present(host_driver(capability)),
    }
}

/// The capability that only a virtual GPU has.
fn capability(config: &[u8]) -> Option<&[u8]> {
    if config.get(STATUS)? & HAS_CAPABILITIES == 0 {
        return None;
    }
    let mut at = usize::from(*config.get(FIRST)?);
    for _ in 0..MOST {
        let (Some(&[id, next, length]), 1..) = (config.get(at..at + 3)?.first_chunk(), at) else {
            return None;
        };
        let capability = config.get(at..at + usize::from(length)).unwrap_or_default();
        if id == VENDOR_SPECIFIC && capability.get(3..RECORDS) == Some(SIGNATURE) {
            return Some(capability);
        }
        at = usize::from(next);
    }
    None
}

fn host_driver(capability: &[u8]) -> Option<HostDriver> {
    let mut at = RECORDS;
    loop {
        let [kind, length] = *capability.get(at..)?.first_chunk()?;
        if kind == HOST_DRIVER {
            break;
        }
        // A record is at least its kind and its length.
        at += usize::from(length.max(2));
    }
    let text = |from: usize| {
        let bytes = capability.get(from..from + TEXT)?;
        Some(String::from_utf8_lossy(bytes).trim_matches('\0').to_owned())
    };
    Some(HostDriver { version: text(at + 2)?, branch: text(at + 2 + TEXT)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration space with these capabilities, each with the place of the next.
    fn config(capabilities: &[(usize, u8, &[u8])]) -> Vec<u8> {
        let mut config = vec![0; 256];
        config[STATUS] = HAS_CAPABILITIES;
        config[FIRST] = 0x40;
        for &(at, next, capability) in capabilities {
            config[at..at + capability.len()].copy_from_slice(capability);
            config[at + 1] = next;
        }
        config
    }

    fn of_vgpu(records: &[u8]) -> Vec<u8> {
        let length = u8::try_from(RECORDS + records.len()).unwrap();
        [&[VENDOR_SPECIFIC, 0, length], SIGNATURE, records].concat()
    }

    #[test]
    fn a_virtual_gpu_names_its_hypervisors_driver() {
        let records = b"\x01\x03x\x00\x16550.54.16\0r550_40\0\0\0";
        let virtual_gpu = of_vgpu(records);
        let others: [&[u8]; 2] = [&[0x05, 0, 0], &[VENDOR_SPECIFIC, 0, 20]];
        let capabilities =
            [(0x40, 0x60, others[0]), (0x60, 0xd0, others[1]), (0xd0, 0, &virtual_gpu)];
        let driver = HostDriver { version: "550.54.16".to_owned(), branch: "r550_40".to_owned() };
        assert_eq!(vgpu(&config(&capabilities)), Vgpu::Present(Some(driver)));
    }

    #[test]
    fn a_virtual_gpu_may_name_no_driver() {
        for records in [&b""[..], b"\x01\x03x", b"\x01\0\0", b"\0\x16550", b"\x01"] {
            let capability = of_vgpu(records);
            assert_eq!(
                vgpu(&config(&[(0x40, 0, &capability)])),
                Vgpu::Present(None),
                "{records:?}"
            );
        }
    }

    #[test]
    fn other_gpus_are_not_virtual() {
        let none = vec![0; 256];
        let empty = config(&[]);
        let ring = config(&[(0x40, 0x40, &[0x05, 0, 0])]);
        let beyond = config(&[(0x40, 0xff, &[0x05, 0, 0])]);
        let others = config(&[(0x40, 0, &[VENDOR_SPECIFIC, 0, 20])]);
        for config in [none, empty, ring, beyond, others] {
            assert_eq!(vgpu(&config), Vgpu::Absent);
        }
    }
}
