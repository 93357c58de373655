//! GPUs that fail under running pods: who is told, which pods stay and which are moved, what serves the GPU again, and
//! that no other GPU is concerned.

mod budget;
mod claim_status;
mod no_taints;
mod restart;
mod ward;

use std::time::Instant;

use anyhow::{Context, ensure};
use serde_json::Value;

use self::{
    budget::pods_of_the_device_plugin_leave_as_budgets_allow,
    claim_status::{another_drivers_devices_are_left_alone, claims_are_told_of_their_devices},
    no_taints::a_gpu_is_withdrawn_where_there_are_no_taints,
    restart::a_taint_outlives_the_agent,
    ward::Ward,
};
use super::tests;
use crate::{
    cluster::Cluster,
    manifests::{deployment, devices, one, pod, selected, template},
    programs::Release,
    suite::Test,
    wait,
};

tests!("health":
    pods_stay_on_a_gpu_that_fell_off_the_bus,
    pods_are_moved_where_the_operator_wants_it,
    a_gpu_that_is_well_again_is_served_again,
    pods_of_the_device_plugin_leave_as_budgets_allow,
    a_taint_outlives_the_agent,
    claims_are_told_of_their_devices,
    another_drivers_devices_are_left_alone,
    a_gpu_is_withdrawn_where_there_are_no_taints,
);

/// Those that are for a release: only 1.34 can be without taints.
pub(super) fn of(release: Release) -> Vec<Test> {
    let withdrawn = "a_gpu_is_withdrawn_where_there_are_no_taints";
    let fits = |test: &Test| release == Release::V1_34 || test.name != withdrawn;
    tests().into_iter().filter(fits).collect()
}

/// What is said of a GPU that fell off the bus.
const FELL_OFF: &str =
    "GPU has fallen off the bus (XID 79); reboot the node, then check seating, power and cable";

/// What is said of a GPU that stands still. An agent that is started later can still ask such a one who it is.
const NO_PROGRESS: &str = "GPU made no progress (XID 46); stop all work on this GPU and reset it";

/// A lost GPU's taints, with this effect.
fn fell_off(effect: &str) -> [String; 2] {
    [
        format!("gpu.nvidia.com/gpu-lost=gpu-lost:{effect}"),
        format!("gpu.nvidia.com/xid=79:{effect}"),
    ]
}

/// Pods on all GPUs of the second node: one of a Deployment, `work`, and seven others.
fn start_work(ward: &Ward<'_>) -> anyhow::Result<(String, Vec<String>)> {
    let whole = template("whole", devices(&[one("gpu", "gpu.nvidia.com")]));
    let others: Vec<_> = (0..7).map(|number| format!("other-{number}")).collect();
    let mut all = vec![whole, deployment("work", 1, pod("work", "whole"))];
    all.extend(others.iter().map(|name| pod(name, "whole")));
    ward.alone(|| {
        ward.cluster.apply(&all)?;
        ward.cluster.running(&others.iter().map(String::as_str).collect::<Vec<_>>())?;
        ward.cluster.available("work", 1)
    })?;
    let work = ward.cluster.pods_of("work")?.pop().context("the Deployment has no pod")?;
    Ok((work["metadata"]["name"].as_str().context("a pod has a name")?.to_owned(), others))
}

fn pods_stay_on_a_gpu_that_fell_off_the_bus(cluster: &mut Cluster) -> anyhow::Result<()> {
    Ward::with(cluster, &[], |ward| {
        let (work, others) = start_work(ward)?;
        let gpu = ward.gpu_of(&work)?;
        let all = || ward.containers(others.iter().chain([&work]));
        let before = all()?;
        gpu.falls_off()?;
        gpu.tainted(&fell_off("NoSchedule"))?;
        ward.shows_in_pod(&work, "claim:gpu", "Unhealthy", FELL_OFF)?;
        ward.event_of_node("GpuUnhealthy", FELL_OFF)?;
        let claim = ward.claim_of(&work)?;
        ward.cluster.event(&claim, "GpuUnhealthy", FELL_OFF)?;
        gpu.shows_in_status(FELL_OFF)?;
        let after = all()?;
        ensure!(before == after, "pods were {before:?}, and are {after:?}");
        for other in &others {
            ward.shows_in_pod(other, "claim:gpu", "Healthy", "")?;
        }
        Ok(())
    })
}

fn pods_are_moved_where_the_operator_wants_it(cluster: &mut Cluster) -> anyhow::Result<()> {
    Ward::with(cluster, &["health.evictOn={bus}"], |ward| {
        let (work, others) = start_work(ward)?;
        let gpu = ward.gpu_of(&work)?;
        let before = ward.containers(&others)?;
        let begun = Instant::now();
        gpu.falls_off()?;
        wait::until("the pod to run on the other node", || {
            let pods = ward.cluster.pods_of("work")?;
            Ok(pods.iter().any(|pod| {
                pod["spec"]["nodeName"] != ward.sick.name.as_str()
                    && pod["status"]["containerStatuses"][0]["ready"] == true
            }))
        })?;
        let took = begun.elapsed().as_secs_f64();
        println!("        a pod ran on another node {took:.1} s after its GPU had failed");
        ensure!(took < 30.0, "it took {took:.1} s");
        gpu.tainted(&fell_off("NoExecute"))?;
        wait::until("the pod of before to go", || {
            Ok(ward.cluster.pods_of("work")?.iter().all(|pod| pod["metadata"]["name"] != *work))
        })?;
        let after = ward.containers(&others)?;
        ensure!(before == after, "pods were {before:?}, and are {after:?}");
        Ok(())
    })
}

fn a_gpu_that_is_well_again_is_served_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    Ward::with(cluster, &["health.holdDown=5"], |ward| {
        ward.cluster.apply(&[
            template("whole", devices(&[one("gpu", "gpu.nvidia.com")])),
            ward.only_there(pod("first", "whole")),
        ])?;
        ward.cluster.running(&["first"])?;
        let gpu = ward.gpu_of("first")?;
        let agent = ward.agent()?;
        gpu.falls_off()?;
        gpu.tainted(&fell_off("NoSchedule"))?;
        let refused = gpu.is_not_released()?;
        ensure!(refused.contains("delete its pods first"), "{refused}");
        ward.cluster.delete_pods(&["first"])?;
        let this = format!("device.attributes['gpu.nvidia.com'].uuid == '{}'", gpu.uuid);
        ward.cluster.apply(&[
            template("this", devices(&[selected("gpu", "gpu.nvidia.com", &this)])),
            ward.only_there(pod("again", "this")),
        ])?;
        ward.cluster.unschedulable("again")?;
        let said = gpu.is_reset()?;
        ensure!(said.contains("watched until"), "{said}");
        gpu.tainted(&[])?;
        ward.cluster.running(&["again"])?;
        ward.cluster.check_devices("again")?;
        ward.event_of_node("GpuHealthy", &gpu.uuid)?;
        let now = ward.agent()?;
        for field in ["containerID", "restartCount"] {
            let of = |agent: &Value| agent["status"]["containerStatuses"][0][field].clone();
            ensure!(of(&now) == of(&agent), "the agent was {agent}, and is {now}");
        }
        Ok(())
    })
}
