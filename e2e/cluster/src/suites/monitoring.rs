//! What a real Prometheus makes of the agents' metrics: the page is well formed, series name who holds a device, every
//! alert fires in the state that it is for, and no panel of a dashboard stays empty.

mod dashboards;
mod states;

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::{Context, ensure};
use kerf_nvml::{Model, NodeDescription};
use serde_json::{Value, json};

use self::states::{STATES, Scene};
use super::{plugin::offers, tests};
use crate::{
    cluster::Cluster,
    command::output,
    files,
    install::{self, root},
    manifests::{devices, extended, merge, mig, one, pod, template},
    node::Node,
    prometheus::{Prometheus, fetch},
    wait,
};

tests!("monitoring":
    the_chart_has_what_operators_take,
    the_page_is_what_prometheus_reads,
    series_of_a_device_name_its_holder,
    every_alert_fires_and_every_panel_has_data,
);

fn the_chart_has_what_operators_take(cluster: &mut Cluster) -> anyhow::Result<()> {
    let kinds = |rendered: &str| -> Vec<String> {
        let kinds = rendered.lines().filter_map(|line| line.strip_prefix("kind: "));
        kinds.map(str::to_owned).collect()
    };
    let usual = kinds(&install::rendered(cluster, None, None)?);
    let all = ["serviceMonitor", "podMonitor", "alerts", "dashboards"];
    let all = all.map(|what| format!("metrics.{what}.create=true")).join(",");
    let rendered = install::rendered(cluster, None, Some(&all))?;
    let mut more = kinds(&rendered);
    for kind in usual {
        let at = more.iter().position(|one| *one == kind).context("less is rendered")?;
        more.swap_remove(at);
    }
    more.sort();
    let expected = [
        "ConfigMap",
        "ConfigMap",
        "ConfigMap",
        "PodMonitor",
        "PrometheusRule",
        "Service",
        "ServiceMonitor",
    ];
    ensure!(more == expected, "{more:?}");
    ensure!(rendered.matches("honorLabels: true").count() == 2, "monitors change labels");
    for (file, indent) in [("alerts.yaml", 2), ("fleet.json", 4), ("gpu.json", 4), ("node.json", 4)]
    {
        let whole = fs::read_to_string(root().join("deploy/monitoring").join(file))?;
        let whole: Vec<_> = whole.lines().map(str::trim_end).collect();
        let rendered: Vec<_> =
            rendered.lines().map(|line| line.get(indent..).unwrap_or_default()).collect();
        ensure!(rendered.windows(whole.len()).any(|part| part == whole), "{file} is another");
    }
    Ok(())
}

/// Both doors, samples as often as they are asked for, and GPUs that are trusted again soon.
const SETTINGS: [&str; 5] = [
    "metrics.interval=1",
    "interface=both",
    "health.holdDown=1",
    "health.evictOn={bus}",
    "health.evictPluginPods=true",
];

/// Does something with such agents, and installs those of the chart again whatever comes of it.
fn sampled(cluster: &Cluster, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    install::install(cluster, &SETTINGS)?;
    let tested = offers(cluster, "nvidia.com/gpu", 8).and_then(|()| test());
    let emptied = cluster.empty();
    install::install(cluster, &[])?;
    tested.and(emptied)
}

fn the_page_is_what_prometheus_reads(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cluster = &*cluster;
    sampled(cluster, || {
        start_pods(cluster)?;
        for agent in install::pods(cluster)? {
            let ip = agent["status"]["podIP"].as_str().context("an agent has an address")?;
            let path = cluster.dir().join("metrics");
            files::write(&path, fetch(&format!("{ip}:9400"), "/metrics")?)?;
            // 3: it can be read, and has names that are not as they should be.
            let check = "promtool check metrics <\"$0\" 2>&1 || [ $? = 3 ]";
            let said = output(Command::new("sh").args(["-c", check]).arg(&path))?;
            // Those of dcgm-exporter are as they are.
            let ours: Vec<_> = said.lines().filter(|line| !line.starts_with("DCGM_")).collect();
            ensure!(ours.is_empty(), "promtool: {ours:?}");
        }
        Ok(())
    })
}

/// `part`, `half` and `whole` with claims, and `plugin` with an extended resource, on the first node.
fn start_pods(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&[
        template("part", devices(&[mig("part", "1g.10gb")])),
        template("half", devices(&[mig("half", "3g.40gb")])),
        template("whole", devices(&[one("gpu", "gpu.nvidia.com")])),
        only_on(cluster.node(), extended("plugin", &[("nvidia.com/gpu", 1)])),
    ])?;
    // The kubelet and the scheduler may choose the same GPU at the same time.
    wait::until("the scheduler to know what the kubelet gave out", || {
        let slices = cluster.list(&["resourceslices"])?;
        Ok(slices.iter().any(|slice| slice.to_string().contains("gpu.nvidia.com/device-plugin")))
    })?;
    let claimed = ["part", "half", "whole"].map(|name| only_on(cluster.node(), pod(name, name)));
    cluster.apply(&claimed)?;
    cluster.running(&["part", "half", "whole", "plugin"])
}

