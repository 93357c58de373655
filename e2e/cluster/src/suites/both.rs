//! Claims and extended resources on one node, from one ledger.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{
    plugin::{self, offers},
    tests,
};
use crate::{
    cluster::Cluster,
    images::UBUNTU,
    install,
    manifests::{devices, extended, merge, mig, one, pod, template},
    programs::Release,
    suite::Test,
    wait,
};

tests!("both":
    pods_of_both_kinds_never_have_the_same_device,
    what_only_an_init_container_has_is_given_to_no_claim,
    a_node_moves_from_the_device_plugin_to_claims,
    pods_come_and_go_while_device_plugins_are_replaced,
);

/// Those that a release can pass: before 1.36 the scheduler leaves a node to device plugins for as long as the
/// kubelet lists the resource, five minutes after the plugin has gone.
pub(super) fn of(release: Release) -> Vec<Test> {
    let moves = "a_node_moves_from_the_device_plugin_to_claims";
    let fits = |test: &Test| release == Release::V1_37 || test.name != moves;
    tests().into_iter().filter(fits).collect()
}

const GPU: &str = "nvidia.com/gpu";

/// How long pods of both kinds come and go.
const LOAD: Duration = Duration::from_secs(60);

/// How many there are at once, at most: more than the GPUs have room for.
const PODS: usize = 12;

fn pods_of_both_kinds_never_have_the_same_device(cluster: &mut Cluster) -> anyhow::Result<()> {
    install::install(cluster, &["interface=both"])?;
    offers(cluster, GPU, 8)?;
    cluster.apply(&[
        template("whole", devices(&[one("gpu", "gpu.nvidia.com")])),
        template("part", devices(&[mig("gpu", "2g.20gb")])),
    ])?;
    let loaded = load(cluster).and_then(|()| cluster.empty());
    install::install(cluster, &[])?;
    loaded
}

/// The kubelet's list of pods' resources leaves init containers out.
fn what_only_an_init_container_has_is_given_to_no_claim(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    install::install(cluster, &["interface=both"])?;
    offers(cluster, GPU, 8)?;
    let shown = around_an_init_container(cluster).and_then(|()| cluster.empty());
    install::install(cluster, &[])?;
    shown
}

/// Longer than the agent takes to let go of what the kubelet does not name any more, several times.
const NAMED_NOWHERE: Duration = Duration::from_secs(40);

fn around_an_init_container(cluster: &Cluster) -> anyhow::Result<()> {
    let mut first = extended("first", &[]);
    let until_told = ["sh", "-c", "until [ -e /go ]; do sleep 1; done"];
    let init = json!([{
        "name": "init", "image": UBUNTU, "command": until_told, "resources": { "limits": { (GPU): 1 } },
    }]);
    merge(&mut first, json!({ "spec": { "initContainers": init } }));
    cluster.apply(&[first, template("whole", devices(&[one("gpu", "gpu.nvidia.com")]))])?;
    wait::until("the init container to run", || {
        let pod = cluster.get(&["pod", "first"])?;
        Ok(pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object())
    })?;
    let names: Vec<_> = (0..8).map(|n| format!("claim-{n}")).collect();
    cluster.apply(&names.iter().map(|name| pod(name, "whole")).collect::<Vec<_>>())?;
    let running = || -> anyhow::Result<usize> {
        let phases = phases(cluster)?.into_iter();
        Ok(phases.filter(|(name, phase)| name != "first" && phase == "Running").count())
    };
    wait::until("seven claims beside the init container", || Ok(running()? == 7))?;
    let begun = Instant::now();
    while begun.elapsed() < NAMED_NOWHERE {
        ensure!(running()? == 7, "a claim has the GPU of the init container");
    }
    cluster.exec("first", "init", &["sh", "-c", ": > /go"])?;
    cluster.running(&["first"])?;
    cluster.delete_pods(&["first"])?;
    wait::until("the last claim once the pod has ended", || Ok(running()? == 8))
}

