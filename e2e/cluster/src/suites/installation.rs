//! Installing Kerf, changing it, and taking it away: what is asked of the cluster, and that pods do not
//! notice.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    command::{Run, output},
    files,
    held::Held,
    install::{self, NAMESPACE, root},
    wait,
};

tests!("installation":
    the_chart_renders_just_the_manifest,
    a_bad_value_is_refused_by_its_name,
    nothing_has_more_rights_than_it_uses,
    an_upgrade_and_a_rollback_disturb_no_pod,
    a_pod_outlives_an_agent_that_is_uninstalled,
    the_manifest_installs_what_helm_does,
    an_agent_runs_where_labels_tell_of_a_gpu,
);

fn manifest() -> std::path::PathBuf {
    root().join("deploy/kerf.yaml")
}

fn the_chart_renders_just_the_manifest(cluster: &mut Cluster) -> anyhow::Result<()> {
    let rendered = install::rendered(cluster, None)?;
    let kept = fs::read_to_string(manifest())?;
    let different = rendered.lines().zip(kept.lines()).find(|(rendered, kept)| rendered != kept);
    ensure!(
        rendered == kept,
        "deploy/kerf.yaml is not what the chart renders ({different:?}): run `helm template kerf \
         deploy/helm/kerf --namespace {NAMESPACE} > deploy/kerf.yaml`"
    );
    Ok(())
}

fn a_bad_value_is_refused_by_its_name(cluster: &mut Cluster) -> anyhow::Result<()> {
    for (setting, expected) in [
        ("kubeletDir=var/lib/kubelet", "at '/kubeletDir': 'var/lib/kubelet' does not match"),
        ("nvidiaDriverRoot=", "at '/nvidiaDriverRoot': '' does not match"),
        ("adoptMig=yes", "at '/adoptMig': value must be one of '', 'dynamic', 'static'"),
        ("healthcheckPort=70000", "at '/healthcheckPort': maximum: got 70,000, want 65,535"),
        ("cdiHooks=maybe", "at '/cdiHooks': got string, want boolean"),
        ("image.pullpolicy=Always", "at '/image': additional properties 'pullpolicy' not allowed"),
        ("image=null", "at '': missing property 'image'"),
        ("priorityClass=high", "at '': additional properties 'priorityClass' not allowed"),
        ("tolerations[0].efect=x", "at '/tolerations/0': additional properties 'efect'"),
        ("resources.limit.cpu=1", "at '/resources': additional properties 'limit' not allowed"),
    ] {
        let mut install = install::helm(cluster);
        install.args(["upgrade", "--install", "kerf"]).arg(root().join("deploy/helm/kerf"));
        let refused = install.args(["--set", setting]).run();
        let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
        ensure!(said.contains(expected), "{setting}: {said}");
    }
    Ok(())
}

/// The objects of the manifest, as the API server's tool reads them.
fn objects(cluster: &Cluster) -> anyhow::Result<Vec<Value>> {
    let mut read = cluster.kubectl_command();
    read.args(["create", "--namespace", NAMESPACE, "--dry-run=client", "--output=json"]);
    let printed = output(read.arg("--filename").arg(manifest()))?;
    let objects = serde_json::Deserializer::from_str(&printed).into_iter();
    objects.collect::<Result<_, _>>().context("kubectl prints no JSON of deploy/kerf.yaml")
}

fn nothing_has_more_rights_than_it_uses(cluster: &mut Cluster) -> anyhow::Result<()> {
    let objects = objects(cluster)?;
    let of_kind = |kind: &str| -> Vec<&Value> {
        objects.iter().filter(|object| object["kind"] == kind).collect()
    };
    let roles = of_kind("ClusterRole");
    let rules: Vec<_> = roles.iter().map(|role| &role["rules"]).collect();
    let expected = json!([[
        { "apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims"], "verbs": ["get"] },
        {
            "apiGroups": ["resource.k8s.io"], "resources": ["resourceslices"],
            "verbs": ["get", "list", "watch", "create", "update", "delete"],
        },
        { "apiGroups": [""], "resources": ["nodes"], "verbs": ["get"] },
        { "apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"] },
    ]]);
    ensure!(json!(rules) == expected, "{rules:?}");
    ensure!(of_kind("Role").is_empty() && of_kind("RoleBinding").is_empty());
    for binding in of_kind("ClusterRoleBinding") {
        ensure!(binding["roleRef"]["name"] == "kerf", "{binding}");
    }

    for set in of_kind("DaemonSet") {
        let spec = &set["spec"]["template"]["spec"];
        for field in ["hostPID", "hostNetwork", "hostIPC", "runtimeClassName", "initContainers"] {
            ensure!(spec[field].is_null(), "{field}: {}", spec[field]);
        }
        let paths = spec["volumes"].as_array().context("an agent has volumes")?;
        let paths: Vec<_> = paths.iter().map(|volume| &volume["hostPath"]["path"]).collect();
        let expected = json!([
            "/var/lib/kubelet/plugins/gpu.nvidia.com",
            "/var/lib/kubelet/plugins_registry",
            "/var/run/cdi",
            "/",
            "/dev",
        ]);
        ensure!(json!(paths) == expected, "{paths:?}");
    }
    let text = json!(objects).to_string();
    for word in ["cluster-admin", "nvidia-container", "toolkit"] {
        ensure!(!text.contains(word), "the manifest has `{word}`");
    }

    let classes = cluster.list(&["runtimeclasses"])?;
    ensure!(classes.is_empty(), "{classes:?}");
    let agent = format!("system:serviceaccount:{NAMESPACE}:kerf");
    for refused in ["list secrets", "list pods", "update nodes", "list resourceclaims", "* *"] {
        let [verb, resource] = [0, 1].map(|word| refused.split(' ').nth(word).unwrap_or_default());
        let can = cluster.kubectl(&["auth", "can-i", verb, resource, "--as", &agent]);
        ensure!(can.is_err(), "the agent can {refused}");
    }
    Ok(())
}

