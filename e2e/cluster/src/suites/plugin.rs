//! Extended resources, of which the kubelet decides, on a cluster without claims: whole GPUs, shares, MIG
//! devices that are there and such that are carved, and agents and kubelets that come and go under pods.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, anyhow, ensure};
use serde_json::{Value, json};

use super::{restarts::gap, tests};
use crate::{
    cluster::Cluster,
    install::{self, NAMESPACE},
    manifests::{extended, merge},
    node::{Node, SIMULATED},
    programs, wait,
};

tests!("plugin":
    containers_get_whole_gpus,
    every_gpu_is_given_out_once,
    a_gpu_is_shared,
    mig_devices_that_an_administrator_made,
    mig_devices_are_carved_and_taken_away,
    a_restarted_container_gets_its_mig_device_again,
    a_reboot_carves_again_what_pods_had,
    a_configuration_is_chosen_by_the_nodes_label,
    nvidias_plugin_is_replaced_under_its_pods,
    a_restarted_kubelet_knows_the_devices_again,
    a_killed_agent_is_registered_again,
    pods_come_and_go_while_agents_are_replaced,
);

const GPU: &str = "nvidia.com/gpu";

/// How many devices of a resource the scheduler may give out on a node.
fn allocatable(cluster: &Cluster, node: &Node, resource: &str) -> anyhow::Result<u64> {
    let node = cluster.get(&["node", &node.name])?;
    let count = node["status"]["allocatable"][resource].as_str().unwrap_or("0").parse();
    count.context("a count is a number")
}

/// Waits until the scheduler may give out so many devices of a resource on the first node.
pub(super) fn offers(cluster: &Cluster, resource: &str, count: u64) -> anyhow::Result<()> {
    offers_on(cluster, cluster.node(), resource, count)
}

/// The same on any node.
pub(super) fn offers_on(
    cluster: &Cluster,
    node: &Node,
    resource: &str,
    count: u64,
) -> anyhow::Result<()> {
    wait::until(&format!("{count} devices of {resource} on {}", node.name), || {
        Ok(allocatable(cluster, node, resource)? == count)
    })
}

/// Uses other settings for a while, and then those of the chart again.
fn with(
    cluster: &Cluster,
    settings: &[&str],
    test: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    install::install_plugin(cluster, settings)?;
    let tested = test().and_then(|()| cluster.empty());
    install::install_plugin(cluster, &[])?;
    tested?;
    offers(cluster, GPU, 8)
}

fn containers_get_whole_gpus(cluster: &mut Cluster) -> anyhow::Result<()> {
    offers(cluster, GPU, 8)?;
    cluster.apply(&[extended("two", &[(GPU, 2)]), extended("one", &[(GPU, 1)])])?;
    cluster.running(&["two", "one"])?;
    cluster.check_devices("two")?;
    cluster.check_devices("one")?;
    let seen = cluster.exec("two", "main", &["nvidia-smi", "-L"])?;
    ensure!(seen.lines().count() == 2, "{seen}");
    // Who holds what is known by name.
    wait::until("the agent to know the pods", || {
        let containers = status(cluster)?["containers"].take();
        let pods = containers.as_array().into_iter().flatten();
        let pods: Vec<_> = pods.map(|one| one["container"]["pod"].clone()).collect();
        Ok(pods == ["one", "two", "two"])
    })
}

/// What an agent says of itself.
fn status(cluster: &Cluster) -> anyhow::Result<Value> {
    let ask = ["exec", "--namespace", NAMESPACE, "daemonset/kerf", "--"];
    let printed = cluster.kubectl(&[&ask[..], &["kerf", "status", "-o", "json"]].concat())?;
    Ok(serde_json::from_str(&printed)?)
}

fn every_gpu_is_given_out_once(cluster: &mut Cluster) -> anyhow::Result<()> {
    let names: Vec<_> = (0..8).map(|n| format!("gpu-{n}")).collect();
    let pods: Vec<_> = names.iter().map(|name| extended(name, &[(GPU, 1)])).collect();
    cluster.apply(&pods)?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.running(&names)?;
    names.iter().try_for_each(|name| cluster.check_devices(name))?;
    cluster.apply(&[extended("late", &[(GPU, 1)])])?;
    let said = cluster.unschedulable("late")?;
    ensure!(said.contains("Insufficient nvidia.com/gpu"), "{said}");
    cluster.delete_pods(&["gpu-3"])?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")
}

