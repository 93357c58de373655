//! What goes wrong on a node between the scheduler's choice and a container: the pod's event says what and
//! what to do, the pod runs without help when the cause is gone, and no other pod notices.

use std::io;

use anyhow::{Context, ensure};
use kerf_nvml::{Effect, Fault, Machine};
use serde_json::{Value, json};

use super::{admission::apply_unchecked, tests};
use crate::{
    cluster::Cluster,
    manifests::{claim, configured, devices, one, opaque, pod, pod_of, selected, template},
    programs::Release,
    wait,
};

tests!("refusals":
    configuration_that_no_policy_looked_at,
    configuration_of_a_class,
    an_instance_made_by_hand_where_another_is_to_be,
    an_instance_made_by_hand_on_a_whole_gpu,
    an_instance_that_cannot_be_made,
    a_process_that_keeps_a_gpu_from_being_cut,
    mig_mode_that_an_administrator_left_on,
    a_gpu_lost_under_its_pods,
    a_driver_unloaded_before_its_pod_starts,
);

const WHOLE: &str = "gpu.nvidia.com";

/// The GPU on which something goes wrong.
const GPU: usize = 5;

/// The reason of the kubelet's events.
const FAILED: &str = "FailedPrepareDynamicResources";

const RESCHEDULE: &str = "delete the pod so that it is scheduled again";

/// One of the smallest MIG devices of one GPU.
fn part(cluster: &Cluster, gpu: usize) -> anyhow::Result<Value> {
    let of_gpu = format!(
        "device.attributes['gpu.nvidia.com'].profile == '1g.10gb' &&
         device.attributes['gpu.nvidia.com'].parentUUID == '{}'",
        uuid(cluster, gpu)?
    );
    Ok(devices(&[selected("gpu", "mig.nvidia.com", &of_gpu)]))
}

/// One GPU.
fn whole(cluster: &Cluster, gpu: usize) -> anyhow::Result<Value> {
    let this = format!("device.attributes['gpu.nvidia.com'].uuid == '{}'", uuid(cluster, gpu)?);
    Ok(devices(&[selected("gpu", WHOLE, &this)]))
}

fn uuid(cluster: &Cluster, gpu: usize) -> anyhow::Result<String> {
    let gpu = cluster.node().machine.snapshot()?.gpus.into_iter().nth(gpu);
    Ok(gpu.context("no such GPU")?.uuid)
}

/// A pod that its node cannot serve for now, and what its event names.
struct Refused {
    claim: String,
    device: String,
}

impl Refused {
    /// Starts `refused` with these devices of [`GPU`], and beside it a pod on another GPU. What goes wrong
    /// does when the scheduler has chosen, and before the node hears of it.
    fn new(
        cluster: &Cluster,
        devices: Value,
        goes_wrong: impl FnOnce(&Machine) -> io::Result<()>,
    ) -> anyhow::Result<Self> {
        let node = cluster.node();
        let refused = node.while_kubelet_waits(|| {
            cluster.apply(&[template("wrong", devices), pod("refused", "wrong")])?;
            let refused = Self::scheduled(cluster)?;
            goes_wrong(&node.machine)?;
            Ok(refused)
        })?;
        cluster.apply(&[template("right", part(cluster, GPU + 1)?), pod("neighbour", "right")])?;
        Ok(refused)
    }

    /// Waits for the scheduler.
    fn scheduled(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut refused = Value::Null;
        wait::until("pod refused to be scheduled", || {
            refused = cluster.get(&["pod", "refused"])?;
            Ok(refused["spec"]["nodeName"].is_string())
        })?;
        let named = &refused["spec"]["resourceClaims"][0]["resourceClaimName"];
        let made = &refused["status"]["resourceClaimStatuses"][0]["resourceClaimName"];
        let claim = named.as_str().or(made.as_str()).context("the pod has a claim")?.to_owned();
        let result = &cluster.get(&["resourceclaim", &claim])?["status"]["allocation"]["devices"]["results"]
            [0];
        let device = result["device"].as_str().context("the claim is allocated")?.to_owned();
        Ok(Self { claim, device })
    }

