//! What holds for every node and every claim.

use std::collections::BTreeSet;

use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::claimed;
use crate::model::{
    claim::{Allocation, AllocationResult},
    config::{Config, Configuration, Sharing},
    device::{Device, Part, Target},
    fixtures::{
        carving::{Cut, cuts, refusal},
        claims::Claims,
        gpus::{MODELS, Shape, carve, gpu, node},
    },
    gpu::{Gpu, Inventory, Unreadable},
    plan::{Origin, Plan, PlannedDevice, Reason, plan},
};

/// What happened at a place of a GPU, whether it can have or not.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// An administrator made an instance.
    Foreign(Shape),
    /// One of a profile that NVML does not describe.
    Unknown,
    /// A claim was given an administrator's instance.
    Found,
    /// A claim was given a device, and Kerf carved it.
    Made,
    /// A claim was given a device, which was not carved or is gone.
    Missing,
    /// A claim was given the whole GPU.
    Whole,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Foreign(Shape::Filled)),
        1 => Just(Event::Foreign(Shape::Empty)),
        1 => Just(Event::Foreign(Shape::Split)),
        1 => Just(Event::Unknown),
        1 => Just(Event::Found),
        2 => Just(Event::Made),
        1 => Just(Event::Missing),
        1 => Just(Event::Whole),
    ]
}

/// A node and what claims hold of it.
#[derive(Debug)]
struct World {
    node: Inventory,
    claims: Claims,
}

/// A model, whether its number is above nine, MIG mode now and after a reset, and what happened.
type Spec = (Index, bool, Option<(bool, bool)>, Vec<(Index, Event)>);

fn worlds() -> impl Strategy<Value = World> {
    let mode = prop::option::of((any::<bool>(), any::<bool>()));
    let spec = (any::<Index>(), any::<bool>(), mode, vec((any::<Index>(), events()), 0..4));
    (vec(spec, 0..4), 0_u32..2).prop_map(|(specs, unreadable)| world(specs, unreadable))
}

fn world(specs: Vec<Spec>, unreadable: u32) -> World {
    let mut world = World { node: node([]), claims: Claims::default() };
    for (at, (model, above, mode, events)) in (0..).zip(specs) {
        let number = if above { 10 + at } else { at };
        let mut gpu = gpu(MODELS[model.index(MODELS.len())], number);
        if let (Some(mig), Some(mode)) = (&mut gpu.mig, mode) {
            (mig.enabled, mig.pending) = mode;
        }
        for (place, event) in events {
            happen(&mut gpu, &mut world.claims, place, event);
        }
        world.node.gpus.push(gpu);
    }
    let reason = "`nvmlDeviceGetUUID` answered `GPU is lost`".to_owned();
    let lost =
        |index| Unreadable { index, uuid: None, reason: reason.clone(), lost: true, known: None };
    world.node.unreadable = (0..unreadable).map(lost).collect();
    world
}

fn happen(gpu: &mut Gpu, claims: &mut Claims, place: Index, event: Event) {
    let before = gpu.clone();
    let whole = Device { gpu: &before, part: Part::Whole };
    let Some(mig) = &before.mig else { return claims.hold(&whole, Origin::Found) };
    let &(profile, placement) = place.get(&cuts(mig));
    let device = Device { gpu: &before, part: Part::Mig(profile, placement) };
    match event {
        Event::Foreign(shape) => carve(gpu, profile.id, placement, shape),
        Event::Unknown => carve(gpu, 99, placement, Shape::Filled),
        Event::Found | Event::Made => carve(gpu, profile.id, placement, Shape::Filled),
        Event::Missing | Event::Whole => {}
    }
    match event {
        Event::Foreign(_) | Event::Unknown => {}
        Event::Found => claims.hold(&device, Origin::Found),
        Event::Made | Event::Missing => claims.hold(&device, Origin::Made),
        Event::Whole => claims.hold(&whole, Origin::Found),
    }
}

/// A result, before it is known what devices there are.
#[derive(Clone, Debug)]
struct Ask {
    name: Name,
    request: &'static str,
    admin: bool,
    share: Option<u8>,
}

