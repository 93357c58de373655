//! The ends that pods come to, and that nothing of their devices stays.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    manifests::{claim, devices, merge, mig, one, pod, pod_of, template},
    wait,
};

tests!("life":
    a_completed_pod_leaves_nothing,
    a_force_deleted_pod_leaves_nothing,
    a_crash_looping_container_keeps_its_devices,
    a_restarted_container_has_the_same_devices,
    an_init_container_has_the_devices_too,
    a_claim_that_no_container_uses_is_prepared,
    a_claim_serves_one_pod_after_the_other,
    twenty_cycles_leave_nothing,
);

fn parts() -> Value {
    devices(&[mig("part", "2g.20gb")])
}

/// The pod with another command.
fn running(mut pod: Value, policy: &str, command: &[&str]) -> Value {
    merge(&mut pod["spec"], json!({ "restartPolicy": policy }));
    pod["spec"]["containers"][0]["command"] = json!(command);
    pod
}

fn restarts(cluster: &Cluster, pod: &str) -> anyhow::Result<u64> {
    let pod = cluster.get(&["pod", pod])?;
    Ok(pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default())
}

/// What its container lists of devices, by the log.
fn listed(cluster: &Cluster, pod: &str) -> anyhow::Result<String> {
    cluster.kubectl(&["logs", pod])
}

fn a_completed_pod_leaves_nothing(cluster: &mut Cluster) -> anyhow::Result<()> {
    let done = running(pod("done", "part"), "Never", &["nvidia-smi", "-L"]);
    cluster.apply(&[template("part", parts()), done])?;
    cluster.succeeded(&["done"])?;
    // While the pod is there still: its end is enough.
    wait::until("the instance of a completed pod to go", || Ok(cluster.node().cut()? == 0))
}

fn a_force_deleted_pod_leaves_nothing(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(&[template("part", parts()), pod("forced", "part")])?;
    cluster.running(&["forced"])?;
    cluster.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"])?;
    wait::until("the instance of a force-deleted pod to go", || Ok(cluster.node().cut()? == 0))
}

fn a_crash_looping_container_keeps_its_devices(cluster: &mut Cluster) -> anyhow::Result<()> {
    let crash = running(pod("crash", "part"), "Always", &["sh", "-c", "nvidia-smi -L; exit 1"]);
    cluster.apply(&[template("part", parts()), crash])?;
    wait::until("a container to crash", || Ok(restarts(cluster, "crash")? >= 1))?;
    let first = cluster.node().machine.snapshot()?;
    let log = listed(cluster, "crash")?;
    wait::until("a container to crash again", || Ok(restarts(cluster, "crash")? >= 2))?;
    let second = cluster.node().machine.snapshot()?;
    ensure!(first == second && log == listed(cluster, "crash")?, "{first:?}\n{second:?}");
    Ok(())
}

fn a_restarted_container_has_the_same_devices(cluster: &mut Cluster) -> anyhow::Result<()> {
    // The first process of a container cannot kill itself; one that it started ends it.
    let script = "nvidia-smi -L; while ! test -e /tmp/end; do sleep 0.1; done";
    let again = running(pod("again", "part"), "Always", &["sh", "-c", script]);
    cluster.apply(&[template("part", parts()), again])?;
    cluster.running(&["again"])?;
    cluster.check_devices("again")?;
    cluster.exec("again", "main", &["sh", "-c", "echo > /tmp/end"])?;
    wait::until("the container to be started again", || Ok(restarts(cluster, "again")? == 1))?;
    cluster.running(&["again"])?;
    cluster.check_devices("again")
}

fn an_init_container_has_the_devices_too(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut after = pod("after", "part");
    let mut init = after["spec"]["containers"][0].clone();
    merge(&mut init, json!({ "name": "init", "command": ["nvidia-smi", "-L"] }));
    merge(&mut after["spec"], json!({ "initContainers": [init] }));
    cluster.apply(&[template("part", parts()), after])?;
    cluster.running(&["after"])?;
    let log = cluster.kubectl(&["logs", "after", "--container", "init"])?;
    ensure!(log.contains("MIG 2g.20gb"), "{log}");
    cluster.check_devices("after")
}

fn a_claim_that_no_container_uses_is_prepared(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut idle = pod("idle", "part");
    idle["spec"]["containers"][0]["resources"] = json!({});
    cluster.apply(&[template("part", parts()), idle])?;
    cluster.running(&["idle"])?;
    ensure!(cluster.node().cut()? == 1, "a claim is prepared whether a container uses it or not");
    let seen = cluster.exec("idle", "main", &["sh", "-c", "ls /dev | grep -c nvidia || true"])?;
    ensure!(seen.trim() == "0", "a container that names no claim sees {seen} devices");
    Ok(())
}

fn a_claim_serves_one_pod_after_the_other(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(&[claim("part", parts())])?;
    for name in ["first", "second", "third"] {
        cluster.apply(&[pod_of(name, "part")])?;
        cluster.running(&[name])?;
        cluster.check_devices(name)?;
        cluster.delete_pods(&[name])?;
        wait::until("the instance to go with the pod", || Ok(cluster.node().cut()? == 0))?;
    }
    Ok(())
}

fn twenty_cycles_leave_nothing(cluster: &mut Cluster) -> anyhow::Result<()> {
    let both = devices(&[one("whole", "gpu.nvidia.com"), mig("part", "1g.10gb")]);
    cluster.apply(&[template("both", both), pod("first", "both")])?;
    cluster.running(&["first"])?;
    ensure!(in_use(cluster)? == 1, "the kubelet counts {} claims in use", in_use(cluster)?);
    cluster.delete_pods(&["first"])?;
    // As many at a time as there are GPUs for.
    for round in 0..5 {
        let names: Vec<_> = (0..4).map(|pod| format!("cycle-{round}-{pod}")).collect();
        let end = |name: &String| running(pod(name, "both"), "Never", &["nvidia-smi", "-L"]);
        cluster.apply(&names.iter().map(end).collect::<Vec<_>>())?;
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        cluster.succeeded(&names)?;
        cluster.delete_pods(&names)?;
    }
    wait::until("dra_resource_claims_in_use to be 0", || Ok(in_use(cluster)? == 0))
}

/// The kubelet's own count of prepared claims, of whatever driver.
fn in_use(cluster: &Cluster) -> anyhow::Result<u64> {
    let path = format!("/api/v1/nodes/{}/proxy/metrics", cluster.node().name);
    let metrics = cluster.kubectl(&["get", "--raw", &path])?;
    let all = "dra_resource_claims_in_use{driver_name=\"<any>\"}";
    let count = metrics.lines().find_map(|line| line.strip_prefix(all));
    Ok(count.context("the kubelet has no count of claims in use")?.trim().parse()?)
}
