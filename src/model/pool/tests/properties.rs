//! What holds for every node: any models, any instances, anything held.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::resource::v1;
use proptest::{prelude::*, sample::Index};

use super::{
    V1_37,
    limits::{self, SERVERS},
    names, pool,
};
use crate::model::{
    device::{Device, Part},
    fixtures::{
        carving::{Cut, Refusal, cuts, refusal, sets},
        claims::Claims,
        gpus::{MODELS, Shape, carve, gpu, node},
    },
    gpu::{Gpu, Inventory, Mig, Profile},
    plan::Origin,
    pool::{PoolInput, SliceContent, counters::Amounts, needs_reorder, slices_after},
};

/// The id of a profile that NVML does not describe.
const UNKNOWN: u32 = 99;

/// What happens at a place of a GPU.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An administrator makes an instance.
    Foreign(Shape),
    /// One of a profile that NVML does not describe.
    Unknown,
    /// A claim is given an administrator's instance.
    Found,
    /// A claim is given a device, and Kerf carves it.
    Made,
    /// A claim is given a device, whatever stands in its way.
    Refused,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Foreign(Shape::Filled)),
        1 => Just(Event::Foreign(Shape::Empty)),
        1 => Just(Event::Foreign(Shape::Split)),
        1 => Just(Event::Unknown),
        1 => Just(Event::Found),
        3 => Just(Event::Made),
        1 => Just(Event::Refused),
    ]
}

/// A node, what its claims hold, and what physically is on each GPU.
#[derive(Debug)]
struct World {
    node: Inventory,
    claims: Claims,
    physical: Vec<Vec<(Profile, crate::model::gpu::Placement)>>,
}

type Spec = (Index, bool, Vec<(Index, Event)>);

fn worlds(gpus: usize) -> impl Strategy<Value = World> {
    let spec =
        (any::<Index>(), any::<bool>(), prop::collection::vec((any::<Index>(), events()), 0..6));
    prop::collection::vec(spec, 1..=gpus).prop_map(world)
}

fn world(specs: Vec<Spec>) -> World {
    let mut world = World { node: node([]), claims: Claims::default(), physical: Vec::new() };
    for (number, (model, enabled, events)) in (0..).zip(specs) {
        let mut gpu = gpu(MODELS[model.index(MODELS.len())], number);
        let mut physical = Vec::new();
        if let Some(mig) = &mut gpu.mig {
            mig.enabled = enabled;
        }
        for (at, event) in events {
            happen(&mut gpu, &mut world.claims, &mut physical, at, event);
        }
        world.physical.push(physical);
        world.node.gpus.push(gpu);
    }
    world
}

fn happen(
    gpu: &mut Gpu,
    claims: &mut Claims,
    physical: &mut Vec<(Profile, crate::model::gpu::Placement)>,
    at: Index,
    event: Event,
) {
    let before = gpu.clone();
    let Some(mig) = before.mig.as_ref().filter(|mig| mig.enabled || mig.switches_without_reset)
    else {
        return;
    };
    let all = cuts(mig);
    let &(profile, placement) = at.get(&all);
    let device = Device { gpu: &before, part: Part::Mig(profile, placement) };
    let then: Vec<Cut> =
        physical.iter().map(|(p, at)| (p, *at)).chain([(profile, placement)]).collect();
    if refusal(mig, &then).is_some() {
        if matches!(event, Event::Refused) {
            claims.hold(&device, Origin::Made);
        }
        return;
    }
    let (id, shape) = match event {
        Event::Unknown => (UNKNOWN, Shape::Filled),
        Event::Foreign(shape) => (profile.id, shape),
        Event::Found | Event::Made | Event::Refused => (profile.id, Shape::Filled),
    };
    carve(gpu, id, placement, shape);
    physical.push((Profile { id, ..profile.clone() }, placement));
    match event {
        Event::Foreign(_) | Event::Unknown => {}
        Event::Found => claims.hold(&device, Origin::Found),
        Event::Made | Event::Refused => claims.hold(&device, Origin::Made),
    }
}

/// The amounts that counters stand for.
fn amounts(counters: &BTreeMap<String, v1::Counter>) -> BTreeMap<&str, u64> {
    counters.iter().map(|(name, value)| (name.as_str(), limits::number(&value.value))).collect()
}