#[derive(Clone, Debug)]
enum Name {
    Device(Index),
    Text(String),
}

fn asks() -> impl Strategy<Value = Vec<Ask>> {
    let name = prop_oneof![
        8 => any::<Index>().prop_map(Name::Device),
        1 => "gpu-[0-9]{1,2}(-(mig-)?[a-z0-9-]{0,12})?".prop_map(Name::Text),
        1 => any::<String>().prop_map(Name::Text),
    ];
    let request = select(&["a", "a/x", "b", "b/y", ""][..]);
    let share = prop_oneof![8 => Just(None), 1 => (0_u8..2).prop_map(Some)];
    let ask = (name, request, prop::bool::weighted(0.2), share);
    let ask = ask.prop_map(|(name, request, admin, share)| Ask { name, request, admin, share });
    vec(ask, 0..8)
}

fn results(world: &World, asks: &[Ask]) -> Vec<AllocationResult> {
    let names: Vec<_> =
        world.node.gpus.iter().flat_map(Device::all).map(|device| device.name()).collect();
    let result = |ask: &Ask| AllocationResult {
        device: match &ask.name {
            Name::Device(_) if names.is_empty() => "gpu-0".to_owned(),
            Name::Device(index) => index.get(&names).clone(),
            Name::Text(text) => text.clone(),
        },
        admin_access: ask.admin,
        share_id: ask.share.map(|share| share.to_string()),
        ..super::result(ask.request, "")
    };
    asks.iter().map(result).collect()
}

fn configurations() -> impl Strategy<Value = Vec<Configuration>> {
    let config = select(vec![
        Config::Gpu(None),
        Config::Mig(None),
        Config::Mig(Some(Sharing::Mps)),
        Config::Gpu(Some(Sharing::Mps)),
        Config::Vfio,
    ]);
    let requests = vec(select(&["a", "a/x", "b"][..]).prop_map(str::to_owned), 0..2);
    let one = (requests, config);
    vec(one.prop_map(|(requests, config)| Configuration { requests, config }), 0..3)
}

/// As many of the results as a claim can have at once, and the plan for them.
fn accepted(world: &World, asks: &[Ask]) -> (Allocation, Plan) {
    let held = world.claims.held();
    let mut claim = claimed([]);
    for result in results(world, asks) {
        claim.results.push(result);
        if plan(&world.node, &held, &claim).is_err() {
            claim.results.pop();
        }
    }
    let plan = plan(&world.node, &held, &claim).unwrap();
    (claim, plan)
}

/// What a plan gives to its claim, beside what it only looks at.
fn given(plan: &Plan) -> Vec<&PlannedDevice> {
    plan.devices.iter().filter(|device| device.origin != Origin::Observed).collect()
}

/// What is cut of a GPU, by whomever: instances that are there, and those that are to be for claims.
fn cut<'g, 't>(gpu: &'g Gpu, claimed: impl Iterator<Item = &'t Target>) -> Vec<Cut<'g>> {
    let Some(mig) = &gpu.mig else { return Vec::new() };
    let there = mig.instances.iter().map(|instance| (instance.profile, instance.placement));
    let claimed = claimed.filter_map(|target| match target {
        Target::Mig { gpu: of, profile, placement, .. } if *of == gpu.uuid => {
            Some((*profile, *placement))
        }
        Target::Mig { .. } | Target::Gpu { .. } => None,
    });
    let places: BTreeSet<_> = there.chain(claimed).collect();
    let known = places.into_iter().filter_map(|(id, at)| Some((mig.profile(id)?, at)));
    known.collect()
}

