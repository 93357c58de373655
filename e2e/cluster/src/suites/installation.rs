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
    manifests::{devices, merge, mig, pod, template, waiting, with_claims},
    wait,
};

tests!("installation":
    the_chart_renders_just_the_manifest,
    a_bad_value_is_refused_by_its_name,
    nothing_has_more_rights_than_it_uses,
    nothing_but_claims_gives_out_gpus,
    an_upgrade_and_a_rollback_disturb_no_pod,
    an_upgrade_that_fails_leaves_the_agent_that_serves,
    a_pod_outlives_an_agent_that_is_uninstalled,
    a_pod_waits_for_the_agent_that_is_to_serve_it,
    the_manifest_installs_what_helm_does,
    an_agent_runs_where_labels_tell_of_a_gpu,
);

fn manifest() -> std::path::PathBuf {
    root().join("deploy/kerf.yaml")
}

fn the_chart_renders_just_the_manifest(cluster: &mut Cluster) -> anyhow::Result<()> {
    for (file, setting) in
        [("kerf.yaml", None), ("kerf-device-plugin.yaml", Some("interface=device-plugin"))]
    {
        let rendered = install::rendered(cluster, None, setting)?;
        let kept = fs::read_to_string(root().join("deploy").join(file))?;
        let different = rendered.lines().zip(kept.lines()).find(|(new, kept)| new != kept);
        let set = setting.map(|setting| format!(" --set {setting}")).unwrap_or_default();
        ensure!(
            rendered == kept,
            "deploy/{file} is not what the chart renders ({different:?}): run `helm template kerf \
             deploy/helm/kerf --namespace {NAMESPACE}{set} > deploy/{file}`"
        );
    }
    Ok(())
}

