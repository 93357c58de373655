use serde_json::json;

use super::*;
use crate::model::{claim::ClaimRef, gpu::Placement, plan::Plan, record::VERSION};

fn record(name: &str, boot_id: &str, state: State) -> Record {
    let gpu = GpuUuid("GPU-5d1c2f0e".to_owned());
    let placement = Placement { start: 4, size: 1 };
    let mig = Target::Mig {
        gpu: gpu.clone(),
        profile: 19,
        profile_name: "1g.10gb".to_owned(),
        placement,
    };
    let devices = [("gpu-1", Target::Gpu { gpu }, Origin::Found), ("gpu-0-mig", mig, Origin::Made)];
    let devices = devices.map(|(device, target, origin)| PlannedDevice {
        requests: vec!["gpu".to_owned()],
        pool: "node".to_owned(),
        device: device.to_owned(),
        share_id: None,
        target,
        origin,
    });
    let claim =
        ClaimRef { namespace: "ml".to_owned(), name: name.to_owned(), uid: format!("uid-{name}") };
    Record {
        version: VERSION,
        boot_id: boot_id.to_owned(),
        since: "2026-03-04T11:48:00Z".to_owned(),
        plan: Plan { claim, pods: vec!["pod".to_owned()], devices: devices.to_vec() },
        state,
        carving: None,
        leftover: false,
    }
}

fn prepared() -> State {
    let device = |uuid: &str| PreparedDevice {
        uuid: Some(uuid.to_owned()),
        cdi: vec![format!("k8s.gpu.nvidia.com/claim={uuid}")],
    };
    State::Prepared { devices: vec![device("GPU-5d1c2f0e"), device("MIG-77c3d0f1")] }
}

#[test]
fn claims_are_in_order_and_devices_as_far_as_they_are() {
    let records = [
        record("c", "this", State::Preparing),
        record("b", "last", prepared()),
        record("a", "this", prepared()),
    ];
    let claims = ClaimStatus::of(&records, "this");
    let seen: Vec<_> = claims
        .iter()
        .map(|claim| {
            let uuid = claim.uuid.as_deref().unwrap_or("-");
            (claim.name.as_str(), claim.device.as_str(), uuid, claim.state, claim.cdi.len())
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("a", "gpu-1", "GPU-5d1c2f0e", ClaimState::Prepared, 1),
            ("a", "gpu-0-mig", "MIG-77c3d0f1", ClaimState::Prepared, 1),
            ("b", "gpu-1", "GPU-5d1c2f0e", ClaimState::EarlierBoot, 0),
            ("b", "gpu-0-mig", "-", ClaimState::EarlierBoot, 0),
            ("c", "gpu-1", "GPU-5d1c2f0e", ClaimState::Preparing, 0),
            ("c", "gpu-0-mig", "-", ClaimState::Preparing, 0),
        ]
    );
}

#[test]
fn names_of_fields_stay() {
    let status = Status {
        agent: Some(AgentStatus {
            version: "0.1.0".to_owned(),
            pid: 7,
            started_at: "2026-03-01T12:00:00Z".to_owned(),
            state: AgentState::WaitingForDriver { reason: "no library".to_owned() },
        }),
        kubelet: Some(KubeletStatus { registered: true, ..KubeletStatus::default() }),
        published: Some(Published { slices: 3, generation: 12, ..Published::default() }),
        not_served: vec![NotServed { index: 3, uuid: None, reason: "lost".to_owned() }],
        warnings: vec!["default runtime `nvidia`".to_owned()],
        claims: ClaimStatus::of(&[record("a", "this", prepared())], "this").split_off(1),
        error: None,
    };
    let document = json!({
        "agent": {
            "version": "0.1.0",
            "pid": 7,
            "startedAt": "2026-03-01T12:00:00Z",
            "state": "waitingForDriver",
            "reason": "no library",
        },
        "error": null,
        "kubelet": { "registered": true, "since": null, "lastError": null },
        "published":
            { "slices": 3, "generation": 12, "at": null, "error": null, "features": [] },
        "notServed": [{ "index": 3, "uuid": null, "reason": "lost" }],
        "warnings": ["default runtime `nvidia`"],
        "claims": [{
            "namespace": "ml",
            "name": "a",
            "uid": "uid-a",
            "pods": ["pod"],
            "requests": ["gpu"],
            "device": "gpu-0-mig",
            "gpu": "GPU-5d1c2f0e",
            "uuid": "MIG-77c3d0f1",
            "state": "prepared",
            "since": "2026-03-04T11:48:00Z",
            "origin": "made",
            "cdi": ["k8s.gpu.nvidia.com/claim=MIG-77c3d0f1"],
        }],
    });
    assert_eq!(serde_json::to_value(&status).unwrap(), document);
    assert_eq!(serde_json::from_value::<Status>(document).unwrap(), status);
}

#[test]
fn a_document_of_a_newer_agent_is_read() {
    let newer = json!({ "agent": null, "later": [1] });
    assert_eq!(serde_json::from_value::<Status>(newer).unwrap(), Status::default());
}
