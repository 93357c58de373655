//! What lies just beyond each line of the table.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::token::Token;
use crate::{
    cluster::Cluster,
    manifests::{claim, devices, one, waiting, with_claims},
    wait,
};

type Line = fn(&Cluster, &Token<'_>) -> anyhow::Result<()>;

/// The first cell, and its test.
pub(super) const ALL: [(&str, Line); 7] = [
    ("`resourceclaims`: get", claims_are_read_one_at_a_time),
    ("`resourceslices`: get, list, watch, create, update, delete", slices_are_the_nodes_own),
    ("`nodes`: get", nodes_are_not_written),
    ("`nodes`: list, watch, with `devicePlugin.config`", nodes_are_not_written),
    ("`events` (`events.k8s.io`): create", events_are_not_read),
    (
        "`resourceclaims/status`: patch, `resourceclaims/driver`: associated-node:patch, with `claimStatus`",
        a_status_has_entries_of_the_node,
    ),
    (
        "`pods`: get, `pods/eviction`: create, with `health.evictPluginPods`",
        evictions_are_of_one_pod_outside_kube_system,
    ),
];

const NO_NODE: &str =
    "the token does not say on which node the agent runs; use the token that its pod was given";

const NOTHING: Value = Value::Null;

fn labelled() -> Value {
    json!({ "metadata": { "labels": { "mine": "yes" } } })
}

fn claims_are_read_one_at_a_time(cluster: &Cluster, token: &Token<'_>) -> anyhow::Result<()> {
    let asked = claim("mine", devices(&[one("gpu", "gpu.nvidia.com")]));
    cluster.apply(std::slice::from_ref(&asked))?;
    let all = "/apis/resource.k8s.io/v1/resourceclaims";
    let claims =
        format!("/apis/resource.k8s.io/v1/namespaces/{}/resourceclaims", cluster.namespace);
    let mine = format!("{claims}/mine");
    let read = token.may("GET", &mine, &NOTHING)?;
    token.may_not("GET", all, &NOTHING)?;
    token.may_not("GET", &claims, &NOTHING)?;
    token.may_not("POST", &claims, &asked)?;
    token.may_not("PUT", &mine, &read)?;
    token.may_not("PATCH", &mine, &labelled())?;
    token.may_not("DELETE", &mine, &NOTHING)
}

fn slices_are_the_nodes_own(cluster: &Cluster, token: &Token<'_>) -> anyhow::Result<()> {
    let slice = |name: &str, node: &str, driver: &str| {
        json!({
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice", "metadata": { "name": name },
            "spec": {
                "driver": driver, "nodeName": node,
                "pool": { "name": node, "generation": 1, "resourceSliceCount": 1 },
            },
        })
    };
    let node = token.node;
    cluster.apply(&[
        slice("kerf-e2e-elsewhere", "elsewhere", "gpu.nvidia.com"),
        slice("kerf-e2e-other", node, "gpu.example.com"),
    ])?;
    let tested = (|| {
        let slices = "/apis/resource.k8s.io/v1/resourceslices";
        let denied = |name: &str, there: &str, line: &str| {
            let path = format!("{slices}/{name}");
            let mut read = token.may("GET", &path, &NOTHING)?;
            read["spec"]["pool"]["generation"] = json!(2);
            token.denied("PUT", &path, &read, line)?;
            token.denied("DELETE", &path, &NOTHING, line)?;
            let driver = read["spec"]["driver"].as_str().context("a slice has a driver")?;
            token.denied("POST", slices, &slice("mine", there, driver), line)
        };
        let of_node =
            format!("the agent on node `{node}` must not write slices of node `elsewhere`");
        denied("kerf-e2e-elsewhere", "elsewhere", &of_node)?;
        denied(
            "kerf-e2e-other",
            node,
            "the agent must not write slices of driver `gpu.example.com`",
        )?;
        let own = slice("mine", node, "gpu.nvidia.com");
        token.may("POST", &format!("{slices}?dryRun=All"), &own)?;
        Token::unbound(cluster)?.denied("POST", slices, &own, NO_NODE)?;
        token.may_not("PATCH", &format!("{slices}/kerf-e2e-elsewhere"), &labelled())?;
        token.may_not("DELETE", slices, &NOTHING)
    })();
    cluster.kubectl(&["delete", "resourceslice", "kerf-e2e-elsewhere", "kerf-e2e-other"])?;
    tested
}

fn nodes_are_not_written(_: &Cluster, token: &Token<'_>) -> anyhow::Result<()> {
    let node = format!("/api/v1/nodes/{}", token.node);
    let read = token.may("GET", &node, &NOTHING)?;
    token.may("GET", "/api/v1/nodes", &NOTHING)?;
    token.may_not("PUT", &node, &read)?;
    token.may_not("PATCH", &node, &labelled())?;
    token.may_not("PATCH", &format!("{node}/status"), &labelled())?;
    token.may_not("DELETE", &node, &NOTHING)?;
    token.may_not("POST", "/api/v1/nodes", &read)
}

fn events_are_not_read(cluster: &Cluster, token: &Token<'_>) -> anyhow::Result<()> {
    let events = format!("/apis/events.k8s.io/v1/namespaces/{}/events", cluster.namespace);
    let of_core = format!("/api/v1/namespaces/{}/events", cluster.namespace);
    token.may_not("GET", &events, &NOTHING)?;
    token.may_not("GET", "/apis/events.k8s.io/v1/events", &NOTHING)?;
    token.may_not("PATCH", &format!("{events}/mine"), &labelled())?;
    token.may_not("DELETE", &events, &NOTHING)?;
    token.may_not("GET", &of_core, &NOTHING)?;
    token.may_not("POST", &of_core, &json!({ "apiVersion": "v1", "kind": "Event" }))
}

/// What no policy has to look at from 1.36 on, where the server itself looks at who changes what.
const WIDER: &str = "kerf-e2e-wider";

/// Claims that nobody uses. Two have a device of this node, one of another node and one of another driver; of one, others
/// have said something of theirs. One has nothing yet.
fn claims(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let wanted =
        devices(&["own", "elsewhere", "other"].map(|request| one(request, "gpu.nvidia.com")));
    cluster.apply(&["told", "silent", "free"].map(|name| claim(name, wanted.clone())))?;
    let entry = |of: &Value| json!({ "driver": of["driver"], "pool": of["pool"], "device": "gpu-7", "data": { "its": "own" } });
    let allocation = allocation(node);
    let results = &allocation["devices"]["results"];
    let said = json!([entry(&results[1]), entry(&results[2])]);
    for (name, devices) in [("told", said), ("silent", NOTHING)] {
        let status =
            json!({ "status": { "allocation": allocation, "devices": devices } }).to_string();
        let patch = [
            "patch",
            "resourceclaim",
            name,
            "--subresource=status",
            "--type=merge",
            "--patch",
            &status,
        ];
        cluster.kubectl(&patch)?;
    }
    Ok(())
}

fn allocation(node: &str) -> Value {
    let result = |request: &str, driver: &str, pool: &str| json!({ "request": request, "driver": driver, "pool": pool, "device": "gpu-7" });
    let results = [
        result("own", "gpu.nvidia.com", node),
        result("elsewhere", "gpu.nvidia.com", "elsewhere"),
        result("other", "gpu.example.com", node),
    ];
    let only = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    json!({
        "devices": { "results": results },
        "nodeSelector": { "nodeSelectorTerms": [{ "matchFields": [only] }] },
    })
}

fn a_status_has_entries_of_the_node(cluster: &Cluster, token: &Token<'_>) -> anyhow::Result<()> {
    claims(cluster, token.node)?;
    let status = |claim: &str| {
        let namespace = &cluster.namespace;
        format!("/apis/resource.k8s.io/v1/namespaces/{namespace}/resourceclaims/{claim}/status")
    };
    let forbidden = forbidden(cluster, token.node)?;
    // As it is installed, whoever refuses it.
    for (claim, change, _) in &forbidden {
        token.refused("PATCH", &status(claim), change)?;
    }
    let wider = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": WIDER },
        "rules": [{
            "apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/binding", "resourceclaims/driver"],
            "verbs": ["*"],
        }],
    });
    cluster.apply(&[wider])?;
    let bind = ["create", "clusterrolebinding", WIDER, "--clusterrole", WIDER];
    cluster.kubectl(&[&bind[..], &["--serviceaccount=kube-system:kerf"]].concat())?;
    let tested = policy_alone(cluster, token, status, &forbidden);
    cluster.kubectl(&["delete", "clusterrolebinding", WIDER])?;
    cluster.kubectl(&["delete", "clusterrole", WIDER])?;
    tested?;
    let mut more = labelled();
    more["metadata"]["finalizers"] = json!(["example.com/mine"]);
    let merged = token.may("PATCH", &status("told"), &more)?;
    let [finalizers, labels] = ["finalizers", "labels"].map(|field| &merged["metadata"][field]);
    ensure!(finalizers.is_null() && labels.is_null(), "{}", merged["metadata"]);
    token.may_not("PUT", &status("told"), &merged)?;
    token.may_not("GET", &status("told"), &NOTHING)
}

