use k8s_openapi::jiff::Timestamp;

use super::*;
use crate::model::{
    claim::ClaimRef,
    fixtures::gpus::{A100_40, H100, L4, Shape, carve, gpu, node},
    gpu::{Placement, Unreadable},
    health::{Class, Extent, Severity},
    holder::{Container, Holder},
    plugin::config::{Names, Pattern, Sharing},
};

/// What a test's node is and how it is configured.
struct World {
    inventory: Inventory,
    config: Config,
    on_demand: bool,
    findings: Findings,
    held: Vec<(Holder, String, Target, Origin, bool)>,
}

impl World {
    fn new(gpus: impl IntoIterator<Item = Gpu>, strategy: MigStrategy) -> Self {
        let config = Config { mig_strategy: strategy, ..Config::default() };
        Self {
            inventory: node(gpus),
            config,
            on_demand: false,
            findings: Findings::default(),
            held: Vec::new(),
        }
    }

    fn on_demand(gpus: impl IntoIterator<Item = Gpu>) -> Self {
        Self { on_demand: true, ..Self::new(gpus, MigStrategy::Mixed) }
    }

    fn hold(&mut self, by: Holder, device: &str, origin: Origin) {
        let devices = self.inventory.gpus.iter().flat_map(Device::all);
        let found = devices.into_iter().find(|found| found.name() == device).unwrap();
        let shared = by.key().contains("::");
        self.held.push((by, device.to_owned(), found.target(), origin, shared));
    }

    fn offer(&self) -> Offer {
        let held: Vec<Held<'_>> = self
            .held
            .iter()
            .map(|(by, device, target, origin, shared)| Held {
                by,
                device,
                target,
                origin: *origin,
                shared: *shared,
                leftover: false,
            })
            .collect();
        let input = OfferInput {
            inventory: &self.inventory,
            config: &self.config,
            held: &held,
            withheld: &[],
            findings: &self.findings,
            on_demand: self.on_demand,
            split: None,
        };
        offer(&input)
    }
}

/// Resources with the number of their devices, and of those that are healthy.
fn counts(offer: &Offer) -> Vec<(&str, usize, usize)> {
    let resources = offer.resources.iter();
    let counted = resources.map(|(name, devices)| {
        let healthy = devices.iter().filter(|device| device.unhealthy.is_none()).count();
        (name.as_str(), devices.len(), healthy)
    });
    counted.collect()
}

fn ids(offer: &Offer, resource: &str) -> Vec<String> {
    offer.resources[resource].iter().map(|device| device.id.to_string()).collect()
}

fn claim() -> Holder {
    let [namespace, name, uid] = ["ml", "train", "7f3e"].map(str::to_owned);
    ClaimRef { namespace, name, uid }.into()
}

fn container(id: &str) -> Holder {
    let [id, resource] = [id, "nvidia.com/gpu"].map(str::to_owned);
    Holder::Container(Container { id, resource, name: None })
}

fn at(start: u32, size: u32) -> Placement {
    Placement { start, size }
}

/// An H100 that an administrator cut into these profiles.
fn cut(number: u32, parts: &[(u32, Placement)]) -> Gpu {
    let mut gpu = gpu(&H100, number);
    for (profile, placement) in parts {
        carve(&mut gpu, *profile, *placement, Shape::Filled);
    }
    gpu
}

#[test]
fn without_a_strategy_every_gpu_is_whole() {
    let world = World::new([gpu(&H100, 0), gpu(&L4, 1)], MigStrategy::None);
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/gpu", 2, 2)]);
    let uuids: Vec<_> = world.inventory.gpus.iter().map(|gpu| gpu.uuid.0.clone()).collect();
    assert_eq!(ids(&offer, "nvidia.com/gpu"), uuids);
    assert_eq!(offer.resources["nvidia.com/gpu"][1].numa_node, Some(0));
}