fn consumption(device: &v1::Device) -> BTreeMap<&str, u64> {
    let consumes = device.consumes_counters.iter().flatten();
    consumes.flat_map(|consumption| amounts(&consumption.counters)).collect()
}

/// What a GPU's counter set has, without what `held` devices take of it.
fn left(
    slices: &[SliceContent],
    number: u32,
    held: &BTreeSet<&str>,
) -> Option<BTreeMap<String, u64>> {
    let name = format!("gpu-{number}-counter-set");
    let set =
        slices.iter().flat_map(|slice| &slice.shared_counters).find(|set| set.name == name)?;
    let mut left: BTreeMap<String, u64> =
        amounts(&set.counters).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let devices = slices.iter().flat_map(|slice| &slice.devices);
    let prefix = format!("gpu-{number}-");
    let of_gpu = |device: &&v1::Device| {
        device.name.starts_with(&prefix) || device.name == prefix[..prefix.len() - 1]
    };
    for device in devices.filter(of_gpu).filter(|device| held.contains(device.name.as_str())) {
        for (counter, amount) in consumption(device) {
            let value = left.get_mut(counter).unwrap();
            *value =
                value.checked_sub(amount).unwrap_or_else(|| panic!("{name} {counter} below zero"));
        }
    }
    Some(left)
}

/// Why a GPU may refuse what its counters let through.
fn is_listed_exception(
    physical: &[(Profile, crate::model::gpu::Placement)],
    refusal: Refusal,
) -> bool {
    // The counters of every model here are exact. But what an instance of a profile that NVML does
    // not describe takes besides its memory slices is not known.
    let unknown = physical.iter().any(|(profile, _)| profile.id == UNKNOWN);
    let unknowable =
        [Refusal::MediaEngines, Refusal::ComputeSlices, Refusal::MaxInstances].contains(&refusal);
    unknown && unknowable
}

/// Takes devices in the given order while the counters allow it, as the scheduler does, and checks
/// each step against the GPU.
fn take(
    slices: &[SliceContent],
    number: u32,
    mig: &Mig,
    physical: &[(Profile, crate::model::gpu::Placement)],
    order: &[Index],
) {
    let Some(mut left) = left(slices, number, &BTreeSet::new()) else { return };
    let all = cuts(mig);
    let mut taken: Vec<Cut> = physical.iter().map(|(profile, at)| (profile, *at)).collect();
    for index in order {
        let &(profile, placement) = index.get(&all);
        let needs = Amounts::mig(mig, profile.capacity, placement);
        let name = format!("-{}-{}", profile.id, placement.start);
        let prefix = format!("gpu-{number}-mig-");
        let mut devices = slices.iter().flat_map(|slice| &slice.devices);
        let device =
            devices.find(|device| device.name.starts_with(&prefix) && device.name.ends_with(&name));
        let Some(device) = device.filter(|device| device.consumes_counters.is_some()) else {
            continue;
        };
        assert_eq!(consumption(device).len(), needs.listed());
        let fits = consumption(device).iter().all(|(counter, need)| left[*counter] >= *need);
        let then: Vec<Cut> = taken.iter().copied().chain([(profile, placement)]).collect();
        match refusal(mig, &then) {
            None => assert!(fits, "{} can be carved and does not fit the counters", device.name),
            Some(refusal) if fits => {
                assert!(is_listed_exception(physical, refusal), "{}: {refusal:?}", device.name);
            }
            Some(_) => {}
        }
        if fits {
            consumption(device)
                .iter()
                .for_each(|(counter, need)| *left.get_mut(*counter).unwrap() -= need);
            taken = then;
        }
    }
}

