//! Two nodes, of which the second has GPUs that fail, and what is said of these.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use anyhow::{Context, ensure};
use kerf_nvml::{Model, NodeDescription};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    install::{self, NAMESPACE},
    manifests::merge,
    node::Node,
    programs::Release,
    suite, wait,
};

/// What is published of an H100: the whole GPU, and its MIG placements.
const DEVICES: usize = 26;

/// The nodes, while a test has them.
pub(super) struct Ward<'c> {
    pub(super) cluster: &'c Cluster,
    /// The second node: a new one for each test, as what befalls its GPUs does not all heal.
    pub(super) sick: &'c Node,
}

impl Ward<'_> {
    /// Does something with two nodes and agents of these settings, and puts back what was before.
    pub(super) fn with(
        cluster: &mut Cluster,
        settings: &[&str],
        test: impl FnOnce(&Ward<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        // The second node's agent is not replaced then.
        install::install(cluster, settings)?;
        cluster.add_node(&NodeDescription::uniform(Model::H100_80, 8).for_containers())?;
        let tested = Self::with_two(cluster, test);
        if tested.is_err() {
            suite::tell(cluster);
        }
        // What ran on the second node has nowhere to end when that is gone.
        let emptied = cluster.empty();
        let name = cluster.nodes()[1].name.clone();
        cluster.remove_node()?;
        wait::until("the slices of a removed node to go", || {
            let slices = cluster.list(&["resourceslices"])?;
            Ok(slices.iter().all(|slice| slice["spec"]["nodeName"] != *name))
        })?;
        install::install(cluster, &[])?;
        tested.and(emptied)
    }

    fn with_two(
        cluster: &Cluster,
        test: impl FnOnce(&Ward<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let [_, sick] = cluster.nodes() else { anyhow::bail!("there are not two nodes") };
        let ward = Ward { cluster, sick };
        // Nodes are named again, and what was said of an earlier one stays.
        let of_node = format!("--field-selector=involvedObject.name={}", sick.name);
        cluster.kubectl(&["delete", "events", "--namespace=default", &of_node])?;
        install::ready(cluster)?;
        test(&ward)
    }

    /// Does something while the second node is the only one that takes pods.
    pub(super) fn alone(&self, start: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
        let first = &self.cluster.node().name;
        self.cluster.kubectl(&["cordon", first])?;
        let started = start();
        self.cluster.kubectl(&["uncordon", first])?;
        started
    }

    /// A pod that only the second node may have.
    pub(super) fn only_there(&self, mut pod: Value) -> Value {
        let only = json!({ "kubernetes.io/hostname": self.sick.name });
        merge(&mut pod, json!({ "spec": { "nodeSelector": only } }));
        pod
    }

    /// The agent's pod on the second node.
    pub(super) fn agent(&self) -> anyhow::Result<Value> {
        let pods = install::pods(self.cluster)?.into_iter();
        let mut here = pods.filter(|pod| {
            pod["spec"]["nodeName"] == *self.sick.name
                && pod["metadata"]["deletionTimestamp"].is_null()
        });
        here.next().context("the node has no agent")
    }

    /// The arguments for kubectl to run Kerf beside that agent.
    fn kerf(&self, command: &[&str]) -> anyhow::Result<Vec<String>> {
        let agent = self.agent()?;
        let pod = agent["metadata"]["name"].as_str().context("a pod has a name")?;
        let arguments = ["exec", "--namespace", NAMESPACE, pod, "--", "kerf"];
        Ok(arguments.iter().chain(command).map(|&word| word.to_owned()).collect())
    }

    /// What it prints.
    fn run(&self, command: &[&str]) -> anyhow::Result<String> {
        let arguments = self.kerf(command)?;
        self.cluster.kubectl(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What that agent says of itself.
    pub(super) fn status(&self) -> anyhow::Result<Value> {
        Ok(serde_json::from_str(&self.run(&["status", "--output", "json"])?)?)
    }

    /// The claim that was made for a pod.
    pub(super) fn claim_of(&self, pod: &str) -> anyhow::Result<String> {
        let pod = self.cluster.get(&["pod", pod])?;
        let claim = pod["status"]["resourceClaimStatuses"][0]["resourceClaimName"].as_str();
        Ok(claim.context("the pod has no claim")?.to_owned())
    }

    /// The GPU of which a pod's claim has a device.
    pub(super) fn gpu_of(&self, pod: &str) -> anyhow::Result<Gpu<'_>> {
        let claim = self.cluster.get(&["resourceclaim", &self.claim_of(pod)?])?;
        let device = &claim["status"]["allocation"]["devices"]["results"][0];
        ensure!(device["pool"] == *self.sick.name, "pod {pod} is on another node");
        // `gpu-3`, or such as `gpu-3-mig-1g10gb-19-0`.
        let number = device["device"].as_str().and_then(|name| name.split('-').nth(1));
        let index = number.context("a device has a number")?.parse()?;
        self.gpu_at(index)
    }

    /// The GPU with this index.
    pub(super) fn gpu_at(&self, index: usize) -> anyhow::Result<Gpu<'_>> {
        self.gpu(|at, _| at == index)
    }

    /// The GPU that a running pod sees.
    pub(super) fn gpu_seen_by(&self, pod: &str) -> anyhow::Result<Gpu<'_>> {
        let listed = self.cluster.exec(pod, "main", &["nvidia-smi", "-L"])?;
        self.gpu(|_, uuid| listed.contains(uuid))
    }

    fn gpu(&self, is: impl Fn(usize, &str) -> bool) -> anyhow::Result<Gpu<'_>> {
        let gpus = self.sick.machine.snapshot()?.gpus;
        let mut found = gpus.into_iter().enumerate().filter(|(index, gpu)| is(*index, &gpu.uuid));
        let (index, gpu) = found.next().context("no such GPU on the second node")?;
        Ok(Gpu { ward: self, index, uuid: gpu.uuid })
    }

    /// The containers of pods: another one of the same name is not the same.
    pub(super) fn containers<'p>(
        &self,
        pods: impl IntoIterator<Item = &'p String>,
    ) -> anyhow::Result<Vec<Value>> {
        let look = |name: &String| {
            let pod = self.cluster.get(&["pod", name])?;
            let container = &pod["status"]["containerStatuses"][0];
            let ends = &pod["metadata"]["deletionTimestamp"];
            let (id, restarts) = (&container["containerID"], &container["restartCount"]);
            Ok(json!([name, pod["status"]["phase"], ends, id, restarts]))
        };
        pods.into_iter().map(look).collect()
    }

    /// Waits until a pod's status says this of the one device that it has of a claim or a resource. The kubelet of 1.34
    /// says nothing by default.
    pub(super) fn shows_in_pod(
        &self,
        pod: &str,
        of: &str,
        health: &str,
        message: &str,
    ) -> anyhow::Result<()> {
        let mut seen = Value::Null;
        let waited = wait::until("the pod's status", || {
            let mut pod = self.cluster.get(&["pod", pod])?;
            seen = pod["status"]["containerStatuses"][0]["allocatedResourcesStatus"].take();
            if self.cluster.release == Release::V1_34 {
                return Ok(seen.is_null());
            }
            let device = &seen[0]["resources"][0];
            let said = device["message"].as_str().unwrap_or_default();
            Ok(seen[0]["name"] == of && device["health"] == health && said == message)
        });
        waited.with_context(|| format!("pod {pod} shows {seen}, not {health}: `{message}`"))
    }

    /// Waits for an event about the second node that has this reason and says this.
    pub(super) fn event_of_node(&self, reason: &str, says: &str) -> anyhow::Result<()> {
        let (name, namespace) = (&self.sick.name, "--namespace=default");
        let selector = format!("--field-selector=involvedObject.name={name},reason={reason}");
        let mut seen = Vec::new();
        let waited = wait::until("an event", || {
            seen = self.cluster.list(&["events", namespace, &selector])?;
            let mut notes = seen.iter().filter_map(|event| event["message"].as_str());
            Ok(notes.any(|note| note.contains(says)))
        });
        waited.with_context(|| format!("no {reason} with `{says}` of {name}, but {seen:?}"))
    }
}