fn a_gpu_is_shared(cluster: &mut Cluster) -> anyhow::Result<()> {
    let sharing = "devicePlugin.config.default.sharing.timeSlicing";
    let settings = [
        format!("{sharing}.resources[0].name=nvidia.com/gpu"),
        format!("{sharing}.resources[0].replicas=2"),
        format!("{sharing}.renameByDefault=true"),
    ];
    let settings = settings.each_ref().map(String::as_str);
    with(cluster, &settings, || {
        offers(cluster, "nvidia.com/gpu.shared", 16)?;
        let names: Vec<_> = (0..16).map(|n| format!("share-{n}")).collect();
        let shared = |name: &String| extended(name, &[("nvidia.com/gpu.shared", 1)]);
        cluster.apply(&names.iter().map(shared).collect::<Vec<_>>())?;
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        cluster.running(&names)?;
        names.iter().try_for_each(|name| cluster.check_devices(name))
    })
}

fn mig_devices_that_an_administrator_made(cluster: &mut Cluster) -> anyhow::Result<()> {
    const OF_GPU: usize = 2;
    let mixed = ["devicePlugin.config.default.flags.migStrategy=mixed"];
    with(cluster, &mixed, || {
        offers(cluster, GPU, 8)?;
        let machine = &cluster.node().machine;
        machine.set_mig_mode(OF_GPU, true)?;
        machine.create_instance(OF_GPU, 19, 0, true)?;
        machine.create_instance(OF_GPU, 9, 4, true)?;
        // Without a restart.
        offers(cluster, "nvidia.com/mig-1g.10gb", 1)?;
        offers(cluster, "nvidia.com/mig-3g.40gb", 1)?;
        offers(cluster, GPU, 7)?;
        let both = [("nvidia.com/mig-1g.10gb", 1), ("nvidia.com/mig-3g.40gb", 1)];
        cluster.apply(&[extended("both", &both)])?;
        cluster.running(&["both"])?;
        cluster.check_devices("both")?;
        cluster.empty()?;
        ensure!(cluster.node().cut()? == 2, "what an administrator made was taken away");
        machine.destroy_instance(OF_GPU, 0)?;
        machine.destroy_instance(OF_GPU, 4)?;
        machine.set_mig_mode(OF_GPU, false)?;
        offers(cluster, GPU, 8)
    })
}

const ON_DEMAND: [&str; 1] = ["devicePlugin.migOnDemand=true"];

fn mig_devices_are_carved_and_taken_away(cluster: &mut Cluster) -> anyhow::Result<()> {
    with(cluster, &ON_DEMAND, || {
        offers(cluster, "nvidia.com/mig-1g.10gb", 56)?;
        let parts = [("nvidia.com/mig-1g.10gb", 2), ("nvidia.com/mig-3g.40gb", 1)];
        cluster.apply(&[extended("parts", &parts), extended("whole", &[(GPU, 1)])])?;
        cluster.running(&["parts", "whole"])?;
        cluster.check_devices("parts")?;
        cluster.check_devices("whole")?;
        ensure!(cluster.node().cut()? == 3, "{} instances", cluster.node().cut()?);
        cluster.delete_pods(&["parts"])?;
        wait::until("what was carved to go", || Ok(cluster.node().cut()? == 0))?;
        // A GPU that was cut is whole again.
        cluster.apply(&[extended("all", &[(GPU, 7)])])?;
        cluster.running(&["all"])?;
        cluster.check_devices("all")
    })
}

/// A pod, `again`, with a MIG device that is carved for it, whose container is started whenever it ends.
fn start_again(cluster: &Cluster) -> anyhow::Result<()> {
    offers(cluster, "nvidia.com/mig-2g.20gb", 24)?;
    let mut again = extended("again", &[("nvidia.com/mig-2g.20gb", 1)]);
    merge(&mut again["spec"], json!({ "restartPolicy": "Always" }));
    cluster.apply(&[again])?;
    cluster.running(&["again"])
}

/// A container's device is carved before it starts, not only when its pod is admitted.
fn a_restarted_container_gets_its_mig_device_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    with(cluster, &ON_DEMAND, || {
        start_again(cluster)?;
        let node = cluster.node();
        let snapshot = node.machine.snapshot()?;
        let cut = snapshot.gpus.iter().position(|gpu| !gpu.instances.is_empty());
        node.machine.reset_gpu(cut.context("nothing is cut")?)?;
        ensure!(node.cut()? == 0, "{} instances", node.cut()?);
        let pod = cluster.get(&["pod", "again"])?;
        let container = &pod["status"]["containerStatuses"][0];
        node.kill_container(container["containerID"].as_str().context("it has an id")?)?;
        wait::until("the container to run again", || {
            let pod = cluster.get(&["pod", "again"])?;
            let container = &pod["status"]["containerStatuses"][0];
            Ok(container["restartCount"] == 1 && container["ready"] == true)
        })?;
        ensure!(node.cut()? == 1, "{} instances", node.cut()?);
        cluster.check_devices("again")
    })
}

