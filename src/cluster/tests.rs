//! Claims, nodes, features and events, as requests and answers.

use serde_json::{Value, json};

use super::*;
use crate::{
    cluster::{
        events::Events,
        script::{Script, script, settings},
    },
    model::{abandoned::Answer, claim::ClaimRef, pool::Features},
};

fn claim() -> ClaimRef {
    ClaimRef { namespace: "ml".to_owned(), name: "x".to_owned(), uid: "uid-1".to_owned() }
}

fn found(uid: &str) -> Value {
    json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
        "metadata": { "namespace": "ml", "name": "x", "uid": uid }, "spec": {},
    })
}

const GET: &str = "GET /apis/resource.k8s.io/v1/namespaces/ml/resourceclaims/x";

#[tokio::test]
async fn a_claim_is_read_by_name_and_known_by_uid() {
    let (cluster, mut server) = script();
    let serve = async {
        server.expect(GET).await.reply(&found("uid-1"));
        server.expect(GET).await.reply(&found("uid-2"));
    };
    let ask = async { [cluster.claim(&claim()).await, cluster.claim(&claim()).await] };
    let ((), [same, other]) = tokio::join!(serve, ask);
    assert_eq!(same.unwrap().metadata.uid.as_deref(), Some("uid-1"));
    let error = other.unwrap_err();
    let line = "get ResourceClaim `ml/x`: replaced: uid `uid-2`, asked for `uid-1`";
    assert_eq!((error.to_string().as_str(), error.retryable()), (line, false));
}

#[tokio::test]
async fn errors_are_one_line_and_say_each_thing_once() {
    let (cluster, mut server) = script();
    let cases = [
        (404, "NotFound", "resourceclaims.resource.k8s.io \"x\" not found", false),
        (403, "Forbidden", "no\n  get for you", true),
        (500, "InternalError", "", true),
    ];
    for (code, reason, message, retryable) in cases {
        let serve = async { server.expect(GET).await.refuse(code, reason, message) };
        let claim = claim();
        let ((), answer) = tokio::join!(serve, cluster.claim(&claim));
        let error = answer.unwrap_err();
        let why = match message {
            "" => "500 InternalError",
            "no\n  get for you" => "no get for you",
            other => other,
        };
        assert_eq!(error.to_string(), format!("get ResourceClaim `ml/x`: {why}"));
        assert_eq!(error.retryable(), retryable, "{code}");
        assert_eq!(matches!(error, Error::NotFound { .. }), code == 404);
    }
    let claim = claim();
    let (call, answer) =
        tokio::join!(async { server.expect(GET).await.hang_up() }, cluster.claim(&claim));
    let error = answer.unwrap_err();
    assert_eq!(
        ((), "get ResourceClaim `ml/x`: connection refused"),
        (call, error.to_string().as_str())
    );
}

/// Only a server of claims that names this claim says that it is gone.
#[tokio::test]
async fn a_claim_is_gone_only_by_a_word_about_this_claim() {
    let status = |reason: &str, details: Value| {
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404,
            "reason": reason, "message": "not found", "details": details,
        })
    };
    let details =
        |group: &str, kind: &str, name: &str| json!({ "group": group, "kind": kind, "name": name });
    let ours = details("resource.k8s.io", "resourceclaims", "x");
    let cases = [
        (404, status("NotFound", ours.clone()), Answer::Gone),
        (200, found("uid-2"), Answer::Gone),
        (200, found("uid-1"), Answer::There),
        // The group is not served, a proxy answers, a namespace is gone, another claim is.
        (404, status("NotFound", json!({})), Answer::Unknown),
        (404, status("NotFound", Value::Null), Answer::Unknown),
        (404, json!("<html><body>404 Not Found</body></html>"), Answer::Unknown),
        (404, json!("404 page not found"), Answer::Unknown),
        (404, status("NotFound", details("", "namespaces", "ml")), Answer::Unknown),
        (
            404,
            status("NotFound", details("resource.k8s.io", "resourceclaims", "y")),
            Answer::Unknown,
        ),
        (404, status("NotFound", details("", "resourceclaims", "x")), Answer::Unknown),
        (404, status("Expired", ours.clone()), Answer::Unknown),
        (403, status("Forbidden", ours), Answer::Unknown),
        (200, found(""), Answer::Unknown),
    ];
    for (code, said, expected) in cases {
        let (cluster, mut server) = script();
        let claim = claim();
        let serve = async { server.expect(GET).await.answer(code, &said) };
        let ((), answer) = tokio::join!(serve, cluster.claim_exists(&claim));
        assert_eq!(answer, expected, "{code} {said}");
    }
    let (cluster, mut server) = script();
    let claim = claim();
    let ((), answer) =
        tokio::join!(async { server.expect(GET).await.hang_up() }, cluster.claim_exists(&claim));
    assert_eq!(answer, Answer::Unknown);
}

