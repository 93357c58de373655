//! What ends and comes back while pods run: the agent, the kubelet, containerd, the API server, the node.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    control_plane,
    held::Held,
    install::{self, NAMESPACE},
    manifests::{devices, merge, mig, one, pod, template},
    wait,
};

tests!("restarts":
    a_killed_agent_comes_back,
    no_pod_fails_while_agents_are_replaced,
    a_restarted_kubelet_has_the_slices_back,
    a_restarted_kubelet_ends_what_ended_meanwhile,
    a_pod_made_without_a_kubelet_starts_with_it,
    containerd_restarts_under_running_pods,
    devices_are_given_back_without_an_api_server,
    claims_of_before_a_reboot_are_prepared_again,
);

/// The agent's container.
fn agent(cluster: &Cluster) -> anyhow::Result<Value> {
    let mut pod = install::pods(cluster)?.pop().context("no agent")?;
    Ok(pod["status"]["containerStatuses"][0].take())
}

fn a_killed_agent_comes_back(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    let before = agent(cluster)?;
    let id = before["containerID"].as_str().context("the agent's container has an id")?;
    cluster.node().kill_container(id)?;
    held.goes_on(cluster)?;
    // A pod that is made before would start, too, but not before the kubelet tries again in a minute.
    wait::until("the agent to be started again", || {
        let now = agent(cluster)?;
        Ok(now["restartCount"].as_u64() > before["restartCount"].as_u64() && now["ready"] == true)
    })?;
    wait::until("the agent to be registered again", || {
        let logs = ["logs", "--namespace", NAMESPACE, "daemonset/kerf"];
        Ok(cluster.kubectl(&logs)?.contains("registered with the kubelet"))
    })?;
    cluster.apply(&[pod("late", "held")])?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")?;
    held.goes_on(cluster)
}

/// Pods come and go while the agents are replaced thrice; some are there before and end after.
fn no_pod_fails_while_agents_are_replaced(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    let both = devices(&[one("whole", "gpu.nvidia.com"), mig("part", "1g.10gb")]);
    cluster.apply(&[template("both", both)])?;
    let replaced = AtomicBool::new(false);
    let cluster = &*cluster;
    let (pods, gaps) = thread::scope(|scope| {
        let churn = scope.spawn(|| churn(cluster, &replaced));
        let gaps: anyhow::Result<Vec<_>> =
            (0..3).map(|upgrade| replace(cluster, 100 + upgrade)).collect();
        replaced.store(true, Ordering::Relaxed);
        let pods = churn.join().map_err(|_| anyhow!("the thread that makes pods panicked"))?;
        anyhow::Ok((pods?, gaps?))
    })?;
    held.goes_on(cluster)?;
    println!("        {pods} pods came and went; no agent acted for {gaps:.0?}");
    install::install(cluster, &[])
}

/// Makes pods and takes them away until the agents are replaced; how many.
fn churn(cluster: &Cluster, replaced: &AtomicBool) -> anyhow::Result<usize> {
    let mut pods = 0;
    while !replaced.load(Ordering::Relaxed) {
        let names = [0, 1].map(|pod| format!("churn-{}", pods + pod));
        let ends = |name: &String| {
            let mut ends = pod(name, "both");
            merge(&mut ends["spec"]["containers"][0], json!({ "command": ["nvidia-smi", "-L"] }));
            ends
        };
        cluster.apply(&names.each_ref().map(ends))?;
        let names = names.each_ref().map(String::as_str);
        cluster.succeeded(&names)?;
        for name in names {
            let failed = "reason=FailedPrepareDynamicResources";
            let failed = format!("--field-selector=involvedObject.name={name},{failed}");
            let failed = cluster.list(&["events", &failed])?;
            ensure!(failed.is_empty(), "pod {name} had to be tried again: {failed:?}");
        }
        cluster.delete_pods(&names)?;
        pods += names.len();
    }
    Ok(pods)
}

/// Replaces the agents by those of other settings; for how long none acted, by their own account.
fn replace(cluster: &Cluster, milli_cpu: u32) -> anyhow::Result<Duration> {
    let setting = format!("resources.requests.cpu={milli_cpu}m");
    gap(cluster, "acting on this node", || install::install(cluster, &[&setting]))
}

/// The time from the old agent's end, when it is replaced by `install`, to this line of the new one.
pub(super) fn gap(
    cluster: &Cluster,
    until: &str,
    install: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let before = install::agents(cluster)?;
    let logs = ["logs", "--namespace", NAMESPACE, "daemonset/kerf"];
    let (old, installed) = thread::scope(|scope| {
        // Until the old agent ends: its pod takes its log along.
        let old = scope.spawn(|| cluster.kubectl(&[&logs[..], &["--follow"]].concat()));
        let installed = install();
        (old.join(), installed)
    });
    installed?;
    let old = old.map_err(|_| anyhow!("the thread that reads the log panicked"))??;
    wait::until("the old agents to end", || {
        Ok(install::agents(cluster)?.iter().all(|agent| !before.contains(agent)))
    })?;
    let ended = time_of(&old, "handing over")?;
    wait::until(&format!("`{until}`"), || Ok(cluster.kubectl(&logs)?.contains(until)))?;
    let began = time_of(&cluster.kubectl(&logs)?, until)?;
    Ok(began.duration_since(ended).try_into()?)
}

