//! What a container sees of GPUs, and what it should see: what the scheduler allocated to its claims, by
//! the account of the hardware.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::{cluster::Cluster, node::Node};

/// Device nodes that every container with a GPU has.
const COMMON: [&str; 3] = ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"];

/// What a container can use.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    /// UUIDs of the GPUs that NVML lists.
    gpus: BTreeSet<String>,
    /// UUIDs of MIG devices.
    mig: BTreeSet<String>,
    /// Below `/dev`.
    nodes: BTreeSet<String>,
}

impl Cluster {
    /// Checks that each container of a running pod has just the devices of the claims that it names, and
    /// what it takes to use them.
    pub(crate) fn check_devices(&self, name: &str) -> anyhow::Result<()> {
        let pod = self.get(&["pod", name])?;
        let containers = pod["spec"]["containers"].as_array().context("a pod has containers")?;
        for container in containers {
            let container_name = container["name"].as_str().context("a container has a name")?;
            let allocated = self.allocated(&pod, container)?;
            let seen = self.seen(name, container_name)?;
            ensure!(
                seen == allocated,
                "container {name}/{container_name} sees {seen:?}, and was allocated {allocated:?}"
            );
        }
        Ok(())
    }

    /// Checks that of these running pods no two have the same MIG device, or one a GPU of which another has some.
    pub(crate) fn disjoint(&self, pods: &[&str]) -> anyhow::Result<()> {
        let mut before: Vec<(&str, Devices)> = Vec::new();
        for pod in pods {
            let seen = self.seen(pod, "main")?;
            for (other, had) in &before {
                let both = had.gpus.intersection(&seen.gpus).next().is_some();
                let apart = !had.mig.is_empty() && !seen.mig.is_empty();
                ensure!(
                    !both || apart && had.mig.is_disjoint(&seen.mig),
                    "{pod} has {seen:?}, and {other} {had:?}"
                );
            }
            before.push((pod, seen));
        }
        Ok(())
    }

    /// By the claims' status and the hardware.
    fn allocated(&self, pod: &Value, container: &Value) -> anyhow::Result<Devices> {
        let node = pod["spec"]["nodeName"].as_str().context("the pod is on no node")?;
        let node = self.nodes().iter().find(|one| one.name == node).context("no such node")?;
        let mut devices = Devices::default();
        for id in given(node, pod, container)? {
            devices.add_id(node, &id)?;
        }
        for (claim, request) in claims(pod, container) {
            let claim = self.get(&["resourceclaim", &claim])?;
            let results = claim["status"]["allocation"]["devices"]["results"].as_array();
            for result in results.context("the claim is not allocated")? {
                let of = result["request"].as_str().unwrap_or_default();
                let main = of.split('/').next().unwrap_or_default();
                if request.as_deref().is_none_or(|request| request == main) {
                    let device = result["device"].as_str().context("a result has a device")?;
                    devices.add(node, device)?;
                }
            }
        }
        Ok(devices)
    }

    /// By what its programs find.
    fn seen(&self, pod: &str, container: &str) -> anyhow::Result<Devices> {
        let script =
            "nvidia-smi -L; ls -d /dev/nvidia* /dev/nvidia-caps/* 2>/dev/null; ldconfig -p; env";
        let printed = self.exec(pod, container, &["sh", "-c", script])?;
        let mut devices = Devices::default();
        for line in printed.lines() {
            if let Some((_, uuid)) = line.split_once("(UUID: ") {
                let uuid = uuid.trim_end_matches(')').to_owned();
                let of =
                    if uuid.starts_with("MIG-") { &mut devices.mig } else { &mut devices.gpus };
                of.insert(uuid);
            } else if line.starts_with("/dev/") && line != "/dev/nvidia-caps" {
                devices.nodes.insert(line.trim_end_matches(':').to_owned());
            }
        }
        for found in ["libcuda.so.1 ", "libnvidia-ml.so.1 ", "NVIDIA_VISIBLE_DEVICES=void"] {
            ensure!(
                printed.contains(found),
                "no `{found}` in container {pod}/{container}:\n{printed}"
            );
        }
        Ok(devices)
    }
}

/// IDs of the devices of extended resources that the kubelet gave a container, by its own account.
fn given(node: &Node, pod: &Value, container: &Value) -> anyhow::Result<Vec<String>> {
    let path = node.file("kubelet/device-plugins/kubelet_internal_checkpoint");
    let Ok(text) = fs::read_to_string(path) else { return Ok(Vec::new()) };
    let kept: Value = serde_json::from_str(&text)?;
    let entries = kept["Data"]["PodDeviceEntries"].as_array().cloned().unwrap_or_default();
    let own = entries.iter().filter(|entry| {
        entry["PodUID"] == pod["metadata"]["uid"] && entry["ContainerName"] == container["name"]
    });
    let ids = own.filter_map(|entry| entry["DeviceIDs"].as_object());
    let ids = ids.flat_map(|by_numa_node| by_numa_node.values().filter_map(Value::as_array));
    Ok(ids.flatten().filter_map(|id| id.as_str().map(str::to_owned)).collect())
}

