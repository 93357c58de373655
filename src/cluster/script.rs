//! An API server that a test plays by hand, one request at a time.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use http_body::Frame;
use k8s_openapi::{
    api::resource::v1::{
        Counter, CounterSet, Device, DeviceCapacity, DeviceCounterConsumption, DeviceTaint,
        ResourcePool, ResourceSlice,
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tonic::codegen::Bytes;

use crate::{
    cluster::{Cluster, PublishSettings, content::spec},
    model::pool::SliceContent,
};

/// A test that waits longer than this is stuck.
const STUCK: Duration = Duration::from_secs(20);

/// The server's end.
pub(super) struct Script {
    calls: mpsc::UnboundedReceiver<Call>,
}

/// A request that waits for its answer.
pub(super) struct Call {
    /// Method and path with query.
    pub(super) line: String,
    /// The JSON that was sent, or null.
    pub(super) body: Value,
    answer: oneshot::Sender<Response<Frames>>,
}

/// A response's body, which may go on.
pub(super) struct Frames(mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A cluster and the server that it talks to.
pub(super) fn script() -> (Cluster, Script) {
    let (send, calls) = mpsc::unbounded_channel();
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let send = send.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let (answer, answered) = oneshot::channel();
            let line = format!("{} {}", head.method, head.uri);
            send.send(Call { line, body, answer }).map_err(|_| "the test is over")?;
            answered.await.map_err(|_| "connection refused")
        }
    });
    (Cluster::new(kube::Client::new(service, "default")), Script { calls })
}

impl Script {
    /// The next request, whose line has to contain `part`.
    pub(super) async fn expect(&mut self, part: &str) -> Call {
        let call = tokio::time::timeout(STUCK, self.calls.recv()).await;
        let call = call.unwrap_or_else(|_| panic!("no request came, expected {part}")).unwrap();
        assert!(call.line.contains(part), "expected {part}, got {} {}", call.line, call.body);
        call
    }

    /// Whether no request waits.
    pub(super) fn is_idle(&mut self) -> bool {
        self.calls.try_recv().is_err()
    }
}

impl Call {
    pub(super) fn reply(self, value: &impl serde::Serialize) {
        self.reply_with(200, value);
    }

    /// Stores what was sent, as a server would that keeps everything.
    pub(super) fn store(self, name: &str, version: u64) {
        let mut stored = self.body.clone();
        stored["metadata"]["name"] = json!(name);
        stored["metadata"]["uid"] = json!(format!("uid-{name}"));
        stored["metadata"]["resourceVersion"] = json!(version.to_string());
        self.reply(&stored);
    }

    pub(super) fn refuse(self, code: u16, reason: &str, message: &str) {
        self.reply_with(
            code,
            &json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "code": code, "reason": reason, "message": message,
            }),
        );
    }

    /// Answers with this text or object and code.
    pub(super) fn answer(self, code: u16, value: &impl serde::Serialize) {
        self.reply_with(code, value);
    }

    /// Lets the connection break.
    pub(super) fn hang_up(self) {
        drop(self.answer);
    }

    /// Answers with a list of slices.
    pub(super) fn list(self, version: u64, slices: &[ResourceSlice]) {
        self.reply(&json!({
            "kind": "ResourceSliceList", "apiVersion": "resource.k8s.io/v1",
            "metadata": { "resourceVersion": version.to_string() }, "items": slices,
        }));
    }

    /// Begins a watch, which lasts until the returned value is dropped.
    pub(super) fn watch(self) -> WatchEnd {
        let (send, frames) = mpsc::unbounded_channel();
        let _ = self.answer.send(Response::new(Frames(frames)));
        WatchEnd(send)
    }

    fn reply_with(self, code: u16, value: &impl serde::Serialize) {
        let (send, frames) = mpsc::unbounded_channel();
        send.send(serde_json::to_vec(value).unwrap().into()).unwrap();
        let response = Response::builder().status(code).body(Frames(frames)).unwrap();
        // Who asked may have stopped waiting.
        let _ = self.answer.send(response);
    }
}

/// The server's end of a watch.
pub(super) struct WatchEnd(mpsc::UnboundedSender<Bytes>);

impl WatchEnd {
    /// Tells of a slice: `ADDED`, `MODIFIED` or `DELETED`.
    pub(super) fn tell(&self, kind: &str, name: &str, version: u64) {
        self.line(&json!({ "type": kind, "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "name": name, "resourceVersion": version.to_string() },
        }}));
    }

    /// Whether the client still listens.
    pub(super) fn is_open(&self) -> bool {
        !self.0.is_closed()
    }

    pub(super) fn line(&self, value: &Value) {
        self.0.send(format!("{value}\n").into()).unwrap();
    }
}

// What the tests publish.

pub(super) fn settings() -> PublishSettings {
    PublishSettings { driver: "gpu.nvidia.com".to_owned(), node: "node-a".to_owned() }
}

/// A slice as the server has it, of the pool of [`settings`].
pub(super) fn stored(
    name: &str,
    (generation, count): (i64, i64),
    content: &SliceContent,
) -> ResourceSlice {
    let settings = settings();
    let pool =
        ResourcePool { name: settings.node.clone(), generation, resource_slice_count: count };
    ResourceSlice {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            uid: Some(format!("uid-{name}")),
            resource_version: Some("5".to_owned()),
            ..ObjectMeta::default()
        },
        spec: spec(&settings, pool, content, None),
    }
}

/// A slice's name as the server makes it.
pub(super) fn name(index: usize) -> String {
    format!("{index:05x}-gpu.nvidia.com-node-a-abcde")
}

/// A slice of plain devices.
pub(super) fn content(devices: &[&str]) -> SliceContent {
    SliceContent {
        devices: devices.iter().map(|name| device(name)).collect(),
        shared_counters: Vec::new(),
    }
}

pub(super) fn device(name: &str) -> Device {
    Device { name: name.to_owned(), ..Device::default() }
}

pub(super) fn with_memory(mut device: Device, value: &str) -> Device {
    let memory = DeviceCapacity { value: Quantity(value.to_owned()), ..DeviceCapacity::default() };
    device.capacity = Some([("memory".to_owned(), memory)].into());
    device
}

pub(super) fn with_taint(mut device: Device, key: &str) -> Device {
    let taint = DeviceTaint {
        key: key.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..DeviceTaint::default()
    };
    device.taints.get_or_insert_default().push(taint);
    device
}

pub(super) fn consuming(mut device: Device, set: &str, counter: &str) -> Device {
    let consumption = DeviceCounterConsumption {
        counter_set: set.to_owned(),
        counters: counters(counter, "1"),
        ..DeviceCounterConsumption::default()
    };
    device.consumes_counters.get_or_insert_default().push(consumption);
    device
}

pub(super) fn set(name: &str, counter: &str, value: &str) -> CounterSet {
    CounterSet { name: name.to_owned(), counters: counters(counter, value) }
}

fn counters(counter: &str, value: &str) -> std::collections::BTreeMap<String, Counter> {
    [(counter.to_owned(), Counter { value: Quantity(value.to_owned()) })].into()
}