#[test]
fn mixed_offers_each_profile_and_the_gpus_that_are_not_cut() {
    let parts = [(19, at(0, 1)), (19, at(1, 1)), (20, at(2, 1)), (9, at(4, 4))];
    let mut split = gpu(&H100, 2);
    carve(&mut split, 9, at(0, 4), Shape::Split);
    let world = World::new([cut(0, &parts), gpu(&H100, 1), split], MigStrategy::Mixed);
    // An instance of two compute instances is no device of ours, and keeps no other from being one.
    let expected = [
        ("nvidia.com/gpu", 1, 1),
        ("nvidia.com/mig-1g.10gb", 2, 2),
        ("nvidia.com/mig-1g.10gb.me", 1, 1),
        ("nvidia.com/mig-3g.40gb", 1, 1),
    ];
    assert_eq!(counts(&world.offer()), expected);
}

#[test]
fn an_empty_gpu_that_only_a_reset_makes_whole_offers_nothing() {
    let world = World::new([gpu(&A100_40, 0)], MigStrategy::Mixed);
    assert_eq!(counts(&world.offer()), []);
}

#[test]
fn single_offers_mig_devices_of_one_profile_as_gpus() {
    let seven: Vec<_> = (0..7).map(|start| (19, at(start, 1))).collect();
    let world = World::new([cut(0, &seven), cut(1, &seven)], MigStrategy::Single);
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/gpu", 14, 14)]);
    assert!(ids(&offer, "nvidia.com/gpu").iter().all(|id| id.starts_with("MIG-")));
    assert_eq!(offer.warnings, [""; 0]);
}

#[test]
fn single_says_what_keeps_a_node_from_being_of_one_kind() {
    let one = || cut(0, &[(19, at(0, 1))]);
    for (gpus, fault) in [
        (vec![one(), gpu(&L4, 1)], "some GPUs have MIG mode on and some have not"),
        (vec![one(), gpu(&A100_40, 1)], "GPU 1 has MIG mode on and no MIG devices"),
        (
            vec![one(), cut(1, &[(9, at(0, 4))])],
            "MIG devices of several profiles (1g.10gb, 3g.40gb)",
        ),
    ] {
        let offer = World::new(gpus, MigStrategy::Single).offer();
        let warning = format!(
            "MIG strategy `single`: {fault}; no GPU is offered until all are cut alike, or the strategy is `mixed`"
        );
        assert_eq!((counts(&offer), &*offer.warnings), (vec![], &[warning][..]));
    }
}

#[test]
fn what_needs_mps_is_not_offered_and_said() {
    let mut world =
        World::new([gpu(&H100, 0), cut(1, &[(19, at(0, 1)), (9, at(4, 4))])], MigStrategy::Mixed);
    world.config.sharing.by_mps =
        ["nvidia.com/gpu", "nvidia.com/mig-3g.40gb"].map(str::to_owned).into();
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/mig-1g.10gb", 1, 1)]);
    let warning = |resource: &str| {
        format!(
            "`{resource}` is not offered: `sharing.mps` shares it, and Kerf does not serve MPS; move it to \
             `sharing.timeSlicing`"
        )
    };
    let expected = [warning("nvidia.com/gpu"), warning("nvidia.com/mig-3g.40gb")];
    assert_eq!(offer.warnings, expected);
}

#[test]
fn what_a_claim_holds_is_unhealthy_with_the_reason() {
    let mut world = World::new([gpu(&H100, 0), gpu(&H100, 1)], MigStrategy::Mixed);
    world.hold(claim(), "gpu-1", Origin::Found);
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/gpu", 2, 1)]);
    let reason = offer.resources["nvidia.com/gpu"][1].unhealthy.as_deref().unwrap();
    assert!(reason.starts_with("held by claim `ml/train`"), "{reason}");

    // Cut for claims, a GPU is still offered as a whole, and cannot be had.
    let mut world = World::new([cut(0, &[(19, at(6, 1))])], MigStrategy::Mixed);
    world.hold(claim(), "gpu-0-mig-1g10gb-19-6", Origin::Made);
    assert_eq!(counts(&world.offer()), [("nvidia.com/gpu", 1, 0)]);
}

