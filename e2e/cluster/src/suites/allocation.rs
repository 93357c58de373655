//! What the scheduler makes of what Kerf publishes, by all the ways to ask, and that containers get it.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    manifests::{
        cel, claim, devices, merge, mig, one, pod, pod_of, request, selected, template, waiting,
        with_claims,
    },
    programs::Release,
    wait,
};

tests!("allocation":
    a_whole_gpu_and_mig_devices_in_one_pod,
    a_claim_shared_by_containers_and_pods,
    a_claim_that_others_use_and_one_of_its_own,
    a_request_for_each_container,
    devices_of_one_gpu_by_match_attribute,
    devices_of_different_gpus_by_distinct_attribute,
    selection_by_memory_profile_product_and_driver_version,
    the_first_available_of_alternatives,
    all_devices_of_the_node,
    admin_access_needs_its_namespace_label,
    an_extended_resource_is_a_claim,
    a_taint_rule_keeps_pods_off_unless_they_tolerate_it,
    a_no_execute_taint_ends_the_pod_and_its_claim,
    what_cannot_be_met_waits_with_a_reason,
);

const WHOLE: &str = "gpu.nvidia.com";
const MIG: &str = "mig.nvidia.com";

/// Applies a template and a pod of it, and checks what the pod has.
fn runs(cluster: &Cluster, name: &str, devices: Value) -> anyhow::Result<()> {
    cluster.apply(&[template(name, devices), pod(name, name)])?;
    cluster.running(&[name])?;
    cluster.check_devices(name)
}

/// The names of the devices that a pod's claims were allocated.
pub(super) fn allocated(cluster: &Cluster, pod: &str) -> anyhow::Result<Vec<String>> {
    let claims = cluster.list(&["resourceclaims"])?;
    let reserved = |claim: &&Value| {
        let holders = claim["status"]["reservedFor"].as_array();
        holders.is_some_and(|holders| holders.iter().any(|holder| holder["name"] == pod))
    };
    let results = claims
        .iter()
        .filter(reserved)
        .filter_map(|claim| claim["status"]["allocation"]["devices"]["results"].as_array());
    let names = results.flatten().filter_map(|result| result["device"].as_str());
    Ok(names.map(str::to_owned).collect())
}

/// The GPUs that devices are on, or are.
pub(super) fn gpus(devices: &[String]) -> BTreeSet<&str> {
    devices.iter().map(|name| name.split("-mig-").next().unwrap_or(name)).collect()
}

fn a_whole_gpu_and_mig_devices_in_one_pod(cluster: &mut Cluster) -> anyhow::Result<()> {
    let requests = [one("whole", WHOLE), mig("small", "1g.10gb"), mig("large", "3g.40gb")];
    runs(cluster, "mixed", devices(&requests))?;
    let names = allocated(cluster, "mixed")?;
    ensure!(names.len() == 3, "{names:?}");
    Ok(())
}

fn a_claim_shared_by_containers_and_pods(cluster: &mut Cluster) -> anyhow::Result<()> {
    let uses = json!([{ "name": "gpu" }]);
    let of = json!([{ "name": "gpu", "resourceClaimName": "shared" }]);
    let containers = json!([waiting("one", uses.clone()), waiting("two", uses)]);
    let both = |name: &str| with_claims(name, of.clone(), containers.clone());
    cluster.apply(&[claim("shared", devices(&[mig("part", "2g.20gb")])), both("a"), both("b")])?;
    cluster.running(&["a", "b"])?;
    cluster.check_devices("a")?;
    cluster.check_devices("b")?;
    cluster.delete_pods(&["a"])?;
    cluster.check_devices("b")
}

fn a_claim_that_others_use_and_one_of_its_own(cluster: &mut Cluster) -> anyhow::Result<()> {
    let shared = claim("shared", devices(&[mig("part", "2g.20gb")]));
    cluster.apply(&[shared, pod_of("user", "shared")])?;
    cluster.running(&["user"])?;
    let claims = json!([
        { "name": "shared", "resourceClaimName": "shared" },
        { "name": "own", "resourceClaimTemplateName": "own" },
    ]);
    let uses = json!([{ "name": "shared" }, { "name": "own" }]);
    let both = with_claims("both", claims, json!([waiting("main", uses)]));
    cluster.apply(&[template("own", devices(&[mig("part", "1g.10gb")])), both])?;
    cluster.running(&["both"])?;
    cluster.check_devices("both")?;
    ensure!(allocated(cluster, "both")?.len() == 2);
    cluster.check_devices("user")
}

