//! What the API server itself refuses: configuration with a typing error, slices of another node.

use std::{collections::BTreeSet, fs, process::Command};

use anyhow::ensure;
use serde_json::{Value, json};

use super::tests;
use crate::{
    cluster::Cluster,
    command::Run,
    install::{self, NAMESPACE, root},
    manifests::{claim, configured, one, template},
    wait,
};

tests!("admission":
    configuration_is_refused_by_the_rules_of_the_node,
    the_line_names_the_mistake_and_what_to_write,
    what_is_there_already_can_be_updated,
    an_agent_writes_slices_of_its_own_node_only,
);

fn configuration_is_refused_by_the_rules_of_the_node(cluster: &mut Cluster) -> anyhow::Result<()> {
    let table = fs::read_to_string(root().join("src/model/config/tests/cases.json"))?;
    let cases: Vec<Value> = serde_json::from_str(&table)?;
    let refused: BTreeSet<_> = cases
        .iter()
        .enumerate()
        .filter(|(_, case)| !case["refused"].is_null())
        .map(|(i, _)| i)
        .collect();
    for (kind, make) in
        [("claims", claim as fn(&str, Value) -> Value), ("templates", template), ("classes", class)]
    {
        let object = |(number, case): (usize, &Value)| {
            let asked = configured(&[one("gpu", "gpu.nvidia.com")], case["parameters"].clone());
            make(&format!("case-{number}"), asked)
        };
        let objects: Vec<_> = cases.iter().enumerate().map(object).collect();
        let said = refusals(cluster, &objects)?;
        let denied: BTreeSet<_> = (0..cases.len())
            .filter(|number| said.iter().any(|line| line.contains(&format!("\"case-{number}\""))))
            .collect();
        if let Some(number) = refused.symmetric_difference(&denied).next() {
            let case = &cases[*number];
            let line = said.iter().find(|line| line.contains(&format!("\"case-{number}\"")));
            anyhow::bail!("{kind}: the node and the policy do not agree on {case}: {line:?}");
        }
    }
    Ok(())
}

/// A class with the configuration of what a claim would ask for.
fn class(name: &str, devices: Value) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "DeviceClass",
        "metadata": { "name": name }, "spec": { "config": devices["config"] },
    })
}

/// What the API server says of those objects that it would not create, a line each.
fn refusals(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<Vec<String>> {
    let list = cluster.write_list(objects)?;
    let mut create = cluster.kubectl_command();
    // What kubectl itself would refuse is to reach the server.
    let arguments = ["create", "--validate=false", "--dry-run=server", "--filename"];
    let done = create.args(arguments).arg(list).output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    let lines = said.lines().filter(|line| !line.trim().is_empty());
    Ok(lines.map(str::to_owned).collect())
}

fn the_line_names_the_mistake_and_what_to_write(cluster: &mut Cluster) -> anyhow::Result<()> {
    let typo = json!({
        "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfig",
        "sharing": { "strateggy": "TimeSlicing" },
    });
    let said =
        refusals(cluster, &[claim("typo", configured(&[one("gpu", "gpu.nvidia.com")], typo))])?;
    let expected = "unknown field `strateggy` in GpuConfig.sharing; use `strategy`, `timeSlicingConfig` or `mpsConfig`";
    ensure!(said.len() == 1 && said[0].ends_with(expected), "{said:?}");
    Ok(())
}

/// Status and metadata of an old claim stay open to controllers, whatever today's policy says of it.
fn what_is_there_already_can_be_updated(cluster: &mut Cluster) -> anyhow::Result<()> {
    let typo = json!({ "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfg" });
    let devices = configured(&[one("gpu", "gpu.nvidia.com")], typo);
    apply_unchecked(cluster, &[claim("old", devices.clone()), class("kerf-e2e-old", devices)])?;
    cluster.kubectl(&["annotate", "resourceclaim", "old", "touched=yes"])?;
    let class = cluster.kubectl(&["annotate", "deviceclass", "kerf-e2e-old", "touched=yes"]);
    cluster.kubectl(&["delete", "deviceclass", "kerf-e2e-old"])?;
    ensure!(class.is_err(), "a class with a typing error could be updated");
    Ok(())
}

/// Applies what the policy would refuse.
pub(super) fn apply_unchecked(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    let binding = ["validatingadmissionpolicybinding", "kerf-configuration"];
    let mut saved = cluster.get(&binding)?;
    cluster.kubectl(&["delete", binding[0], binding[1]])?;
    let made = wait::until("the policy to be off", || Ok(cluster.apply(objects).is_ok()));
    saved["metadata"] = json!({
        "name": binding[1],
        "labels": saved["metadata"]["labels"], "annotations": saved["metadata"]["annotations"],
    });
    cluster.apply(&[saved])?;
    made?;
    let typo = json!({ "apiVersion": "resource.nvidia.com/v1beta1", "kind": "GpuConfg" });
    let refused = claim("refused", configured(&[one("gpu", "gpu.nvidia.com")], typo));
    wait::until("the policy to be on", || {
        Ok(!refusals(cluster, std::slice::from_ref(&refused))?.is_empty())
    })
}

fn an_agent_writes_slices_of_its_own_node_only(cluster: &mut Cluster) -> anyhow::Result<()> {
    let agents = install::pods(cluster)?;
    let pod = &agents[0];
    let [name, uid, node] =
        [&pod["metadata"]["name"], &pod["metadata"]["uid"], &pod["spec"]["nodeName"]]
            .map(|value| value.as_str().unwrap_or_default().to_owned());
    let bound = [
        "create",
        "token",
        "kerf",
        "--namespace",
        NAMESPACE,
        "--bound-object-kind=Pod",
        "--bound-object-name",
        &name,
        "--bound-object-uid",
        &uid,
    ];
    let bound = cluster.kubectl(&bound)?;
    let unbound = cluster.kubectl(&["create", "token", "kerf", "--namespace", NAMESPACE])?;
    let slice = |node: &str, driver: &str| {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
            "metadata": { "generateName": "kerf-e2e-" },
            "spec": {
                "driver": driver, "nodeName": node,
                "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 },
            },
        })
    };
    for (token, node, driver, refusal) in [
        (&bound, &*node, "gpu.nvidia.com", None),
        (&bound, "another", "gpu.nvidia.com", Some(format!("the agent on node `{node}` must not write slices of node `another`"))),
        (&bound, &*node, "gpu.example.com", Some("the agent must not write slices of driver `gpu.example.com`".to_owned())),
        (&unbound, &*node, "gpu.nvidia.com", Some("the token does not say on which node the agent runs; use the token that its pod was given".to_owned())),
    ] {
        let list = cluster.write_list(&[slice(node, driver)])?;
        let mut create = Command::new(cluster.programs.kubernetes("kubectl"));
        create.args(["--server", crate::control_plane::URL, "--token", token.trim(), "create", "--dry-run=server"]);
        create.arg("--certificate-authority").arg(cluster.pki().file("ca.crt"));
        create.env_remove("KUBECONFIG").arg("--kubeconfig=/dev/null").arg("--filename").arg(list);
        let done = create.run();
        match refusal {
            None => done?,
            Some(refusal) => {
                let said = done.err().map(|error| format!("{error:#}")).unwrap_or_default();
                ensure!(said.trim_end().ends_with(&refusal), "{said}");
            }
        }
    }
    Ok(())
}