/// A pod that only this node may have.
fn only_on(node: &Node, mut pod: Value) -> Value {
    let only = json!({ "kubernetes.io/hostname": node.name });
    merge(&mut pod, json!({ "spec": { "nodeSelector": only } }));
    pod
}

fn series_of_a_device_name_its_holder(cluster: &mut Cluster) -> anyhow::Result<()> {
    let cluster = &*cluster;
    sampled(cluster, || {
        start_pods(cluster)?;
        let prometheus = Prometheus::start(cluster)?;
        let namespace = &cluster.namespace;
        for (pod, part) in [("part", "1g.10gb"), ("half", "3g.40gb"), ("whole", "")] {
            let held =
                format!("namespace=\"{namespace}\", pod=\"{pod}\", GPU_I_PROFILE=\"{part}\"");
            let claimed = format!("{held}, dra_claim_name=~\"{pod}-gpu-.+\"");
            prometheus.selects(1, &format!("DCGM_FI_DEV_FB_USED{{{claimed}}}"))?;
            prometheus
                .selects(1, &format!("kerf_device_holder{{{claimed}, container=\"main\"}}"))?;
        }
        let plugin = format!("namespace=\"{namespace}\", pod=\"plugin\", container=\"main\"");
        prometheus.selects(1, &format!("DCGM_FI_DEV_GPU_UTIL{{{plugin}}}"))?;
        prometheus
            .selects(1, &format!("kerf_device_holder{{{plugin}, resource=\"nvidia.com/gpu\"}}"))?;
        // An agent holds nothing, though it is the target.
        prometheus.selects(0, "{pod=~\"kerf-.*\"}")?;
        prometheus.selects(8, "DCGM_FI_DEV_POWER_USAGE")?;
        let counted_twice =
            "sum(DCGM_FI_DEV_POWER_USAGE) - sum(max by (UUID) (DCGM_FI_DEV_POWER_USAGE)) > 0";
        prometheus.selects(0, counted_twice)?;
        prometheus.selects(1, "sum(DCGM_FI_DEV_POWER_USAGE) > 0").map(drop)
    })
}

fn every_alert_fires_and_every_panel_has_data(cluster: &mut Cluster) -> anyhow::Result<()> {
    // Some of what befalls its GPUs does not heal.
    cluster.add_node(&NodeDescription::uniform(Model::H100_80, 8).for_containers())?;
    let name = cluster.nodes()[1].name.clone();
    let tested = sampled(cluster, || in_all_states(cluster));
    cluster.remove_node()?;
    tested?;
    wait::until("the slices of a removed node to go", || {
        let slices = cluster.list(&["resourceslices"])?;
        Ok(slices.iter().all(|slice| slice["spec"]["nodeName"] != name.as_str()))
    })?;
    install::ready(cluster)
}

fn in_all_states(cluster: &Cluster) -> anyhow::Result<()> {
    let prometheus = Prometheus::start(cluster)?;
    let names: Vec<_> = STATES.iter().flat_map(|(_, alerts)| *alerts).copied().collect();
    let rules = prometheus.alerts()?;
    let rules: BTreeSet<_> = rules.iter().filter_map(|rule| rule["name"].as_str()).collect();
    ensure!(
        rules == names.into_iter().collect(),
        "alerts and the states that they are for: {rules:?}"
    );
    let scene = Scene::new(cluster, &prometheus)?;
    let done = STATES.iter().try_for_each(|(state, alerts)| {
        state(&scene, &|| alerts.iter().try_for_each(|alert| fires(&prometheus, alert)))
    });
    scene.end_work().and(done)
}

/// Waits until an alert waits or fires, and looks at what it says.
fn fires(prometheus: &Prometheus<'_>, alert: &str) -> anyhow::Result<()> {
    let mut found = Vec::new();
    wait::until(&format!("{alert} to fire"), || {
        let rules = prometheus.alerts()?;
        let rule = rules.iter().find(|rule| rule["name"] == alert).context("no such alert")?;
        let error = rule["lastError"].as_str().unwrap_or_default();
        ensure!(error.is_empty(), "{alert}: {error}");
        found = rule["alerts"].as_array().cloned().unwrap_or_default();
        Ok(!found.is_empty())
    })?;
    let said = Value::Array(found).to_string();
    ensure!(!said.contains("error expanding template"), "{alert}: {said}");
    Ok(())
}
