//! States of a cluster, each with the alerts that are for it.

use std::time::Duration;

use anyhow::Context;
use kerf_nvml::{EccErrors, Effect, Fault, Load};
use serde_json::json;

use super::{dashboards, only_on, start_pods};
use crate::{
    cluster::Cluster,
    install,
    manifests::{extended, pod},
    node::Node,
    prometheus::Prometheus,
    wait,
};

/// A cluster whose first node works, and whose second is made ill.
pub(super) struct Scene<'a> {
    cluster: &'a Cluster,
    prometheus: &'a Prometheus<'a>,
    sick: &'a Node,
}

/// Makes a state and ends it, but for what stays wrong with a GPU; does something while it lasts.
type State = fn(&Scene<'_>, &dyn Fn() -> anyhow::Result<()>) -> anyhow::Result<()>;

/// In this order: GPUs that do not answer are in the way of others.
pub(super) const STATES: &[(State, &[&str])] = &[
    (some_work_and_some_idle, &["KerfGpuHeldAndIdle"]),
    (the_driver_is_slow, &["KerfPrepareSlow"]),
    (the_driver_fails, &["KerfPrepareFails"]),
    (the_api_server_refuses, &["KerfPublishFails"]),
    (a_gpu_is_cut_badly, &["KerfGpuFragmented"]),
    (
        gpus_are_ill,
        &[
            "KerfGpuUnhealthy",
            "KerfGpuLost",
            "KerfGpuWarning",
            "KerfGpuXid",
            "KerfGpuRemapPending",
            "KerfGpuRemapFailed",
            "KerfGpuUncorrectableEcc",
            "KerfGpuThrottled",
        ],
    ),
    (a_call_hangs, &["KerfAgentNotReady", "KerfGpuSampleStale"]),
    (an_agent_stands_still, &["KerfAgentDown"]),
];

impl<'a> Scene<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        prometheus: &'a Prometheus<'a>,
    ) -> anyhow::Result<Self> {
        let [_, sick] = cluster.nodes() else { anyhow::bail!("there are not two nodes") };
        Ok(Self { cluster, prometheus, sick })
    }

    /// Ends what works, without which instances cannot be taken away.
    pub(super) fn end_work(&self) -> anyhow::Result<()> {
        let machine = &self.cluster.node().machine;
        let running: Vec<_> =
            machine.snapshot()?.gpus.into_iter().flat_map(|gpu| gpu.pids).collect();
        running.into_iter().try_for_each(|pid| Ok(machine.stop_process(pid)?))
    }

    /// Starts pods on the second node.
    fn apply_there(&self, names: &[&str]) -> anyhow::Result<()> {
        let there = names.iter().map(|name| only_on(self.sick, pod(name, "part")));
        self.cluster.apply(&there.collect::<Vec<_>>())
    }

    /// Starts a pod of the device plugin on the second node, and says which GPU it got.
    fn gpu_of_a_plugin_pod(&self, name: &str) -> anyhow::Result<usize> {
        let asks = extended(name, &[("nvidia.com/gpu", 1)]);
        self.cluster.apply(&[only_on(self.sick, asks)])?;
        self.cluster.running(&[name])?;
        let mut gpu = None;
        wait::until("the taint of the pod's GPU", || {
            let slices = self.cluster.list(&["resourceslices"])?;
            let there = slices.iter().filter(|slice| slice["spec"]["nodeName"] == *self.sick.name);
            let devices = there.flat_map(|slice| slice["spec"]["devices"].as_array()).flatten();
            let tainted = devices.filter(|device| {
                device["taints"].to_string().contains("gpu.nvidia.com/device-plugin")
            });
            let mut numbers = tainted
                .filter_map(|device| device["name"].as_str()?.strip_prefix("gpu-")?.parse().ok());
            gpu = numbers.next();
            Ok(gpu.is_some())
        })?;
        gpu.context("the pod has no GPU")
    }

    /// Lets a pod's device be worked on.
    fn work(&self, pod: &str, pid: u32) -> anyhow::Result<()> {
        let pod = self.cluster.get(&["pod", pod])?;
        let claim = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str();
        let claim = self.cluster.get(&["resourceclaim", claim.context("the pod has no claim")?])?;
        let device = &claim["status"]["allocation"]["devices"]["results"][0]["device"];
        // `gpu-3`, or such as `gpu-3-mig-1g10gb-19-0`: where it begins is last.
        let device = device.as_str().context("the claim has no device")?;
        let mut parts = device.split('-');
        let gpu = parts.nth(1).context("a device has a number")?.parse()?;
        let start = parts.next_back().map(str::parse).transpose()?;
        let machine = &self.cluster.node().machine;
        machine.start_process(gpu, start, pid, "train")?;
        Ok(machine.set_load(pid, Load { utilization: 80, memory: 4 << 30 })?)
    }
}

