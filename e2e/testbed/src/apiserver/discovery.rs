//! What the server says about itself: version, groups, resources, health.

use serde_json::{Value, json};

use super::gates::Release;
use super::kinds::{KINDS, Kind};

/// The group of claims and slices.
const DRA: &str = "resource.k8s.io";

/// The document at a path, if there is one. `dra` says whether claims and slices are served.
pub(super) fn document(release: Release, dra: bool, path: &str) -> Option<Value> {
    let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
    match &steps[..] {
        ["version"] => Some(version(release)),
        ["healthz" | "livez" | "readyz"] => Some(json!("ok")),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["api", "v1"] => resources("", "v1"),
        ["apis"] => {
            let groups: Vec<Value> = groups(dra).into_iter().map(group).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => groups(dra).into_iter().find(|found| found.group == *name).map(group),
        ["apis", DRA, _] if !dra => None,
        ["apis", group, version] => resources(group, version),
        _ => None,
    }
}

fn version((major, minor): Release) -> Value {
    json!({
        "major": major.to_string(), "minor": minor.to_string(),
        "gitVersion": format!("v{major}.{minor}.2"), "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z", "goVersion": "go1.26", "compiler": "gc",
        "platform": "linux/amd64",
    })
}

/// One kind of each named group.
fn groups(dra: bool) -> Vec<&'static Kind> {
    let mut groups: Vec<&Kind> = Vec::new();
    let served = |kind: &&Kind| !kind.group.is_empty() && (dra || kind.group != DRA);
    for kind in KINDS.iter().filter(served) {
        if groups.iter().all(|seen| seen.group != kind.group) {
            groups.push(kind);
        }
    }
    groups
}

fn group(of: &Kind) -> Value {
    let version = json!({"groupVersion": of.api_version(), "version": of.version});
    json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": of.group,
        "versions": [version.clone()], "preferredVersion": version,
    })
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let served = KINDS.iter().filter(|k| (k.group, k.version) == (group, version));
    let resources: Vec<Value> = served.flat_map(of_kind).collect();
    let version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list = json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version,
        "resources": resources,
    });
    (!resources.is_empty()).then_some(list)
}

fn of_kind(kind: &'static Kind) -> impl Iterator<Item = Value> {
    let resource = |name: String, verbs: &[&str]| {
        json!({
            "name": name, "singularName": "", "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": verbs,
        })
    };
    let all = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let status = kind.status.then(|| format!("{}/status", kind.plural));
    let status = status.map(|name| resource(name, &["get", "patch", "update"]));
    std::iter::once(resource(kind.plural.to_owned(), &all)).chain(status)
}
