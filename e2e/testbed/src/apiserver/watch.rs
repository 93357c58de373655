//! Watches: a response that goes on, one JSON event a line.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures::Stream;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::State;
use super::kinds::Kind;
use super::selector::Selector;

/// What a client asked to watch.
pub(super) struct Watch {
    pub(super) kind: &'static Kind,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    /// Changes after this revision; none means what there is, then changes.
    pub(super) from: Option<u64>,
    /// Whether a bookmark ends what there is.
    pub(super) initial_events_end: bool,
    pub(super) timeout: Duration,
}

struct Progress {
    state: Arc<State>,
    watch: Watch,
    news: tokio::sync::watch::Receiver<(u64, u64)>,
    closed: u64,
    /// The last revision that was looked at; none before the first look.
    seen: Option<u64>,
    lines: VecDeque<Bytes>,
    over: bool,
    deadline: Instant,
}

/// The lines of the response. Ends at the deadline, after an error event, or when watches are closed.
pub(super) fn lines(
    state: Arc<State>,
    watch: Watch,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let news = state.news.subscribe();
    let closed = news.borrow().1;
    let deadline = Instant::now() + watch.timeout;
    let seen = if watch.initial_events_end { None } else { watch.from };
    let lines = VecDeque::new();
    let progress = Progress { state, watch, news, closed, seen, lines, over: false, deadline };
    futures::stream::unfold(progress, |mut progress| async {
        let line = progress.next().await?;
        Some((Ok(line), progress))
    })
}

impl Progress {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.over || self.news.borrow_and_update().1 != self.closed {
                return None;
            }
            self.look();
            if self.lines.is_empty() {
                let changed = tokio::time::timeout_at(self.deadline, self.news.changed());
                changed.await.ok()?.ok()?;
            }
        }
    }

    fn look(&mut self) {
        let state = self.state.clone();
        let revision = state.read(|store| {
            match self.seen {
                None => self.initial(store),
                Some(seen) => self.changes(store, seen),
            }
            store.revision()
        });
        self.seen = Some(revision);
    }

    fn initial(&mut self, store: &super::Store) {
        let scope = self.watch.namespace.as_deref();
        let objects = store.list(self.watch.kind, scope, &self.watch.selector);
        self.lines.extend(objects.iter().map(|object| line("ADDED", object)));
        if self.watch.initial_events_end {
            let bookmark = json!({
                "kind": self.watch.kind.kind, "apiVersion": self.watch.kind.api_version(),
                "metadata": {
                    "resourceVersion": store.revision().to_string(), "creationTimestamp": null,
                    "annotations": {"k8s.io/initial-events-end": "true"},
                },
            });
            self.lines.push_back(line("BOOKMARK", &bookmark));
        }
    }

    fn changes(&mut self, store: &super::Store, seen: u64) {
        let Watch { kind, namespace, selector, .. } = &self.watch;
        match store.changes(seen) {
            Ok(changes) => {
                let events = changes.filter_map(|c| c.event(kind, namespace.as_deref(), selector));
                self.lines.extend(events.map(|(name, object)| line(name, &object)));
            }
            Err(expired) => {
                self.lines.push_back(line("ERROR", &expired.status()));
                self.over = true;
            }
        }
    }
}

fn line(name: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{name}\",\"object\":{object}}}\n"))
}