fn some_work_and_some_idle(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    start_pods(scene.cluster)?;
    scene.work("part", 7001)?;
    scene.work("whole", 7002)?;
    meanwhile()?;
    // Whoever works is not told of.
    let idle = "ALERTS{alertname=\"KerfGpuHeldAndIdle\"}";
    let busy = "max by (UUID, GPU_I_ID) (DCGM_FI_PROF_GR_ENGINE_ACTIVE > 0.5)";
    scene.prometheus.selects(2, busy)?;
    scene.prometheus.selects(0, &format!("{idle} and on (UUID, GPU_I_ID) {busy}"))?;
    scene.prometheus.selects(2, idle).map(drop)
}

/// Two, of which the second counts: a series that begins has not grown.
fn the_driver_is_slow(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let slow = Effect::Delay(Duration::from_secs(6));
    let machine = &scene.sick.machine;
    machine.inject(Fault::always("nvmlDeviceCreateGpuInstanceWithPlacement", slow))?;
    let prepared = format!(
        "kerf_prepare_duration_seconds_count{{node=\"{}\", door=\"dra\", outcome=\"ok\"}}",
        scene.sick.name
    );
    for name in ["slow-0", "slow-1"] {
        scene.apply_there(&[name])?;
        scene.cluster.running(&[name])?;
        // It has been scraped before it grows.
        scene.prometheus.selects(1, &prepared)?;
    }
    machine.clear_faults()?;
    meanwhile()?;
    scene.cluster.delete_pods(&["slow-0", "slow-1"])
}

fn the_driver_fails(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let insufficient_resources = Effect::Fail(23);
    let machine = &scene.sick.machine;
    let create = "nvmlDeviceCreateGpuInstanceWithPlacement";
    machine.inject(Fault::always(create, insufficient_resources))?;
    scene.apply_there(&["fails"])?;
    let fired = meanwhile();
    machine.clear_faults()?;
    fired?;
    scene.cluster.running(&["fails"])?;
    scene.cluster.delete_pods(&["fails"])
}

fn the_api_server_refuses(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    const BINDING: [&str; 2] = ["clusterrolebinding", "kerf"];
    let mut binding = scene.cluster.get(&BINDING)?;
    let kept = &binding["metadata"];
    let kept = json!({ "name": kept["name"], "labels": kept["labels"], "annotations": kept["annotations"] });
    binding["metadata"] = kept;
    scene.cluster.kubectl(&[&["delete"][..], &BINDING].concat())?;
    // Something to publish.
    let machine = &scene.sick.machine;
    let fired = machine.set_mig_mode(CUT, true).map_err(Into::into).and_then(|()| {
        machine.create_instance(CUT, SMALLEST, 1, true)?;
        meanwhile()
    });
    scene.cluster.apply(&[binding])?;
    fired
}

/// The GPU of which a call hangs.
const HANGS: usize = 2;

/// The GPU that an administrator cuts, and the profile `1g.10gb`.
const CUT: usize = 6;
const SMALLEST: u32 = 19;

fn a_gpu_is_cut_badly(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Beside the one at slice 1: no four free slices lie together.
    scene.sick.machine.create_instance(CUT, SMALLEST, 5, true)?;
    meanwhile()
}

fn gpus_are_ill(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let machine = &scene.sick.machine;
    let (reset, page_fault, hardware_thermal) = (1, 31, 0x40);
    let lost = scene.gpu_of_a_plugin_pod("leaves")?;
    let ill: Vec<_> = (0..8).filter(|gpu| ![lost, CUT, HANGS].contains(gpu)).collect();
    machine.set_recovery_action(ill[0], reset, true)?;
    machine.xid(ill[1], page_fault, None, None)?;
    machine.set_readings(ill[1], |is| is.remapped_rows.pending = true)?;
    machine.set_readings(ill[2], |is| is.remapped_rows.failure = true)?;
    let errors = EccErrors { corrected: 0, uncorrected: 3 };
    machine.set_readings(ill[3], |is| is.volatile_ecc = errors)?;
    machine.set_readings(ill[4], |is| is.clock_event_reasons |= hardware_thermal)?;
    machine.lose_gpu(lost)?;
    meanwhile()?;
    let evicted = format!("kerf_evictions_total{{node=\"{}\", outcome=\"ok\"}}", scene.sick.name);
    scene.prometheus.selects(1, &evicted)?;
    // What comes back is counted.
    machine.find_gpu(lost)?;
    Ok(())
}

/// It takes a minute until that is told of, in which the panels, of all states so far, are looked at.
fn a_call_hangs(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let machine = &scene.sick.machine;
    machine.inject(Fault::always("nvmlDeviceGetPowerUsage", Effect::Hang).on_gpu(HANGS))?;
    let fired = dashboards::have_data(scene.prometheus).and_then(|()| meanwhile());
    machine.clear_faults()?;
    fired
}

fn an_agent_stands_still(
    scene: &Scene<'_>,
    meanwhile: &dyn Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let agents = install::pods(scene.cluster)?;
    let mut agents = agents.iter();
    let agent = agents.find(|pod| pod["spec"]["nodeName"] == *scene.sick.name);
    let agent = agent.context("the node has no agent")?;
    let container = agent["status"]["containerStatuses"][0]["containerID"].as_str();
    scene.sick.while_container_waits(container.context("it has an id")?, meanwhile)
}
