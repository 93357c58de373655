//! A device as it is written into a slice: attributes and capacities.

use std::collections::BTreeMap;

use k8s_openapi::api::resource::v1;

use crate::model::{
    device::Part,
    gpu::{DriverVersions, Gpu},
    pool::{counters, share::Entry},
};

/// How many attributes and capacities a device may have together.
pub(super) const MAX_ATTRIBUTES_AND_CAPACITIES: usize = 32;

/// Bytes that the value of an attribute may have.
const MAX_VALUE: usize = 64;

type Attributes = BTreeMap<String, v1::DeviceAttribute>;

/// The device to publish.
pub(super) fn device(entry: &Entry, driver: &DriverVersions) -> v1::Device {
    let attributes = attributes(entry, driver);
    let capacity = capacity(entry, MAX_ATTRIBUTES_AND_CAPACITIES - attributes.len());
    let gpu = entry.device.gpu;
    let consumes = entry.consumes.as_ref();
    v1::Device {
        name: entry.name.clone(),
        attributes: Some(attributes),
        capacity: Some(capacity).filter(|capacity| !capacity.is_empty()),
        consumes_counters: consumes.map(|amounts| vec![counters::consumption(gpu, amounts)]),
        taints: Some(entry.taints.clone()).filter(|taints| !taints.is_empty()),
        ..v1::Device::default()
    }
}

fn attributes(entry: &Entry, driver: &DriverVersions) -> Attributes {
    let mut attributes = of_gpu(entry.device.gpu, driver);
    let uuid = &entry.device.gpu.uuid.0;
    let own = match entry.device.part {
        Part::Whole => vec![("type", text("gpu")), ("uuid", text(uuid))],
        Part::Mig(profile, _) => {
            let fixed = [
                ("type", text("mig")),
                ("parentUUID", text(uuid)),
                ("profile", text(&profile.name)),
            ];
            // Only an instance that exists has a UUID of its own.
            let uuid = entry.existing.map(|instance| ("uuid", text(&instance.uuid)));
            fixed.into_iter().chain(uuid).collect()
        }
    };
    attributes.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    attributes
}

fn of_gpu(gpu: &Gpu, driver: &DriverVersions) -> Attributes {
    let always = [
        ("productName", text(&gpu.product)),
        ("brand", text(&gpu.brand)),
        ("architecture", text(&gpu.architecture)),
        ("cudaComputeCapability", version(gpu.compute_capability)),
        ("driverVersion", attribute_version(semver(&driver.driver))),
        ("cudaDriverVersion", version(driver.cuda)),
        ("resource.kubernetes.io/pciBusID", text(&gpu.pci)),
    ];
    let sometimes = [
        ("addressingMode", gpu.addressing_mode.as_deref().map(text)),
        ("resource.kubernetes.io/pcieRoot", gpu.pcie_root.as_deref().map(text)),
        ("resource.kubernetes.io/numaNode", gpu.numa_node.map(int)),
    ];
    let sometimes = sometimes.into_iter().filter_map(|(key, value)| Some((key, value?)));
    always.into_iter().chain(sometimes).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// The capacities of a device, with those that say where an existing instance lies only if there is
/// `room` for them beside the attributes.
fn capacity(entry: &Entry, room: usize) -> BTreeMap<String, v1::DeviceCapacity> {
    let gpu = entry.device.gpu;
    match (&gpu.mig, entry.device.part) {
        (Some(mig), part) if entry.partitioned => {
            let mut capacity = counters::capacity(mig, part);
            if let (Part::Mig(_, placement), Some(_)) = (part, entry.existing) {
                let slices = counters::memory_slices(placement);
                if capacity.len() + slices.len() <= room {
                    capacity.extend(slices);
                }
            }
            capacity
        }
        _ => gpu.memory.map(counters::memory_only).unwrap_or_default(),
    }
}

fn text(value: &str) -> v1::DeviceAttribute {
    let value = value[..value.floor_char_boundary(MAX_VALUE)].to_owned();
    v1::DeviceAttribute { string: Some(value), ..v1::DeviceAttribute::default() }
}

fn int(value: u32) -> v1::DeviceAttribute {
    v1::DeviceAttribute { int: Some(value.into()), ..v1::DeviceAttribute::default() }
}

fn version((major, minor): (u32, u32)) -> v1::DeviceAttribute {
    attribute_version(format!("{major}.{minor}.0"))
}

fn attribute_version(version: String) -> v1::DeviceAttribute {
    v1::DeviceAttribute { version: Some(version), ..v1::DeviceAttribute::default() }
}

/// The first three numbers of a version as the API server takes them: exactly three, and none with a
/// leading zero. What is no number counts as zero.
fn semver(version: &str) -> String {
    let mut numbers = version.split('.').map(|part| {
        let digits = part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
        digits.parse::<u32>().unwrap_or(0)
    });
    let mut next = || numbers.next().unwrap_or(0);
    format!("{}.{}.{}", next(), next(), next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_strict_semver() {
        let cases = [
            ("580.95.05", "580.95.5"),
            ("595.58", "595.58.0"),
            ("470.256.02.1", "470.256.2"),
            ("595.10.00-beta", "595.10.0"),
            ("", "0.0.0"),
        ];
        for (driver, expected) in cases {
            assert_eq!(semver(driver), expected, "{driver}");
        }
    }

    #[test]
    fn a_value_is_cut_at_a_character() {
        let long = "é".repeat(40) + "x";
        assert_eq!(text(&long).string, Some("é".repeat(32)));
        let odd = format!("x{}", "é".repeat(40));
        assert_eq!(text(&odd).string.map(|value| value.len()), Some(63));
    }
}