fn a_reboot_carves_again_what_pods_had(cluster: &mut Cluster) -> anyhow::Result<()> {
    with(cluster, &ON_DEMAND, || {
        start_again(cluster)?;
        cluster.node().reboot(&cluster.programs)?;
        wait::until("a pod of the same name to run again, or to have been refused", || {
            let pod = cluster.get(&["pod", "again"])?;
            let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
            Ok(restarts >= Some(1) || pod["status"]["phase"] == "Failed")
        })?;
        let pod = cluster.get(&["pod", "again"])?;
        // A kubelet that looks at its pods before the agent has registered refuses them for good.
        if pod["status"]["phase"] == "Failed" {
            ensure!(pod["status"]["reason"] == "UnexpectedAdmissionError", "{}", pod["status"]);
            println!("        the kubelet looked at the pod before the agent was there");
            return install::rolled_out(cluster);
        }
        cluster.running(&["again"])?;
        cluster.check_devices("again")?;
        install::rolled_out(cluster)
    })
}

fn a_configuration_is_chosen_by_the_nodes_label(cluster: &mut Cluster) -> anyhow::Result<()> {
    let shared = "devicePlugin.config.shared.sharing.timeSlicing.resources[0]";
    let settings = [
        "devicePlugin.config.default.version=v1".to_owned(),
        format!("{shared}.name=nvidia.com/gpu"),
        format!("{shared}.replicas=4"),
    ];
    let settings = settings.each_ref().map(String::as_str);
    let name = cluster.node().name.clone();
    let label = |value: &str| {
        let label = format!("nvidia.com/device-plugin.config{value}");
        cluster.kubectl(&["label", "node", &name, "--overwrite", &label]).map(drop)
    };
    with(cluster, &settings, || {
        offers(cluster, GPU, 8)?;
        label("=shared")?;
        offers(cluster, GPU, 32)?;
        // A name that no file has changes nothing.
        label("=typo")?;
        wait::until("the agent to say so", || {
            Ok(status(cluster)?["warnings"].to_string().contains("typo"))
        })?;
        offers(cluster, GPU, 32)?;
        label("-")?;
        offers(cluster, GPU, 8)
    })
}

/// The steps of `docs/device-plugin.md`, with the real one. Its pods get an environment that only NVIDIA's runtime
/// understands, so what they see is not looked at.
fn nvidias_plugin_is_replaced_under_its_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    const NAME: &str = "nvidia-device-plugin";
    let program = programs::nvidia_device_plugin()?;
    install::uninstall(cluster)?;
    offers(cluster, GPU, 0)?;
    let node = cluster.node();
    let mut plugin = node.command(program)?;
    plugin.arg("--device-list-strategy=envvar");
    plugin.env("LD_LIBRARY_PATH", "/run/nvidia/driver/usr/lib/x86_64-linux-gnu");
    plugin.env("KERF_NVML_MACHINE", format!("/run/nvidia/driver/{SIMULATED}"));
    node.daemons.start(NAME, &mut plugin)?;
    offers(cluster, GPU, 8)?;
    cluster.apply(&[extended("held", &[(GPU, 1)])])?;
    cluster.running(&["held"])?;

    install::install_plugin(cluster, &[])?;
    cluster.node().daemons.stop(NAME)?;
    offers(cluster, GPU, 8)?;
    wait::until("the agent to know the pod of before", || {
        let containers = status(cluster)?["containers"].take();
        Ok(containers[0]["container"]["pod"] == "held" && containers[0]["origin"] == "found")
    })?;
    cluster.apply(&[extended("others", &[(GPU, 7)])])?;
    cluster.running(&["others"])?;
    cluster.check_devices("others")?;
    cluster.apply(&[extended("late", &[(GPU, 1)])])?;
    cluster.unschedulable("late")?;
    cluster.delete_pods(&["held"])?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")
}

/// A pod with a GPU that must not notice what happens.
struct Held(Value);

