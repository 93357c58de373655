//! The whole task against an API server that the test plays.

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::*;
use crate::cluster::script::{
    Call, Script, WatchEnd, consuming, content, device, name, script, settings, stored,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Nothing that has to wait happens within a test.
const PATIENT: Pace =
    Pace { settle: HOUR, order: HOUR, refused: HOUR, retry: (Duration::from_millis(1), HOUR) };

/// A running publisher.
struct Bench {
    server: Script,
    desired: watch::Sender<Option<Arc<Desired>>>,
    kicks: watch::Sender<u64>,
    state: watch::Receiver<Published>,
    known: watch::Receiver<Option<Server>>,
    task: JoinHandle<()>,
}

fn features_of(counters: bool) -> Features {
    Features { counters, taints: true, separate_counter_slices: false }
}

fn wish(content: &[SliceContent]) -> Option<Arc<Desired>> {
    Some(Arc::new(Desired { features: features_of(true), content: content.to_vec() }))
}

impl Bench {
    fn start(pace: Pace) -> Self {
        let (cluster, server) = script();
        let (desired, desired_here) = watch::channel(None);
        let (kicks, kicks_here) = watch::channel(0);
        let (state_there, state) = watch::channel(Published::default());
        let (known_there, known) = watch::channel(None);
        let publisher = Publisher {
            converger: Converger::new(cluster.clone(), settings()),
            metrics: Metrics::default(),
            events: Events::start(cluster.clone(), settings()),
            cluster,
            settings: settings(),
            pace,
            desired: desired_here,
            kicks: kicks_here,
            state: state_there,
            server: known_there,
            due: None,
            delays: pace.backoff().build(),
            ask: true,
            blind: None,
            failed: None,
        };
        let task = tokio::spawn(publisher.keep());
        Self { server, desired, kicks, state, known, task }
    }

    /// A publisher whose watch has begun and that knows the server's features.
    async fn connected(pace: Pace) -> (Self, WatchEnd) {
        let mut bench = Self::start(pace);
        let watch =
            bench.server.expect("GET /apis/resource.k8s.io/v1/resourceslices?&watch=true").await;
        let watch = watch.watch();
        bench.answer_probe().await;
        bench.list(1, &[]).await;
        (bench, watch)
    }

    /// A publisher of two slices, which were there.
    async fn settled(pace: Pace) -> (Self, WatchEnd) {
        let (mut bench, watch) = Self::connected(pace).await;
        bench.wish(&two());
        bench.list(10, &stored_two()).await;
        bench.until(|state| state.at.is_some()).await;
        (bench, watch)
    }

    fn wish(&self, content: &[SliceContent]) {
        self.desired.send_replace(wish(content));
    }

    async fn answer_probe(&mut self) {
        let probe =
            self.server.expect("POST /apis/resource.k8s.io/v1/resourceslices?&dryRun=All").await;
        let kept = probe.body.clone();
        probe.reply(&kept);
    }

    async fn list(
        &mut self,
        version: u64,
        slices: &[k8s_openapi::api::resource::v1::ResourceSlice],
    ) {
        self.server.expect(LIST).await.list(version, slices);
    }

    async fn node(&mut self) {
        let call = self.server.expect("GET /api/v1/nodes/node-a").await;
        call.reply(&json!({
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "name": "node-a", "uid": "uid-of-node-a" },
        }));
    }

    async fn put(&mut self, index: usize) -> Call {
        let name = name(index);
        self.server.expect(&format!("PUT /apis/resource.k8s.io/v1/resourceslices/{name}?")).await
    }

    async fn post(&mut self) -> Call {
        let call = self.server.expect("POST /apis/resource.k8s.io/v1/resourceslices?").await;
        assert!(!call.line.contains("dryRun"), "{}", call.line);
        call
    }

    async fn until(&mut self, reached: impl FnMut(&Published) -> bool) -> Published {
        let mut state = self.state.wait_for(reached).await.unwrap().clone();
        state.at = None;
        state
    }
}