    /// Kerf's own words in what `kubectl describe pod` shows.
    fn said(&self, cluster: &Cluster) -> anyhow::Result<String> {
        let Self { claim, .. } = self;
        let kubelets = format!(
            "Failed to prepare dynamic resources: prepare dynamic resources: NodePrepareResources failed for \
             ResourceClaim {claim}: prepare `{}/{claim}`: ",
            cluster.namespace
        );
        let said = cluster.event("refused", FAILED, claim)?;
        let own = said.strip_prefix(&kubelets);
        own.map(str::to_owned).with_context(|| format!("`{said}` does not begin with `{kubelets}`"))
    }

    /// Checks what the event says, and that the neighbour has not noticed.
    fn says(&self, cluster: &Cluster, expected: &str) -> anyhow::Result<()> {
        let said = self.said(cluster)?;
        ensure!(said == expected, "the event says `{said}`, and not `{expected}`");
        cluster.running(&["neighbour"])?;
        cluster.check_devices("neighbour")
    }

    /// The same about its device.
    fn says_of_device(&self, cluster: &Cluster, reason: &str) -> anyhow::Result<()> {
        self.says(cluster, &format!("device `{}`: {reason}", self.device))
    }

    /// Waits until the pod runs and has what it was allocated.
    fn recovers(&self, cluster: &Cluster) -> anyhow::Result<()> {
        cluster.running(&["refused", "neighbour"])?;
        cluster.check_devices("refused")?;
        cluster.check_devices("neighbour")
    }
}

fn typo() -> Value {
    json!({
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig",
        "sharing": { "strateggy": "TimeSlicing" },
    })
}

const TYPO: &str = "unknown field `strateggy` in GpuConfig.sharing; did you mean `strategy`?";

/// The suite `admission` shows that the API server refuses it first, if the policy is there.
fn configuration_that_no_policy_looked_at(cluster: &mut Cluster) -> anyhow::Result<()> {
    let wrong = configured(&[one("gpu", WHOLE)], typo());
    apply_unchecked(cluster, &[claim("wrong", wrong.clone()), template("old", wrong)])?;
    cluster.apply(&[pod_of("refused", "wrong"), pod("without-claim", "old")])?;
    let refused = Refused::scheduled(cluster)?;
    cluster.apply(&[template("right", part(cluster, GPU)?), pod("neighbour", "right")])?;
    refused.says(cluster, &format!("opaque configuration for all requests: {TYPO}"))?;
    // A template from before the policy makes no claims any more.
    cluster.event("without-claim", "FailedResourceClaimCreation", "unknown field `strateggy`")?;

    cluster.delete_pods(&["refused"])?;
    cluster.kubectl(&["delete", "resourceclaim", "wrong"])?;
    let right = claim("wrong", devices(&[one("gpu", WHOLE)]));
    cluster.apply(&[right, pod_of("refused", "wrong")])?;
    refused.recovers(cluster)
}

fn configuration_of_a_class(cluster: &mut Cluster) -> anyhow::Result<()> {
    let class = |config: Value| {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass", "metadata": { "name": "kerf-e2e-wrong" },
            "spec": {
                "config": config,
                "selectors": [{ "cel": { "expression":
                    "device.driver == 'gpu.nvidia.com' && device.attributes['gpu.nvidia.com'].type == 'gpu'" } }],
            },
        })
    };
    apply_unchecked(cluster, &[class(json!([opaque(typo())]))])?;
    let tested = (|| {
        let of_class = devices(&[one("gpu", "kerf-e2e-wrong")]);
        cluster.apply(&[template("wrong", of_class), pod("refused", "wrong")])?;
        let refused = Refused::scheduled(cluster)?;
        cluster.apply(&[template("right", part(cluster, GPU)?), pod("neighbour", "right")])?;
        // Later schedulers name no request where there is only one.
        let requests = match cluster.release {
            Release::V1_34 | Release::V1_31 => "request `gpu`",
            Release::V1_37 => "all requests",
        };
        let said = format!("opaque configuration of the device class for {requests}: {TYPO}");
        refused.says(cluster, &said)?;
        cluster.apply(&[class(json!([]))])?;
        // What a claim was allocated keeps the configuration of then.
        cluster.delete_pods(&["refused"])?;
        cluster.apply(&[pod("refused", "wrong")])?;
        refused.recovers(cluster)
    })();
    cluster.kubectl(&["delete", "deviceclass", "kerf-e2e-wrong"])?;
    tested
}

