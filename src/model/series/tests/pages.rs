//! Pages of several kinds of node.

use std::collections::BTreeMap;

use super::scene::{Scene, names};
use crate::model::{
    exposition::Format,
    fixtures::gpus::{A100_80, H100, L4, Shape, carve, gpu},
    gpu::{Gpu, Placement, Unreadable},
    health::{Class, Extent, Severity},
    series::{GpuEvents, HostnameLabel, LastXid},
};

const HOLDERS: &[&str] = &["DCGM_FI_DEV_FB_USED{", "kerf_device_holder"];

fn plain(mut gpu: Gpu) -> Gpu {
    if let Some(mig) = &mut gpu.mig {
        (mig.enabled, mig.pending) = (false, false);
    }
    gpu
}

/// With `1g.10gb` at slices 0 and 1 and `3g.40gb` at 4, under the ids of an H100.
fn cut(mut gpu: Gpu) -> Gpu {
    for (profile, start, size) in [(19, 0, 1), (19, 1, 1), (9, 4, 4)] {
        carve(&mut gpu, profile, Placement { start, size }, Shape::Filled);
    }
    gpu
}

#[test]
fn an_idle_h100() {
    let scene = Scene::new([plain(gpu(&H100, 0))]);
    insta::assert_snapshot!(scene.page(Format::Text));
}

#[test]
fn an_h100_with_claims_on_its_instances() {
    let mut scene = Scene::new([cut(gpu(&H100, 0))]);
    scene.claim("ml/small", &["infer-0"], "gpu-0-mig-1g10gb-19-0", None);
    scene.claim("ml/large", &["train-0"], "gpu-0-mig-3g40gb-9-4", None);
    let key = ("ml".to_owned(), "large".to_owned());
    scene.containers.insert(key, vec![names("ml", "train-0", "main")]);
    insta::assert_snapshot!(scene.page(Format::OpenMetrics));
}

#[test]
fn an_a100_in_mig_mode_gives_memory_alone() {
    let scene = Scene::new([cut(gpu(&A100_80, 0))]);
    insta::assert_snapshot!(scene.page(Format::Text));
}

#[test]
fn holders_that_share_a_gpu_agree_on_few_labels() {
    let mut scene = Scene::new([plain(gpu(&H100, 0))]);
    scene.claim("ml/one", &["one-0"], "gpu-0", Some("a"));
    scene.claim("ml/two", &["two-0"], "gpu-0", Some("b"));
    insta::assert_snapshot!(scene.lines(HOLDERS));
}

#[test]
fn containers_and_pods_of_one_claim() {
    let mut scene = Scene::new([gpu(&L4, 0), gpu(&L4, 1)]);
    scene.claim("ml/pod", &["a"], "gpu-0", None);
    scene.claim("ml/pods", &["a", "b"], "gpu-1", None);
    let key = ("ml".to_owned(), "pod".to_owned());
    scene.containers.insert(key, vec![names("ml", "a", "main"), names("ml", "a", "side")]);
    let key = ("ml".to_owned(), "pods".to_owned());
    scene.containers.insert(key, vec![names("ml", "a", "main")]);
    insta::assert_snapshot!(scene.lines(HOLDERS));
}

#[test]
fn pods_of_the_device_plugin() {
    let mut scene = Scene::new([gpu(&L4, 0), gpu(&L4, 1), gpu(&L4, 2)]);
    scene.container("GPU-0", Some(["web", "front", "main"]), "gpu-0");
    scene.container("GPU-1::0", Some(["web", "back", "main"]), "gpu-1");
    scene.container("GPU-1::1", None, "gpu-1");
    scene.container("GPU-1::2", None, "gpu-1");
    scene.container("GPU-2", None, "gpu-2");
    insta::assert_snapshot!(scene.lines(HOLDERS));
}

#[test]
fn a_lost_gpu_keeps_its_holder_and_its_last_xid() {
    let mut scene = Scene::new([plain(gpu(&H100, 0)), gpu(&L4, 1), gpu(&L4, 2)]);
    scene.claim("ml/train", &["train-0"], "gpu-0", None);
    scene.finding(0, Severity::Unhealthy, Class::Bus, Extent::Gpu);
    let lost = scene.inventory.gpus.remove(0);
    scene.inventory.gpus.pop();
    let unreadable =
        |index, uuid, lost| Unreadable { index, uuid, reason: "lost".to_owned(), lost };
    scene.inventory.unreadable.push(unreadable(0, Some(lost.uuid.clone()), true));
    scene.inventory.unreadable.push(unreadable(2, None, false));
    let last = LastXid { code: 79, message: "GPU has fallen off the bus".to_owned() };
    let events = GpuEvents {
        last_xid: Some(last),
        xids: BTreeMap::from([(79, 1)]),
        clock_events: BTreeMap::from([(0x4, 12), (0x80, 1), (0x8000, 5)]),
    };
    scene.events.insert(lost.uuid, events);
    insta::assert_snapshot!(scene.page(Format::Text));
}

#[test]
fn findings_of_parts() {
    let mut scene = Scene::new([cut(gpu(&H100, 0)), plain(gpu(&H100, 1))]);
    let place = Placement { start: 4, size: 4 };
    scene.finding(0, Severity::Warning, Class::Memory, Extent::Instance(place));
    let place = Placement { start: 2, size: 2 };
    scene.finding(0, Severity::Unhealthy, Class::Memory, Extent::Instance(place));
    insta::assert_snapshot!(scene.lines(&["kerf_gpu", "DCGM_EXP_GPU_HEALTH_STATUS"]));
}

#[test]
fn an_old_sample_gives_its_age_alone() {
    let mut scene = Scene::new([gpu(&L4, 0)]);
    scene.options.max_age = 1.5;
    let lines = scene.lines(&["DCGM_FI_DEV_GPU_TEMP", "kerf_gpu_sample"]);
    let expected = "kerf_gpu_sample_age_seconds{gpu=\"0\",\
        UUID=\"GPU-00000000-0000-0000-0000-000000000000\",device=\"nvidia0\",hostname=\"node-a\"} 2\n";
    assert_eq!(lines, expected);
}

#[test]
fn the_label_of_the_node_is_chosen() {
    let mut scene = Scene::new([gpu(&L4, 0)]);
    let of = |scene: &Scene| scene.lines(&["DCGM_FI_DEV_GPU_TEMP"]);
    let lower = of(&scene);
    scene.options.hostname_label = HostnameLabel::Upper;
    assert_eq!(of(&scene), lower.replace("hostname=", "Hostname="));
    scene.options.hostname = String::new();
    assert_eq!(of(&scene), lower.replace(",hostname=\"node-a\"", ""));
}