/// What is published of a GPU with counters: everything but what has a shape no claim can be given.
fn expected_names(world: &World, gpu: &Gpu) -> BTreeSet<String> {
    let mig = gpu.mig.as_ref().unwrap();
    let published = |device: &Device| match device.part {
        Part::Whole => mig.switches_without_reset,
        Part::Mig(profile, placement) => {
            let made = world
                .claims
                .held()
                .iter()
                .any(|held| held.origin == Origin::Made && *held.target == device.target());
            made || gpu.instance(profile.id, placement).is_none_or(|it| it.device().is_some())
        }
    };
    Device::all(gpu).filter(published).map(|device| device.name()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_slice_is_one_that_the_server_takes(world in worlds(16)) {
        for server in SERVERS {
            limits::check(server, &pool(&world.node, &world.claims.held(), server.features()));
        }
    }

    #[test]
    fn no_counter_is_below_what_is_held(world in worlds(4)) {
        let held = world.claims.held();
        let names: BTreeSet<&str> = held.iter().map(|held| held.device).collect();
        for server in SERVERS {
            let slices = pool(&world.node, &held, server.features());
            for gpu in &world.node.gpus {
                left(&slices, gpu.number, &names);
            }
        }
    }

    #[test]
    fn devices_and_counter_sets_come_together(world in worlds(4)) {
        let slices = pool(&world.node, &world.claims.held(), V1_37);
        let devices: Vec<_> = slices.iter().flat_map(|slice| &slice.devices).collect();
        for gpu in &world.node.gpus {
            let of_gpu = |device: &&&v1::Device| {
                let uuid = |key| device.attributes.as_ref().unwrap().get(key);
                let uuid = uuid("parentUUID").or_else(|| uuid("uuid")).unwrap();
                uuid.string.as_deref() == Some(gpu.uuid.0.as_str())
            };
            let found: BTreeSet<String> =
                devices.iter().filter(of_gpu).map(|device| device.name.clone()).collect();
            let counted = left(&slices, gpu.number, &BTreeSet::new()).is_some();
            let can = gpu.mig.as_ref().is_some_and(|mig| mig.enabled || mig.switches_without_reset);
            prop_assert_eq!(counted, can);
            let whole = || BTreeSet::from([format!("gpu-{}", gpu.number)]);
            prop_assert_eq!(found, if can { expected_names(&world, gpu) } else { whole() });
        }
    }

    #[test]
    fn with_foreign_instances_the_counters_are_as_strict_as_the_gpu(
        world in worlds(2),
        order in prop::collection::vec(any::<Index>(), 40),
    ) {
        let slices = pool(&world.node, &[], V1_37);
        for (gpu, physical) in world.node.gpus.iter().zip(&world.physical) {
            if let Some(mig) = &gpu.mig {
                take(&slices, gpu.number, mig, physical, &order);
            }
        }
    }

    #[test]
    fn what_is_held_changes_the_order_and_not_the_slices(world in worlds(16)) {
        let held = world.claims.held();
        // An order changes alone when Kerf's own instances come and go with their claims.
        let mut before = world.node.clone();
        let foreign = |gpu: &Gpu, profile: u32, placement| !held.iter().any(|held| {
            matches!(held.target, crate::model::device::Target::Mig { gpu: on, profile: p, placement: at, .. }
                if *on == gpu.uuid && *p == profile && *at == placement && held.origin == Origin::Made)
        });
        for gpu in &mut before.gpus {
            let read = gpu.clone();
            if let Some(mig) = &mut gpu.mig {
                mig.instances.retain(|it| foreign(&read, it.profile, it.placement));
            }
        }
        for server in &SERVERS[1..] {
            let features = server.features();
            if !features.counters { continue }
            let input = PoolInput { held: &held, ..PoolInput::of("node", &world.node, features) };
            let after = pool(&world.node, &held, features);
            let set = |slice: &SliceContent| names(slice).into_iter().map(str::to_owned).collect::<BTreeSet<_>>();
            let without = pool(&before, &[], features);
            prop_assert_eq!(
                after.iter().map(set).collect::<Vec<_>>(),
                without.iter().map(set).collect::<Vec<_>>()
            );
            prop_assert!(!needs_reorder(&after, &input));
            prop_assert!(!needs_reorder(&slices_after(&without, &input), &input));
        }
    }
}

/// For every set of devices that do not overlap, on every model: the counters let it through if and
/// only if the GPU can be cut so.
#[test]
fn the_counters_of_every_model_are_exact() {
    for model in MODELS {
        let gpu = gpu(model, 0);
        let Some(mig) = &gpu.mig else { continue };
        let whole = Amounts::whole(mig);
        for set in sets(mig) {
            let amounts = set.iter().map(|(profile, at)| Amounts::mig(mig, profile.capacity, *at));
            let fits =
                amounts.fold(Amounts::none_of(&whole), |all, one| all.plus(&one)).fits(&whole);
            let refusal = refusal(mig, &set);
            let set: Vec<_> = set.iter().map(|(profile, at)| (&profile.name, at.start)).collect();
            assert_eq!(fits, refusal.is_none(), "{}: {set:?}: {refusal:?}", model.product);
        }
    }
}