fn an_instance_made_by_hand_where_another_is_to_be(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut id = 0;
    let refused = Refused::new(cluster, part(cluster, GPU)?, |machine| {
        machine.set_mig_mode(GPU, true)?;
        id = machine.create_instance(GPU, 0, 0, true)?.id;
        Ok(())
    })?;
    let tested = refused.says_of_device(
        cluster,
        &format!(
            "memory slices 0-7 of GPU {GPU} are used by a MIG instance that Kerf did not make (7g.80gb at 0); delete \
             it with `nvidia-smi mig -i {GPU} -gi {id} -dci && nvidia-smi mig -i {GPU} -gi {id} -dgi`, or {RESCHEDULE}"
        ),
    );
    cluster.node().machine.destroy_instance(GPU, 0)?;
    tested?;
    refused.recovers(cluster)
}

fn an_instance_made_by_hand_on_a_whole_gpu(cluster: &mut Cluster) -> anyhow::Result<()> {
    let refused = Refused::new(cluster, whole(cluster, GPU)?, |machine| {
        machine.set_mig_mode(GPU, true)?;
        machine.create_instance(GPU, 9, 4, true).map(drop)
    })?;
    let tested = refused.says_of_device(
        cluster,
        &format!(
            "GPU {GPU} has MIG instances that Kerf did not make (3g.40gb at 4); delete them with `nvidia-smi mig -i \
             {GPU} -dci && nvidia-smi mig -i {GPU} -dgi`, or claim a MIG device"
        ),
    );
    cluster.node().machine.destroy_instance(GPU, 4)?;
    tested?;
    refused.recovers(cluster)
}

fn an_instance_that_cannot_be_made(cluster: &mut Cluster) -> anyhow::Result<()> {
    let [instance, compute] =
        ["nvmlDeviceCreateGpuInstanceWithPlacement", "nvmlGpuInstanceCreateComputeInstance"];
    let insufficient_resources = 23;
    let fails = |machine: &Machine, function| {
        machine.inject(Fault::always(function, Effect::Fail(insufficient_resources)).on_gpu(GPU))
    };
    let machine = &cluster.node().machine;
    let refused = Refused::new(cluster, part(cluster, GPU)?, |machine| fails(machine, instance))?;
    let tested = (|| {
        refused.says_of_device(cluster, &not_made(instance))?;
        machine.clear_faults()?;
        fails(machine, compute)?;
        // Each time all that was made until then is undone.
        cluster.event("refused", FAILED, compute)?;
        ensure!(machine.snapshot()?.gpus[GPU].instances.is_empty(), "half of a MIG device stays");
        refused.says_of_device(cluster, &not_made(compute))
    })();
    machine.clear_faults()?;
    tested?;
    refused.recovers(cluster)
}

fn not_made(function: &str) -> String {
    format!(
        "carve: {function} on GPU {GPU}: Insufficient Resources; the kubelet will ask again, and if that does not \
         help, drain the node and reset the GPU"
    )
}

fn a_process_that_keeps_a_gpu_from_being_cut(cluster: &mut Cluster) -> anyhow::Result<()> {
    let pid = 4242;
    let refused = Refused::new(cluster, part(cluster, GPU)?, |machine| {
        machine.start_process(GPU, None, pid, "python3")
    })?;
    let tested = refused.says_of_device(
        cluster,
        &format!(
            "MIG mode of GPU {GPU} cannot be switched on while pid {pid} (python3) uses it; stop the process or drain \
             the node"
        ),
    );
    cluster.node().machine.stop_process(pid)?;
    tested?;
    refused.recovers(cluster)
}

