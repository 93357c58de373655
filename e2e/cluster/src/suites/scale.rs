//! Many pods at once, on one node and on two, and what of the time they take is Kerf's.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader},
    process::{Child, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use kerf_nvml::{Model, NodeDescription};
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    install,
    manifests::{devices, merge, mig, one, pod, template},
    node::Node,
    wait,
};

tests!("scale":
    fifty_six_mig_devices_at_once,
    sixteen_gpus_of_a_second_node,
);

/// Longer than all of it takes.
const PATIENCE: Duration = Duration::from_secs(120);

fn fifty_six_mig_devices_at_once(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.apply(&[template("part", devices(&[mig("part", "1g.10gb")]))])?;
    let pods: Vec<_> = (0..56).map(|number| pod(&format!("part-{number}"), "part")).collect();
    let batch = Batch::start(cluster, cluster.node(), &pods)?;
    let cut = cluster.node().cut()?;
    ensure!(cut == 56, "{cut} instances are there");
    // The first and the last that were made, and one between.
    for name in ["part-0", "part-28", "part-55"] {
        cluster.check_devices(name)?;
    }
    batch.end(cluster, cluster.node())
}

fn sixteen_gpus_of_a_second_node(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.add_node(&NodeDescription::uniform(Model::H100_80, 16).for_containers())?;
    let tested = on_second_node(cluster);
    let name = cluster.nodes()[1].name.clone();
    if tested.is_err() {
        // A pod that ran there has nowhere to end.
        cluster.empty()?;
    }
    cluster.remove_node()?;
    tested?;
    // Nobody is there to take them away: they belong to the node.
    wait::until("the slices of a removed node to go", || Ok(slices(cluster, &name)?.is_empty()))?;
    install::ready(cluster)
}

fn on_second_node(cluster: &Cluster) -> anyhow::Result<()> {
    install::ready(cluster)?;
    let [first, second] = cluster.nodes() else { anyhow::bail!("there are not two nodes") };
    let before = slices(cluster, &first.name)?;
    cluster.apply(&[template("whole", devices(&[one("gpu", "gpu.nvidia.com")]))])?;
    let there = json!({ "spec": { "nodeSelector": { "kubernetes.io/hostname": second.name } } });
    let pods = (0..16).map(|number| {
        let mut pod = pod(&format!("whole-{number}"), "whole");
        merge(&mut pod, there.clone());
        pod
    });
    let batch = Batch::start(cluster, second, &pods.collect::<Vec<_>>())?;
    cluster.check_devices("whole-0")?;
    cluster.check_devices("whole-15")?;
    // One more does not fit there, and would on the other node.
    let mut more = pod("more", "whole");
    merge(&mut more, there);
    cluster.apply(&[more, pod("anywhere", "whole")])?;
    cluster.unschedulable("more")?;
    cluster.running(&["anywhere"])?;
    cluster.check_devices("anywhere")?;
    cluster.delete_pods(&["more", "anywhere"])?;
    batch.end(cluster, second)?;
    let after = slices(cluster, &first.name)?;
    ensure!(before == after, "the slices of {} were {before:#?}, and are {after:#?}", first.name);
    Ok(())
}

/// What the slices of a node say, by name. Their devices are sorted: the agent may still put an order
/// right that pods of before have changed.
fn slices(cluster: &Cluster, node: &str) -> anyhow::Result<BTreeMap<String, Value>> {
    let mut slices = cluster.list(&["resourceslices"])?;
    slices.retain(|slice| slice["spec"]["nodeName"] == node);
    let said = slices.iter_mut().map(|slice| {
        if let Some(devices) = slice["spec"]["devices"].as_array_mut() {
            devices.sort_by_cached_key(|device| device["name"].to_string());
        }
        (slice["metadata"]["name"].to_string(), slice["spec"].take())
    });
    Ok(said.collect())
}

/// Pods that were created at once.
struct Batch {
    /// UIDs of their claims, one each.
    claims: Vec<String>,
    /// Of slices, before they were.
    writes: f64,
}

impl Batch {
    /// Creates pods, waits until all run, and prints what that took.
    fn start(cluster: &Cluster, node: &Node, pods: &[Value]) -> anyhow::Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let names: Vec<_> = pods.iter().map(|pod| text(&pod["metadata"]["name"])).collect();
        let writes = slice_writes(cluster)?;
        let watch = Watch::new(cluster)?;
        let begun = Instant::now();
        cluster.apply(pods)?;
        let took = watch.until_running(&names)?;
        let total = begun.elapsed();
        let claims = cluster.list(&["resourceclaims"])?;
        let claims: Vec<_> = claims.iter().map(|claim| text(&claim["metadata"]["uid"])).collect();
        ensure!(claims.len() == names.len(), "{} pods have {} claims", names.len(), claims.len());

