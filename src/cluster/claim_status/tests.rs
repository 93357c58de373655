use super::*;
use crate::cluster::script::script;

fn claim() -> ClaimRef {
    let [namespace, name, uid] = ["ml", "train", "uid-1"].map(str::to_owned);
    ClaimRef { namespace, name, uid }
}

fn device(name: &str) -> AllocatedDeviceStatus {
    let [driver, pool, device] = ["gpu.nvidia.com", "a", name].map(str::to_owned);
    AllocatedDeviceStatus { driver, pool, device, ..AllocatedDeviceStatus::default() }
}

#[tokio::test]
async fn our_entries_are_applied_and_no_others() {
    let (cluster, mut calls) = script();
    let server = async {
        let path = "PATCH /apis/resource.k8s.io/v1/namespaces/ml/resourceclaims/train/status";
        let call = calls.expect(path).await;
        assert!(call.line.contains("fieldManager=kerf") && call.line.contains("force=true"));
        assert_eq!(call.body["metadata"]["uid"], "uid-1");
        let entry = json!({ "driver": "gpu.nvidia.com", "pool": "a", "device": "gpu-0" });
        assert_eq!(call.body["status"], json!({ "devices": [entry] }));
        call.store("train", 2);
    };
    let (claim, devices) = (claim(), [device("gpu-0")]);
    let (told, ()) = tokio::join!(cluster.tell_claim(&claim, &devices), server);
    assert_eq!(told, Ok(()));
}

#[tokio::test]
async fn a_claim_that_is_gone_or_replaced_needs_no_word() {
    for (code, reason) in [(404, "NotFound"), (409, "Conflict")] {
        let (cluster, mut calls) = script();
        let server = async { calls.expect("PATCH").await.refuse(code, reason, "no") };
        let claim = claim();
        let (told, ()) = tokio::join!(cluster.tell_claim(&claim, &[]), server);
        assert_eq!(told, Ok(()), "{reason}");
    }
    let (cluster, mut calls) = script();
    let server = async { calls.expect("PATCH").await.refuse(403, "Forbidden", "not yours") };
    let claim = claim();
    let (told, ()) = tokio::join!(cluster.tell_claim(&claim, &[]), server);
    let line = "patch status of ResourceClaim `ml/train`: not yours";
    assert_eq!(told.map_err(|error| error.to_string()), Err(line.to_owned()));
}