const LIST: &str = "GET /apis/resource.k8s.io/v1/resourceslices?\
    &fieldSelector=spec.driver%3Dgpu.nvidia.com%2Cspec.nodeName%3Dnode-a";

fn two() -> Vec<SliceContent> {
    vec![content(&["a", "b"]), content(&["c", "d"])]
}

fn stored_two() -> Vec<k8s_openapi::api::resource::v1::ResourceSlice> {
    let slices = two();
    let store = |(index, content)| stored(&name(index), (1, 2), content);
    slices.iter().enumerate().map(store).collect()
}

fn devices(body: &Value) -> Vec<&str> {
    let devices = body["spec"]["devices"].as_array().map(Vec::as_slice).unwrap_or_default();
    devices.iter().map(|device| device["name"].as_str().unwrap()).collect()
}

fn fine(generation: i64) -> Published {
    Published { slices: 2, generation, at: None, error: None }
}

#[tokio::test]
async fn publishes_a_new_pool() {
    let (mut bench, _watch) = Bench::connected(PATIENT).await;
    bench.wish(&[content(&["a"])]);
    bench.list(1, &[]).await;
    bench.node().await;
    let post = bench.post().await;
    let expected = json!({
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceSlice",
        "metadata": {
            "generateName": "00000-gpu.nvidia.com-node-a-",
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Node", "name": "node-a", "uid": "uid-of-node-a",
                "controller": true,
            }],
        },
        "spec": {
            "driver": "gpu.nvidia.com",
            "nodeName": "node-a",
            "pool": { "name": "node-a", "generation": 1, "resourceSliceCount": 1 },
            "devices": [{ "name": "a" }],
        },
    });
    assert_eq!(post.body, expected);
    post.store(&name(0), 2);
    let state = bench.until(|state| state.at.is_some()).await;
    assert_eq!(state, Published { slices: 1, generation: 1, at: None, error: None });
}

#[tokio::test]
async fn adopts_what_is_there_without_writing() {
    let (mut bench, watch) = Bench::settled(PATIENT).await;
    for index in 0..2 {
        watch.tell("ADDED", &name(index), 5);
    }
    assert_eq!(bench.until(|_| true).await, fine(1));
    bench.kicks.send_replace(1);
    bench.list(10, &stored_two()).await;
    assert!(bench.server.is_idle());
}

#[tokio::test]
async fn an_empty_pool_is_one_slice_without_devices() {
    let (mut bench, _watch) = Bench::connected(PATIENT).await;
    bench.wish(&[]);
    bench.list(1, &[]).await;
    bench.node().await;
    let post = bench.post().await;
    assert_eq!(
        post.body["spec"],
        json!({
            "driver": "gpu.nvidia.com",
            "nodeName": "node-a",
            "pool": { "name": "node-a", "generation": 1, "resourceSliceCount": 1 },
        })
    );
    post.store(&name(0), 2);
    assert_eq!(bench.until(|state| state.at.is_some()).await.slices, 1);
}

#[tokio::test]
async fn a_change_of_content_is_written_over_the_version_that_was_read() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["a", "b"]), content(&["c", "e"])]);
    bench.list(10, &stored_two()).await;
    let put = bench.put(1).await;
    let (metadata, pool) = (&put.body["metadata"], &put.body["spec"]["pool"]);
    assert_eq!((&metadata["resourceVersion"], devices(&put.body)), (&json!("5"), vec!["c", "e"]));
    assert_eq!(pool, &json!({ "name": "node-a", "generation": 1, "resourceSliceCount": 2 }));
    put.store(&name(1), 11);
    bench.desired.send_replace(None);
    drop(bench.desired);
    bench.task.await.unwrap();
}

#[tokio::test]
async fn own_writes_are_not_taken_for_others() {
    let (mut bench, watch) = Bench::settled(Pace { settle: Duration::ZERO, ..PATIENT }).await;
    bench.wish(&[content(&["a", "b"]), content(&["c", "e"])]);
    bench.list(10, &stored_two()).await;
    let put = bench.put(1).await;
    watch.tell("MODIFIED", &name(1), 11);
    put.store(&name(1), 11);
    watch.tell("MODIFIED", &name(0), 12);
    // Only the second of them makes it look again.
    bench.list(12, &stored_two()).await;
    bench.put(1).await.store(&name(1), 13);
    watch.tell("MODIFIED", &name(1), 13);
    bench.kicks.send_replace(1);
    bench.list(13, &stored_two()).await;
}