        let start = Spread::of(&took);
        let prepare = Spread::of(&answers(node, "NodePrepareResource", &claims)?);
        let share = 100.0 * prepare.sum / start.sum;
        println!("        {} pods Running after {:.1} s", names.len(), total.as_secs_f64());
        println!("        a pod from its creation to Running: {start}");
        println!(
            "        of which Kerf's prepare, as the kubelet waits: {prepare}; {share:.1} % of all"
        );
        Ok(Self { claims, writes })
    }

    /// Deletes them, waits until nothing of their devices is left, and prints what that took.
    fn end(self, cluster: &Cluster, node: &Node) -> anyhow::Result<()> {
        let begun = Instant::now();
        // One request: kubectl would delete and wait for one after the other, a few a second.
        let all = format!("/api/v1/namespaces/{}/pods", cluster.namespace);
        cluster.kubectl(&["delete", "--raw", &all])?;
        wait::until("all pods and their instances to go", || {
            Ok(cluster.list(&["pods"])?.is_empty() && node.cut()? == 0)
        })?;
        let total = begun.elapsed();

        let unprepare = Spread::of(&answers(node, "NodeUnprepareResource", &self.claims)?);
        let writes = slice_writes(cluster)? - self.writes;
        let a_pod = writes / f64::from(u32::try_from(self.claims.len())?);
        println!("        all gone after {:.1} s", total.as_secs_f64());
        println!("        Kerf's unprepare, as the kubelet waits: {unprepare}");
        println!("        slice writes from the first creation to now: {writes}, {a_pod:.2} a pod");
        Ok(())
    }
}

/// Seconds that something took several times.
struct Spread {
    p50: f64,
    p99: f64,
    sum: f64,
}

impl Spread {
    fn of(times: &[Duration]) -> Self {
        let mut times: Vec<_> = times.iter().map(Duration::as_secs_f64).collect();
        times.sort_by(f64::total_cmp);
        // Nearest rank.
        let rank = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100).saturating_sub(1);
            times.get(rank).copied().unwrap_or_default()
        };
        Self { p50: rank(50), p99: rank(99), sum: times.iter().sum() }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.0} ms, p99 {:.0} ms", self.p50 * 1e3, self.p99 * 1e3)
    }
}

/// The pods of the namespace as they change. Asking again and again would take the time that is measured.
struct Watch {
    kubectl: Child,
    lines: Receiver<(Instant, String)>,
}

impl Watch {
    fn new(cluster: &Cluster) -> anyhow::Result<Self> {
        let line = "jsonpath={.metadata.name} {.status.phase}{\"\\n\"}";
        let mut kubectl = cluster.kubectl_command();
        kubectl.args(["get", "pods", "--watch", "--output", line]).stdout(Stdio::piped());
        let mut kubectl = kubectl.spawn()?;
        let printed = kubectl.stdout.take().context("kubectl has an output")?;
        let (tell, lines) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(printed).lines().map_while(Result::ok);
            for line in lines {
                // Nobody listens any more: all pods run.
                if tell.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { kubectl, lines })
    }

    /// How long each of these pods took from the first that is heard of it until it is Running.
    fn until_running(&self, names: &[String]) -> anyhow::Result<Vec<Duration>> {
        let mut created = BTreeMap::new();
        let mut took: BTreeMap<String, Duration> = BTreeMap::new();
        while took.len() < names.len() {
            let heard = self.lines.recv_timeout(PATIENCE);
            let (at, line) = heard.with_context(|| {
                let late: Vec<_> = names.iter().filter(|name| !took.contains_key(*name)).collect();
                format!("pods do not become Running: {late:?}")
            })?;
            let (name, phase) = line.split_once(' ').context("a pod has a name and a phase")?;
            let created = *created.entry(name.to_owned()).or_insert(at);
            ensure!(phase != "Failed", "pod {name} has failed");
            if phase == "Running" {
                took.entry(name.to_owned()).or_insert(at - created);
            }
        }
        Ok(took.into_values().collect())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // It has ended already if it is not there.
        let _ended = self.kubectl.kill().and_then(|()| self.kubectl.wait());
    }
}

/// Writes of ResourceSlices that the API server has taken so far, dry runs not counted.
fn slice_writes(cluster: &Cluster) -> anyhow::Result<f64> {
    let metrics = cluster.kubectl(&["get", "--raw", "/metrics"])?;
    let writes = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{")
            && line.contains("resource=\"resourceslices\"")
            && line.contains("dry_run=\"\"")
            && ["POST", "PUT", "PATCH", "DELETE"]
                .iter()
                .any(|verb| line.contains(&format!("verb=\"{verb}\"")))
    });
    let counts = writes.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    Ok(counts.sum())
}

/// How long the kubelet waited for Kerf's answer about each of these claims, by its log: the buckets of its
/// metrics begin at 100 ms.
fn answers(node: &Node, call: &str, claims: &[String]) -> anyhow::Result<Vec<Duration>> {
    let log = fs::read_to_string(node.daemons.log("kubelet"))?;
    let at = |what: &str, claim: &str| {
        let line = log.lines().find(|line| line.contains(what) && line.contains(claim));
        let line = line.with_context(|| format!("the kubelet's log has no `{what}` of {claim}"))?;
        let time = line.split_whitespace().nth(1).context("a line has a time")?;
        clock(time).with_context(|| format!("`{time}` is no time"))
    };
    let took = claims.iter().map(|claim| {
        let begun = at(&format!("\"Calling {call}"), claim)?;
        let done = at(&format!("\"Done calling {call}"), claim)?;
        let day = Duration::from_secs(24 * 60 * 60);
        Ok(if done < begun { done + day - begun } else { done - begun })
    });
    took.collect()
}

/// Since midnight: `09:12:15.128753`.
fn clock(time: &str) -> Option<Duration> {
    let (whole, micros) = time.split_once('.')?;
    let mut seconds = 0;
    for part in whole.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(seconds) + Duration::from_micros(micros.parse().ok()?))
}