/// When a line with this was written, by the agent's own account: the container runtime stamps the lines of
/// two containers in any order.
fn time_of(log: &str, line: &str) -> anyhow::Result<Timestamp> {
    let found = log.lines().find(|one| one.contains(line));
    let found = found.with_context(|| format!("no line `{line}` in the agent's log:\n{log}"))?;
    Ok(found.split_whitespace().next().unwrap_or_default().parse()?)
}

/// The UIDs of all slices.
fn slices(cluster: &Cluster) -> anyhow::Result<BTreeSet<String>> {
    let slices = cluster.list(&["resourceslices"])?;
    Ok(slices.iter().map(|slice| slice["metadata"]["uid"].to_string()).collect())
}

fn a_restarted_kubelet_has_the_slices_back(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    let before = slices(cluster)?;
    cluster.node().daemons.stop("kubelet")?;
    cluster.node().start_kubelet(&cluster.programs)?;
    // It deletes the slices of all drivers when it starts, whoever wrote them.
    let mut last_seen = Instant::now();
    wait::until("the slices of before to be deleted, and others to be there", || {
        let asked = Instant::now();
        let now = slices(cluster)?;
        if !now.is_disjoint(&before) {
            last_seen = asked;
        }
        Ok(now.is_disjoint(&before) && now.len() == before.len())
    })?;
    let gap = last_seen.elapsed();
    println!("        slices were back within {} ms", gap.as_millis());
    ensure!(gap < Duration::from_secs(2), "slices were away for {gap:?}");
    held.goes_on(cluster)?;
    cluster.apply(&[pod("after", "held")])?;
    cluster.running(&["after"])?;
    cluster.check_devices("after")
}

fn a_restarted_kubelet_ends_what_ended_meanwhile(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    Held::new(cluster, "ends")?;
    cluster.node().daemons.kill("kubelet")?;
    cluster.kubectl(&["delete", "pod", "ends", "--wait=false"])?;
    ensure!(cluster.node().cut()? == 2, "an instance went while no kubelet was there");
    cluster.node().start_kubelet(&cluster.programs)?;
    wait::until("the instance of the deleted pod to go", || Ok(cluster.node().cut()? == 1))?;
    held.goes_on(cluster)
}

fn a_pod_made_without_a_kubelet_starts_with_it(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    cluster.node().daemons.stop("kubelet")?;
    cluster.apply(&[pod("meanwhile", "held")])?;
    let scheduled = wait::until("the pod to have its node", || {
        Ok(cluster.get(&["pod", "meanwhile"])?["spec"]["nodeName"].is_string())
    });
    cluster.node().start_kubelet(&cluster.programs)?;
    scheduled?;
    cluster.running(&["meanwhile"])?;
    cluster.check_devices("meanwhile")?;
    held.goes_on(cluster)
}

fn containerd_restarts_under_running_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    cluster.node().daemons.kill("containerd")?;
    cluster.apply(&[pod("late", "held")])?;
    cluster.node().start_containerd(&cluster.programs)?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")?;
    held.goes_on(cluster)
}

fn devices_are_given_back_without_an_api_server(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    cluster.apply(&[pod("ends", "held")])?;
    cluster.running(&["ends"])?;
    let container = cluster.get(&["pod", "ends"])?;
    let container = container["status"]["containerStatuses"][0]["containerID"].clone();
    cluster.daemons.stop("kube-apiserver")?;
    let given_back = (|| {
        let id = container.as_str().context("a container has an id")?;
        cluster.node().kill_container(id)?;
        wait::until("the instance of the pod that ended to go", || Ok(cluster.node().cut()? == 1))
    })();
    let mut server = control_plane::api_server(cluster.release, &cluster.programs, cluster.pki());
    cluster.daemons.start("kube-apiserver", &mut server)?;
    control_plane::wait_until_ready(cluster.dir(), &cluster.programs)?;
    given_back?;
    held.goes_on(cluster)?;
    cluster.apply(&[pod("after", "held")])?;
    cluster.running(&["after"])?;
    cluster.check_devices("after")
}

fn claims_of_before_a_reboot_are_prepared_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    let part = devices(&[mig("part", "2g.20gb")]);
    let mut again = pod("again", "part");
    merge(&mut again["spec"], json!({ "restartPolicy": "Always" }));
    cluster.apply(&[template("part", part), again, pod("ended", "part")])?;
    cluster.running(&["again", "ended"])?;
    cluster.node().reboot(&cluster.programs)?;
    // One pod starts again with its claim, the other has ended with the machine.
    wait::until("the pod to be started again", || {
        let pod = cluster.get(&["pod", "again"])?;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64() >= Some(1))
    })?;
    cluster.running(&["again"])?;
    cluster.check_devices("again")?;
    wait::until("the claim of the pod that ended to be given back", || {
        Ok(cluster.node().cut()? == 1)
    })?;
    install::ready(cluster)
}