impl Held {
    fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        cluster.apply(&[extended("held", &[(GPU, 1)])])?;
        cluster.running(&["held"])?;
        cluster.check_devices("held")?;
        Ok(Self(Self::look(cluster)?))
    }

    fn look(cluster: &Cluster) -> anyhow::Result<Value> {
        let pod = cluster.get(&["pod", "held"])?;
        let container = &pod["status"]["containerStatuses"][0];
        Ok(json!([container["containerID"], container["restartCount"]]))
    }

    fn goes_on(&self, cluster: &Cluster) -> anyhow::Result<()> {
        wait::until("the kubelet to reach into the pod", || {
            Ok(cluster.exec("held", "main", &["true"]).is_ok())
        })?;
        let is = Self::look(cluster)?;
        ensure!(is == self.0, "the pod was {}, and is {is}", self.0);
        cluster.check_devices("held")
    }
}

fn a_restarted_kubelet_knows_the_devices_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster)?;
    cluster.node().daemons.stop("kubelet")?;
    cluster.node().start_kubelet(&cluster.programs)?;
    cluster.apply(&[extended("late", &[(GPU, 7)])])?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")?;
    held.goes_on(cluster)
}

fn a_killed_agent_is_registered_again(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster)?;
    let pod = install::pods(cluster)?.pop().context("no agent")?;
    let agent = &pod["status"]["containerStatuses"][0];
    cluster.node().kill_container(agent["containerID"].as_str().context("it has an id")?)?;
    wait::until("the agent to be started again", || {
        let now = install::pods(cluster)?.pop().context("no agent")?;
        let now = &now["status"]["containerStatuses"][0];
        Ok(now["restartCount"].as_u64() > agent["restartCount"].as_u64() && now["ready"] == true)
    })?;
    // The kubelet tells the API server every 10 s at most what it has.
    offers(cluster, GPU, 8)?;
    cluster.apply(&[extended("late", &[(GPU, 7)])])?;
    cluster.running(&["late"])?;
    held.goes_on(cluster)
}

/// The kubelet shows no devices for as long as no agent acts, and fails the pods that it looks at then: how
/// many these are is printed.
fn pods_come_and_go_while_agents_are_replaced(cluster: &mut Cluster) -> anyhow::Result<()> {
    replace_under_load(cluster, &[])?;
    install::install_plugin(cluster, &[])
}

/// Replaces the agents three times while pods come and go and one stays.
pub(super) fn replace_under_load(cluster: &Cluster, settings: &[&str]) -> anyhow::Result<()> {
    let held = Held::new(cluster)?;
    let replaced = AtomicBool::new(false);
    let ((pods, failed), gaps) = thread::scope(|scope| {
        let churn = scope.spawn(|| churn(cluster, &replaced));
        let gaps: anyhow::Result<Vec<_>> = (0..3).map(|n| replace(cluster, settings, n)).collect();
        replaced.store(true, Ordering::Relaxed);
        let churn = churn.join().map_err(|_| anyhow!("the thread that makes pods panicked"))?;
        anyhow::Ok((churn?, gaps?))
    })?;
    println!(
        "        {pods} pods came and went, {failed} were refused; no agent was registered for {gaps:.0?}"
    );
    held.goes_on(cluster)
}

/// Replaces the agents; for how long the kubelet knew none, by their own account.
fn replace(cluster: &Cluster, settings: &[&str], number: u32) -> anyhow::Result<Duration> {
    let setting = format!("resources.requests.cpu={}m", 100 + number);
    gap(cluster, "registered with the kubelet resource", || {
        install::install_plugin(cluster, &[settings, &[&setting]].concat())
    })
}

/// Makes pods and takes them away until the agents are replaced: how many, and how many the kubelet refused.
fn churn(cluster: &Cluster, replaced: &AtomicBool) -> anyhow::Result<(usize, usize)> {
    let (mut pods, mut failed) = (0, 0);
    while !replaced.load(Ordering::Relaxed) {
        let names = [0, 1].map(|pod| format!("churn-{}", pods + pod));
        let ends = |name: &String| {
            let mut ends = extended(name, &[(GPU, 1)]);
            merge(&mut ends["spec"]["containers"][0], json!({ "command": ["nvidia-smi", "-L"] }));
            ends
        };
        cluster.apply(&names.each_ref().map(ends))?;
        let names = names.each_ref().map(String::as_str);
        for name in names {
            let mut status = Value::Null;
            wait::until(&format!("pod {name} to end"), || {
                status = cluster.get(&["pod", name])?["status"].take();
                Ok(["Succeeded", "Failed"].iter().any(|phase| status["phase"] == *phase))
            })?;
            if status["phase"] == "Failed" {
                ensure!(status["reason"] == "UnexpectedAdmissionError", "{name}: {status}");
                failed += 1;
            }
        }
        cluster.delete_pods(&names)?;
        pods += names.len();
    }
    Ok((pods, failed))
}
