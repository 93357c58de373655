//! One label of the node, as it changes.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::{api::core::v1::Node, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{PartialObjectMeta, WatchEvent, WatchParams},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::{
    cluster::{
        Cluster, answer,
        error::reason,
        watch::{GONE, SLACK, STEADY, WATCH},
    },
    model::plugin::choice::Label,
};

/// Between attempts to reach the server, jitter not counted: at least and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(15));

/// Follows the label `key` of `node`, until nobody listens. What was known last stays known while the
/// server is away, and when the node is deleted: it will register again.
pub fn node_label(cluster: &Cluster, node: &str, key: &str) -> watch::Receiver<Label> {
    let unknown = Label::Unknown("the API server has not answered yet".to_owned());
    let (label, seen) = watch::channel(unknown);
    let nodes = Nodes {
        api: cluster.all(),
        node: node.to_owned(),
        key: key.to_owned(),
        from: String::new(),
        label,
    };
    tokio::spawn(nodes.follow());
    seen
}

struct Nodes {
    api: Api<Node>,
    node: String,
    key: String,
    /// The version to go on from; empty for all that there is.
    from: String,
    label: watch::Sender<Label>,
}

impl Nodes {
    async fn follow(mut self) {
        let unheard = self.label.clone();
        tokio::select! {
            () = self.watch() => {}
            () = unheard.closed() => {}
        }
    }

    /// Watches again and again.
    async fn watch(&mut self) {
        let (least, most) = RETRY;
        let backoff = ExponentialBuilder::new().with_min_delay(least).with_max_delay(most);
        // A restart of the API server hits every node at once; their return should not.
        let backoff = backoff.with_factor(2.0).with_jitter().without_max_times();
        let mut delays = backoff.build();
        loop {
            let began = Instant::now();
            if let Err(why) = self.watch_once().await {
                tracing::warn!("{why}");
                self.fail(why);
            }
            if began.elapsed() >= STEADY {
                delays = backoff.build();
            }
            sleep(delays.next().unwrap_or(STEADY)).await;
        }
    }

    async fn watch_once(&mut self) -> Result<(), String> {
        let what = format!("watch Node `{}`", self.node);
        let params = WatchParams::default().fields(&format!("metadata.name={}", self.node));
        let request = self.api.watch_metadata(&params, &self.from);
        let events = answer(|| what.clone(), request).await.map_err(|error| error.to_string())?;
        let mut events = events.map_err(|error| reason(&error)).boxed();
        let all = async {
            while let Some(event) = events.next().await {
                self.take(event?)?;
            }
            Ok(())
        };
        let ended: Result<(), String> = match timeout(WATCH + SLACK, all).await {
            Ok(ended) => ended,
            Err(_) => Err("the server fell silent".to_owned()),
        };
        ended.map_err(|why| format!("{what}: {why}"))
    }

    fn take(&mut self, event: WatchEvent<PartialObjectMeta<Node>>) -> Result<(), String> {
        match event {
            WatchEvent::Added(node) | WatchEvent::Modified(node) => {
                self.know(&node.metadata);
                self.advance(node.metadata.resource_version);
            }
            WatchEvent::Deleted(node) => self.advance(node.metadata.resource_version),
            WatchEvent::Bookmark(mark) => self.advance(Some(mark.metadata.resource_version)),
            WatchEvent::Error(status) if status.code == GONE => self.from.clear(),
            WatchEvent::Error(status) => return Err(status.message),
        }
        Ok(())
    }

    fn advance(&mut self, to: Option<String>) {
        if let Some(to) = to {
            self.from = to;
        }
    }

    fn know(&self, node: &ObjectMeta) {
        let value = node.labels.as_ref().and_then(|labels| labels.get(&self.key));
        self.tell(value.map_or(Label::Absent, |value| Label::Value(value.clone())));
    }

    /// Says why the label is not known, if it is not.
    fn fail(&self, why: String) {
        let unknown = matches!(&*self.label.borrow(), Label::Unknown(_));
        if unknown {
            self.tell(Label::Unknown(why));
        }
    }

    fn tell(&self, label: Label) {
        self.label.send_if_modified(|known| {
            let news = *known != label;
            *known = label;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::cluster::script::script;

    const KEY: &str = "nvidia.com/device-plugin.config";
    const ALL: &str = "GET /api/v1/nodes?&watch=true";
    const STUCK: Duration = Duration::from_secs(20);

    fn node(kind: &str, version: u64, labels: Value) -> Value {
        json!({ "type": kind, "object": {
            "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": { "name": "node-a", "resourceVersion": version.to_string(), "labels": labels },
        }})
    }

    async fn next(label: &mut watch::Receiver<Label>) -> Label {
        timeout(STUCK, label.changed()).await.unwrap().unwrap();
        label.borrow_and_update().clone()
    }

    #[tokio::test]
    async fn the_label_is_told_as_it_changes() {
        let (cluster, mut server) = script();
        let mut label = node_label(&cluster, "node-a", KEY);
        let call = server.expect(ALL).await;
        assert!(call.line.contains("fieldSelector=metadata.name%3Dnode-a"), "{}", call.line);
        let watch = call.watch();
        watch.line(&node("ADDED", 5, json!({ "other": "x" })));
        assert_eq!(next(&mut label).await, Label::Absent);
        watch.line(&node("MODIFIED", 6, json!({ KEY: "a100" })));
        assert_eq!(next(&mut label).await, Label::Value("a100".to_owned()));
        watch.line(&node("MODIFIED", 7, json!({ KEY: "a100", "other": "y" })));
        watch.line(&node("DELETED", 8, json!({})));
        drop(watch);
        let watch = server.expect("resourceVersion=8").await.watch();
        assert!(!label.has_changed().unwrap());
        watch.line(&node("ADDED", 9, Value::Null));
        assert_eq!(next(&mut label).await, Label::Absent);
    }

    #[tokio::test]
    async fn what_is_known_stays_while_the_server_is_away() {
        let (cluster, mut server) = script();
        let mut label = node_label(&cluster, "node-a", KEY);
        let why = "the API server has not answered yet".to_owned();
        assert_eq!(*label.borrow_and_update(), Label::Unknown(why));
        server.expect(ALL).await.refuse(403, "Forbidden", "nodes \"node-a\" is forbidden");
        let why = "watch Node `node-a`: nodes \"node-a\" is forbidden".to_owned();
        assert_eq!(next(&mut label).await, Label::Unknown(why));

        let watch = server.expect(ALL).await.watch();
        watch.line(&node("ADDED", 5, json!({ KEY: "a100" })));
        assert_eq!(next(&mut label).await, Label::Value("a100".to_owned()));
        drop(watch);
        server.expect("resourceVersion=5").await.hang_up();
        let watch = server.expect("resourceVersion=5").await.watch();
        let gone =
            json!({ "kind": "Status", "code": 410, "reason": "Expired", "message": "too old" });
        watch.line(&json!({ "type": "ERROR", "object": gone }));
        drop(watch);
        let call = server.expect(ALL).await;
        assert!(!call.line.contains("resourceVersion=5"), "{}", call.line);
        assert!(!label.has_changed().unwrap());
    }

    #[tokio::test]
    async fn it_ends_when_nobody_listens() {
        let (cluster, mut server) = script();
        let label = node_label(&cluster, "node-a", KEY);
        let watch = server.expect(ALL).await.watch();
        drop(label);
        let closed = async {
            while watch.is_open() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(STUCK, closed).await.unwrap();
    }
}