fn an_upgrade_and_a_rollback_disturb_no_pod(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    let first = install::agents(cluster)?;
    install::install(cluster, &["resources.limits.memory=256Mi"])?;
    let second = install::agents(cluster)?;
    ensure!(first != second, "an upgrade leaves the agents {first:?}");
    held.goes_on(cluster)?;
    install::helm(cluster).args(["rollback", "kerf"]).run()?;
    install::ready(cluster)?;
    ensure!(second != install::agents(cluster)?, "a rollback leaves the agents {second:?}");
    held.goes_on(cluster)?;
    cluster.delete_pods(&["held"])?;
    wait::until("the instance of before the upgrade to go", || Ok(cluster.node().cut()? == 0))
}

fn a_pod_outlives_an_agent_that_is_uninstalled(cluster: &mut Cluster) -> anyhow::Result<()> {
    let ends = Held::new(cluster, "ends")?;
    let held = Held::new(cluster, "held")?;
    ends.goes_on(cluster)?;
    uninstalled(cluster, || {
        held.goes_on(cluster)?;
        // Its devices are given back when there is somebody to give them to.
        cluster.kubectl(&["delete", "pod", "ends", "--grace-period=1", "--wait=false"])?;
        cluster.stays("held", "Running", Duration::from_secs(5))?;
        ensure!(cluster.node().cut()? == 2, "an instance has gone while no agent was there");
        cluster.get(&["pod", "ends"]).map(drop).context("a pod whose claim is prepared is gone")
    })?;
    wait::until("a pod that ended meanwhile to go", || Ok(cluster.node().cut()? == 1))?;
    cluster.check_devices("held")?;
    cluster.delete_pods(&["held"])?;
    wait::until("the instance of before to go", || Ok(cluster.node().cut()? == 0))
}

/// Does something while Kerf is not installed, and installs it again whatever comes of it.
fn uninstalled(
    cluster: &Cluster,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    install::uninstall(cluster)?;
    let gone = wait::until("the agents to end", || Ok(install::agents(cluster)?.is_empty()));
    let done = gone.and_then(|()| meanwhile());
    install::install(cluster, &[])?;
    done
}

fn the_manifest_installs_what_helm_does(cluster: &mut Cluster) -> anyhow::Result<()> {
    let rendered = install::rendered(cluster, Some(&install::values(cluster)?))?;
    let with_values = cluster.dir().join("kerf.yaml");
    files::write(&with_values, rendered)?;
    uninstalled(cluster, || {
        // As it is, it finds no driver on this machine, and waits for one.
        applied(cluster, &manifest(), || Ok(()))?;
        applied(cluster, &with_values, || {
            Held::new(cluster, "held")?;
            cluster.delete_pods(&["held"])
        })
    })
}

/// Does something with what a file installs, and takes that away whatever comes of it.
fn applied(
    cluster: &Cluster,
    path: &Path,
    meanwhile: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let kubectl = |command: &str| {
        let mut kubectl = cluster.kubectl_command();
        kubectl.args([command, "--namespace", NAMESPACE, "--filename"]).arg(path).run()
    };
    kubectl("apply")?;
    let done = install::ready(cluster).and_then(|()| meanwhile());
    kubectl("delete")?;
    wait::until("the agents to end", || Ok(install::agents(cluster)?.is_empty()))?;
    done
}

fn an_agent_runs_where_labels_tell_of_a_gpu(cluster: &mut Cluster) -> anyhow::Result<()> {
    // What node-feature-discovery says of every node, and of one with an NVIDIA GPU.
    let [looked, found] = ["kernel-version.full", "pci-10de.present"]
        .map(|feature| format!("feature.node.kubernetes.io/{feature}"));
    let node = &cluster.node().name;
    let label = |label: &str| cluster.kubectl(&["label", "node", node, label]).map(drop);
    let seen = label(&format!("{looked}=6.12")).and_then(|()| {
        wait::until("the agent to leave a node without a GPU", || {
            Ok(install::agents(cluster)?.is_empty())
        })?;
        label(&format!("{found}=true"))?;
        wait::until("an agent on a node with a GPU", || Ok(!install::agents(cluster)?.is_empty()))
    });
    label(&format!("{looked}-")).and(label(&format!("{found}-")))?;
    install::ready(cluster)?;
    seen
}
