//! The server, through a real client.

use std::sync::mpsc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use kube::api::{
    Api, DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions,
    WatchEvent, WatchParams,
};
use kube::core::Status;
use serde_json::{Value, json};

use super::{ApiOptions, ApiServer, Fault, Gate, Refusal};

async fn start(options: ApiOptions) -> (ApiServer, Api<ResourceSlice>) {
    let server = ApiServer::start(options).await.unwrap();
    let slices = Api::all(server.client());
    (server, slices)
}

/// A slice of node `n1` with so many devices.
fn slice(name: &str, devices: usize) -> ResourceSlice {
    let devices: Vec<Value> = (0..devices).map(|i| json!({"name": format!("gpu-{i}")})).collect();
    with_spec(name, json!({"devices": devices}))
}

/// A slice of node `n1` whose spec has these fields too.
fn with_spec(name: &str, fields: Value) -> ResourceSlice {
    let mut spec = json!({
        "driver": "gpu.nvidia.com", "nodeName": "n1",
        "pool": {"name": "n1", "generation": 1, "resourceSliceCount": 1},
    });
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let object = json!({
        "apiVersion": "resource.k8s.io/v1", "kind": "ResourceSlice",
        "metadata": {"name": name}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

fn counters() -> Value {
    json!([{"name": "gpu-0-counter-set", "counters": {"memory-slice-0": {"value": "1"}}}])
}

fn post() -> PostParams {
    PostParams::default()
}

fn dry() -> PostParams {
    PostParams { dry_run: true, ..post() }
}

fn status_of<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> Status {
    match result.unwrap_err() {
        kube::Error::Api(status) => *status,
        other => panic!("{other:?}"),
    }
}

fn faults(refused: Result<ResourceSlice, Refusal>) -> Vec<String> {
    let refusal = refused.unwrap_err();
    assert_eq!((refusal.code, refusal.reason), (422, "Invalid"));
    refusal.causes.into_iter().map(|cause| cause.field).collect()
}

#[tokio::test]
async fn an_object_lives_as_in_a_real_server() {
    let (server, slices) = start(ApiOptions::default()).await;
    let mut new = slice("", 1);
    new.metadata.name = None;
    new.metadata.generate_name = Some(format!("00000-gpu.nvidia.com-{}-", "n".repeat(60)));
    let made = slices.create(&post(), &new).await.unwrap();
    let name = made.metadata.name.clone().unwrap();
    assert_eq!(name.len(), 63);
    assert!(name.starts_with("00000-gpu.nvidia.com-nnn"));
    assert_eq!(made.metadata.generation, Some(1));
    assert!(made.metadata.creation_timestamp.is_some() && made.metadata.uid.is_some());

    let mut changed = made.clone();
    changed.spec.pool.generation = 2;
    let changed = slices.replace(&name, &post(), &changed).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    assert_eq!(changed.metadata.uid, made.metadata.uid);
    assert_ne!(changed.metadata.resource_version, made.metadata.resource_version);

    let revision = server.revision();
    assert_eq!(slices.replace(&name, &post(), &changed).await.unwrap(), changed);
    assert_eq!(server.revision(), revision, "an update that changes nothing is no event");

    let stale = status_of(slices.replace(&name, &post(), &made).await);
    assert_eq!((stale.code, stale.reason.as_str()), (409, "Conflict"));
    slices.delete(&name, &DeleteParams::default()).await.unwrap();
    let gone = status_of(slices.get(&name).await);
    assert_eq!((gone.code, gone.reason.as_str()), (404, "NotFound"));
    let gone = status_of(slices.replace(&name, &post(), &changed).await);
    assert_eq!(gone.code, 404);
}

#[tokio::test]
async fn names_are_taken_once_and_deletes_have_preconditions() {
    let (_server, slices) = start(ApiOptions::default()).await;
    let made = slices.create(&post(), &slice("a", 1)).await.unwrap();
    let again = status_of(slices.create(&post(), &slice("a", 1)).await);
    assert_eq!((again.code, again.reason.as_str()), (409, "AlreadyExists"));
    let demand = |uid: Option<String>, resource_version: Option<String>| {
        DeleteParams::default().preconditions(Preconditions { uid, resource_version })
    };
    let other = status_of(slices.delete("a", &demand(Some("other".into()), None)).await.map(drop));
    assert_eq!((other.code, other.reason.as_str()), (409, "Conflict"));
    let stale = demand(made.metadata.uid.clone(), Some("1".into()));
    assert_eq!(status_of(slices.delete("a", &stale).await.map(drop)).code, 409);
    let right = demand(made.metadata.uid, made.metadata.resource_version);
    slices.delete("a", &right).await.unwrap();
    assert_eq!(slices.list(&ListParams::default()).await.unwrap().items, []);
}

#[tokio::test]
async fn lists_are_selected_by_field() {
    let (server, slices) = start(ApiOptions::default()).await;
    for (name, node) in [("a", "n1"), ("b", "n2"), ("c", "n1")] {
        let mut slice = slice(name, 1);
        slice.spec.node_name = Some(node.into());
        slices.create(&post(), &slice).await.unwrap();
    }
    let names = |fields: &'static str| {
        let slices = slices.clone();
        async move {
            let found = slices.list(&ListParams::default().fields(fields)).await.unwrap();
            found.items.into_iter().filter_map(|s| s.metadata.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(names("spec.driver=gpu.nvidia.com,spec.nodeName=n1").await, ["a", "c"]);
    assert_eq!(names("metadata.name=b").await, ["b"]);
    assert_eq!(names("spec.nodeName!=n1").await, ["b"]);
    assert_eq!(names("spec.nodeName=").await, [""; 0]);
    let unknown = slices.list(&ListParams::default().fields("spec.allNodes=true")).await;
    assert_eq!(status_of(unknown).code, 400);
    let which = ListParams::default().fields("spec.driver=gpu.nvidia.com,spec.nodeName=n1");
    slices.delete_collection(&DeleteParams::default(), &which).await.unwrap();
    assert_eq!(names("").await, ["b"]);
    assert_eq!(server.delete_all::<ResourceSlice>("spec.nodeName=n2"), Ok(1));
}

#[tokio::test]
async fn a_dry_run_shows_what_would_be_stored_and_stores_nothing() {
    let options = ApiOptions::default();
    let gates = options.gates.without(Gate::PartitionableDevices);
    let (server, slices) = start(ApiOptions { gates, ..options }).await;
    let sets = with_spec("a", json!({"sharedCounters": counters()}));
    let shown = slices.create(&dry(), &sets).await.unwrap();
    assert_eq!(shown.spec.shared_counters, None);
    assert_eq!(shown.metadata.resource_version, None);
    assert_eq!(server.list::<ResourceSlice>(), []);
    assert_eq!(server.writes().len(), 0);
    assert_eq!(server.count("POST", "dryRun=All"), 1);
}

#[tokio::test]
async fn fields_of_closed_gates_are_dropped_unless_stored() {
    let taint = json!([{"key": "gpu.nvidia.com/xid", "effect": "NoSchedule"}]);
    let device = json!({"name": "gpu-0", "taints": taint, "consumesCounters":
        [{"counterSet": "gpu-0-counter-set", "counters": {"memory-slice-0": {"value": "1"}}}]});
    let tainted = with_spec("a", json!({"devices": [device]}));
    // 1.35 has both gates off by default, and none of either field is left.
    let (_server, slices) = start(ApiOptions::of((1, 35))).await;
    let dropped = slices.create(&post(), &tainted).await.unwrap();
    let kept = &dropped.spec.devices.unwrap()[0];
    assert_eq!((&kept.taints, &kept.consumes_counters), (&None, &None));

    let (_server, slices) = start(ApiOptions::of((1, 37))).await;
    let kept = slices.create(&post(), &tainted).await.unwrap();
    let kept = &kept.spec.devices.unwrap()[0];
    assert!(kept.consumes_counters.is_some());
    assert!(kept.taints.as_ref().unwrap()[0].time_added.is_some(), "the server says since when");
}

#[test]
fn what_is_stored_keeps_its_fields_when_a_gate_closes() {
    use super::{Gates, dropped, refusal::Faults};
    let old = with_spec("a", json!({"sharedCounters": counters()})).spec;
    let gates = Gates::of((1, 37)).without(Gate::PartitionableDevices);
    let (mut kept, mut dropped) = (old.clone(), old.clone());
    dropped::from_slice(&gates, Some(&old), &mut kept, &mut Faults::default());
    dropped::from_slice(&gates, None, &mut dropped, &mut Faults::default());
    assert_eq!((kept, dropped.shared_counters), (old, None));
}

#[tokio::test]
async fn slices_come_back_in_canonical_form() {
    let (_server, slices) = start(ApiOptions::default()).await;
    let device = json!({
        "name": "gpu-0", "attributes": {}, "capacity": {"memory": {"value": "20480Mi"}},
    });
    let made = slices.create(&post(), &with_spec("a", json!({"devices": [device]}))).await.unwrap();
    let device = &made.spec.devices.unwrap()[0];
    assert_eq!(device.attributes, None, "Go leaves out what is empty");
    assert_eq!(device.capacity.as_ref().unwrap()["memory"].value.0, "20Gi");
    let empty = slices.create(&post(), &slice("b", 0)).await.unwrap();
    assert_eq!(empty.spec.devices, None);
}

#[tokio::test]
async fn the_limits_of_each_release_hold() {
    let (new, _) = start(ApiOptions::default()).await;
    assert_eq!(faults(new.create(&slice("a", 129))), ["spec.devices"]);
    let counted = |n: usize| {
        let consumed = json!([{"counterSet": "gpu-0-counter-set", "counters": {"memory-slice-0": {"value": "1"}}}]);
        let device = |i| json!({"name": format!("d{i}"), "consumesCounters": consumed});
        json!((0..n).map(device).collect::<Vec<_>>())
    };
    assert_eq!(
        faults(new.create(&with_spec("a", json!({"devices": counted(65)})))),
        ["spec.devices"]
    );
    assert!(new.create(&with_spec("a", json!({"devices": counted(64)}))).is_ok());
    let both = with_spec("b", json!({"devices": counted(64), "sharedCounters": counters()}));
    assert_eq!(faults(new.create(&both)), ["spec"], "one or the other since 1.35");

    let options = ApiOptions::of((1, 34));
    let gates = options.gates.with(Gate::PartitionableDevices);
    let (old, _) = start(ApiOptions { gates, ..options }).await;
    let both = with_spec("b", json!({"devices": counted(128), "sharedCounters": counters()}));
    assert!(old.create(&both).is_ok(), "together up to 1.34");
    let apart = with_spec("c", json!({"devices": counted(1)}));
    assert_eq!(
        faults(old.create(&apart)),
        ["spec.devices[0].consumesCounters[0].counterSet"],
        "a counter set of another slice is unknown up to 1.34"
    );
}

#[tokio::test]
async fn each_fault_is_named_by_its_field() {
    let (server, _) = start(ApiOptions::default()).await;
    let devices = json!([
        {"name": "GPU_0"},
        {"name": "a", "attributes": {"memory-slice": {"int": 1}, "v": {"version": "v1.2"}, "none": {}}},
        {"name": "a", "capacity": {"memory": {"value": "much"}}},
        {"name": "b", "taints": [{"key": "", "effect": "Never"}]},
        {"name": "c", "bindingConditions": ["x"]},
        {"name": "d", "nodeName": "n1"},
    ]);
    let mut bad = with_spec("x", json!({"devices": devices, "allNodes": false}));
    bad.spec.pool.resource_slice_count = 0;
    let at = |i: usize, field: &str| format!("spec.devices[{i}]{field}");
    let expected = [
        "spec.pool.resourceSliceCount".into(),
        "spec".into(),
        "spec.allNodes".into(),
        at(0, ".name"),
        at(1, ".attributes[memory-slice]"),
        at(1, ".attributes[none]"),
        at(1, ".attributes[v].version"),
        at(2, ".name"),
        at(2, ".capacity[memory].value"),
        at(3, ".taints[0].key"),
        at(3, ".taints[0].effect"),
        at(4, ""),
        at(5, ""),
    ];
    assert_eq!(faults(server.create(&bad)), expected);
}

#[tokio::test]
async fn driver_node_and_pool_of_a_slice_stay() {
    let (server, _) = start(ApiOptions::default()).await;
    let mut made = server.create(&slice("a", 1)).unwrap();
    made.spec.driver = "other.com".into();
    made.spec.node_name = Some("n2".into());
    made.spec.pool.name = "n2".into();
    assert_eq!(faults(server.update(&made)), ["spec.driver", "spec.nodeName", "spec.pool.name"]);
}

#[tokio::test]
async fn a_watch_tells_what_happens_from_a_revision_on() {
    let (server, slices) = start(ApiOptions::default()).await;
    server.create(&slice("a", 1)).unwrap();
    let from =
        slices.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let params = WatchParams::default().fields("spec.nodeName=n1").timeout(20);
    let mut events = slices.watch(&params, &from).await.unwrap().boxed();
    let mut changed = server.get::<ResourceSlice>("", "a").unwrap();
    changed.spec.pool.generation = 7;
    server.update(&changed).unwrap();
    let mut elsewhere = slice("b", 1);
    elsewhere.spec.node_name = Some("n2".into());
    server.create(&elsewhere).unwrap();
    server.delete::<ResourceSlice>("", "a").unwrap();
    let Some(WatchEvent::Modified(seen)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!(seen.spec.pool.generation, 7);
    let Some(WatchEvent::Deleted(seen)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!(seen.metadata.resource_version, Some(server.revision().to_string()));
    server.close_watches();
    assert!(events.try_next().await.unwrap().is_none());

    server.compact();
    let mut events = slices.watch(&params, &from).await.unwrap().boxed();
    let Some(WatchEvent::Error(gone)) = events.try_next().await.unwrap() else { panic!() };
    assert_eq!((gone.code, gone.reason.as_str()), (410, "Expired"));
}

#[tokio::test]
async fn a_reflector_follows() {
    use kube::runtime::watcher::{self, Event, watcher};
    let (server, slices) = start(ApiOptions::default()).await;
    server.create(&slice("a", 1)).unwrap();
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let mut events = watcher(slices.clone(), config).boxed();
        let mut names = Vec::new();
        loop {
            match events.try_next().await.unwrap().unwrap() {
                Event::InitApply(slice) => names.extend(slice.metadata.name),
                Event::InitDone => break,
                _ => (),
            }
        }
        assert_eq!(names, ["a"]);
    }
}

#[tokio::test]
async fn discovery_names_version_groups_and_kinds() {
    let (server, _) = start(ApiOptions::of((1, 35))).await;
    let client = server.client();
    let version = client.apiserver_version().await.unwrap();
    assert_eq!((version.minor.as_str(), version.git_version.as_str()), ("35", "v1.35.2"));
    let groups = client.list_api_groups().await.unwrap();
    let names: Vec<_> = groups.groups.iter().map(|group| group.name.as_str()).collect();
    assert_eq!(names, ["resource.k8s.io", "events.k8s.io"]);
    let kinds = client.list_api_group_resources("resource.k8s.io/v1").await.unwrap();
    let names: Vec<_> = kinds.resources.iter().map(|kind| kind.name.as_str()).collect();
    let expected = [
        "resourceslices",
        "deviceclasses",
        "resourceclaims",
        "resourceclaims/status",
        "resourceclaimtemplates",
    ];
    assert_eq!(names, expected);
    let unknown = client.list_api_group_resources("resource.k8s.io/v1beta1").await;
    assert_eq!(status_of(unknown).code, 404);
}

fn claim(name: &str, fields: Value) -> ResourceClaim {
    let mut exactly = json!({"deviceClassName": "gpu.nvidia.com"});
    exactly.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let spec = json!({"devices": {"requests": [{"name": "gpu", "exactly": exactly}]}});
    let object = json!({"metadata": {"name": name}, "spec": spec});
    serde_json::from_value(with_type(object, "ResourceClaim")).unwrap()
}

fn with_type(mut object: Value, kind: &str) -> Value {
    object["apiVersion"] = json!("resource.k8s.io/v1");
    object["kind"] = json!(kind);
    object
}

#[tokio::test]
async fn a_claim_has_defaults_a_spec_that_stays_and_a_status_of_its_own() {
    let (server, _) = start(ApiOptions::default()).await;
    let claims: Api<ResourceClaim> = Api::namespaced(server.client(), "default");
    let made = claims.create(&post(), &claim("c", json!({}))).await.unwrap();
    let exactly = made.spec.clone().unwrap().devices.unwrap().requests.unwrap()[0].exactly.clone();
    let exactly = exactly.unwrap();
    assert_eq!((exactly.allocation_mode.as_deref(), exactly.count), (Some("ExactCount"), Some(1)));

    let mut other = claim("c", json!({"count": 2}));
    other.metadata.resource_version.clone_from(&made.metadata.resource_version);
    let refused = status_of(claims.replace("c", &post(), &other).await);
    assert_eq!(refused.code, 422);
    assert!(refused.message.ends_with("field is immutable"), "{}", refused.message);

    let reserved = json!([{"resource": "pods", "name": "p", "uid": "u"}]);
    let early = json!({"status": {"reservedFor": reserved}});
    let early = claims.patch_status("c", &PatchParams::default(), &Patch::Merge(early)).await;
    assert_eq!(status_of(early).code, 422);
    let result = json!({"request": "gpu", "driver": "d.com", "pool": "n1", "device": "gpu-0"});
    let status = json!({"status": {
        "allocation": {"devices": {"results": [result]}}, "reservedFor": reserved,
    }});
    let patch = Patch::Merge(status);
    let allocated = claims.patch_status("c", &PatchParams::default(), &patch).await.unwrap();
    let mut main = allocated.clone();
    main.status = None;
    main.metadata.labels = Some([("a".into(), "b".into())].into());
    let labelled = claims.replace("c", &post(), &main).await.unwrap();
    assert_eq!(labelled.status, allocated.status, "a PUT of the rest keeps the status");
}

#[tokio::test]
async fn admin_access_needs_a_label_on_the_namespace() {
    let (server, _) = start(ApiOptions::default()).await;
    let mut wanted = claim("c", json!({"adminAccess": true}));
    let refused = server.create(&wanted).unwrap_err();
    assert_eq!(refused.causes[0].field, "spec.devices.requests[0].exactly.adminAccess");
    let labels = [("resource.kubernetes.io/admin-access".into(), "true".into())].into();
    let metadata =
        ObjectMeta { name: Some("ops".into()), labels: Some(labels), ..ObjectMeta::default() };
    server.create(&Namespace { metadata, ..Namespace::default() }).unwrap();
    wanted.metadata.namespace = Some("ops".into());
    assert!(server.create(&wanted).is_ok());
    wanted.metadata.namespace = Some("nowhere".into());
    assert_eq!(server.create(&wanted).unwrap_err().code, 404);
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let (server, _) = start(ApiOptions::default()).await;
    let mut held = claim("c", json!({}));
    held.metadata.finalizers = Some(vec!["resource.kubernetes.io/delete-protection".into()]);
    server.create(&held).unwrap();
    server.delete::<ResourceClaim>("default", "c").unwrap();
    let mut marked = server.get::<ResourceClaim>("default", "c").unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    marked.metadata.finalizers = None;
    server.update(&marked).unwrap();
    assert_eq!(server.list::<ResourceClaim>(), []);
}

#[tokio::test]
async fn an_apply_creates_and_then_merges() {
    let (server, _) = start(ApiOptions::default()).await;
    let classes: Api<DeviceClass> = Api::all(server.client());
    let params = PatchParams::apply("test").force();
    let object = |fields: Value| {
        let mut object = with_type(json!({"metadata": {"name": "c"}}), "DeviceClass");
        object["spec"] = fields;
        object
    };
    let first = object(json!({"extendedResourceName": "nvidia.com/gpu"}));
    classes.patch("c", &params, &Patch::Apply(first)).await.unwrap();
    let second = object(json!({"selectors": [{"cel": {"expression": "true"}}]}));
    let merged = classes.patch("c", &params, &Patch::Apply(second)).await.unwrap();
    let spec = merged.spec.unwrap();
    assert_eq!(spec.extended_resource_name.as_deref(), Some("nvidia.com/gpu"));
    assert_eq!(spec.selectors.unwrap().len(), 1);
    let broken = object(json!({"selectors": [{"cel": {"expression": "device."}}]}));
    assert_eq!(
        status_of(classes.patch("c", &PatchParams::default(), &Patch::Merge(broken)).await).code,
        422
    );
}

#[tokio::test]
async fn injected_faults_befall_the_requests_that_they_name() {
    let (server, slices) = start(ApiOptions::default()).await;
    server.inject(Fault::status(500).on("POST", "/resourceslices").nth(2));
    slices.create(&post(), &slice("a", 1)).await.unwrap();
    assert_eq!(status_of(slices.create(&post(), &slice("b", 1)).await).code, 500);
    slices.create(&post(), &slice("b", 1)).await.unwrap();

    let (seen, states) = mpsc::channel();
    let exists = {
        let (server, seen) = (server.clone(), seen.clone());
        move || seen.send(server.get::<ResourceSlice>("", "c").is_ok()).unwrap()
    };
    server.inject(Fault::before(exists.clone()).on("POST", "/resourceslices"));
    slices.create(&post(), &slice("c", 1)).await.unwrap();
    server.inject(Fault::after(exists).on("DELETE", "/c"));
    slices.delete("c", &DeleteParams::default()).await.unwrap();
    assert_eq!(states.try_iter().collect::<Vec<_>>(), [false, false]);

    server.inject(Fault::hang().on("GET", "/resourceslices/a").always());
    let hanging = tokio::time::timeout(Duration::from_millis(50), slices.get("a"));
    assert!(hanging.await.is_err());
    server.clear_faults();
    slices.get("a").await.unwrap();
}

#[tokio::test]
async fn requests_are_counted_and_a_kubeconfig_leads_here() {
    let (server, _) = start(ApiOptions::default()).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubeconfig");
    server.write_kubeconfig(&path).unwrap();
    let config = kube::config::Kubeconfig::read_from(&path).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let node = serde_json::from_value(node).unwrap();
    let nodes: Api<Node> = Api::all(client.clone());
    nodes.create(&post(), &node).await.unwrap();
    nodes.get("n1").await.unwrap();
    let pods: Api<Pod> = Api::all(client);
    assert_eq!(pods.list(&ListParams::default()).await.unwrap().items, []);
    let (posts, gets) = (server.count("POST", "/nodes"), server.count("GET", "/"));
    assert_eq!((posts, gets, server.writes().len()), (1, 2, 1));
}