#[tokio::test]
async fn a_node_has_a_uid() {
    let (cluster, mut server) = script();
    let serve = async {
        let node = json!({ "metadata": { "name": "node-a", "uid": "uid-9" } });
        server.expect("GET /api/v1/nodes/node-a").await.reply(&node);
    };
    let ((), uid) = tokio::join!(serve, cluster.node_uid("node-a"));
    assert_eq!(uid, Ok("uid-9".to_owned()));
}

const PROBE: &str = "POST /apis/resource.k8s.io/v1/resourceslices?&dryRun=All";

/// Answers a dry run as a server that drops these fields.
async fn answer_probe(server: &mut Script, dropped: &[&str]) {
    let call = server.expect(PROBE).await;
    let mut kept = call.body.clone();
    for path in dropped {
        *kept.pointer_mut(path).unwrap() = Value::Null;
    }
    call.reply(&kept);
}

const COUNTERS: [&str; 2] = ["/spec/sharedCounters", "/spec/devices/0/consumesCounters"];
const TAINTS: &str = "/spec/devices/0/taints";

#[tokio::test]
async fn features_of_a_server_that_wants_counters_and_devices_together() {
    for (dropped, counters, taints) in [
        (vec![], true, true),
        (vec![TAINTS], true, false),
        (COUNTERS.to_vec(), false, true),
        ([&COUNTERS[..], &[TAINTS]].concat(), false, false),
    ] {
        let (cluster, mut server) = script();
        let settings = settings();
        let ((), found) =
            tokio::join!(answer_probe(&mut server, &dropped), features(&cluster, &settings));
        let expected = Features { counters, taints, separate_counter_slices: false };
        assert_eq!(found, Ok(expected), "{dropped:?}");
    }
}

#[tokio::test]
async fn features_of_a_server_that_wants_counters_and_devices_apart() {
    let message = "spec: Invalid value: only one of `sharedCounters` or `devices` is allowed";
    for (dropped, taints) in [(vec![], true), (vec![TAINTS], false)] {
        let (cluster, mut server) = script();
        let settings = settings();
        let serve = async {
            server.expect(PROBE).await.refuse(422, "Invalid", message);
            answer_probe(&mut server, &dropped).await;
        };
        let ((), found) = tokio::join!(serve, features(&cluster, &settings));
        let expected = Features { counters: true, taints, separate_counter_slices: true };
        assert_eq!(found, Ok(expected));
    }
}

#[tokio::test]
async fn a_probe_that_is_refused_twice_is_an_error() {
    let (cluster, mut server) = script();
    let settings = settings();
    let serve = async {
        for _ in 0..2 {
            server.expect(PROBE).await.refuse(422, "Invalid", "a policy says no");
        }
    };
    let ((), found) = tokio::join!(serve, features(&cluster, &settings));
    let line = "create ResourceSlice `probe-gpu.nvidia.com-node-a-…` (dry run): a policy says no";
    assert_eq!(found.unwrap_err().to_string(), line);
}

#[tokio::test]
async fn a_warning_is_an_event_about_its_object() {
    let (cluster, mut server) = script();
    let events = Events::start(cluster, settings());
    events.warn_claim(&claim(), "PrepareFailed", "gpu-0 is gone");
    let call = server.expect("POST /apis/events.k8s.io/v1/namespaces/ml/events").await;
    let mut body = call.body.clone();
    // The only fields that hold the time.
    assert!(body["metadata"]["name"].take().as_str().unwrap().starts_with("x."));
    assert!(body["eventTime"].take().is_string());
    let expected = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": null, "namespace": "ml" },
        "eventTime": null,
        "action": "PrepareFailed",
        "reason": "PrepareFailed",
        "note": "gpu-0 is gone",
        "type": "Warning",
        "regarding": {
            "apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "namespace": "ml", "name": "x", "uid": "uid-1",
        },
        "reportingController": "gpu.nvidia.com",
        "reportingInstance": "node-a",
    });
    assert_eq!(body, expected);
    call.refuse(500, "InternalError", "no");
}

#[tokio::test]
async fn the_same_warning_is_sent_once() {
    let (cluster, mut server) = script();
    let events = Events::start(cluster, settings());
    let long = "é".repeat(1000);
    for note in ["a", "a", &long] {
        events.warn_node("Broken", note);
    }
    let path = "POST /apis/events.k8s.io/v1/namespaces/default/events";
    let first = server.expect(path).await;
    assert_eq!(first.body["note"], json!("a"));
    first.refuse(500, "InternalError", "no");
    let second = server.expect(path).await;
    // The limit is in bytes.
    assert_eq!(second.body["note"], json!("é".repeat(512)));
    assert_eq!(
        second.body["regarding"],
        json!({
            "apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "node-a",
        })
    );
}

#[tokio::test]
async fn connecting_tells_which_file_is_of_no_use() {
    let path = Path::new("/nonexistent/kubeconfig");
    let error = Cluster::connect(Some(path)).await.map(|_| ()).unwrap_err().to_string();
    assert!(
        error.starts_with("connect to the API server with `/nonexistent/kubeconfig`: "),
        "{error}"
    );
    assert!(error.contains("No such file or directory"), "{error}");
    assert_eq!(error.matches("No such file").count(), 1, "{error}");
}