/// Claims, what is changed in their status, and what the policy says of it.
fn forbidden(cluster: &Cluster, node: &str) -> anyhow::Result<Vec<(&'static str, Value, String)>> {
    let others = format!(
        "the agent on node `{node}` must not write entries of other drivers or pools in the status of a claim"
    );
    let bound = "the agent must not change what a claim is allocated, nor for whom it is reserved";
    let said = cluster.get(&["resourceclaim", "told"])?["status"]["devices"].take();
    let changed = |entry: usize| {
        let mut said = said.clone();
        said[entry]["data"] = json!({ "its": "mine" });
        said
    };
    let reserved = json!([{ "resource": "pods", "name": "mine", "uid": "mine" }]);
    Ok([
        ("told", json!({ "devices": changed(0) }), &*others),
        ("told", json!({ "devices": changed(1) }), &others),
        ("told", json!({ "devices": [said[0]] }), &others),
        ("told", json!({ "devices": [said[1]] }), &others),
        ("told", json!({ "devices": null }), &others),
        ("told", json!({ "reservedFor": reserved }), bound),
        ("silent", json!({ "devices": [said[0]] }), &others),
        ("silent", json!({ "devices": [said[1]] }), &others),
        ("silent", json!({ "allocation": null }), bound),
        ("silent", json!({ "reservedFor": reserved }), bound),
        ("free", json!({ "allocation": allocation(node) }), bound),
    ]
    .map(|(claim, status, line)| (claim, json!({ "status": status }), line.to_owned()))
    .into())
}

