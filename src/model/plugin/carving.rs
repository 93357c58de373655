//! Which of the MIG devices that are carved on demand a container had best get.

use crate::model::{
    device::{Device, Target},
    gpu::Inventory,
    holder::{Container, Holder},
    plan::{self, Origin},
    plugin::id::DeviceId,
    pool::{self, Features, PoolInput},
    record::Held,
};

/// A device that is chosen, as if its container held it.
struct Chosen {
    by: Holder,
    name: String,
    target: Target,
}

/// The `size` devices among `available` that a container had best get, `must_include` first: each the one whose
/// loss leaves the most of what can be carved after those before it. Fewer where no more can be carved at
/// once.
pub fn best_fit(
    inventory: &Inventory,
    held: &[Held<'_>],
    available: &[DeviceId],
    must_include: &[DeviceId],
    size: usize,
) -> Vec<DeviceId> {
    let mut ids: Vec<DeviceId> = must_include.to_vec();
    let mut chosen: Vec<Chosen> =
        must_include.iter().filter_map(|id| choice(inventory, id)).collect();
    while ids.len() < size {
        let next = next(inventory, held, &chosen, available);
        let Some(id) = next.filter(|id| !ids.contains(id)) else { break };
        chosen.extend(choice(inventory, &id));
        ids.push(id);
    }
    ids
}

fn choice(inventory: &Inventory, id: &DeviceId) -> Option<Chosen> {
    let device = id.resolve(inventory)?;
    let by = Container { id: id.to_string(), resource: String::new(), name: None };
    Some(Chosen { by: Holder::Container(by), name: device.name(), target: device.target() })
}

fn next(
    inventory: &Inventory,
    held: &[Held<'_>],
    chosen: &[Chosen],
    available: &[DeviceId],
) -> Option<DeviceId> {
    let taken = chosen.iter().map(|chosen| Held {
        by: &chosen.by,
        device: &chosen.name,
        target: &chosen.target,
        origin: Origin::Made,
        shared: false,
        leftover: false,
    });
    let held: Vec<Held<'_>> = held.iter().cloned().chain(taken).collect();
    let usable = |device: &Device<'_>| plan::usable(device, &held, false).is_ok();
    let devices = available.iter().filter_map(|id| Some((id, id.resolve(inventory)?)));
    let free: Vec<_> = devices.filter(|(_, device)| usable(device)).collect();
    let input = PoolInput { held: &held, ..PoolInput::of("", inventory, Features::ALL) };
    let order = pool::best_fit(&input);
    let place = |device: &Device<'_>| order.iter().position(|name| *name == device.name());
    let best = free.iter().min_by_key(|(_, device)| place(device).unwrap_or(usize::MAX));
    best.map(|(id, _)| (*id).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::gpus::{H100, gpu, node};

    fn ids(inventory: &Inventory, profile: u32) -> Vec<DeviceId> {
        let devices = inventory.gpus.iter().flat_map(Device::all);
        let ids = devices.filter_map(|device| match device.target() {
            Target::Mig { gpu, profile: of, placement, .. } if of == profile => {
                Some(DeviceId::placement(&gpu, of, placement.start))
            }
            _ => None,
        });
        ids.collect()
    }

    fn places(chosen: &[DeviceId]) -> Vec<String> {
        chosen
            .iter()
            .map(|id| id.to_string().split_once("0000-000000").unwrap().1.to_owned())
            .collect()
    }

    #[test]
    fn small_devices_leave_room_for_large_ones() {
        let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
        let chosen = best_fit(&node, &[], &ids(&node, 19), &[], 3);
        // The one slice that no half of the GPU needs, then the rest of one half.
        assert_eq!(places(&chosen), ["000000-mig-19-6", "000000-mig-19-4", "000000-mig-19-5"]);
    }

    #[test]
    fn what_a_gpu_has_once_comes_of_several() {
        let node = node([gpu(&H100, 0), gpu(&H100, 1)]);
        let available = ids(&node, 20);
        let chosen = best_fit(&node, &[], &available, &[], 2);
        let gpus: Vec<_> = places(&chosen).iter().map(|place| place[..6].to_owned()).collect();
        assert_eq!(gpus, ["000000", "000001"]);
        assert_eq!(best_fit(&node, &[], &available, &chosen, 3), chosen);
    }
}
