//! Who holds devices, as labels: pods, containers and claims.

use std::collections::{BTreeMap, BTreeSet};

use super::Entity;
use crate::model::{
    DRIVER,
    claim::ClaimRef,
    device::Target,
    exposition::{Family, Labels},
    gpu::{GpuUuid, Placement},
    holder::{Container, ContainerName, Holder},
    plan::{Origin, PlannedDevice},
    record::{Record, State},
};

/// The label that dcgm-exporter does not have, and so only `kerf_device_holder` has.
const RESOURCE: &str = "resource";

/// Profile and place of a part; absent for a whole GPU.
type Part = Option<(u32, Placement)>;

/// Labels of one holder of a device.
pub(super) type Attributes = BTreeMap<&'static str, String>;

/// A node's devices that are held.
pub(super) struct Holders(BTreeMap<(GpuUuid, Part), Vec<Attributes>>);

impl Holders {
    /// What records say, with the names of containers where they are known. What admin access only sees is
    /// not held.
    pub(super) fn of(
        records: &[Record],
        containers: &BTreeMap<(String, String), Vec<ContainerName>>,
    ) -> Self {
        let mut held: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for record in records.iter().filter(|record| !record.leftover) {
            let devices = record.plan.devices.iter().enumerate();
            for (index, device) in devices.filter(|(_, device)| device.origin != Origin::Observed) {
                let by = match &record.plan.holder {
                    Holder::Claim(claim) => {
                        let known = (claim.namespace.clone(), claim.name.clone());
                        let containers = containers.get(&known).map(Vec::as_slice);
                        of_claim(claim, record, index, device, containers.unwrap_or_default())
                    }
                    Holder::Container(container) => vec![of_container(container)],
                };
                held.entry(key(&device.target)).or_default().extend(by);
            }
        }
        Self(held)
    }

    /// Who holds a GPU as a whole, or a part of it.
    pub(super) fn of_device(&self, gpu: &GpuUuid, part: Part) -> &[Attributes] {
        self.0.get(&(gpu.clone(), part)).map(Vec::as_slice).unwrap_or_default()
    }

    /// Each holder, whatever is known of its device.
    pub(super) fn family(&self, entities: &[Entity<'_>]) -> Family {
        let mut all = BTreeSet::new();
        for ((gpu, part), held) in &self.0 {
            let entity = entities.iter().find(|entity| entity.uuid == Some(gpu));
            let instance = entity
                .zip(*part)
                .and_then(|(entity, (profile, place))| entity.instance(profile, place));
            let known = instance.map(|instance| &instance.which);
            let known = known.or(entity.map(|entity| &entity.which)).cloned();
            let which = known.unwrap_or_else(|| Labels::new([("UUID", &*gpu.0)]));
            all.extend(held.iter().map(|by| which.with(labels(by))));
        }
        let mut family = Family::gauge("kerf_device_holder", "Who holds a GPU or a part of one.");
        all.into_iter().for_each(|labels| family.add(labels, 1.0));
        family
    }
}

fn key(target: &Target) -> (GpuUuid, Part) {
    match target {
        Target::Gpu { gpu } => (gpu.clone(), None),
        Target::Mig { gpu, profile, placement, .. } => (gpu.clone(), Some((*profile, *placement))),
    }
}

fn labels(by: &Attributes) -> impl Iterator<Item = (&'static str, &str)> {
    by.iter().map(|(name, value)| (*name, &**value))
}

/// The labels on which all holders of a device agree: with them its values are still counted once.
pub(super) fn agreed(held: &[Attributes]) -> impl Iterator<Item = (&'static str, &str)> {
    let (first, others) =
        held.split_first().map_or((None, held), |(first, rest)| (Some(first), rest));
    let same = |name: &str, value: &str| {
        others.iter().all(|by| by.get(name).map(String::as_str) == Some(value))
    };
    let of_first = first.into_iter().flat_map(labels);
    of_first.filter(move |&(name, value)| name != RESOURCE && same(name, value))
}

/// One for each container that has the claim, and for each pod of which no container is known.
fn of_claim(
    claim: &ClaimRef,
    record: &Record,
    index: usize,
    device: &PlannedDevice,
    containers: &[ContainerName],
) -> Vec<Attributes> {
    let mut base = Attributes::from([
        ("namespace", claim.namespace.clone()),
        ("dra_claim_name", claim.name.clone()),
        ("dra_claim_namespace", claim.namespace.clone()),
        ("dra_driver_name", DRIVER.to_owned()),
        ("dra_pool_name", device.pool.clone()),
        ("dra_device_name", device.device.clone()),
        ("dra_request", device.requests.join(",")),
    ]);
    if let Target::Mig { profile_name, .. } = &device.target {
        base.insert("dra_mig_profile", profile_name.clone());
        if let State::Prepared { devices } = &record.state {
            let uuid = devices.get(index).and_then(|device| device.uuid.clone());
            base.extend(uuid.map(|uuid| ("dra_mig_device_uuid", uuid)));
        }
    }
    let with = |pod: &str, container: Option<&str>| {
        let mut by = base.clone();
        by.insert("pod", pod.to_owned());
        by.extend(container.map(|container| ("container", container.to_owned())));
        by
    };
    let mut by: Vec<_> =
        containers.iter().map(|name| with(&name.pod, Some(&name.container))).collect();
    let unknown = |pod: &&String| containers.iter().all(|name| name.pod != **pod);
    by.extend(record.plan.pods.iter().filter(unknown).map(|pod| with(pod, None)));
    if by.is_empty() { vec![base] } else { by }
}

fn of_container(container: &Container) -> Attributes {
    let resource = (RESOURCE, container.resource.clone());
    let names = container.name.iter().flat_map(|name| {
        [
            ("namespace", name.namespace.clone()),
            ("pod", name.pod.clone()),
            ("container", name.container.clone()),
        ]
    });
    names.chain([resource]).collect()
}
