//! Watches the driver's own slices: which of them changed, not what is in them.

use std::{collections::BTreeMap, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::StreamExt;
use k8s_openapi::{
    api::resource::v1::ResourceSlice, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::{ObjectList, PartialObjectMeta, WatchEvent};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::cluster::slices::{Events, Slices};

/// How long the server is asked to keep a watch open.
pub(super) const WATCH: Duration = Duration::from_secs(290);
/// How much longer or shorter a watch may last without anything being wrong.
pub(super) const SLACK: Duration = Duration::from_secs(10);
/// A watch that ends sooner is not begun again at once.
pub(super) const STEADY: Duration = Duration::from_secs(1);

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// From here on nothing is missed; what came before may have been.
    Connected {
        /// Whether the server was away and may be another one now.
        after_loss: bool,
    },
    /// Nothing is seen any more. One line.
    Lost(String),
    /// A slice was made or changed.
    Written {
        /// Its name.
        name: String,
        /// Its version.
        version: u64,
    },
    /// A slice was deleted.
    Deleted {
        /// Its name.
        name: String,
    },
}

/// How a watch ended.
enum End {
    /// As it should.
    Timeout,
    /// The server closed it early, as it does when it stops.
    Early,
    /// The version to go on from is too old.
    Expired,
    /// It broke.
    Broken(String),
    /// Nobody listens.
    Unheard,
}

/// Tells `seen` about the slices until nobody listens.
pub(super) async fn watch(slices: Slices, backoff: ExponentialBuilder, seen: mpsc::Sender<Seen>) {
    let mut from = String::new();
    let mut lost = false;
    let mut delays = backoff.build();
    loop {
        let began = Instant::now();
        let end = match slices.watch(&from).await {
            Ok(events) => {
                let news = lost || from.is_empty();
                if news && seen.send(Seen::Connected { after_loss: lost }).await.is_err() {
                    return;
                }
                lost = false;
                follow(events, &mut from, &seen).await
            }
            Err(error) => End::Broken(error.to_string()),
        };
        match end {
            End::Timeout => (),
            End::Early => lost = true,
            End::Expired => from.clear(),
            End::Broken(why) => {
                lost = true;
                if seen.send(Seen::Lost(why)).await.is_err() {
                    return;
                }
            }
            End::Unheard => return,
        }
        if began.elapsed() >= STEADY {
            delays = backoff.build();
        }
        // The first delay is short, and a server that sends one away at once is not asked in a loop.
        sleep(delays.next().unwrap_or(STEADY)).await;
    }
}

async fn follow(mut events: Events, from: &mut String, seen: &mpsc::Sender<Seen>) -> End {
    let began = Instant::now();
    let all = async {
        while let Some(event) = events.next().await {
            if let Err(end) = pass_on(event, from, seen).await {
                return end;
            }
        }
        if began.elapsed() + SLACK < WATCH { End::Early } else { End::Timeout }
    };
    let silent = || End::Broken("watch ResourceSlices: the server fell silent".to_owned());
    timeout(WATCH + SLACK, all).await.unwrap_or_else(|_| silent())
}

/// HTTP's 410: the version to go on from is too old.
pub(super) const GONE: u16 = 410;

async fn pass_on(
    event: Result<WatchEvent<PartialObjectMeta<ResourceSlice>>, String>,
    from: &mut String,
    seen: &mpsc::Sender<Seen>,
) -> Result<(), End> {
    let broken = |why: String| End::Broken(format!("watch ResourceSlices: {why}"));
    let news = match event.map_err(broken)? {
        WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
            let version = version(&slice.metadata);
            advance(from, slice.metadata.resource_version);
            Seen::Written { name: slice.metadata.name.unwrap_or_default(), version }
        }
        WatchEvent::Deleted(slice) => {
            advance(from, slice.metadata.resource_version);
            Seen::Deleted { name: slice.metadata.name.unwrap_or_default() }
        }
        WatchEvent::Bookmark(mark) => {
            advance(from, Some(mark.metadata.resource_version));
            return Ok(());
        }
        WatchEvent::Error(status) if status.code == GONE => return Err(End::Expired),
        WatchEvent::Error(status) => return Err(broken(status.message)),
    };
    seen.send(news).await.map_err(|_| End::Unheard)
}

fn advance(from: &mut String, to: Option<String>) {
    if let Some(to) = to {
        *from = to;
    }
}

/// Versions of one kind of object are decimal numbers that grow. An unreadable one counts as new.
fn version(metadata: &ObjectMeta) -> u64 {
    metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX)
}

/// The slices as they were last read or written here, which tells one's own changes from others'.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Version of each, by name.
    versions: BTreeMap<String, u64>,
    /// Version at which all of them were read, if they were: what is older is no news.
    read_at: Option<u64>,
}

impl Known {
    pub(super) fn read(list: &ObjectList<ResourceSlice>) -> Self {
        let named =
            |slice: &ResourceSlice| Some((slice.metadata.name.clone()?, version(&slice.metadata)));
        let read_at = list.metadata.resource_version.as_deref().unwrap_or_default().parse();
        let read_at = Some(read_at.unwrap_or(0));
        Self { versions: list.iter().filter_map(named).collect(), read_at }
    }

    /// Notes that a slice was written here.
    pub(super) fn wrote(&mut self, slice: &ResourceSlice) {
        if let Some(name) = &slice.metadata.name {
            self.versions.insert(name.clone(), version(&slice.metadata));
        }
    }

    /// Notes that a slice is gone; tells whether it was known.
    pub(super) fn forget(&mut self, name: &str) -> bool {
        self.versions.remove(name).is_some()
    }

    /// Whether this version is neither read nor written here; nothing is before the first read.
    pub(super) fn is_news(&self, name: &str, version: u64) -> bool {
        self.read_at.is_some_and(|read_at| version > read_at)
            && self.versions.get(name).is_none_or(|&known| version > known)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }
}
