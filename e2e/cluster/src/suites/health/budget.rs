//! Pods of the device plugin: evicted if the operator wants it, as disruption budgets allow.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{NO_PROGRESS, ward::Ward};
use crate::{
    cluster::Cluster,
    install,
    manifests::{deployment, extended},
    suites::plugin::offers_on,
    wait,
};

const GPU: &str = "nvidia.com/gpu";

const STAYS: [&str; 3] = ["interface=both", "health.evictOn={driver}", "health.holdDown=5"];
const LEAVES: [&str; 4] = [STAYS[0], STAYS[1], STAYS[2], "health.evictPluginPods=true"];

pub(super) fn pods_of_the_device_plugin_leave_as_budgets_allow(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    Ward::with(cluster, &STAYS, |ward| {
        offers_on(ward.cluster, ward.sick, GPU, 8)?;
        ward.alone(|| {
            ward.cluster
                .apply(&[budget(2), deployment("work", 2, extended("work", &[(GPU, 1)]))])?;
            ward.cluster.available("work", 2)
        })?;
        let names = names(ward)?;
        let first = names.first().context("the Deployment has no pod")?;
        let gpu = ward.gpu_seen_by(first)?;
        let before = ward.containers(&names)?;
        gpu.makes_no_progress()?;
        offers_on(ward.cluster, ward.sick, GPU, 7)?;
        ward.shows_in_pod(first, GPU, "Unhealthy", "")?;
        gpu.shows_in_status(NO_PROGRESS)?;
        // Nobody has said that such pods are evicted.
        let after = ward.containers(&names)?;
        ensure!(before == after, "pods were {before:?}, and are {after:?}");

        install::install(ward.cluster, &LEAVES)?;
        ward.event_of_node("PodNotEvicted", "disruption budget")?;
        let after = ward.containers(&names)?;
        ensure!(before == after, "pods were {before:?}, and are {after:?}");

        ward.cluster.apply(&[budget(1)])?;
        ward.event_of_node("PodEvicted", NO_PROGRESS)?;
        wait::until("the evicted pod to go", || Ok(!self::names(ward)?.contains(first)))?;
        ward.cluster.available("work", 2)?;
        for name in self::names(ward)? {
            ward.cluster.check_devices(&name)?;
            // Of the first node, which has GPUs of the same names, or another of this one.
            let seen = ward.gpu_seen_by(&name)?;
            let node = ward.cluster.get(&["pod", &name])?["spec"]["nodeName"].take();
            ensure!(
                node != *ward.sick.name || seen.uuid != gpu.uuid,
                "pod {name} has the GPU that failed"
            );
        }
        wait::until("the agent to hear that the pod is gone", || {
            Ok(!ward.status()?["containers"].to_string().contains(first.as_str()))
        })?;
        gpu.is_reset()?;
        offers_on(ward.cluster, ward.sick, GPU, 8)
    })
}

/// Of the Deployment's pods.
fn names(ward: &Ward<'_>) -> anyhow::Result<Vec<String>> {
    let pods = ward.cluster.pods_of("work")?;
    let name = |pod: &Value| pod["metadata"]["name"].as_str().map(str::to_owned);
    pods.iter().map(|pod| name(pod).context("a pod has a name")).collect()
}

/// So many of the Deployment's pods have to be there.
fn budget(pods: u32) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": { "name": "work" },
        "spec": { "minAvailable": pods, "selector": { "matchLabels": { "app": "work" } } },
    })
}