#[test]
fn what_a_container_has_stays_healthy() {
    let mut world = World::new([gpu(&H100, 0)], MigStrategy::None);
    let id = world.inventory.gpus[0].uuid.0.clone();
    world.hold(container(&id), "gpu-0", Origin::Found);
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/gpu", 1, 1)]);
    assert!(offer.resources["nvidia.com/gpu"][0].taken);
}

#[test]
fn shares_are_as_many_devices_of_which_each_can_be_had() {
    let mut world = World::new([gpu(&L4, 0), gpu(&L4, 1)], MigStrategy::None);
    let shared = Replicated {
        name: "nvidia.com/gpu".to_owned(),
        rename: "nvidia.com/gpu.shared".to_owned(),
        devices: SharedDevices::Listed(vec![DeviceRef::Gpu(1)]),
        replicas: 3,
    };
    world.config.sharing = Sharing { resources: vec![shared], ..Sharing::default() };
    let uuid = world.inventory.gpus[1].uuid.0.clone();
    world.hold(container(&format!("{uuid}::1")), "gpu-1", Origin::Found);
    let offer = world.offer();
    let expected = [("nvidia.com/gpu", 1, 1), ("nvidia.com/gpu.shared", 3, 3)];
    assert_eq!(counts(&offer), expected);
    let shares: Vec<_> = (0..3).map(|share| format!("{uuid}::{share}")).collect();
    assert_eq!(ids(&offer, "nvidia.com/gpu.shared"), shares);

    world.config.sharing.resources[0].devices = SharedDevices::Count(1);
    assert_eq!(counts(&world.offer())[1].1, 3);
    // A claim that has the GPU has all of its shares.
    world.held.clear();
    world.hold(claim(), "gpu-0", Origin::Found);
    assert_eq!(counts(&world.offer()), [("nvidia.com/gpu", 1, 1), ("nvidia.com/gpu.shared", 3, 0)]);
}

#[test]
fn patterns_name_resources() {
    let mut world = World::new([cut(0, &[(19, at(0, 1))]), gpu(&L4, 1)], MigStrategy::Mixed);
    let pattern = |pattern: &str, name: &str| Pattern {
        pattern: pattern.to_owned(),
        name: format!("nvidia.com/{name}"),
    };
    world.config.names = Names {
        gpus: vec![pattern("*A100*", "a100"), pattern("*L4", "l4"), pattern("*", "gpu")],
        mig: vec![pattern("1g.*", "small")],
    };
    assert_eq!(counts(&world.offer()), [("nvidia.com/l4", 1, 1), ("nvidia.com/small", 1, 1)]);
}

#[test]
fn on_demand_offers_every_placement_until_something_lies_there() {
    let mut world = World::on_demand([gpu(&H100, 0)]);
    let fresh = world.offer();
    let all: usize = counts(&fresh).iter().map(|(_, count, _)| count).sum();
    let healthy: usize = counts(&fresh).iter().map(|(_, _, healthy)| healthy).sum();
    assert_eq!((all, healthy), (Device::all(&world.inventory.gpus[0]).count(), all));

    // Four slices for a container: what overlaps is out of reach, what it has is not.
    let id = DeviceId::placement(&world.inventory.gpus[0].uuid, 9, 4).to_string();
    world.hold(container(&id), "gpu-0-mig-3g40gb-9-4", Origin::Made);
    let offer = world.offer();
    let healthy = |resource: &str| -> Vec<u32> {
        let devices = offer.resources[resource].iter();
        let healthy = devices.filter(|device| device.unhealthy.is_none());
        let starts = healthy.filter_map(|device| match &device.target {
            Target::Mig { placement, .. } => Some(placement.start),
            Target::Gpu { .. } => None,
        });
        starts.collect()
    };
    assert_eq!(healthy("nvidia.com/mig-3g.40gb"), [0, 4]);
    assert_eq!(healthy("nvidia.com/mig-1g.10gb"), [0, 1, 2, 3]);
    assert_eq!(counts(&offer)[0], ("nvidia.com/gpu", 1, 0));
}

