//! Which devices claims get: the facts of a real scheduler, executed here on what Kerf publishes.

mod examples;
mod facts;
mod requests;
mod selectors;

use k8s_openapi::{
    api::resource::v1::{
        AllocationResult, Device, DeviceClass, ResourceClaim, ResourceClaimStatus, ResourcePool,
        ResourceSlice, ResourceSliceSpec,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kerf::model::{
    gpu::{Capacity, DriverVersions, Gpu, GpuUuid, Inventory, Mig, Placement, Profile},
    pool::{self, Features, PoolInput},
};
use serde_json::{Value, json};

use super::{Allocated, Unschedulable, fit};

const NODE: &str = "node-a";
const DRIVER: &str = "gpu.nvidia.com";

/// Index, id, name, compute slices, MiB, multiprocessors, starts and size of placements.
type Row = (u32, u32, &'static str, u32, u64, u32, &'static [u32], u32);

/// Of an H100-80GB.
const PROFILES: [Row; 7] = [
    (0, 19, "1g.10gb", 1, 9984, 16, &[0, 1, 2, 3, 4, 5, 6], 1),
    (1, 14, "2g.20gb", 2, 20096, 32, &[0, 2, 4], 2),
    (2, 9, "3g.40gb", 3, 40448, 60, &[0, 4], 4),
    (3, 5, "4g.40gb", 4, 40448, 64, &[0], 4),
    (4, 0, "7g.80gb", 7, 81152, 132, &[0], 8),
    (7, 20, "1g.10gb+me", 1, 9984, 16, &[0, 1, 2, 3, 4, 5, 6], 1),
    (9, 15, "1g.20gb", 1, 20096, 26, &[0, 2, 4, 6], 2),
];

fn h100(number: u32) -> Gpu {
    let profiles = PROFILES.map(|(index, id, name, slices, mib, sms, starts, size)| Profile {
        index,
        id,
        name: name.to_owned(),
        slices,
        max_instances: if id == 20 { 1 } else { u32::try_from(starts.len()).unwrap() },
        capacity: Capacity {
            multiprocessors: sms,
            copy_engines: if id == 0 { 8 } else { slices },
            decoders: slices,
            jpeg_engines: slices,
            ofa_engines: u32::from(id == 20 || id == 0),
            memory: mib << 20,
            ..Capacity::default()
        },
        placements: starts.iter().map(|&start| Placement { start, size }).collect(),
    });
    Gpu {
        number,
        index: number,
        minor: number,
        uuid: GpuUuid(format!("GPU-0000000{number}")),
        product: "NVIDIA H100 80GB HBM3".to_owned(),
        brand: "Nvidia".to_owned(),
        architecture: "Hopper".to_owned(),
        compute_capability: (9, 0),
        memory: Some(81559 << 20),
        pci: format!("0000:{number:02x}:00.0"),
        pcie_root: Some(format!("pci0000:{:02x}", number / 2)),
        pci_class: None,
        numa_node: Some(number / 4),
        addressing_mode: Some("None".to_owned()),
        fabric: None,
        mig: Some(Mig {
            enabled: false,
            pending: false,
            switches_without_reset: true,
            profiles: profiles.to_vec(),
            instances: Vec::new(),
        }),
    }
}

/// What Kerf publishes of a node with so many H100s.
fn slices_of(gpus: u32) -> Vec<ResourceSlice> {
    let inventory = Inventory {
        driver: DriverVersions { driver: "580.95.05".to_owned(), cuda: (13, 0) },
        gpus: (0..gpus).map(h100).collect(),
        unreadable: Vec::new(),
    };
    let features = Features::ALL;
    let content = pool::slices(&PoolInput::of(NODE, &inventory, features));
    let count = i64::try_from(content.len()).unwrap();
    let slices = content.into_iter().enumerate().map(|(index, content)| ResourceSlice {
        metadata: named(&format!("{index:05}-{NODE}")),
        spec: ResourceSliceSpec {
            driver: DRIVER.to_owned(),
            node_name: Some(NODE.to_owned()),
            pool: ResourcePool {
                name: NODE.to_owned(),
                generation: 1,
                resource_slice_count: count,
            },
            devices: Some(content.devices).filter(|devices| !devices.is_empty()),
            shared_counters: Some(content.shared_counters).filter(|sets| !sets.is_empty()),
            ..ResourceSliceSpec::default()
        },
    });
    slices.collect()
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() }
}

/// The classes that Kerf is deployed with.
fn classes() -> Vec<DeviceClass> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/kerf.yaml");
    let read = crate::manifests::device_classes(path.as_ref()).unwrap();
    let classes = read.into_iter().filter_map(|manifest| match manifest {
        crate::manifests::Manifest::DeviceClass(class) => Some(*class),
        _ => None,
    });
    classes.collect()
}