/// Whether the GPU can be cut so.
fn can_be_cut(gpu: &Gpu, cut: &[Cut]) -> bool {
    gpu.mig.as_ref().and_then(|mig| refusal(mig, cut)).is_none()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_claim_is_planned_or_refused_for_a_device_that_it_has(
        world in worlds(),
        asks in asks(),
        configurations in configurations(),
    ) {
        let claim = Allocation { configurations, ..claimed(results(&world, &asks)) };
        let held = world.claims.held();
        let first = plan(&world.node, &held, &claim);
        prop_assert_eq!(&plan(&world.node, &held, &claim), &first, "the same when asked again");
        if let Err(refusal) = first {
            let is_its = |result: &AllocationResult| {
                result.device == refusal.device && result.request == refusal.request
            };
            prop_assert!(claim.results.iter().any(is_its));
            let text = refusal.to_string();
            prop_assert!(!text.contains(char::is_control) && !text.ends_with('.'), "{text:?}");
        }
    }

    #[test]
    fn what_a_claim_is_given_overlaps_nothing(world in worlds(), asks in asks()) {
        let (_, plan) = accepted(&world, &asks);
        let given = given(&plan);
        for (at, device) in given.iter().enumerate() {
            for held in world.claims.held() {
                prop_assert!(!device.target.overlaps(held.target), "{device:?} and {held:?}");
            }
            for other in &given[..at] {
                prop_assert!(!device.target.overlaps(&other.target), "{device:?} and {other:?}");
            }
        }
    }

    #[test]
    fn what_is_to_be_made_can_be_made(world in worlds(), asks in asks()) {
        let (_, plan) = accepted(&world, &asks);
        let held = world.claims.held();
        for gpu in &world.node.gpus {
            let others = || held.iter().map(|held| held.target);
            let given = given(&plan).into_iter().map(|device| &device.target);
            if can_be_cut(gpu, &cut(gpu, others())) {
                let then = cut(gpu, others().chain(given));
                prop_assert!(can_be_cut(gpu, &then), "{}: {then:?}", gpu.product);
            }
        }
    }

    #[test]
    fn what_is_made_is_not_there_and_what_is_found_is(world in worlds(), asks in asks()) {
        let (_, plan) = accepted(&world, &asks);
        for device in &plan.devices {
            let gpu = world.node.gpu(device.target.gpu()).unwrap();
            let there = match &device.target {
                Target::Gpu { .. } => true,
                Target::Mig { profile, placement, .. } => {
                    gpu.instance(*profile, *placement).is_some()
                }
            };
            prop_assert!(device.origin == Origin::Observed || there == (device.origin == Origin::Found));
        }
    }

    #[test]
    fn every_result_is_served_by_one_device(world in worlds(), asks in asks()) {
        let (claim, plan) = accepted(&world, &asks);
        let key = |name: &String, share: &Option<String>| (name.clone(), share.clone());
        let mut left: BTreeSet<_> =
            plan.devices.iter().map(|it| key(&it.device, &it.share_id)).collect();
        prop_assert_eq!(left.len(), plan.devices.len());
        for device in &plan.devices {
            let of = |result: &&AllocationResult| {
                result.device == device.device && result.share_id == device.share_id
            };
            let results: Vec<_> = claim.results.iter().filter(of).collect();
            let requests: BTreeSet<_> = results.iter().map(|it| it.base_request()).collect();
            prop_assert_eq!(device.requests.len(), requests.len());
            prop_assert!(device.requests.iter().all(|it| requests.contains(it.as_str())));
            let only_looks = results.iter().all(|result| result.admin_access);
            prop_assert_eq!(device.origin == Origin::Observed, only_looks);
        }
        for result in &claim.results {
            left.remove(&key(&result.device, &result.share_id));
        }
        prop_assert!(left.is_empty());
    }

    #[test]
    fn nothing_is_in_the_way_of_admin_access(world in worlds(), asks in asks()) {
        let mut results = results(&world, &asks);
        results.iter_mut().for_each(|result| result.admin_access = true);
        match plan(&world.node, &world.claims.held(), &claimed(results)) {
            Ok(plan) => prop_assert_eq!(given(&plan).len(), 0),
            Err(refusal) => prop_assert!(matches!(
                *refusal.reason,
                Reason::Gone | Reason::NotOffered { .. } | Reason::Unreadable { .. }
            ), "{}", refusal),
        }
    }
}
