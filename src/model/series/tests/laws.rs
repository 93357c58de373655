//! What is true of all pages.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{collection::vec, prelude::*};

use super::{
    parse::{Read, read},
    scene::{Scene, names},
};
use crate::model::{
    device::Device,
    exposition::Format,
    fixtures::gpus::{MODELS, Shape, carve, gpu},
    gpu::{Gpu, Placement, Unreadable},
    health::{Class, Extent, Severity},
    series::{GpuEvents, LastXid},
};

/// Places are tried in the order of `picks`; what does not overlap is carved.
fn arbitrary_gpu(number: u32) -> impl Strategy<Value = Gpu> {
    (0..MODELS.len(), any::<bool>(), vec(any::<prop::sample::Index>(), 0..8)).prop_map(
        move |(model, enabled, picks)| {
            let mut gpu = gpu(MODELS[model], number);
            let Some(mig) = &mut gpu.mig else { return gpu };
            (mig.enabled, mig.pending) = (enabled, enabled);
            let all = mig.profiles.iter();
            let all = all.flat_map(|profile| profile.placements.iter().map(|at| (profile.id, *at)));
            let all: Vec<(u32, Placement)> = all.collect();
            let picks = picks.iter().filter(|_| enabled).map(|pick| pick.get(&all));
            for (profile, place) in picks {
                let instances = &gpu.mig.as_ref().unwrap().instances;
                if instances.iter().all(|instance| !instance.placement.overlaps(*place)) {
                    carve(&mut gpu, *profile, *place, Shape::Filled);
                }
            }
            gpu
        },
    )
}

/// Who has the devices at these indices: a claim of so many pods, or containers.
#[derive(Clone, Debug)]
struct Held {
    device: prop::sample::Index,
    pods: usize,
    claim: bool,
    named: bool,
}

fn arbitrary_held() -> impl Strategy<Value = Held> {
    (any::<prop::sample::Index>(), 0..3usize, any::<bool>(), any::<bool>())
        .prop_map(|(device, pods, claim, named)| Held { device, pods, claim, named })
}

fn hold(scene: &mut Scene, held: &[Held]) {
    for (number, held) in held.iter().enumerate() {
        let devices = scene.inventory.gpus.iter().flat_map(Device::all);
        let devices: Vec<String> = devices.map(|device| device.name()).collect();
        let device = held.device.get(&devices);
        let pods = &["a", "b"][..held.pods];
        if held.claim {
            scene.claim(&format!("ml/{}", number % 2), pods, device, Some("share"));
        } else {
            let id = format!("GPU::{number}");
            scene.container(&id, held.named.then_some(["ml", "a", "main"]), device);
        }
    }
    let key = ("ml".to_owned(), "1".to_owned());
    scene.containers.insert(key, vec![names("ml", "a", "main"), names("ml", "c", "main")]);
}

fn arbitrary_scene() -> impl Strategy<Value = Scene> {
    let gpus = (arbitrary_gpu(0), arbitrary_gpu(1));
    (gpus, vec(arbitrary_held(), 0..6), any::<[bool; 3]>(), ".*", any::<[u8; 4]>()).prop_map(
        |((one, other), held, [lost, old, known], text, [start, size, code, bits])| {
            let mut scene = Scene::new([one, other]);
            hold(&mut scene, &held);
            let place = Placement { start: start.into(), size: size.into() };
            for severity in [Severity::Warning, Severity::Unhealthy, Severity::Warning] {
                scene.finding(0, severity, Class::Memory, Extent::Instance(place));
            }
            scene.options.hostname = text.clone();
            scene.options.max_age = if old { 1.0 } else { 60.0 };
            let events = GpuEvents {
                last_xid: Some(LastXid { code: code.into(), message: text }),
                xids: BTreeMap::from([(code.into(), 1), (13, 2)]),
                clock_events: (0..8).map(|bit| (u64::from(bits) & (1 << bit), 3)).collect(),
            };
            scene.events.insert(scene.inventory.gpus[0].uuid.clone(), events);
            if lost {
                let gpu = scene.inventory.gpus.remove(0);
                let unreadable = Unreadable {
                    index: gpu.index,
                    uuid: known.then_some(gpu.uuid),
                    reason: "lost".to_owned(),
                    lost: true,
                };
                scene.inventory.unreadable.push(unreadable);
            }
            scene
        },
    )
}

fn is_new<'r>(seen: &mut BTreeSet<(&'r str, Vec<(&'r String, &'r String)>)>, of: &'r Read) -> bool {
    seen.insert((&of.name, of.labels.iter().collect()))
}

proptest! {
    #[test]
    fn what_is_written_is_read_and_each_series_is_there_once(scene in arbitrary_scene()) {
        let text = read(&scene.page(Format::Text), Format::Text);
        let open = read(&scene.page(Format::OpenMetrics), Format::OpenMetrics);
        prop_assert_eq!(&text, &open);
        let mut seen = BTreeSet::new();
        for series in &text {
            prop_assert!(is_new(&mut seen, series), "{:?} twice", series);
            let host = series.labels.get("hostname").map_or("", String::as_str);
            prop_assert_eq!(host, &*scene.options.hostname);
        }
    }

    #[test]
    fn nothing_is_said_of_a_gpu_and_of_its_parts(scene in arbitrary_scene()) {
        let page = scene.page(Format::Text);
        let series = read(&page, Format::Text);
        let of = |part: bool| {
            let values = series.iter().filter(|series| series.name.starts_with("DCGM_"));
            let values = values.filter(|series| series.labels.contains_key("GPU_I_ID") == part);
            values.map(|series| (&series.name, &series.labels["UUID"])).collect::<BTreeSet<_>>()
        };
        let named = series.iter().filter(|series| series.name.starts_with("DCGM_"));
        prop_assume!(named.into_iter().all(|series| series.labels.contains_key("UUID")));
        let both: Vec<_> = of(true).intersection(&of(false)).cloned().collect();
        prop_assert_eq!(both, Vec::new());
    }

    #[test]
    fn holders_change_labels_alone(gpu in arbitrary_gpu(0), held in vec(arbitrary_held(), 0..6)) {
        let values = |scene: &Scene| {
            let series = read(&scene.page(Format::Text), Format::Text).into_iter();
            let dcgm = series.filter(|series| series.name.starts_with("DCGM_"));
            dcgm.map(|series| (series.name, series.value)).collect::<Vec<_>>()
        };
        let mut scene = Scene::new([gpu]);
        let free = values(&scene);
        hold(&mut scene, &held);
        prop_assert_eq!(values(&scene), free);
    }
}