/// Pods of three kinds, in no order, made and taken away for a while.
fn load(cluster: &Cluster) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let (mut made, mut refused, mut most) = (0, 0, 0);
    let mut pods: Vec<String> = Vec::new();
    while begun.elapsed() < LOAD {
        let mut new = Vec::new();
        while pods.len() < PODS {
            let name = format!("pod-{made}");
            made += 1;
            new.push(match next() % 3 {
                0 => extended(&name, &[(GPU, 1)]),
                1 => pod(&name, "whole"),
                _ => pod(&name, "part"),
            });
            pods.push(name);
        }
        cluster.apply(&new)?;
        wait::until("no pod to be about to start", || {
            let waiting = phases(cluster)?.into_iter();
            Ok(waiting.filter(|(_, phase)| phase == "Starting").count() == 0)
        })?;
        let now = phases(cluster)?;
        let running: Vec<_> = now.iter().filter(|(_, phase)| phase == "Running").collect();
        let names: Vec<_> = running.iter().map(|(name, _)| name.as_str()).collect();
        cluster.disjoint(&names)?;
        most = most.max(names.len());
        let failed: Vec<_> = now.iter().filter(|(_, phase)| phase == "Failed").collect();
        refused += failed.len();
        let mut end: Vec<_> = failed.iter().map(|(name, _)| name.clone()).collect();
        end.extend(pods.iter().filter(|_| next() % 3 == 0).cloned());
        end.sort();
        end.dedup();
        if !end.is_empty() {
            cluster.delete_pods(&end.iter().map(String::as_str).collect::<Vec<_>>())?;
            pods.retain(|pod| !end.contains(pod));
        }
    }
    println!(
        "        {made} pods of both kinds, at most {most} at once; the kubelet refused {refused}"
    );
    ensure!(most > 0, "no pod ever ran");
    Ok(())
}

/// Each pod and how far it is; one that has a node and no container yet is starting, unless it was told that
/// its device is held.
fn phases(cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
    let refused =
        cluster.list(&["events", "--field-selector=reason=FailedPrepareDynamicResources"])?;
    let is_refused =
        |name: &str| refused.iter().any(|event| event["involvedObject"]["name"] == name);
    let phase = |pod: &Value| {
        let name = pod["metadata"]["name"].as_str().context("a pod has a name")?.to_owned();
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        let starting = phase == "Pending" && pod["spec"]["nodeName"].is_string();
        let phase = if starting && !is_refused(&name) { "Starting" } else { phase };
        Ok((name, phase.to_owned()))
    };
    cluster.list(&["pods"])?.iter().map(phase).collect()
}

/// The recipe for a node: the same manifests mean claims once the agent serves these.
fn a_node_moves_from_the_device_plugin_to_claims(cluster: &mut Cluster) -> anyhow::Result<()> {
    install::install_plugin(cluster, &["interface=device-plugin"])?;
    offers(cluster, GPU, 8)?;
    cluster.apply(&[extended("before", &[(GPU, 1)])])?;
    cluster.running(&["before"])?;
    cluster.check_devices("before")?;
    install::install(cluster, &[])?;
    offers(cluster, GPU, 0)?;
    let names: Vec<_> = (0..8).map(|n| format!("after-{n}")).collect();
    cluster.apply(&names.iter().map(|name| extended(name, &[(GPU, 1)])).collect::<Vec<_>>())?;
    let count = |phase: &str| -> anyhow::Result<usize> {
        let pods = cluster.list(&["pods"])?;
        Ok(pods.iter().filter(|pod| pod["status"]["phase"] == phase).count())
    };
    // All but the one that the first pod still has.
    wait::until("seven pods beside the first", || Ok(count("Running")? == 8))?;
    ensure!(count("Pending")? == 1, "{} pods wait", count("Pending")?);
    cluster.check_devices("before")?;
    cluster.delete_pods(&["before"])?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.running(&names)?;
    names.iter().try_for_each(|name| cluster.check_devices(name))
}

fn pods_come_and_go_while_device_plugins_are_replaced(cluster: &mut Cluster) -> anyhow::Result<()> {
    install::install_plugin(cluster, &["interface=device-plugin"])?;
    offers(cluster, GPU, 8)?;
    let replaced = plugin::replace_under_load(cluster, &["interface=device-plugin"]);
    cluster.empty()?;
    install::install(cluster, &[])?;
    replaced
}