/// The claims that a container names, and of which request it gets the devices; all if it names none.
fn claims(pod: &Value, container: &Value) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let generated = pod["status"]["resourceClaimStatuses"].as_array().cloned().unwrap_or_default();
    let named = pod["spec"]["resourceClaims"].as_array().cloned().unwrap_or_default();
    let find = |name: &Value| {
        let of_template = generated.iter().find(|one| one["name"] == *name);
        let own = named.iter().find(|one| one["name"] == *name);
        of_template
            .and_then(|one| text(&one["resourceClaimName"]))
            .or_else(|| own.and_then(|one| text(&one["resourceClaimName"])))
    };
    let uses = container["resources"]["claims"].as_array().cloned().unwrap_or_default();
    let mut claims: Vec<_> =
        uses.iter().filter_map(|one| Some((find(&one["name"])?, text(&one["request"])))).collect();
    let extended = &pod["status"]["extendedResourceClaimStatus"];
    for mapping in extended["requestMappings"].as_array().into_iter().flatten() {
        if mapping["containerName"] == container["name"] {
            let claim = text(&extended["resourceClaimName"]);
            claims.extend(claim.map(|claim| (claim, text(&mapping["requestName"]))));
        }
    }
    claims
}

impl Devices {
    /// Adds a device of a node by the ID under which the device plugin offers it.
    fn add_id(&mut self, node: &Node, id: &str) -> anyhow::Result<()> {
        let snapshot = node.machine.snapshot()?;
        let id = id.split("::").next().unwrap_or(id);
        let of_id = |gpu: &str| snapshot.gpus.iter().position(|one| one.uuid == gpu);
        if let Some((gpu, place)) = id.split_once("-mig-") {
            let gpu = of_id(gpu).context("no such GPU")?;
            return self.add(node, &format!("gpu-{gpu}-mig-x-{place}"));
        }
        if let Some(gpu) = of_id(id) {
            return self.add(node, &format!("gpu-{gpu}"));
        }
        let instances = snapshot.gpus.iter().enumerate();
        let mut instances =
            instances.flat_map(|(n, gpu)| gpu.instances.iter().map(move |i| (n, i)));
        let found = instances.find(|(_, one)| one.compute.iter().any(|made| made.uuid == id));
        let (gpu, instance) = found.with_context(|| format!("no device {id}"))?;
        self.add(node, &format!("gpu-{gpu}-mig-x-{}-{}", instance.profile, instance.start))
    }

    /// Adds a device of a node by the name under which it was published.
    fn add(&mut self, node: &Node, device: &str) -> anyhow::Result<()> {
        let snapshot = node.machine.snapshot()?;
        let (gpu, part) = match device.split_once("-mig-") {
            Some((gpu, part)) => (gpu, Some(part)),
            None => (device, None),
        };
        let minor: usize = gpu.trim_start_matches("gpu-").parse()?;
        let gpu = snapshot.gpus.get(minor).context("no such GPU")?;
        self.gpus.insert(gpu.uuid.clone());
        self.nodes.insert(format!("/dev/nvidia{minor}"));
        self.nodes.extend(COMMON.map(str::to_owned));
        let Some(part) = part else { return Ok(()) };
        // Such as `1g10gb-19-6`: profile, its number, where it begins.
        let mut numbers = part.rsplit('-').map(str::parse::<u32>);
        let (Some(Ok(start)), Some(Ok(profile))) = (numbers.next(), numbers.next()) else {
            anyhow::bail!("`{device}` is no name of a MIG device");
        };
        let mut instances = gpu.instances.iter();
        let instance = instances
            .find(|instance| (instance.profile, instance.start) == (profile, start))
            .with_context(|| format!("{device} is not cut: {:?}", gpu.instances))?;
        let capabilities = node
            .machine
            .proc_root()
            .join(format!("driver/nvidia/capabilities/gpu{minor}/mig/gi{}", instance.id));
        self.nodes.insert(capability(&capabilities.join("access"))?);
        for compute in &instance.compute {
            self.mig.insert(compute.uuid.clone());
            let access = capabilities.join(format!("ci{}/access", compute.id));
            self.nodes.insert(capability(&access)?);
        }
        Ok(())
    }
}

/// The device node that a capability's file names.
fn capability(path: &std::path::Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the capability `{}`", path.display()))?;
    let minor = text.lines().find_map(|line| line.strip_prefix("DeviceFileMinor:"));
    Ok(format!("/dev/nvidia-caps/nvidia-cap{}", minor.context("a capability has a minor")?.trim()))
}