fn a_request_for_each_container(cluster: &mut Cluster) -> anyhow::Result<()> {
    let containers = json!([
        waiting("small", json!([{ "name": "gpu", "request": "small" }])),
        waiting("large", json!([{ "name": "gpu", "request": "large" }])),
        waiting("both", json!([{ "name": "gpu" }])),
    ]);
    let of = json!([{ "name": "gpu", "resourceClaimTemplateName": "parts" }]);
    let parts = devices(&[mig("small", "1g.10gb"), mig("large", "4g.40gb")]);
    cluster.apply(&[template("parts", parts), with_claims("parts", of, containers)])?;
    cluster.running(&["parts"])?;
    cluster.check_devices("parts")
}

fn devices_of_one_gpu_by_match_attribute(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut together = devices(&[mig("a", "1g.10gb"), mig("b", "2g.20gb"), mig("c", "3g.40gb")]);
    merge(
        &mut together,
        json!({
            "constraints": [{ "matchAttribute": "gpu.nvidia.com/parentUUID" }],
        }),
    );
    runs(cluster, "together", together)?;
    let names = allocated(cluster, "together")?;
    ensure!(names.len() == 3 && gpus(&names).len() == 1, "{names:?}");
    Ok(())
}

fn devices_of_different_gpus_by_distinct_attribute(cluster: &mut Cluster) -> anyhow::Result<()> {
    let profile = cel("device.attributes['gpu.nvidia.com'].profile == '1g.10gb'");
    let mut apart =
        devices(&[request("parts", MIG, json!({ "count": 3, "selectors": [profile] }))]);
    merge(
        &mut apart,
        json!({
            "constraints": [{ "distinctAttribute": "gpu.nvidia.com/parentUUID" }],
        }),
    );
    if cluster.release == Release::V1_34 {
        // Of a gate that is off there: DRAConsumableCapacity.
        return Ok(());
    }
    runs(cluster, "apart", apart)?;
    let names = allocated(cluster, "apart")?;
    ensure!(names.len() == 3 && gpus(&names).len() == 3, "{names:?}");
    Ok(())
}

fn selection_by_memory_profile_product_and_driver_version(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let attributes = "device.attributes['gpu.nvidia.com']";
    let memory = "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('20Gi')) >= 0";
    runs(cluster, "by-memory", devices(&[selected("gpu", MIG, memory)]))?;
    let least = allocated(cluster, "by-memory")?;
    // 1g.20gb has less than 20 GiB.
    ensure!(least.iter().all(|name| name.contains("-mig-3g40gb-")), "{least:?}");
    let product = format!("{attributes}.productName.lowerAscii().matches('^.*h100.*$')");
    runs(cluster, "by-product", devices(&[selected("gpu", WHOLE, &product)]))?;
    let driver = format!("{attributes}.driverVersion.compareTo(semver('500.0.0')) >= 0");
    runs(cluster, "by-driver", devices(&[selected("gpu", WHOLE, &driver)]))?;
    let architecture =
        format!("{attributes}.architecture == 'Hopper' && {attributes}.type == 'gpu'");
    runs(cluster, "by-architecture", devices(&[selected("gpu", WHOLE, &architecture)]))
}

fn the_first_available_of_alternatives(cluster: &mut Cluster) -> anyhow::Result<()> {
    let alternative = |name: &str, expression: &str| {
        json!({
            "name": name, "deviceClassName": MIG, "selectors": [cel(expression)],
        })
    };
    let profile =
        |profile: &str| format!("device.attributes['gpu.nvidia.com'].profile == '{profile}'");
    let requests = json!({ "requests": [{ "name": "gpu", "firstAvailable": [
        alternative("huge", "device.capacity['gpu.nvidia.com'].memory.compareTo(quantity('200Gi')) > 0"),
        alternative("half", &profile("3g.40gb")),
        alternative("small", &profile("1g.10gb")),
    ] }] });
    runs(cluster, "first", requests)?;
    let names = allocated(cluster, "first")?;
    ensure!(names.len() == 1 && names[0].contains("-mig-3g40gb-"), "{names:?}");
    Ok(())
}

fn all_devices_of_the_node(cluster: &mut Cluster) -> anyhow::Result<()> {
    let all = request("all", WHOLE, json!({ "allocationMode": "All" }));
    runs(cluster, "all", devices(&[all]))?;
    let names = allocated(cluster, "all")?;
    ensure!(names.len() == 8, "{names:?}");
    Ok(())
}

fn admin_access_needs_its_namespace_label(cluster: &mut Cluster) -> anyhow::Result<()> {
    let watched =
        request("watched", WHOLE, json!({ "adminAccess": true, "allocationMode": "All" }));
    let watched = template("watched", devices(&[watched]));
    let refused = cluster.apply(std::slice::from_ref(&watched));
    ensure!(refused.is_err(), "admin access in a namespace without the label");
    let namespace = cluster.namespace.clone();
    let label = "resource.kubernetes.io/admin-access=true";
    cluster.kubectl(&["label", "namespace", &namespace, label])?;
    // First, as the scheduler counts counters for it too: nobody can begin to watch what is in use.
    cluster.apply(&[watched, pod("watcher", "watched")])?;
    cluster.running(&["watcher"])?;
    let user = [template("user", devices(&[one("gpu", WHOLE)])), pod("user", "user")];
    cluster.apply(&user)?;
    cluster.running(&["user"])?;
    cluster.check_devices("watcher")?;
    cluster.check_devices("user")
}

