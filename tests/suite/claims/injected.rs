//! What a container gets on a node that has all that a driver leaves: the device nodes that the agent
//! writes down for the runtime.

use kerf::model::{cdi::NodeEdit, claim::ClaimRef};
use kerf_nvml::Model;
use kerf_testbed::node::Testbed;

use super::{prepare, spec};
use crate::given;

/// The driver's nodes, then those of the claim's device: path, number and mode, and the path on the host
/// below the driver's root.
fn nodes(testbed: &Testbed, claim: &ClaimRef) -> Vec<String> {
    let spec = spec(testbed, claim);
    let root = testbed.machine.driver_root();
    let devices = spec.devices.iter().map(|device| &device.container_edits);
    let edits = std::iter::once(&spec.container_edits).chain(devices);
    let line = |node: &NodeEdit| {
        let [major, minor, mode] = [node.major, node.minor, node.file_mode].map(Option::unwrap);
        let host = node.host_path.as_ref().map_or("nowhere", |path| {
            path.strip_prefix(root.to_str().unwrap()).expect("in the driver's root")
        });
        format!("{} {major}:{minor} {mode:o} <- {host}", node.path)
    };
    edits.flat_map(|edits| &edits.device_nodes).map(line).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_those_of_the_driver_and_of_the_device() {
    let testbed = given::node(Model::H100_80, 2).start().await.unwrap();
    let claims = [("whole", "gpu-0"), ("cut", "gpu-1-mig-2g20gb-14-2")];
    let claims = claims.map(|(name, device)| given::claim(&testbed, name, &[device]));
    for claim in &claims {
        prepare(&testbed, claim).await.unwrap();
    }
    // Only root makes device nodes. The kernel's numbers stand in for all but those of DRM.
    let made = testbed.machine.driver_root().join("dev/nvidia0").exists();
    let expected = |lines: &[&'static str]| {
        let lines = lines.iter().filter(|line| made || !line.starts_with("/dev/dri"));
        lines.copied().collect::<Vec<_>>()
    };
    let driver = [
        "/dev/nvidia-modeset 195:254 666 <- /dev/nvidia-modeset",
        "/dev/nvidia-uvm 510:0 666 <- /dev/nvidia-uvm",
        "/dev/nvidia-uvm-tools 510:1 666 <- /dev/nvidia-uvm-tools",
        "/dev/nvidiactl 195:255 666 <- /dev/nvidiactl",
    ];
    let whole = [
        "/dev/nvidia0 195:0 666 <- /dev/nvidia0",
        "/dev/dri/card1 226:1 660 <- /dev/dri/card1",
        "/dev/dri/renderD128 226:128 666 <- /dev/dri/renderD128",
    ];
    let cut = [
        "/dev/nvidia1 195:1 666 <- /dev/nvidia1",
        "/dev/dri/card2 226:2 660 <- /dev/dri/card2",
        "/dev/dri/renderD129 226:129 666 <- /dev/dri/renderD129",
        "/dev/nvidia-caps/nvidia-cap174 511:174 444 <- nowhere",
        "/dev/nvidia-caps/nvidia-cap175 511:175 444 <- nowhere",
    ];
    assert_eq!(nodes(&testbed, &claims[0]), expected(&[&driver[..], &whole].concat()));
    assert_eq!(nodes(&testbed, &claims[1]), expected(&[&driver[..], &cut].concat()));
}