#[test]
fn on_demand_leaves_what_an_administrator_made_as_it_is() {
    let world = World::on_demand([cut(0, &[(9, at(4, 4))])]);
    let offer = world.offer();
    let made = &world.inventory.gpus[0].mig.as_ref().unwrap().instances[0];
    let free = DeviceId::placement(&world.inventory.gpus[0].uuid, 9, 0).to_string();
    assert_eq!(ids(&offer, "nvidia.com/mig-3g.40gb"), [free, made.compute[0].uuid.clone()]);
    assert_eq!(
        offer.resources["nvidia.com/mig-3g.40gb"].iter().filter(|d| d.unhealthy.is_none()).count(),
        2
    );
}

#[test]
fn a_gpu_that_falls_silent_is_unhealthy_with_all_of_it_and_comes_back() {
    let parts = [(19, at(0, 1)), (9, at(4, 4))];
    let mut world = World::new([cut(0, &parts), gpu(&L4, 1)], MigStrategy::Mixed);
    let before = world.offer();
    let lost = world.inventory.gpus.remove(0);
    world.inventory.unreadable.push(Unreadable {
        index: 0,
        uuid: Some(lost.uuid.clone()),
        reason: "nvmlDeviceGetMigMode: lost".to_owned(),
        lost: true,
        known: Some(lost.clone().into()),
    });
    let silent = world.offer();
    let expected = [
        ("nvidia.com/gpu", 1, 1),
        ("nvidia.com/mig-1g.10gb", 1, 0),
        ("nvidia.com/mig-3g.40gb", 1, 0),
    ];
    assert_eq!(counts(&silent), expected);
    world.inventory.unreadable.clear();
    world.inventory.gpus.insert(0, lost);
    assert_eq!(world.offer(), before);
}

#[test]
fn a_sick_gpu_is_unhealthy_with_every_share_and_part_whoever_has_them() {
    let mut world = World::new([gpu(&L4, 0), gpu(&L4, 1)], MigStrategy::None);
    let shared = Replicated {
        name: "nvidia.com/gpu".to_owned(),
        rename: "nvidia.com/gpu".to_owned(),
        devices: SharedDevices::All,
        replicas: 3,
    };
    world.config.sharing = Sharing { resources: vec![shared], ..Sharing::default() };
    let id = format!("{}::1", world.inventory.gpus[0].uuid);
    world.hold(container(&id), "gpu-0", Origin::Found);
    assert_eq!(counts(&world.offer()), [("nvidia.com/gpu", 6, 6)]);
    let finding = Finding {
        severity: Severity::Unhealthy,
        class: Class::Bus,
        reason: "xid-79".to_owned(),
        extent: Extent::Gpu,
        since: Timestamp::UNIX_EPOCH,
        message: "GPU has fallen off the bus (XID 79)".to_owned(),
        action: "reboot the node".to_owned(),
        keeps_running_work: false,
    };
    let gpu = world.inventory.gpus[0].uuid.clone();
    world.findings = Findings([(gpu.clone(), vec![finding])].into());
    let offer = world.offer();
    assert_eq!(counts(&offer), [("nvidia.com/gpu", 6, 3)]);
    let sick = offer.resources["nvidia.com/gpu"].iter().filter(|one| *one.target.gpu() == gpu);
    let reasons: BTreeSet<_> = sick.map(|one| one.unhealthy.as_deref()).collect();
    let line = "GPU has fallen off the bus (XID 79); reboot the node";
    assert_eq!(reasons, BTreeSet::from([Some(line)]));
    world.findings = Findings::NONE;
    assert_eq!(counts(&world.offer()), [("nvidia.com/gpu", 6, 6)]);
}
