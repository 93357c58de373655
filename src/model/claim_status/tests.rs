use insta::assert_json_snapshot;

use super::*;
use crate::model::{
    claim::ClaimRef,
    device::Device,
    fixtures::gpus::{H100, Shape, carve, gpu, node},
    gpu::Placement,
    health::{Class, Extent},
    plan::{Origin, Plan},
};

const PLACE: Placement = Placement { start: 4, size: 4 };

/// A claim on a whole GPU, a MIG device, and one that admin access found not carved.
fn prepared(inventory: &Inventory) -> Record {
    let [namespace, name, uid] = ["ml", "train", "7f3e"].map(str::to_owned);
    let names = ["gpu-1", "gpu-0-mig-3g40gb-9-4", "gpu-0-mig-1g10gb-19-0"];
    let planned = names.map(|name| {
        let mut devices = inventory.gpus.iter().flat_map(Device::all);
        let device = devices.find(|device| device.name() == name).unwrap();
        PlannedDevice {
            requests: vec!["gpu".to_owned()],
            pool: "node-1".to_owned(),
            device: name.to_owned(),
            share_id: None,
            target: device.target(),
            origin: Origin::Found,
        }
    });
    let device = |uuid: Option<&str>, cdi: &[&str]| PreparedDevice {
        uuid: uuid.map(str::to_owned),
        cdi: cdi.iter().map(|&name| name.to_owned()).collect(),
    };
    Record {
        version: 1,
        boot_id: "b0f1".to_owned(),
        since: "2026-03-04T11:48:00Z".to_owned(),
        plan: Plan {
            holder: ClaimRef { namespace, name, uid }.into(),
            pods: vec!["train-0".to_owned()],
            devices: planned.to_vec(),
        },
        state: State::Prepared {
            devices: vec![
                device(Some("GPU-1"), &["k8s.gpu.nvidia.com/claim=7f3e-gpu-1"]),
                device(Some("MIG-1"), &["k8s.gpu.nvidia.com/claim=7f3e-mig"]),
                device(None, &[]),
            ],
        },
        carving: None,
        leftover: false,
    }
}

fn inventory() -> Inventory {
    let mut cut = gpu(&H100, 0);
    carve(&mut cut, 9, PLACE, Shape::Filled);
    node([cut, gpu(&H100, 1)])
}

fn sick(inventory: &Inventory, severity: Severity) -> Findings {
    let finding = Finding {
        severity,
        class: Class::Memory,
        reason: "xid-94".to_owned(),
        extent: Extent::Instance(PLACE),
        since: "2026-03-04T12:00:00Z".parse().unwrap(),
        message: "memory error, contained (XID 94)".to_owned(),
        action: "restart the application".to_owned(),
        keeps_running_work: true,
    };
    Findings([(inventory.gpus[0].uuid.clone(), vec![finding])].into())
}

#[test]
fn a_claim_is_told_what_it_has_and_how_that_is() {
    let inventory = inventory();
    let findings = sick(&inventory, Severity::Unhealthy);
    assert_json_snapshot!(devices("gpu.nvidia.com", &prepared(&inventory), &inventory, &findings));
}

#[test]
fn only_what_concerns_a_device_changes_its_health() {
    let inventory = inventory();
    let healthy = |findings: &Findings| {
        let devices = devices("gpu.nvidia.com", &prepared(&inventory), &inventory, findings);
        let condition = |device: &AllocatedDeviceStatus| {
            let healthy = &device.conditions.as_ref().unwrap()[1];
            (healthy.status.clone(), healthy.reason.clone())
        };
        devices.iter().map(condition).collect::<Vec<_>>()
    };
    let said = |words: [(&str, &str); 3]| words.map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
    let well = ("True", "Healthy");
    assert_eq!(healthy(&Findings::NONE), said([well; 3]));
    let warned = sick(&inventory, Severity::Warning);
    assert_eq!(healthy(&warned), said([well, ("True", "Warning"), well]));
    let unhealthy = sick(&inventory, Severity::Unhealthy);
    assert_eq!(healthy(&unhealthy), said([well, ("False", "Unhealthy"), well]));
}

#[test]
fn nothing_is_said_before_the_devices_are_prepared() {
    let inventory = inventory();
    let preparing = Record { state: State::Preparing, ..prepared(&inventory) };
    assert_eq!(devices("gpu.nvidia.com", &preparing, &inventory, &Findings::NONE), []);
}
