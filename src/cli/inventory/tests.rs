use insta::{assert_json_snapshot, assert_snapshot};
use k8s_openapi::api::resource::v1::ResourceSlice;

use super::*;
use crate::{
    cli::samples::{BOOT, a30, cut, h100, inventory, l4, preparing, record, rtx},
    model::{
        gpu::{Gpu, GpuUuid, Mig},
        plan::Origin,
        record::Record,
    },
};

const PLAIN: Style = Style { color: false, unicode: true };

fn kept(records: Vec<Record>) -> Kept {
    Kept { records: Some(records), boot_id: BOOT.to_owned(), notes: Vec::new() }
}

fn render(inventory: &Inventory, kept: &Kept, style: Style) -> String {
    let text = View { node: "gpu-7", inventory, kept }.render(style);
    let widest = text.lines().map(|line| line.chars().count()).max();
    assert!(style.color || widest <= Some(100), "{text}");
    text
}

/// Eight H100: mixed cuts, a whole one, one with somebody else's instances, one half prepared, one
/// that is lost.
fn busy_node() -> (Inventory, Kept) {
    let mixed = cut(h100(0), &[("1g.10gb", 0), ("1g.10gb", 1), ("2g.20gb", 2), ("3g.40gb", 4)]);
    let roomy = cut(h100(4), &[("1g.10gb+me", 6), ("3g.40gb", 0)]);
    let mut foreign = cut(h100(5), &[("4g.40gb", 0), ("2g.20gb", 4)]);
    foreign.mig.as_mut().unwrap().instances[1].compute.clear();
    let begun = cut(h100(6), &[]);
    let records = vec![
        record("eval/a", &mixed, Some(("1g.10gb", 0)), Origin::Made),
        record("eval/b", &mixed, Some(("1g.10gb", 1)), Origin::Made),
        record("ml/notebook-3", &mixed, Some(("2g.20gb", 2)), Origin::Made),
        record("ml/train-7", &h100(1), None, Origin::Found),
        record("research/a-rather-long-name", &roomy, Some(("1g.10gb+me", 6)), Origin::Made),
        record("ml/admin-watch", &roomy, Some(("3g.40gb", 0)), Origin::Observed),
        record("ml/borrowed", &foreign, Some(("4g.40gb", 0)), Origin::Found),
        preparing("eval/c", &begun, Some(("3g.40gb", 4))),
    ];
    let mut inventory =
        inventory(vec![mixed, h100(1), h100(2), roomy, foreign, begun, pending(h100(7))]);
    inventory.unreadable.push(Unreadable {
        index: 3,
        uuid: Some(GpuUuid("GPU-77aa0011-2233-4455-6677-8899aabbccdd".to_owned())),
        reason: "nvmlDeviceGetMemoryInfo_v2 on GPU 3: GPU is lost".to_owned(),
        lost: true,
        known: None,
    });
    (inventory, kept(records))
}

fn pending(gpu: Gpu) -> Gpu {
    let mig = gpu.mig.map(|mig| Mig { pending: true, ..mig });
    Gpu { mig, ..gpu }
}

#[test]
fn a_busy_node() {
    let (inventory, kept) = busy_node();
    assert_snapshot!(render(&inventory, &kept, PLAIN));
}

#[test]
fn a_busy_node_in_ascii() {
    let (inventory, kept) = busy_node();
    let text = render(&inventory, &kept, Style::default());
    assert!(text.is_ascii());
    assert_snapshot!(text);
}

