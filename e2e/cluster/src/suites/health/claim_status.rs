//! What claims are told of their devices.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::ward::Ward;
use crate::{
    cluster::Cluster,
    command::Run as _,
    manifests::{cel, devices, mig, one, pod, template},
    node::Node,
    programs, wait,
};

pub(super) fn claims_are_told_of_their_devices(cluster: &mut Cluster) -> anyhow::Result<()> {
    Ward::with(cluster, &["claimStatus=true"], |ward| {
        let part = template("part", devices(&[mig("part", "1g.10gb")]));
        ward.cluster.apply(&[part, ward.only_there(pod("part", "part"))])?;
        ward.cluster.running(&["part"])?;
        let claim = ward.claim_of("part")?;
        let gpu = ward.gpu_of("part")?;
        let snapshot = ward.sick.machine.snapshot()?;
        let instances = &snapshot.gpus.get(gpu.index).context("no such GPU")?.instances;
        let [instance] = &instances[..] else { anyhow::bail!("{instances:?}") };
        let [compute] = &instance.compute[..] else { anyhow::bail!("{instance:?}") };
        let told = |healthy: [&str; 3]| {
            json!([{
                "driver": "gpu.nvidia.com",
                "pool": ward.sick.name,
                "device": format!("gpu-{}-mig-1g10gb-19-{}", gpu.index, instance.start),
                "conditions": [
                    condition("Ready", ["True", "Prepared", ""]),
                    condition("Healthy", healthy),
                ],
                "data": {
                    "uuid": compute.uuid,
                    "parentUUID": gpu.uuid,
                    "gpuInstanceID": instance.id,
                    "computeInstanceID": compute.id,
                },
            }])
        };
        is_told(ward, &claim, &told(["True", "Healthy", ""]))?;
        let machine = &ward.sick.machine;
        machine.xid(gpu.index, 94, Some(instance.id), Some(compute.id))?;
        is_told(ward, &claim, &told(["True", "Warning", "memory error, contained (XID 94)"]))?;
        machine.xid(gpu.index, 95, None, None)?;
        let reset = 1;
        machine.set_recovery_action(gpu.index, reset, false)?;
        let not_contained = "memory error, not contained (XID 95)";
        is_told(ward, &claim, &told(["False", "Unhealthy", not_contained]))
    })
}

/// Of a claim for devices of two drivers, each says what it knows, and neither takes that from the other.
pub(super) fn another_drivers_devices_are_left_alone(cluster: &mut Cluster) -> anyhow::Result<()> {
    const OTHER: &str = "test-driver.example.com";
    let program = programs::test_driver(cluster.release)?;
    Ward::with(cluster, &["claimStatus=true"], |ward| {
        // It does not make that by itself.
        let sockets = format!("/var/lib/kubelet/plugins/{OTHER}");
        ward.sick.command("mkdir")?.arg(&sockets).run()?;
        let mut driver = ward.sick.command(&program)?;
        driver.args(["kubelet-plugin", "--drivername", OTHER, "--node-name", &ward.sick.name]);
        driver.arg("--kubeconfig").arg(ward.cluster.kubeconfig());
        ward.sick.daemons.start("test-driver", &mut driver)?;
        let class = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": { "name": OTHER },
            "spec": { "selectors": [cel(&format!("device.driver == '{OTHER}'"))] },
        });
        let both = template("both", devices(&[one("gpu", "gpu.nvidia.com"), one("other", OTHER)]));
        ward.cluster.apply(&[class, both, ward.only_there(pod("both", "both"))])?;
        ward.cluster.running(&["both"])?;
        let claim = ward.claim_of("both")?;
        let gpu = ward.gpu_of("both")?;
        let condition_of_gpu = |healthy: &str| {
            wait::until(&format!("the GPU to be told as {healthy}"), || {
                let claim = ward.cluster.get(&["resourceclaim", &claim])?;
                let said = claim["status"]["devices"].as_array().into_iter().flatten();
                let mut ours = said.filter(|device| device["driver"] == "gpu.nvidia.com");
                Ok(ours.next().is_some_and(|ours| ours["conditions"][1]["reason"] == healthy))
            })
        };
        condition_of_gpu("Healthy")?;
        let allocated = ward.cluster.get(&["resourceclaim", &claim])?;
        let results = allocated["status"]["allocation"]["devices"]["results"].as_array();
        let theirs = results.into_iter().flatten().find(|result| result["driver"] == OTHER);
        let theirs = theirs.context("the other driver's device is not allocated")?;
        let said = json!({
            "driver": OTHER, "pool": theirs["pool"], "device": theirs["device"],
            "data": { "link": "up" },
        });
        let status = json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": { "name": claim }, "status": { "devices": [said] },
        });
        let mut apply = ward.cluster.kubectl_command();
        apply.args(["apply", "--server-side", "--subresource=status", "--field-manager", OTHER]);
        // That of 1.34 misses the claim's spec.
        apply.arg("--validate=false");
        apply.arg("--filename").arg(ward.cluster.write_list(&[status])?).run()?;
        gpu.falls_off()?;
        condition_of_gpu("Unhealthy")?;
        let told = ward.cluster.get(&["resourceclaim", &claim])?;
        let devices = told["status"]["devices"].as_array().context("nothing is told")?;
        let of_other: Vec<_> = devices.iter().filter(|one| one["driver"] == OTHER).collect();
        ensure!(
            of_other.len() == 1 && of_other[0]["data"] == said["data"] && devices.len() == 2,
            "{}",
            told["status"]["devices"]
        );
        ward.cluster.kubectl(&["delete", "deviceclass", OTHER]).map(drop)
    })
}

fn condition(kind: &str, [status, reason, message]: [&str; 3]) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "message": message })
}

/// Waits until a claim says just this of its devices, without times and what is to be done, which change, and CDI
/// devices, which are in a file of the node.
fn is_told(ward: &Ward<'_>, claim: &str, expected: &Value) -> anyhow::Result<()> {
    let mut seen = Value::Null;
    let waited = wait::until("the claim's status", || {
        let mut claim = ward.cluster.get(&["resourceclaim", claim])?;
        seen = claim["status"]["devices"].take();
        for device in seen.as_array_mut().into_iter().flatten() {
            for condition in device["conditions"].as_array_mut().into_iter().flatten() {
                let condition = condition.as_object_mut().context("a condition is an object")?;
                ensure!(condition.remove("lastTransitionTime").is_some(), "no time: {condition:?}");
                let message = condition["message"].as_str().unwrap_or_default();
                condition["message"] = message.split("; ").next().unwrap_or_default().into();
            }
            let data = device["data"].as_object_mut().context("a device has data")?;
            let cdi = data.remove("cdiDeviceIDs").unwrap_or_default();
            ensure!(cdi[0].as_str().is_some_and(|id| is_written(ward.sick, id)), "{cdi}");
        }
        Ok(seen == *expected)
    });
    waited.with_context(|| format!("claim {claim} is told {seen:#}, not {expected:#}"))
}

/// Whether a CDI file of the node has a device of this ID, `kind=name`.
fn is_written(node: &Node, id: &str) -> bool {
    let files = fs::read_dir(node.file("cdi")).into_iter().flatten().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let mut written = texts.filter_map(|text| serde_json::from_str::<Value>(&text).ok());
    let kind_and_name = id.split_once('=');
    written.any(|file| {
        let devices = file["devices"].as_array().into_iter().flatten();
        let mut names = devices.map(|device| &device["name"]);
        kind_and_name
            .is_some_and(|(kind, name)| file["kind"] == kind && names.any(|one| one == name))
    })
}