#[tokio::test]
async fn an_edit_by_somebody_else_is_undone() {
    let (mut bench, watch) = Bench::settled(Pace { settle: Duration::ZERO, ..PATIENT }).await;
    watch.tell("MODIFIED", &name(0), 11);
    let mut edited = stored_two();
    edited[0].spec.devices = None;
    edited[0].metadata.resource_version = Some("11".to_owned());
    bench.list(11, &edited).await;
    let put = bench.put(0).await;
    assert_eq!(
        (&put.body["metadata"]["resourceVersion"], devices(&put.body)),
        (&json!("11"), vec!["a", "b"])
    );
    put.store(&name(0), 12);
}

#[tokio::test]
async fn slices_that_all_vanish_are_back_without_delay() {
    let (mut bench, watch) = Bench::settled(PATIENT).await;
    watch.tell("DELETED", &name(0), 11);
    watch.tell("DELETED", &name(1), 12);
    bench.list(12, &[]).await;
    bench.node().await;
    bench.post().await.store("00000-new", 13);
    bench.post().await.store("00001-new", 14);
    assert_eq!(bench.until(|state| state.at.is_some()).await, fine(1));
}

#[tokio::test]
async fn a_kick_looks_again_without_delay() {
    let (mut bench, watch) = Bench::settled(PATIENT).await;
    watch.tell("DELETED", &name(0), 11);
    bench.kicks.send_replace(1);
    bench.list(11, &stored_two()[1..]).await;
    bench.node().await;
    bench.put(1).await.store(&name(1), 12);
    let post = bench.post().await;
    assert_eq!(devices(&post.body), ["a", "b"]);
    post.store("00000-new", 13);
    assert_eq!(bench.until(|state| state.generation == 2).await, fine(2));
}

#[tokio::test]
async fn a_conflict_is_read_again_and_written() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["a", "b"]), content(&["c", "e"])]);
    bench.list(10, &stored_two()).await;
    bench.put(1).await.refuse(409, "Conflict", "the object has been modified");
    let mut edited = stored_two();
    edited[1].metadata.resource_version = Some("12".to_owned());
    bench.list(12, &edited).await;
    let put = bench.put(1).await;
    assert_eq!(put.body["metadata"]["resourceVersion"], json!("12"));
    put.store(&name(1), 13);
    bench.until(|state| state.error.is_none()).await;
}

#[tokio::test]
async fn a_slice_deleted_under_a_write_is_made_again() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["a", "b"]), content(&["c", "e"])]);
    bench.list(10, &stored_two()).await;
    bench.put(1).await.refuse(404, "NotFound", "not found");
    bench.list(12, &stored_two()[..1]).await;
    bench.node().await;
    bench.put(0).await.store(&name(0), 13);
    bench.post().await.store("00001-new", 14);
    assert_eq!(bench.until(|state| state.generation == 2).await, fine(2));
}

#[tokio::test]
async fn obsolete_slices_go_first_and_only_in_the_version_that_was_read() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["a"])]);
    bench.list(10, &stored_two()).await;
    let path = format!("DELETE /apis/resource.k8s.io/v1/resourceslices/{}", name(1));
    let delete = bench.server.expect(&path).await;
    let uid = format!("uid-{}", name(1));
    let expected = json!({ "uid": uid, "resourceVersion": "5" });
    assert_eq!(delete.body["preconditions"], expected);
    delete.refuse(404, "NotFound", "it is gone already");
    bench.put(0).await.store(&name(0), 12);
    assert_eq!(bench.until(|state| state.slices == 1).await.generation, 1);
}