/// Hopper switches it without a reset: nothing is in the way.
fn mig_mode_that_an_administrator_left_on(cluster: &mut Cluster) -> anyhow::Result<()> {
    cluster.node().machine.set_mig_mode(GPU, true)?;
    cluster.apply(&[template("gpu", whole(cluster, GPU)?), pod("whole", "gpu")])?;
    cluster.running(&["whole"])?;
    cluster.check_devices("whole")?;
    let mig = cluster.node().machine.snapshot()?.gpus[GPU].mig;
    ensure!(mig == Some((false, false)), "MIG mode of a GPU given as a whole is {mig:?}");
    Ok(())
}

/// The devices of a GPU that are published and may be given out.
fn free(cluster: &Cluster, gpu: usize) -> anyhow::Result<usize> {
    let slices = cluster.list(&["resourceslices"])?;
    let devices = slices.iter().filter_map(|slice| slice["spec"]["devices"].as_array()).flatten();
    let name = format!("gpu-{gpu}");
    let free = devices.filter(|device| device["taints"].is_null());
    let of_gpu = free.filter_map(|device| device["name"].as_str()).filter(|device| {
        *device == name || device.strip_prefix(&name).is_some_and(|part| part.starts_with("-mig-"))
    });
    Ok(of_gpu.count())
}

fn a_gpu_lost_under_its_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    let all = free(cluster, GPU)?;
    cluster.apply(&[
        template("part", part(cluster, GPU)?),
        pod("stays", "part"),
        pod("ends", "part"),
    ])?;
    cluster.running(&["stays", "ends"])?;
    let refused = Refused::new(cluster, part(cluster, GPU)?, |machine| machine.lose_gpu(GPU))?;
    let tested = without_its_gpu(cluster, &refused);
    cluster.node().machine.reset_gpu(GPU)?;
    tested?;
    refused.recovers(cluster)?;
    cluster.running(&["late", "stays", "neighbour"])?;
    cluster.check_devices("late")?;
    wait::until("the GPU to be given out again", || Ok(free(cluster, GPU)? == all))
}

fn without_its_gpu(cluster: &Cluster, refused: &Refused) -> anyhow::Result<()> {
    let lost = |function: &str| {
        format!("{function} on GPU {GPU}: GPU is lost; reset it with `nvidia-smi -r -i {GPU}`")
    };
    let said = refused.said(cluster)?;
    // The GPUs may just have been looked at, too.
    let expected = ["nvmlDeviceGetMigMode", "nvmlDeviceGetHandleByIndex_v2"].map(|function| {
        let Refused { device, .. } = refused;
        format!("device `{device}`: GPU {GPU} does not answer: {}, or {RESCHEDULE}", lost(function))
    });
    ensure!(expected.contains(&said), "the event says `{said}`, and not `{}`", expected[0]);
    wait::until("the lost GPU to be out of reach", || Ok(free(cluster, GPU)? == 0))?;

    let uuid = cluster.node().machine.snapshot()?.gpus.swap_remove(GPU).uuid;
    let remedy = "reboot the node, then check seating, power and cable";
    let expected = format!("GPU {GPU} ({uuid}): GPU is lost; {remedy}");
    wait::until("an event of the node", || {
        let of_node = "--field-selector=involvedObject.kind=Node,reason=GpuUnhealthy";
        let events = cluster.list(&["events", "--namespace=default", of_node])?;
        Ok(events.iter().any(|event| event["message"] == *expected))
    })?;

    cluster.running(&["stays", "neighbour"])?;
    cluster.check_devices("neighbour")?;
    // Nothing can be destroyed on it, and nothing needs to be.
    cluster.delete_pods(&["ends"])?;
    cluster.apply(&[pod("late", "part")])?;
    cluster.unschedulable("late").map(drop)
}

/// All pods of the node wait then, the neighbour too.
fn a_driver_unloaded_before_its_pod_starts(cluster: &mut Cluster) -> anyhow::Result<()> {
    let refused = Refused::new(cluster, part(cluster, GPU)?, Machine::unload_driver);
    let refused = refused.and_then(|refused| Ok((refused.said(cluster)?, refused)));
    cluster.node().machine.load_driver()?;
    let (said, refused) = refused?;
    // Between them what NVML answered, which is another thing when that was noticed before.
    ensure!(
        said.starts_with("the NVIDIA driver ")
            && said.ends_with("; once it is loaded, the kubelet will ask again"),
        "{said}"
    );
    refused.recovers(cluster)
}