/// Where RBAC lets everything through.
fn policy_alone(
    cluster: &Cluster,
    token: &Token<'_>,
    status: impl Fn(&str) -> String,
    forbidden: &[(&str, Value, String)],
) -> anyhow::Result<()> {
    let (claim, change, line) = forbidden.last().context("nothing is forbidden")?;
    wait::until("the wider role to be known", || {
        Ok(token.denied("PATCH", &status(claim), change, line).is_ok())
    })?;
    for (claim, change, line) in forbidden {
        token.denied("PATCH", &status(claim), change, line)?;
    }
    let mut devices = cluster.get(&["resourceclaim", "told"])?["status"]["devices"].take();
    let own = json!({ "driver": "gpu.nvidia.com", "pool": token.node, "device": "gpu-7" });
    devices.as_array_mut().context("a status has entries")?.insert(0, own);
    let told = json!({ "status": { "devices": devices } });
    let dry = format!("{}?dryRun=All", status("told"));
    token.may("PATCH", &dry, &told)?;
    Token::unbound(cluster)?.denied("PATCH", &dry, &told, NO_NODE)
}

fn evictions_are_of_one_pod_outside_kube_system(
    cluster: &Cluster,
    token: &Token<'_>,
) -> anyhow::Result<()> {
    cluster.apply(&[with_claims("stays", json!([]), json!([waiting("main", json!([]))]))])?;
    cluster.running(&["stays"])?;
    let pod = cluster.get(&["pod", "stays"])?;
    let uid = pod["metadata"]["uid"].as_str().context("a pod has a UID")?;
    let own = cluster.namespace.as_str();
    let evicted = |namespace: &str| format!("/api/v1/namespaces/{namespace}/pods/stays/eviction");
    let eviction = |namespace: &str, options: Value| {
        json!({
            "apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": { "name": "stays", "namespace": namespace }, "deleteOptions": options,
        })
    };
    let this = json!({ "preconditions": { "uid": uid } });
    let unnamed = "the agent must say which pod it evicts, in deleteOptions.preconditions.uid";
    let at_once = "the agent must leave a pod the time to end that it has";
    for (options, line) in [
        (NOTHING, unnamed),
        (json!({}), unnamed),
        (json!({ "preconditions": { "uid": "" } }), unnamed),
        (
            json!({ "preconditions": { "resourceVersion": pod["metadata"]["resourceVersion"] } }),
            unnamed,
        ),
        (json!({ "preconditions": { "uid": uid }, "gracePeriodSeconds": 0 }), at_once),
    ] {
        token.denied("POST", &evicted(own), &eviction(own, options), line)?;
    }
    let system = eviction("kube-system", this.clone());
    token.denied(
        "POST",
        &evicted("kube-system"),
        &system,
        "the agent must not evict pods of kube-system",
    )?;
    let this = eviction(own, this);
    Token::unbound(cluster)?.denied("POST", &evicted(own), &this, NO_NODE)?;
    let answer = token.ask(
        "POST",
        &evicted(own),
        &eviction(own, json!({ "preconditions": { "uid": "other" } })),
    )?;
    ensure!(answer.body["reason"] == "Conflict", "a pod of another UID: {}", answer.body);
    // What docs/security.md says that a stolen token can do: such a pod has no GPU.
    token.may("POST", &format!("{}?dryRun=All", evicted(own)), &this)?;
    let mine = format!("/api/v1/namespaces/{own}/pods");
    token.may("GET", &format!("{mine}/stays"), &NOTHING)?;
    token.may_not("GET", &mine, &NOTHING)?;
    token.may_not("PATCH", &format!("{mine}/stays"), &labelled())?;
    token.may_not("DELETE", &format!("{mine}/stays"), &NOTHING)
}