/// A claim with these `spec.devices`.
fn claim(devices: Value) -> ResourceClaim {
    let claim = json!({"metadata": {"name": "c", "namespace": "d"}, "spec": {"devices": devices}});
    serde_json::from_value(claim).unwrap()
}

/// A claim for one device that `expression` selects among MIG devices.
fn mig(expression: &str) -> ResourceClaim {
    let selectors = json!([{"cel": {"expression": expression}}]);
    claim(json!({"requests": [{
        "name": "mig", "exactly": {"deviceClassName": "mig.nvidia.com", "selectors": selectors}
    }]}))
}

fn profile(name: &str) -> ResourceClaim {
    mig(&format!("device.attributes['gpu.nvidia.com'].profile == '{name}'"))
}

/// A claim for a whole GPU.
fn gpu() -> ResourceClaim {
    claim(json!({"requests": [{"name": "gpu", "exactly": {"deviceClassName": "gpu.nvidia.com"}}]}))
}

/// Claims one after the other, each held from then on.
#[derive(Default)]
struct Cluster {
    slices: Vec<ResourceSlice>,
    claims: Vec<ResourceClaim>,
}

impl Cluster {
    fn of(gpus: u32) -> Self {
        Self { slices: slices_of(gpus), claims: Vec::new() }
    }

    fn allocate(&mut self, mut claim: ResourceClaim) -> Result<AllocationResult, Unschedulable> {
        let allocated = Allocated::of(&self.claims);
        let allocation = fit(&self.slices, NODE, &allocated, &claim, &classes())?;
        let status = ResourceClaimStatus {
            allocation: Some(allocation.clone()),
            ..ResourceClaimStatus::default()
        };
        claim.status = Some(status);
        self.claims.push(claim);
        Ok(allocation)
    }

    /// Request and device of each result.
    fn take(&mut self, claim: ResourceClaim) -> Result<Vec<(String, String)>, String> {
        let allocation = self.allocate(claim).map_err(|why| why.to_string())?;
        let results = allocation.devices.unwrap().results.unwrap();
        Ok(results.into_iter().map(|result| (result.request, result.device)).collect())
    }

    fn device(&mut self, name: &str) -> &mut Device {
        let devices =
            self.slices.iter_mut().flat_map(|slice| slice.spec.devices.iter_mut().flatten());
        devices.into_iter().find(|device| device.name == name).unwrap()
    }

    /// The slice that has this device.
    fn slice(&mut self, device: &str) -> &mut ResourceSlice {
        let has = |slice: &&mut ResourceSlice| {
            slice.spec.devices.iter().flatten().any(|d| d.name == device)
        };
        self.slices.iter_mut().find(has).unwrap()
    }

    fn withdraw(&mut self, device: &str) -> Device {
        let devices = self.slice(device).spec.devices.as_mut().unwrap();
        let index = devices.iter().position(|d| d.name == device).unwrap();
        devices.remove(index)
    }
}

fn one(request: &str, device: &str) -> Result<Vec<(String, String)>, String> {
    Ok(vec![(request.to_owned(), device.to_owned())])
}

const NOTHING_FITS: &str = "cannot allocate all claims: no devices of node `node-a` satisfy it";

fn nothing() -> Result<Vec<(String, String)>, String> {
    Err(NOTHING_FITS.to_owned())
}