/// A GPU of the second node.
pub(super) struct Gpu<'w> {
    ward: &'w Ward<'w>,
    pub(super) index: usize,
    pub(super) uuid: String,
}

impl Gpu<'_> {
    /// It does not answer any more, as the kernel's log says.
    pub(super) fn falls_off(&self) -> anyhow::Result<()> {
        let machine = &self.ward.sick.machine;
        machine.logged_xid(self.index, 79, None, None)?;
        Ok(machine.lose_gpu(self.index)?)
    }

    /// It answers, and says that it has to be reset.
    pub(super) fn makes_no_progress(&self) -> anyhow::Result<()> {
        Ok(self.ward.sick.machine.xid(self.index, 46, None, None)?)
    }

    /// Waits until all devices of this GPU are published with just these taints, and no other device with any.
    pub(super) fn tainted(&self, taints: &[String]) -> anyhow::Result<()> {
        let mut seen = Vec::new();
        let waited = wait::until("taints", || {
            let slices = self.ward.cluster.list(&["resourceslices"])?;
            seen = slices.iter().flat_map(tainted).collect();
            let (own, others): (Vec<_>, Vec<_>) =
                seen.iter().partition(|(device, _)| self.has(&device.0, &device.1));
            Ok(own.len() == DEVICES
                && own.iter().all(|(_, has)| has == taints)
                && others.iter().all(|(_, has)| has.is_empty()))
        });
        let of = format!("GPU {} of {}", self.index, self.ward.sick.name);
        waited.with_context(|| format!("{of} is not tainted {taints:?}: {:?}", in_short(&seen)))
    }

    /// Waits until no device of this GPU is published, and those of others are.
    pub(super) fn is_not_published(&self) -> anyhow::Result<()> {
        wait::until("a GPU to be withdrawn", || {
            let slices = self.ward.cluster.list(&["resourceslices"])?;
            let devices: Vec<_> = slices.iter().flat_map(tainted).collect();
            let own = devices.iter().filter(|((node, device), _)| self.has(node, device));
            // Seven GPUs of this node, and eight of the first.
            Ok(own.count() == 0 && devices.len() == 15 * DEVICES)
        })
    }

    /// Whether a device is of this GPU.
    pub(super) fn has(&self, node: &str, device: &str) -> bool {
        let whole = format!("gpu-{}", self.index);
        let part = device.strip_prefix(&whole).is_some_and(|rest| rest.starts_with("-mig-"));
        node == self.ward.sick.name && (part || device == whole)
    }

    /// Waits until the agent says this of this GPU first, and nothing of any other.
    pub(super) fn shows_in_status(&self, line: &str) -> anyhow::Result<()> {
        let mut seen = BTreeMap::new();
        let waited = wait::until("the agent to say so", || {
            let status = self.ward.status()?;
            let gpus = status["gpus"].as_array().into_iter().flatten();
            let sick = gpus.filter(|gpu| gpu["findings"] != json!([]));
            seen = sick.map(|gpu| (gpu["index"].to_string(), gpu["findings"][0].clone())).collect();
            let text =
                |finding: &Value, field| finding[field].as_str().unwrap_or_default().to_owned();
            let line_of =
                |one: &Value| format!("{}; {}", text(one, "message"), text(one, "action"));
            let lines: Vec<_> =
                seen.iter().map(|(gpu, one)| (gpu.as_str(), line_of(one))).collect();
            Ok(lines == [(self.index.to_string().as_str(), line.to_owned())])
        });
        waited.with_context(|| format!("the agent says {seen:?}"))?;
        let table = self.ward.run(&["status"])?;
        ensure!(table.contains(line), "`kerf status` does not say `{line}`:\n{table}");
        Ok(())
    }

    /// Fails to have the agent let go of it; why.
    pub(super) fn is_not_released(&self) -> anyhow::Result<String> {
        match self.ward.run(&["release-gpu", &self.uuid]) {
            Ok(said) => anyhow::bail!("it was released: {said}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Has the agent let go of it, and resets it, which brings it back; what the agent says then.
    pub(super) fn is_reset(&self) -> anyhow::Result<String> {
        let mut release = self.ward.cluster.kubectl_command();
        release.args(self.ward.kerf(&["release-gpu", &self.uuid, "--for", "3"])?);
        let mut release = release.stdout(Stdio::piped()).spawn()?;
        let mut printed = BufReader::new(release.stdout.take().context("kubectl has an output")?);
        let (mut first, mut rest) = (String::new(), String::new());
        printed.read_line(&mut first)?;
        self.ward.sick.machine.reset_gpu(self.index)?;
        self.ward.sick.machine.find_gpu(self.index)?;
        printed.read_to_string(&mut rest)?;
        let ended = release.wait()?;
        ensure!(ended.success() && first.contains("is released"), "{ended}: {first}{rest}");
        Ok(rest)
    }
}

/// Node and name of a device, with its taints: `key=value:effect`.
pub(super) type Tainted = ((String, String), Vec<String>);

/// The devices of a slice.
pub(super) fn tainted(slice: &Value) -> Vec<Tainted> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let node = text(&slice["spec"]["nodeName"]);
    let devices = slice["spec"]["devices"].as_array().into_iter().flatten();
    let taint = |taint: &Value| {
        format!("{}={}:{}", text(&taint["key"]), text(&taint["value"]), text(&taint["effect"]))
    };
    let device = |device: &Value| {
        let taints = device["taints"].as_array().into_iter().flatten().map(taint);
        ((node.clone(), text(&device["name"])), taints.collect())
    };
    devices.map(device).collect()
}

/// What taints there are, and on how many devices.
fn in_short(devices: &[Tainted]) -> BTreeMap<String, usize> {
    let mut short = BTreeMap::new();
    for ((node, device), taints) in devices.iter().filter(|(_, taints)| !taints.is_empty()) {
        let gpu: Vec<_> = device.split('-').take(2).collect();
        *short.entry(format!("{node}/{} {}", gpu.join("-"), taints.join(" "))).or_default() += 1;
    }
    short
}
