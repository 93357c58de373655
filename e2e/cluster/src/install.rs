//! Installing Kerf as a user would, with Helm, and taking it away.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    command::{Run, output},
    files,
    node::SIMULATED,
    programs::Release,
    wait,
};

pub(crate) const NAMESPACE: &str = "kube-system";

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Helm, in the namespace that Kerf is in.
pub(crate) fn helm(cluster: &Cluster) -> Command {
    let mut helm = Command::new(cluster.programs.helm());
    helm.arg("--kubeconfig").arg(cluster.kubeconfig()).args(["--namespace", NAMESPACE]);
    helm
}

/// What is different here from a real node: where the driver is, that it is simulated, and that it heals fast.
pub(crate) fn values(cluster: &Cluster) -> anyhow::Result<PathBuf> {
    let simulated = format!("/driver-root/{SIMULATED}");
    let env = [
        ("PROC_ROOT", format!("{simulated}/proc")),
        ("SYS_ROOT", format!("{simulated}/sys")),
        ("KERNEL_LOG", format!("{simulated}/kmsg")),
        ("KERF_NVML_MACHINE", simulated),
    ];
    let env: Vec<_> =
        env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
    // Nobody wants to wait for a minute after each GPU that was lost.
    let health = json!({ "holdDown": 1 });
    let values = json!({ "nvidiaDriverRoot": "/run/nvidia/driver", "env": env, "health": health });
    let path = cluster.dir().join("values.json");
    files::write(&path, values.to_string())?;
    Ok(path)
}

/// Installs, or upgrades to, what the chart has with these settings; returns when the agents serve.
pub(crate) fn install(cluster: &Cluster, settings: &[&str]) -> anyhow::Result<()> {
    upgrade(cluster, settings)?;
    ready(cluster)
}

/// The same for agents that do not publish: returns when they are ready.
pub(crate) fn install_plugin(cluster: &Cluster, settings: &[&str]) -> anyhow::Result<()> {
    upgrade(cluster, settings)?;
    rolled_out(cluster)
}

fn upgrade(cluster: &Cluster, settings: &[&str]) -> anyhow::Result<()> {
    let mut install = helm(cluster);
    install.args(["upgrade", "--install", "kerf"]).arg(root().join("deploy/helm/kerf"));
    install.arg("--values").arg(values(cluster)?);
    for setting in settings {
        install.args(["--set", setting]);
    }
    install.run()
}

/// Waits until every node has an agent that is ready, and no other.
pub(crate) fn rolled_out(cluster: &Cluster) -> anyhow::Result<()> {
    let status =
        ["rollout", "status", "daemonset/kerf", "--namespace", NAMESPACE, "--timeout=120s"];
    cluster.kubectl(&status)?;
    wait::until("the old agents to end", || Ok(pods(cluster)?.len() == cluster.nodes().len()))
}

/// Waits until every node has an agent that is ready, and has published.
pub(crate) fn ready(cluster: &Cluster) -> anyhow::Result<()> {
    let status =
        ["rollout", "status", "daemonset/kerf", "--namespace", NAMESPACE, "--timeout=120s"];
    cluster.kubectl(&status)?;
    if cluster.release == Release::V1_31 {
        return Ok(());
    }
    wait::until("the slices of all nodes", || {
        let slices = cluster.list(&["resourceslices"])?;
        Ok(cluster.nodes().iter().all(|node| {
            let of_node =
                slices.iter().filter(|slice| slice["spec"]["nodeName"] == node.name.as_str());
            let counts: Vec<_> =
                of_node.map(|slice| slice["spec"]["pool"]["resourceSliceCount"].as_u64()).collect();
            !counts.is_empty()
                && counts.iter().all(|count| *count == u64::try_from(counts.len()).ok())
        }))
    })
}

/// What the agents' pods are known by.
pub(crate) const SELECTOR: &str = "--selector=app.kubernetes.io/name=kerf";

/// The agents' pods.
pub(crate) fn pods(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    cluster.list(&["pods", "--namespace", NAMESPACE, SELECTOR])
}

/// Their UIDs.
pub(crate) fn agents(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    Ok(pods(cluster)?.iter_mut().map(|pod| pod["metadata"]["uid"].take()).collect())
}

/// Takes Kerf away.
pub(crate) fn uninstall(cluster: &Cluster) -> anyhow::Result<()> {
    helm(cluster).args(["uninstall", "kerf", "--wait"]).run()
}

/// What the chart renders with these values, or those that it has.
pub(crate) fn rendered(
    cluster: &Cluster,
    values: Option<&Path>,
    setting: Option<&str>,
) -> anyhow::Result<String> {
    let mut template = Command::new(cluster.programs.helm());
    template.args(["template", "kerf"]).arg(root().join("deploy/helm/kerf"));
    if let Some(values) = values {
        template.arg("--values").arg(values);
    }
    if let Some(setting) = setting {
        template.args(["--set", setting]);
    }
    output(template.args(["--namespace", NAMESPACE]))
}