fn an_extended_resource_is_a_claim(cluster: &mut Cluster) -> anyhow::Result<()> {
    let mut container = waiting("main", json!([]));
    merge(&mut container, json!({ "resources": { "limits": { "nvidia.com/gpu": 2 } } }));
    cluster.apply(&[with_claims("limits", json!([]), json!([container]))])?;
    cluster.running(&["limits"])?;
    let names = allocated(cluster, "limits")?;
    ensure!(names.len() == 2, "{names:?}");
    cluster.check_devices("limits")
}

/// A rule that taints one GPU, whatever is cut of it.
fn taint(cluster: &Cluster, gpu: &str, effect: &str) -> Value {
    let version = match cluster.release {
        Release::V1_34 | Release::V1_31 => "v1alpha3",
        Release::V1_37 => "v1",
    };
    json!({
        "apiVersion": format!("resource.k8s.io/{version}"), "kind": "DeviceTaintRule",
        "metadata": { "name": "kerf-e2e" },
        "spec": {
            "deviceSelector": { "driver": "gpu.nvidia.com", "device": gpu },
            "taint": { "key": "example.com/service", "value": "due", "effect": effect },
        },
    })
}

fn a_taint_rule_keeps_pods_off_unless_they_tolerate_it(
    cluster: &mut Cluster,
) -> anyhow::Result<()> {
    let only = |more: Value| {
        let selector = cel("device.attributes['gpu.nvidia.com'].uuid.startsWith('GPU-')");
        let mut request = request("gpu", WHOLE, json!({ "count": 8, "selectors": [selector] }));
        merge(&mut request["exactly"], more);
        devices(&[request])
    };
    cluster.apply(&[taint(cluster, "gpu-3", "NoSchedule")])?;
    let tested = (|| {
        cluster.apply(&[template("strict", only(json!({}))), pod("strict", "strict")])?;
        cluster.unschedulable("strict")?;
        let tolerates =
            json!({ "tolerations": [{ "key": "example.com/service", "operator": "Exists" }] });
        cluster.apply(&[template("tolerant", only(tolerates)), pod("tolerant", "tolerant")])?;
        cluster.running(&["tolerant"])?;
        cluster.check_devices("tolerant")?;
        cluster.delete_pods(&["tolerant"])?;
        cluster.stays("strict", "Pending", Duration::from_secs(1))
    })();
    cluster.kubectl(&["delete", "devicetaintrule", "kerf-e2e"])?;
    tested?;
    cluster.running(&["strict"])
}

fn a_no_execute_taint_ends_the_pod_and_its_claim(cluster: &mut Cluster) -> anyhow::Result<()> {
    let any = devices(&[one("gpu", WHOLE)]);
    cluster.apply(&[template("gpu", any), pod("evicted", "gpu"), pod("spared", "gpu")])?;
    cluster.running(&["evicted", "spared"])?;
    let gpu = allocated(cluster, "evicted")?.pop().context("a device")?;
    cluster.apply(&[taint(cluster, &gpu, "NoExecute")])?;
    let tested = wait::until("the pod on the tainted GPU to be gone", || {
        Ok(cluster.list(&["pods"])?.iter().all(|pod| pod["metadata"]["name"] != "evicted"))
    });
    let tested = tested.and_then(|()| cluster.check_devices("spared"));
    cluster.kubectl(&["delete", "devicetaintrule", "kerf-e2e"])?;
    tested
}

fn what_cannot_be_met_waits_with_a_reason(cluster: &mut Cluster) -> anyhow::Result<()> {
    let impossible =
        selected("gpu", MIG, "device.attributes['gpu.nvidia.com'].profile == '9g.90gb'");
    cluster.apply(&[template("never", devices(&[impossible])), pod("never", "never")])?;
    let said = cluster.unschedulable("never")?;
    ensure!(said.contains("cannot allocate all claims"), "{said}");
    let all = request("all", WHOLE, json!({ "allocationMode": "All" }));
    cluster.apply(&[claim("all", devices(&[all])), pod_of("holder", "all")])?;
    cluster.running(&["holder"])?;
    cluster.apply(&[template("one", devices(&[one("gpu", WHOLE)])), pod("late", "one")])?;
    cluster.unschedulable("late")?;
    cluster.delete_pods(&["holder"])?;
    cluster.kubectl(&["delete", "resourceclaim", "all"])?;
    cluster.running(&["late"])?;
    cluster.check_devices("late")
}
