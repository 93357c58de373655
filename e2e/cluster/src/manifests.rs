//! Manifests as users write them, for pods that wait until they are looked into.

use serde_json::{Map, Value, json};

use crate::images::UBUNTU;

/// A request for devices of a class, with more fields of it.
pub(crate) fn request(name: &str, class: &str, more: Value) -> Value {
    let mut exactly = json!({ "deviceClassName": class });
    merge(&mut exactly, more);
    json!({ "name": name, "exactly": exactly })
}

/// A request for one device of a class.
pub(crate) fn one(name: &str, class: &str) -> Value {
    request(name, class, json!({}))
}

/// A request for a device that an expression selects.
pub(crate) fn selected(name: &str, class: &str, expression: &str) -> Value {
    request(name, class, json!({ "selectors": [cel(expression)] }))
}

/// A request for a MIG device of a profile.
pub(crate) fn mig(name: &str, profile: &str) -> Value {
    let expression = format!("device.attributes['gpu.nvidia.com'].profile == '{profile}'");
    selected(name, "mig.nvidia.com", &expression)
}

/// A selector.
pub(crate) fn cel(expression: &str) -> Value {
    json!({ "cel": { "expression": expression } })
}

/// What a claim asks for with these requests.
pub(crate) fn devices(requests: &[Value]) -> Value {
    json!({ "requests": requests })
}

/// The same with opaque configuration for all requests.
pub(crate) fn configured(requests: &[Value], parameters: Value) -> Value {
    json!({ "requests": requests, "config": [opaque(parameters)] })
}

/// Opaque configuration for Kerf.
pub(crate) fn opaque(parameters: Value) -> Value {
    json!({ "opaque": { "driver": "gpu.nvidia.com", "parameters": parameters } })
}

/// A claim of its own.
pub(crate) fn claim(name: &str, devices: Value) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "name": name }, "spec": { "devices": devices },
    })
}

/// A template, of which each pod gets a claim.
pub(crate) fn template(name: &str, devices: Value) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate",
        "metadata": { "name": name }, "spec": { "spec": { "devices": devices } },
    })
}

/// A pod with one container, `main`, that waits, and whose claim, `gpu`, is made from a template.
pub(crate) fn pod(name: &str, template: &str) -> Value {
    let claim = json!({ "name": "gpu", "resourceClaimTemplateName": template });
    with_claims(name, json!([claim]), json!([waiting("main", json!([{ "name": "gpu" }]))]))
}

/// The same with a claim that is there.
pub(crate) fn pod_of(name: &str, claim: &str) -> Value {
    let claim = json!({ "name": "gpu", "resourceClaimName": claim });
    with_claims(name, json!([claim]), json!([waiting("main", json!([{ "name": "gpu" }]))]))
}

/// A pod with one container, `main`, that waits and has these extended resources.
pub(crate) fn extended(name: &str, resources: &[(&str, u32)]) -> Value {
    let limits: Map<String, Value> =
        resources.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "main", "image": UBUNTU, "command": WAIT, "resources": { "limits": limits },
            }],
        },
    })
}

/// Keeps so many of a pod running; they are labelled `app` with its name.
pub(crate) fn deployment(name: &str, replicas: u32, mut pod: Value) -> Value {
    let mut spec = pod["spec"].take();
    merge(&mut spec, json!({ "restartPolicy": "Always" }));
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": spec },
        },
    })
}

/// A pod with these claims and containers.
pub(crate) fn with_claims(name: &str, claims: Value, containers: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "resourceClaims": claims, "containers": containers,
        },
    })
}

/// Waits, and ends at once when it is told to: the first process of a container ignores what it does not
/// handle.
pub(crate) const WAIT: [&str; 3] = ["sh", "-c", "trap exit TERM; sleep infinity & wait"];

/// A container that waits.
pub(crate) fn waiting(name: &str, claims: Value) -> Value {
    json!({
        "name": name, "image": UBUNTU, "command": WAIT,
        "resources": { "claims": claims },
    })
}

/// Adds fields to an object, those of objects in it too.
pub(crate) fn merge(into: &mut Value, more: Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            for (name, value) in more {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (into, more) => *into = more,
    }
}