#[tokio::test]
async fn an_invalid_slice_is_reported_and_waits_for_another_wish() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["a", "b"]), content(&["c", "e!"])]);
    bench.list(10, &stored_two()).await;
    bench.put(1).await.refuse(422, "Invalid", "spec.devices[1].name: Invalid value: \"e!\"");
    let error =
        format!("update ResourceSlice `{}`: spec.devices[1].name: Invalid value: \"e!\"", name(1));
    let event = bench.server.expect("POST /apis/events.k8s.io/v1/namespaces/default/events").await;
    assert_eq!(
        (&event.body["reason"], &event.body["note"]),
        (&json!("ResourceSliceInvalid"), &json!(error))
    );
    event.refuse(403, "Forbidden", "no events for you");
    let state = bench.until(|state| state.error.is_some()).await;
    assert_eq!(state, Published { error: Some(error), ..fine(1) });

    bench.wish(&[content(&["a", "b"]), content(&["c", "e"])]);
    bench.list(10, &stored_two()).await;
    bench.put(1).await.store(&name(1), 11);
    assert_eq!(bench.until(|state| state.error.is_none()).await, fine(1));
}

#[tokio::test]
async fn order_alone_is_written_once_and_then_rests() {
    let (mut bench, _watch) = Bench::settled(PATIENT).await;
    bench.wish(&[content(&["b", "a"]), content(&["c", "d"])]);
    bench.list(10, &stored_two()).await;
    let put = bench.put(0).await;
    assert_eq!(put.body["spec"]["pool"]["generation"], json!(1));
    put.store(&name(0), 11);

    let mut now = stored_two();
    now[0].spec.devices.as_mut().unwrap().reverse();
    bench.wish(&[content(&["a", "b"]), content(&["d", "c"])]);
    bench.list(11, &now).await;
    // The other slice has not been written of late.
    bench.put(1).await.store(&name(1), 12);
    now[1].spec.devices.as_mut().unwrap().reverse();
    // A change of content does not wait for anything.
    bench.wish(&[content(&["a", "x"]), content(&["d", "c"])]);
    bench.list(12, &now).await;
    let put = bench.put(0).await;
    assert_eq!(devices(&put.body), ["a", "x"]);
    put.store(&name(0), 13);
}

#[tokio::test]
async fn an_order_that_rested_is_written() {
    let pace = Pace { order: Duration::from_millis(1), ..PATIENT };
    let (mut bench, _watch) = Bench::settled(pace).await;
    let mut now = stored_two();
    for (version, names) in [(11, ["b", "a"]), (12, ["a", "b"]), (13, ["b", "a"])] {
        bench.wish(&[content(&names), content(&["c", "d"])]);
        // Looks until the rest is over.
        loop {
            bench.list(version, &now).await;
            let call = bench.server.expect("/apis/resource.k8s.io/v1/resourceslices").await;
            if call.line.starts_with("PUT") {
                assert_eq!(devices(&call.body), names);
                call.store(&name(0), version);
                break;
            }
            call.hang_up();
        }
        now[0].spec.devices.as_mut().unwrap().reverse();
    }
}

#[tokio::test]
async fn fields_that_the_server_drops_are_reported_once_and_asked_for_again() {
    let (mut bench, _watch) = Bench::connected(PATIENT).await;
    let mut rich = content(&[]);
    rich.devices.push(consuming(device("a"), "s", "m"));
    rich.shared_counters.push(crate::cluster::script::set("s", "m", "1"));
    bench.wish(&[rich]);
    bench.list(1, &[stored(&name(0), (1, 1), &content(&["z"]))]).await;
    let put = bench.put(0).await;
    let dropped = stored(&name(0), (1, 1), &content(&["a"]));
    put.reply(&dropped);
    // The event and the question go out side by side.
    for _ in 0..2 {
        let call = bench.server.expect("POST").await;
        if call.line.contains("dryRun") {
            let mut kept = call.body.clone();
            kept["spec"]["sharedCounters"] = Value::Null;
            kept["spec"]["devices"][0]["consumesCounters"] = Value::Null;
            call.reply(&kept);
        } else {
            let note = format!(
                "ResourceSlice `{}`: the API server did not keep `sharedCounters`, `consumesCounters`",
                name(0)
            );
            assert_eq!(call.body["note"], json!(note));
            call.refuse(403, "Forbidden", "no events for you");
        }
    }
    let asked = |known: &Option<Server>| known.as_ref().unwrap().features != features_of(true);
    let known = bench.known.wait_for(asked).await.unwrap().clone();
    assert_eq!(known, Some(Server { features: features_of(false), found: Vec::new() }));
    // What was wished for the old features is not written any more.
    bench.kicks.send_replace(1);
    bench.desired.send_replace(Some(Arc::new(Desired {
        features: features_of(false),
        content: vec![content(&["a"])],
    })));
    bench.list(2, &[dropped]).await;
    assert!(bench.server.is_idle());
}