fn a_bad_value_is_refused_by_its_name(cluster: &mut Cluster) -> anyhow::Result<()> {
    for (setting, expected) in [
        ("kubeletDir=var/lib/kubelet", "at '/kubeletDir': 'var/lib/kubelet' does not match"),
        ("nvidiaDriverRoot=", "at '/nvidiaDriverRoot': '' does not match"),
        ("adoptMig=yes", "at '/adoptMig': value must be one of '', 'dynamic', 'static'"),
        ("healthcheckPort=70000", "at '/healthcheckPort': maximum: got 70,000, want 65,535"),
        ("interface=plugin", "at '/interface': value must be one of 'auto', 'dra'"),
        ("cdiHooks=maybe", "at '/cdiHooks': got string, want boolean"),
        ("image.pullpolicy=Always", "at '/image': additional properties 'pullpolicy' not allowed"),
        ("image=null", "at '': missing property 'image'"),
        ("priorityClass=high", "at '': additional properties 'priorityClass' not allowed"),
        ("tolerations[0].efect=x", "at '/tolerations/0': additional properties 'efect'"),
        ("metrics.port=0", "at '/metrics/port': minimum: got 0, want 1"),
        (
            "metrics.hostnameLabel=node",
            "at '/metrics/hostnameLabel': value must be one of 'hostname'",
        ),
        ("metrics.podMonitor.interval=x", "at '/metrics/podMonitor/interval': 'x' does not match"),
        (
            "networkPolicy.creat=true",
            "at '/networkPolicy': additional properties 'creat' not allowed",
        ),
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
            "/var/lib/kubelet/device-plugins",
            "/var/lib/kubelet/pod-resources",
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

    rights_of_the_agent(cluster)
}

/// In the cluster that runs.
fn rights_of_the_agent(cluster: &Cluster) -> anyhow::Result<()> {
    for binding in cluster.list(&["clusterrolebindings,rolebindings", "--all-namespaces"])? {
        let subjects = binding["subjects"].as_array().map_or(&[][..], Vec::as_slice);
        let is_agent = |subject: &Value| {
            subject["kind"] == "ServiceAccount"
                && (&subject["name"], &subject["namespace"]) == (&json!("kerf"), &json!(NAMESPACE))
        };
        if subjects.iter().any(is_agent) {
            ensure!(binding["roleRef"]["name"] == "kerf" && subjects.len() == 1, "{binding}");
        }
        if binding["roleRef"]["name"] == "cluster-admin" {
            let masters = json!({
                "apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:masters",
            });
            ensure!(subjects == [masters], "{binding}");
        }
    }
    let agent = format!("system:serviceaccount:{NAMESPACE}:kerf");
    for refused in ["list secrets", "list pods", "update nodes", "list resourceclaims", "* *"] {
        let [verb, resource] = [0, 1].map(|word| refused.split(' ').nth(word).unwrap_or_default());
        let can = cluster.kubectl(&["auth", "can-i", verb, resource, "--as", &agent]);
        ensure!(can.is_err(), "the agent can {refused}");
    }
    Ok(())
}

/// What NVIDIA's container toolkit puts on a node.
const TOOLKIT: &str = "nvidia-ctk nvidia-cdi-hook nvidia-container-cli nvidia-container-runtime \
                       nvidia-container-runtime-hook nvidia-container-toolkit";

fn nothing_but_claims_gives_out_gpus(cluster: &mut Cluster) -> anyhow::Result<()> {
    let classes = cluster.list(&["runtimeclasses"])?;
    ensure!(classes.is_empty(), "{classes:?}");
    for node in cluster.nodes() {
        let configuration = node.containerd_configuration(&cluster.programs)?;
        let runtimes: Vec<_> = configuration
            .lines()
            .filter_map(|line| line.split_once(".containerd.runtimes.")?.1.split(['.', ']']).next())
            .collect();
        let only_runc = !runtimes.is_empty() && runtimes.iter().all(|runtime| *runtime == "runc");
        ensure!(only_runc && !configuration.contains("nvidia"), "{configuration}");
        let look = format!("for name in {TOOLKIT}; do command -v $name; done; true");
        let found = output(node.command("sh")?.args(["-c", &look]))?;
        ensure!(found.is_empty(), "{} has {found}", node.name);
    }
    // A pod without a claim sees nothing, whatever its environment asks of a toolkit.
    let mut plain = waiting("main", json!([]));
    merge(&mut plain, json!({ "env": [{ "name": "NVIDIA_VISIBLE_DEVICES", "value": "all" }] }));
    cluster.apply(&[with_claims("plain", json!([]), json!([plain]))])?;
    cluster.running(&["plain"])?;
    let seen = cluster.exec("plain", "main", &["sh", "-c", "ls /dev | grep nvidia || true"])?;
    ensure!(seen.is_empty(), "a pod without a claim sees {seen}");
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

fn an_upgrade_that_fails_leaves_the_agent_that_serves(cluster: &mut Cluster) -> anyhow::Result<()> {
    let held = Held::new(cluster, "held")?;
    let served_by = install::agents(cluster)?;
    let mut upgrade = install::helm(cluster);
    upgrade.args(["upgrade", "kerf"]).arg(root().join("deploy/helm/kerf"));
    upgrade.arg("--values").arg(install::values(cluster)?);
    // Adds to the environment that those values have.
    upgrade.args(["--set", "env[3].name=LOG", "--set-string", "env[3].value=kerf=aloud"]);
    upgrade.run()?;
    let tested = wait::until("the new agent to fail", || {
        let restarts = |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
        Ok(install::pods(cluster)?.iter().any(|pod| restarts(pod) >= Some(1)))
    })
    .and_then(|()| {
        cluster.apply(&[pod("meanwhile", "held")])?;
        cluster.running(&["meanwhile"])?;
        cluster.check_devices("meanwhile")?;
        let now = install::agents(cluster)?;
        ensure!(served_by.iter().all(|agent| now.contains(agent)), "{served_by:?}, {now:?}");
        held.goes_on(cluster)
    });
    install::install(cluster, &[])?;
    tested
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

fn a_pod_waits_for_the_agent_that_is_to_serve_it(cluster: &mut Cluster) -> anyhow::Result<()> {
    uninstalled(cluster, || {
        // As the kubelet does, half a minute after the agent is gone.
        cluster.kubectl(&["delete", "resourceslices", "--all"])?;
        cluster
            .apply(&[template("part", devices(&[mig("part", "1g.10gb")])), pod("early", "part")])?;
        cluster.unschedulable("early").map(drop)
    })?;
    cluster.running(&["early"])?;
    cluster.check_devices("early")?;
    // It would have been tried again after a minute.
    let failed = "--field-selector=involvedObject.name=early,reason=FailedPrepareDynamicResources";
    let failed = cluster.list(&["events", failed])?;
    ensure!(failed.is_empty(), "the pod was sent to an agent that was not ready: {failed:?}");
    Ok(())
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
    let rendered = install::rendered(cluster, Some(&install::values(cluster)?), None)?;
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
