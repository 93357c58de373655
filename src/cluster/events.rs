//! Warnings for people, as Kubernetes Events on the node and on claims.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::api::PostParams;
use tokio::{sync::mpsc, time::Instant};

use crate::{
    cluster::{Cluster, Error, PublishSettings, answer},
    model::claim::ClaimRef,
};

/// Takes warnings; never waits for the API server. A clone goes the same way.
#[derive(Clone)]
pub struct Events {
    settings: PublishSettings,
    queue: mpsc::Sender<Event>,
}

/// Warnings that wait for the API server; further ones are only logged.
const QUEUE: usize = 64;
/// After how long the same is said again.
const AGAIN: Duration = Duration::from_secs(600);
/// The API server's limit for a note, in bytes.
const NOTE: usize = 1024;
/// Type of events about what somebody should see to.
const WARNING: &str = "Warning";
/// Namespace of events about objects that have none.
const NOWHERE: &str = "default";

impl Events {
    /// Starts the task that sends the warnings. It ends when the last clone is gone.
    pub fn start(cluster: Cluster, settings: PublishSettings) -> Self {
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        tokio::spawn(async move {
            let mut said = Said::default();
            while let Some(event) = waiting.recv().await {
                if said.before(&event, Instant::now()) {
                    continue;
                }
                if let Err(error) = send(&cluster, &event).await {
                    tracing::warn!(%error, "a warning got no event");
                }
            }
        });
        Self { settings, queue }
    }

    /// Tells of something good about the node. The reason is one word in CamelCase, the note one line.
    pub fn tell_node(&self, reason: &str, note: &str) {
        self.say("Normal", self.the_node(), NOWHERE, reason, note);
    }

    /// Warns about the node. The reason is one word in CamelCase, the note one line.
    pub fn warn_node(&self, reason: &str, note: &str) {
        self.say(WARNING, self.the_node(), NOWHERE, reason, note);
    }

    fn the_node(&self) -> ObjectReference {
        let node = &self.settings.node;
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.clone()),
            // As the kubelet does: `kubectl describe node` looks for this too.
            uid: Some(node.clone()),
            ..ObjectReference::default()
        }
    }

    /// Warns about a claim. The reason is one word in CamelCase, the note one line.
    pub fn warn_claim(&self, claim: &ClaimRef, reason: &str, note: &str) {
        let regarding = ObjectReference {
            api_version: Some("resource.k8s.io/v1".to_owned()),
            kind: Some("ResourceClaim".to_owned()),
            namespace: Some(claim.namespace.clone()),
            name: Some(claim.name.clone()),
            uid: Some(claim.uid.clone()),
            ..ObjectReference::default()
        };
        self.say(WARNING, regarding, &claim.namespace, reason, note);
    }

    fn say(
        &self,
        kind: &str,
        regarding: ObjectReference,
        namespace: &str,
        reason: &str,
        note: &str,
    ) {
        let now = Timestamp::now();
        let event = event(&self.settings, kind, regarding, namespace, reason, note, now);
        if let Err(error) = self.queue.try_send(event) {
            tracing::warn!(%reason, %note, %error, "a warning got no event");
        }
    }
}

/// The events of the last minutes: what is said again and again is said once.
#[derive(Default)]
struct Said(BTreeMap<[Option<String>; 3], Instant>);

impl Said {
    /// Whether an event like this was let through not long ago.
    fn before(&mut self, event: &Event, now: Instant) -> bool {
        self.0.retain(|_, said| now.duration_since(*said) < AGAIN);
        if self.0.len() >= QUEUE {
            self.0.clear();
        }
        let about = event.regarding.as_ref().and_then(|object| object.uid.clone());
        let key = [about, event.reason.clone(), event.note.clone()];
        let before = self.0.contains_key(&key);
        if !before {
            self.0.insert(key, now);
        }
        before
    }
}

fn event(
    settings: &PublishSettings,
    kind: &str,
    regarding: ObjectReference,
    namespace: &str,
    reason: &str,
    note: &str,
    now: Timestamp,
) -> Event {
    let name = regarding.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some(reason.to_owned()),
        event_time: Some(MicroTime(now)),
        note: Some(shortened(note).to_owned()),
        reason: Some(reason.to_owned()),
        regarding: Some(regarding),
        reporting_controller: Some(settings.driver.clone()),
        reporting_instance: Some(settings.node.clone()),
        type_: Some(kind.to_owned()),
        ..Event::default()
    }
}

fn shortened(note: &str) -> &str {
    &note[..note.floor_char_boundary(NOTE)]
}

async fn send(cluster: &Cluster, event: &Event) -> Result<(), Error> {
    let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
    let events = cluster.namespaced::<Event>(namespace);
    let params = PostParams::default();
    let what = || format!("create Event in `{namespace}`");
    answer(what, events.create(&params, event)).await.map(|_| ())
}