#[tokio::test]
async fn what_was_there_before_the_first_wish_is_told() {
    let mut bench = Bench::start(PATIENT);
    let watch = bench.server.expect("watch=true").await;
    let _watch = watch.watch();
    bench.answer_probe().await;
    bench.list(1, &stored_two()).await;
    let known = bench.known.wait_for(Option::is_some).await.unwrap().clone();
    assert_eq!(known, Some(Server { features: features_of(true), found: two() }));
}

#[tokio::test]
async fn nothing_is_written_before_the_server_s_features_are_known() {
    let mut bench = Bench::start(PATIENT);
    bench.wish(&two());
    bench.server.expect("watch=true").await.hang_up();
    let mut refused = 0;
    // The watch and the question are both asked again until they are answered.
    while refused < 3 {
        let call = bench.server.expect("/apis/resource.k8s.io/v1/resourceslices?").await;
        if call.line.starts_with("POST") {
            assert!(call.line.contains("dryRun=All"), "{}", call.line);
            refused += 1;
            call.refuse(500, "InternalError", "etcd is away");
        } else {
            assert!(call.line.contains("watch=true"), "{}", call.line);
            call.hang_up();
        }
    }
    let error = "create ResourceSlice `probe-gpu.nvidia.com-node-a-…` (dry run): etcd is away";
    let state = bench.until(|state| state.error.as_deref() == Some(error)).await;
    assert_eq!(state, Published { error: Some(error.to_owned()), ..Published::default() });
}

#[tokio::test]
async fn after_the_server_was_away_its_features_are_asked_for_again() {
    let (mut bench, watch) = Bench::settled(PATIENT).await;
    watch.tell("MODIFIED", &name(0), 5);
    watch.line(&json!({ "type": "ERROR", "object": {
        "kind": "Status", "code": 500, "reason": "InternalError", "message": "going down",
    }}));
    let call = bench.server.expect("watch=true").await;
    assert!(call.line.contains("&resourceVersion=5"), "{}", call.line);
    let state = bench.until(|state| state.error.is_some()).await;
    assert_eq!(state.error.as_deref(), Some("watch ResourceSlices: going down"));
    let _watch = call.watch();
    bench.answer_probe().await;
    bench.list(20, &stored_two()).await;
    assert_eq!(bench.until(|state| state.error.is_none()).await, fine(1));
    let known = Server { features: features_of(true), found: Vec::new() };
    assert_eq!(*bench.known.borrow(), Some(known));
}

#[tokio::test]
async fn a_watch_whose_version_is_too_old_begins_anew() {
    let (mut bench, watch) = Bench::settled(PATIENT).await;
    watch.line(&json!({ "type": "BOOKMARK", "object": {
        "kind": "ResourceSlice", "apiVersion": "resource.k8s.io/v1",
        "metadata": { "resourceVersion": "15" },
    }}));
    watch.line(&json!({ "type": "ERROR", "object": {
        "kind": "Status", "code": 410, "reason": "Expired", "message": "too old",
    }}));
    let call = bench.server.expect("watch=true").await;
    assert!(call.line.ends_with("&resourceVersion="), "{}", call.line);
    let _watch = call.watch();
    // What happened in between was not seen.
    bench.list(20, &stored_two()).await;
    assert_eq!(bench.until(|_| true).await, fine(1));
}