#[test]
fn colour_adds_only_colour() {
    let (inventory, kept) = busy_node();
    let colored = render(&inventory, &kept, Style { color: true, unicode: true });
    let codes = ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[36m"];
    let stripped = codes.iter().fold(colored.clone(), |text, code| text.replace(code, ""));
    assert_ne!(colored, stripped);
    assert_eq!(stripped, render(&inventory, &kept, PLAIN));
}

#[test]
fn other_gpus() {
    let a30 = cut(a30(0), &[("1g.6gb", 1), ("2g.12gb", 2)]);
    let rtx = cut(rtx(1), &[("1g.24gb+gfx", 0), ("2g.48gb", 6)]);
    let renumbered = Gpu { number: 2, numa_node: None, ..l4(3) };
    let records = vec![
        record("ml/half", &a30, Some(("2g.12gb", 2)), Origin::Made),
        record("render/scene", &rtx, Some(("1g.24gb+gfx", 0)), Origin::Made),
        record("ml/infer", &l4(2), None, Origin::Found),
    ];
    let inventory = inventory(vec![a30, rtx, l4(2), renumbered]);
    assert_snapshot!(render(&inventory, &kept(records), PLAIN));
}

#[test]
fn without_records_nobody_can_tell_who_holds_what() {
    let kept = Kept {
        notes: vec![
            "cannot list `/s/claims`: permission denied; who holds what is not known".into(),
        ],
        ..Kept::default()
    };
    let inventory = inventory(vec![cut(h100(0), &[("3g.40gb", 4)]), h100(1), l4(2)]);
    assert_snapshot!(render(&inventory, &kept, PLAIN));
}

#[test]
fn an_empty_node() {
    let text = render(&inventory(Vec::new()), &kept(Vec::new()), PLAIN);
    assert_eq!(text, "node gpu-7 · driver 580.95.05 · CUDA 13.0 · no GPUs\n");
}

#[test]
fn the_document_has_everything() {
    let gpu = cut(a30(0), &[("1g.6gb", 1), ("2g.12gb", 2)]);
    let records = vec![record("ml/half", &gpu, Some(("2g.12gb", 2)), Origin::Made)];
    let (inventory, kept) = (inventory(vec![gpu]), kept(records));
    let view = View { node: "gpu-7", inventory: &inventory, kept: &kept };
    assert_json_snapshot!(view.document(&view.held().unwrap()));
}

#[test]
fn yaml_says_what_json_says() {
    let (inventory, kept) = busy_node();
    let view = View { node: "gpu-7", inventory: &inventory, kept: &kept };
    let held = view.held().unwrap();
    let (mut json, mut yaml) = (Vec::new(), Vec::new());
    output::json(&mut json, &view.document(&held)).unwrap();
    output::yaml(&mut yaml, &view.document(&held)).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let yaml: serde_json::Value = serde_saphyr::from_slice(&yaml).unwrap();
    assert_eq!(json, yaml);
}

#[test]
fn slices_are_manifests() {
    let (inventory, kept) = busy_node();
    let view = View { node: "gpu-7", inventory: &inventory, kept: &kept };
    let mut text = Vec::new();
    view.slices(&mut text).unwrap();
    let manifests: Vec<ResourceSlice> =
        serde_saphyr::from_multiple(str::from_utf8(&text).unwrap()).unwrap();
    assert_eq!(manifests, slices::slices("gpu-7", &inventory, &view.held().unwrap()));

    let first = &manifests[0];
    assert_eq!(first.metadata.generate_name.as_deref(), Some("gpu-7-gpu.nvidia.com-0-"));
    assert_eq!(first.spec.pool.name, "gpu-7");
    assert_eq!(usize::try_from(first.spec.pool.resource_slice_count), Ok(manifests.len()));
    let devices = manifests.iter().flat_map(|slice| slice.spec.devices.iter().flatten());
    assert!(devices.into_iter().any(|device| device.name == "gpu-4-mig-1g10gb-me-20-6"));
}

#[test]
fn manifests_tell_what_they_leave_out() {
    let kept = Kept { notes: vec!["cannot list `/s/claims`".to_owned()], ..Kept::default() };
    let inventory = inventory(Vec::new());
    let mut text = Vec::new();
    View { node: "gpu-7", inventory: &inventory, kept: &kept }.slices(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(
        text.starts_with("# cannot list `/s/claims`\n---\napiVersion: resource.k8s.io/v1\n"),
        "{text}"
    );
}
