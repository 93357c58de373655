//! Manifests as users of NVIDIA's DRA driver write them, family by family: `e2e/README.md` has the table.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{
    allocation::{allocated, gpus},
    tests,
};
use crate::{
    cluster::Cluster,
    install::root,
    manifests::{claim, configured, devices, one, pod, selected, template},
    programs::Release,
    wait,
};

tests!("compatibility":
    whole_gpus_alone_shared_and_counted,
    selectors_and_mig_devices_of_one_gpu,
    alternatives_extended_resources_and_configuration,
    a_monitor_with_admin_access_on_every_node,
    mig_devices_that_an_administrator_made,
    manifests_of_older_api_versions,
    what_kerf_does_not_do_is_refused_by_name,
    amounts_of_a_gpu_need_a_device_that_has_them,
);

fn manifest(name: &str) -> PathBuf {
    root().join(format!("e2e/cluster/manifests/{name}.yaml"))
}

fn apply(cluster: &Cluster, manifests: &[&str]) -> anyhow::Result<()> {
    manifests.iter().try_for_each(|name| cluster.apply_file(&manifest(name)))
}

/// Applies manifests that make so many pods, and checks that each runs with just its devices.
fn run(cluster: &Cluster, manifests: &[&str], pods: usize) -> anyhow::Result<()> {
    apply(cluster, manifests)?;
    let mut names = Vec::new();
    wait::until("the pods of the manifests", || {
        names = self::pods(cluster, "")?;
        Ok(names.len() == pods)
    })?;
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    cluster.running(&names)?;
    names.iter().try_for_each(|pod| cluster.check_devices(pod))
}

/// The names of the pods that begin with this.
fn pods(cluster: &Cluster, begin: &str) -> anyhow::Result<Vec<String>> {
    let pods = cluster.list(&["pods"])?;
    let names = pods.iter().filter_map(|pod| pod["metadata"]["name"].as_str());
    Ok(names.filter(|name| name.starts_with(begin)).map(str::to_owned).collect())
}

/// Does something with classes that manifests have made, and takes them away whatever comes of it.
fn with_classes(
    cluster: &Cluster,
    classes: &[&str],
    run: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let done = run();
    cluster.kubectl(&[&["delete", "deviceclass", "--ignore-not-found"], classes].concat())?;
    done
}

fn whole_gpus_alone_shared_and_counted(cluster: &mut Cluster) -> anyhow::Result<()> {
    // First, while a NUMA node has two GPUs to spare; the others take all that is left.
    run(cluster, &["gpu-count"], 1)?;
    let others =
        ["gpu-one-each", "gpu-shared-by-containers", "gpu-shared-by-pods", "gpu-per-container"];
    run(cluster, &others, 7)?;
    for (pod, count) in [("one-each-1", 1), ("one-for-each-container", 2), ("two-gpus", 2)] {
        let names = allocated(cluster, pod)?;
        ensure!(names.len() == count && gpus(&names).len() == count, "{pod}: {names:?}");
    }
    let shared = [allocated(cluster, "shares-1")?, allocated(cluster, "shares-2")?];
    ensure!(shared[0] == shared[1] && shared[0].len() == 1, "{shared:?}");
    Ok(())
}

fn selectors_and_mig_devices_of_one_gpu(cluster: &mut Cluster) -> anyhow::Result<()> {
    run(cluster, &["gpu-selectors", "mig-of-one-gpu", "mig-selectors"], 3)?;
    let whole = allocated(cluster, "selected-gpus")?;
    ensure!(gpus(&whole).len() == 3 && whole.iter().all(|name| !name.contains("-mig-")));
    let of_deployment =
        pods(cluster, "mig-of-one-gpu-")?.pop().context("a Deployment has a pod")?;
    let parts = allocated(cluster, &of_deployment)?;
    ensure!(parts.len() == 4 && gpus(&parts).len() == 1, "{parts:?}");
    let selected = allocated(cluster, "selected-mig")?;
    ensure!(selected.len() == 2 && gpus(&selected).len() == 1, "{selected:?}");
    Ok(())
}

fn alternatives_extended_resources_and_configuration(cluster: &mut Cluster) -> anyhow::Result<()> {
    let classes = ["mig-1g-10gb.gpu.nvidia.com", "turns.gpu.nvidia.com"];
    with_classes(cluster, &classes, || {
        run(cluster, &["prioritized-list", "extended-resources", "config"], 4)?;
        for (pod, count, begin) in [
            ("large-or-small", 1, "-mig-4g40gb-"),
            ("full-by-name", 1, "gpu-"),
            ("mig-by-name", 2, "-mig-1g10gb-"),
            ("configured", 3, "gpu-"),
        ] {
            let names = allocated(cluster, pod)?;
            let right = names.iter().all(|name| name.contains(begin));
            ensure!(names.len() == count && right, "{pod}: {names:?}");
        }
        Ok(())
    })
}

fn a_monitor_with_admin_access_on_every_node(cluster: &mut Cluster) -> anyhow::Result<()> {
    let label = "resource.kubernetes.io/admin-access=true";
    cluster.kubectl(&["label", "namespace", &cluster.namespace, label])?;
    run(cluster, &["admin-access"], cluster.nodes().len())?;
    // It holds nothing: others get what it sees.
    run(cluster, &["gpu-count"], cluster.nodes().len() + 1)
}

