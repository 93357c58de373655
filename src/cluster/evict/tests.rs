use serde_json::json;

use super::*;
use crate::cluster::script::{Script, script};

fn pod(node: &str, ends: bool) -> serde_json::Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "train", "namespace": "ml", "uid": "uid-1" },
        "spec": { "nodeName": node, "containers": [] },
    });
    if ends {
        pod["metadata"]["deletionTimestamp"] = json!("2026-03-04T12:00:00Z");
    }
    pod
}

/// What evicting pod `ml/train`, which has one of two UIDs, from node `a` comes to when the server does this.
async fn evict(server: impl AsyncFnOnce(&mut Script)) -> Result<Eviction, Error> {
    let (cluster, mut calls) = script();
    let uids = ["uid-0", "uid-1"].map(str::to_owned).into();
    let (outcome, ()) = tokio::join!(cluster.evict("ml", "train", &uids, "a"), server(&mut calls));
    assert!(calls.is_idle());
    outcome
}

#[tokio::test]
async fn a_pod_is_evicted_by_its_uid() {
    let outcome = evict(async |calls| {
        calls.expect("GET /api/v1/namespaces/ml/pods/train").await.reply(&pod("a", false));
        let call = calls.expect("POST /api/v1/namespaces/ml/pods/train/eviction").await;
        assert_eq!(call.body["deleteOptions"]["preconditions"], json!({ "uid": "uid-1" }));
        call.reply(&json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }));
    });
    assert_eq!(outcome.await, Ok(Eviction::Begun));
}

#[tokio::test]
async fn a_pod_that_ends_is_elsewhere_or_has_another_uid_is_left_alone() {
    let mut other = pod("a", false);
    other["metadata"]["uid"] = json!("uid-2");
    let mut nameless = pod("a", false);
    nameless["metadata"]["uid"] = json!(null);
    for there in [pod("a", true), pod("b", false), other, nameless] {
        let outcome = evict(async |calls| calls.expect("GET").await.reply(&there));
        assert_eq!(outcome.await, Ok(Eviction::Gone));
    }
    let outcome = evict(async |calls| {
        calls.expect("GET").await.refuse(404, "NotFound", "pods \"train\" not found");
    });
    assert_eq!(outcome.await, Ok(Eviction::Gone));
    let outcome = evict(async |calls| {
        calls.expect("GET").await.reply(&pod("a", false));
        calls.expect("POST").await.refuse(409, "Conflict", "the UID in the precondition differs");
    });
    assert_eq!(outcome.await, Ok(Eviction::Gone), "replaced between");
}

#[tokio::test]
async fn a_budget_that_does_not_allow_it_is_named() {
    let why = "Cannot evict pod as it would violate the pod's disruption budget.";
    let outcome = evict(async |calls| {
        calls.expect("GET").await.reply(&pod("a", false));
        calls.expect("POST").await.refuse(429, "TooManyRequests", why);
    });
    let error = outcome.await.unwrap_err();
    assert!(error.retryable());
    assert_eq!(error.to_string(), format!("evict Pod `ml/train`: {why}"));
}
