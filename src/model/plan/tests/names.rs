//! Which device a name is, and what is said when it is none.

use super::{admin, asks, claimed, nobody, planned, refused};
use crate::model::{
    config::{Config, Configuration, Sharing},
    fixtures::gpus::{A30, H100, L4, gpu, node},
    gpu::Unreadable,
    plan::{Refusal, plan},
};

const GONE: &str = "not on this node any more; delete the pod so that it is scheduled again";

fn lost(index: u32) -> Unreadable {
    let reason = "`nvmlDeviceGetMemoryInfo` answered `GPU is lost`".to_owned();
    Unreadable { index, uuid: None, reason, lost: true, known: None }
}

#[test]
fn a_number_is_not_the_start_of_another() {
    let both = node([gpu(&H100, 10), gpu(&L4, 1)]);
    assert_eq!(planned(&both, &nobody(), &asks(&["gpu-1"])), ["gpu-1 for gpu: Found"]);
    let mig = "gpu-10-mig-1g10gb-19-0";
    let made = ["gpu-10-mig-1g10gb-19-0 for gpu: Made"];
    assert_eq!(planned(&both, &nobody(), &asks(&[mig])), made);
    let (one, ten) = (node([gpu(&H100, 1)]), node([gpu(&H100, 10)]));
    assert_eq!(refused(&one, &nobody(), &["gpu-10"]), format!("gpu-10: {GONE}"));
    assert_eq!(refused(&one, &nobody(), &[mig]), format!("{mig}: {GONE}"));
    assert_eq!(refused(&ten, &nobody(), &["gpu-1"]), format!("gpu-1: {GONE}"));
}

#[test]
fn a_device_of_no_gpu_is_gone() {
    let node = node([gpu(&H100, 0)]);
    for name in ["gpu-1", "", "gpu-", "gpu-0x", "gpu-00", "GPU-0", "nic-0", "mig-1g10gb-19-0"] {
        assert_eq!(refused(&node, &nobody(), &[name]), format!("{name}: {GONE}"));
    }
}

#[test]
fn a_device_that_the_gpu_has_not_is_not_offered() {
    let node = node([gpu(&H100, 0), gpu(&L4, 1), gpu(&A30, 2)]);
    for (name, gpu) in [
        ("gpu-0-", 0),
        ("gpu-0-mig-1g10gb-19-7", 0),
        ("gpu-0-mig-1g10gb-19-00", 0),
        ("gpu-0-mig-1g10gb-20-0", 0),
        ("gpu-1-mig-1g10gb-19-0", 1),
        ("gpu-2-mig-1g10gb-19-0", 2),
    ] {
        let text = format!(
            "{name}: GPU {gpu} does not offer it any more; delete the pod so that it is scheduled again"
        );
        assert_eq!(refused(&node, &nobody(), &[name]), text);
    }
}

#[test]
fn a_device_may_be_of_a_gpu_that_does_not_answer() {
    let mut node = node([gpu(&H100, 0)]);
    node.unreadable.push(lost(1));
    assert_eq!(
        refused(&node, &nobody(), &["gpu-1"]),
        "gpu-1: not on any GPU that answers, and GPU 1 does not: `nvmlDeviceGetMemoryInfo` answered `GPU is lost`; \
         repair the GPU or delete the pod so that it is scheduled again"
    );
    node.unreadable.push(lost(4));
    assert_eq!(
        refused(&node, &nobody(), &["gpu-1"]),
        "gpu-1: not on any GPU that answers, and GPU 1 does not: `nvmlDeviceGetMemoryInfo` answered `GPU is lost`, \
         GPU 4 does not: `nvmlDeviceGetMemoryInfo` answered `GPU is lost`; repair the GPU or delete the pod so that \
         it is scheduled again"
    );
    assert_eq!(planned(&node, &nobody(), &asks(&["gpu-0"])), ["gpu-0 for gpu: Found"]);
}

#[test]
fn admin_access_needs_a_device_too() {
    let node = node([gpu(&H100, 0)]);
    let refusal = plan(&node, &[], &claimed([admin("look", "gpu-1")])).unwrap_err();
    assert_eq!(refusal.reason.to_string(), GONE);
}

#[test]
fn a_refusal_is_of_the_first_device_that_cannot_be_had() {
    let node = node([gpu(&H100, 0)]);
    let refusal = plan(&node, &[], &asks(&["gpu-0", "gpu-1", "gpu-2"])).unwrap_err();
    let Refusal { device, request, .. } = &*refusal;
    assert_eq!((device.as_str(), request.as_str()), ("gpu-1", "gpu"));
    assert_eq!(refusal.to_string(), format!("device `gpu-1`: {GONE}"));
}

#[test]
fn configuration_that_cannot_be_applied_goes_by_its_request() {
    let node = node([gpu(&H100, 0)]);
    let mut claim = claimed([super::result("part/small", "gpu-0-mig-1g10gb-19-0")]);
    claim.configurations = vec![Configuration {
        requests: vec!["part".to_owned()],
        config: Config::Mig(Some(Sharing::Mps)),
    }];
    let refusal = plan(&node, &[], &claim).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "opaque configuration for request `part/small`: strategy `MPS` is not supported yet; \
         remove `sharing`, or claim a MIG device for a part of a GPU"
    );
    claim.results[0].admin_access = true;
    assert_eq!(plan(&node, &[], &claim).unwrap_err(), refusal, "whatever the access");
    claim.results[0].request = "other".to_owned();
    assert!(plan(&node, &[], &claim).is_ok());
}