/// Asked for by its UUID, and by profile and GPU, for which it is taken before another is cut.
fn mig_devices_that_an_administrator_made(cluster: &mut Cluster) -> anyhow::Result<()> {
    let machine = &cluster.node().machine;
    machine.set_mig_mode(7, true)?;
    // 1g.10gb, with a compute instance.
    let made = machine.create_instance(7, 19, 4, true)?;
    let uuid = made.compute[0].uuid.clone();
    let published = |there: bool| {
        wait::until("the instance in the slices, or not", || {
            let slices = cluster.kubectl(&["get", "resourceslices", "--output", "json"])?;
            Ok(slices.contains(&uuid) == there)
        })
    };
    let tested = published(true).and_then(|()| {
        let by_uuid = format!("device.attributes['gpu.nvidia.com'].?uuid.orValue('') == '{uuid}'");
        let named = template("named", devices(&[selected("mig", "mig.nvidia.com", &by_uuid)]));
        let parent = &machine.snapshot()?.gpus[7].uuid;
        let of_gpu = format!(
            "device.attributes['gpu.nvidia.com'].profile == '1g.10gb' && \
             device.attributes['gpu.nvidia.com'].parentUUID == '{parent}'"
        );
        let of_gpu = template("of-gpu", devices(&[selected("mig", "mig.nvidia.com", &of_gpu)]));
        for (name, template) in [("named", named), ("of-gpu", of_gpu)] {
            cluster.apply(&[template, pod(name, name)])?;
            cluster.running(&[name])?;
            cluster.check_devices(name)?;
            let names = allocated(cluster, name)?;
            ensure!(names == ["gpu-7-mig-1g10gb-19-4"], "{name}: {names:?}");
            cluster.delete_pods(&[name])?;
        }
        let left = &machine.snapshot()?.gpus[7].instances;
        ensure!(
            *left == [made.clone()],
            "the administrator's instance was {made:?}, and is {left:?}"
        );
        Ok(())
    });
    machine.destroy_instance(7, made.start)?;
    machine.set_mig_mode(7, false)?;
    tested.and_then(|()| published(false))
}

fn manifests_of_older_api_versions(cluster: &mut Cluster) -> anyhow::Result<()> {
    let classes = ["hopper-v1beta1.gpu.nvidia.com", "hopper-v1beta2.gpu.nvidia.com"];
    with_classes(cluster, &classes, || {
        run(cluster, &["older-v1beta1", "older-v1beta2"], 2)?;
        // Configuration is checked for them as it is for `v1`.
        let typo = json!({ "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfg" });
        let flat = json!({ "name": "gpu", "deviceClassName": "gpu.nvidia.com" });
        for (version, request) in [("v1beta1", flat), ("v1beta2", one("gpu", "gpu.nvidia.com"))] {
            let mut older = claim("typo", configured(&[request], typo.clone()));
            older["apiVersion"] = json!(format!("resource.k8s.io/{version}"));
            let refused = cluster.apply(&[older]).err();
            let said = refused.map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(said.contains("unknown kind `GpuConfg`"), "{version}: {said}");
        }
        Ok(())
    })
}

fn what_kerf_does_not_do_is_refused_by_name(cluster: &mut Cluster) -> anyhow::Result<()> {
    apply(cluster, &["sharing", "vfio", "fabric-partition"])?;
    for (pod, line) in [
        (
            "time-slicing",
            "opaque configuration for request `time-slicing-gpu`: interval `Long` of strategy `TimeSlicing` is \
             not supported yet; use `Default` or remove `sharing`",
        ),
        (
            "mps",
            "opaque configuration for request `mps-gpu`: strategy `MPS` is not supported yet; remove `sharing`, \
             or claim a MIG device for a part of a GPU",
        ),
        (
            "mig-mps",
            "opaque configuration for request `mig-mps-gpu`: strategy `MPS` is not supported yet; remove \
             `sharing`",
        ),
        (
            "vfio-config",
            "opaque configuration for request `gpu`: VfioDeviceConfig is not supported yet: Kerf passes no GPU \
             through to a virtual machine; remove it",
        ),
    ] {
        cluster.event(pod, "FailedPrepareDynamicResources", line)?;
    }
    // Kerf installs no class of that name: the scheduler says so.
    let said = cluster.unschedulable("vfio")?;
    ensure!(said.contains("vfio.gpu.nvidia.com does not exist"), "{said}");
    // No GPU tells of a partition.
    cluster.unschedulable("partition-of-two")?;
    let refused = cluster.apply_file(&manifest("compute-domain")).err();
    let said = refused.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("no matches for kind \"ComputeDomain\""), "{said}");
    let said = cluster.unschedulable("channel")?;
    ensure!(said.contains("compute-domain-default-channel.nvidia.com does not exist"), "{said}");
    Ok(())
}

fn amounts_of_a_gpu_need_a_device_that_has_them(cluster: &mut Cluster) -> anyhow::Result<()> {
    if cluster.release == Release::V1_34 {
        // Of a gate that is off there, DRAConsumableCapacity: the field is dropped.
        return Ok(());
    }
    apply(cluster, &["consumable-shares"])?;
    cluster.running(&["has-memory"])?;
    cluster.check_devices("has-memory")?;
    cluster.unschedulable("has-a-share").map(drop)
}
