//! Keeps the node's ResourceSlices as they are wanted, whatever happens to them.
//!
//! One task decides when to look: at a new wish, when the kubelet or the watch says that something
//! happened, and again after a failure. What a look does is in `converge`.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};

use crate::{
    cluster::{
        Cluster, Error, PublishSettings,
        converge::Converger,
        events::Events,
        features,
        slices::Slices,
        watch::{Seen, watch as watch_slices},
    },
    metrics::{Metrics, Outcome},
    model::pool::{Features, SliceContent},
};

/// What is to be published.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// What it was made for. Nothing is written while the server has other features: overlapping
    /// devices without their counters would all be given out.
    pub features: Features,
    /// One for each slice, in the order in which the scheduler is to try them. None at all is
    /// published as one slice without devices: the driver is there, and has nothing.
    pub content: Vec<SliceContent>,
}

/// What the API server keeps, and what it had when this was first asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Server {
    /// Optional fields.
    pub features: Features,
    /// Slices of an agent before this one, by index: their order is worth keeping.
    pub found: Vec<SliceContent>,
}

/// How far publishing is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// Number of slices.
    pub slices: usize,
    /// Generation of the pool.
    pub generation: i64,
    /// When the server's slices were last made or found to be the wanted ones.
    pub at: Option<SystemTime>,
    /// What stands in the way at the moment, in one line.
    pub error: Option<String>,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug)]
struct Pace {
    /// After somebody else's change, for more of them to come.
    settle: Duration,
    /// Between two writes of a slice's order.
    order: Duration,
    /// Before the same invalid slice is sent again.
    refused: Duration,
    /// Between attempts, jitter not counted: at least and at most.
    retry: (Duration, Duration),
}

impl Pace {
    const STANDARD: Self = Self {
        settle: Duration::from_secs(1),
        order: Duration::from_secs(10),
        refused: Duration::from_secs(30),
        retry: (Duration::from_millis(50), Duration::from_secs(15)),
    };

    fn backoff(&self) -> ExponentialBuilder {
        let (least, most) = self.retry;
        let builder = ExponentialBuilder::new().with_min_delay(least).with_max_delay(most);
        // A restart of the API server hits every node at once; their return should not.
        builder.with_factor(2.0).with_jitter().without_max_times()
    }
}

/// Keeps the slices of `settings` as `desired`, until nobody can change that any more; they stay when
/// this ends.
///
/// Asks the server for its [`Features`] first and after each time it was away, and puts them into
/// `server`, for which the caller makes `desired`. A change of `kicks` says that the kubelet has
/// registered the driver since, and may have deleted slices. `state` follows; what needs a person's
/// attention goes to `events` as well.
pub async fn publish(
    cluster: Cluster,
    settings: PublishSettings,
    channels: Channels,
    events: Events,
    metrics: Metrics,
) {
    let Channels { desired, kicks, state, server } = channels;
    let publisher = Publisher {
        converger: Converger::new(cluster.clone(), settings.clone()),
        cluster,
        settings,
        pace: Pace::STANDARD,
        desired,
        kicks,
        state,
        server,
        events,
        metrics,
        due: None,
        delays: Pace::STANDARD.backoff().build(),
        ask: true,
        blind: None,
        failed: None,
    };
    publisher.keep().await;
}

/// What a publisher hears and says.
pub struct Channels {
    /// What is to be published; nothing before it is known.
    pub desired: watch::Receiver<Option<Arc<Desired>>>,
    /// Changes when all has to be looked at anew.
    pub kicks: watch::Receiver<u64>,
    /// How far it is.
    pub state: watch::Sender<Published>,
    /// What the server keeps, and had.
    pub server: watch::Sender<Option<Server>>,
}

struct Publisher {
    cluster: Cluster,
    settings: PublishSettings,
    pace: Pace,
    converger: Converger,
    desired: watch::Receiver<Option<Arc<Desired>>>,
    kicks: watch::Receiver<u64>,
    state: watch::Sender<Published>,
    server: watch::Sender<Option<Server>>,
    events: Events,
    metrics: Metrics,
    /// When to look at the slices next.
    due: Option<Instant>,
    delays: ExponentialBackoff,
    /// Whether the server has to be asked for its features.
    ask: bool,
    /// Why changes by others are not seen.
    blind: Option<String>,
    /// Why the last attempt failed.
    failed: Option<Error>,
}

impl Publisher {
    async fn keep(self) {
        let (tell, seen) = mpsc::channel(64);
        let slices = Slices::new(&self.cluster, &self.settings);
        tokio::select! {
            () = watch_slices(slices, self.pace.backoff(), tell) => (),
            () = self.run(seen) => (),
        }
    }

    async fn run(mut self, mut seen: mpsc::Receiver<Seen>) {
        loop {
            let due = self.due;
            tokio::select! {
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.renew(),
                    Err(_) => return,
                },
                () = kicked(&mut self.kicks) => self.now(),
                Some(seen) = seen.recv() => self.note(seen),
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.step().await,
            }
        }
    }

    fn renew(&mut self) {
        self.converger.forget_altered();
        self.now();
    }

    fn now(&mut self) {
        self.due = Some(Instant::now());
        self.delays = self.pace.backoff().build();
    }

    fn no_later_than(&mut self, then: Instant) {
        self.due = Some(self.due.map_or(then, |due| due.min(then)));
    }

    fn note(&mut self, seen: Seen) {
        match seen {
            Seen::Connected { after_loss } => {
                self.blind = None;
                self.ask |= after_loss;
                self.now();
            }
            Seen::Lost(why) => {
                tracing::warn!(%why, "changes of ResourceSlices are not seen");
                self.blind = Some(why);
                // The first look waits for the watch, but not for ever.
                if self.due.is_none() && self.state.borrow().at.is_none() {
                    self.now();
                }
                self.tell();
            }
            Seen::Written { name, version } => {
                if self.converger.known.is_news(&name, version) {
                    tracing::info!(slice = name, "somebody else changed a ResourceSlice");
                    self.no_later_than(Instant::now() + self.pace.settle);
                }
            }
            Seen::Deleted { name } => self.note_deleted(&name),
        }
    }

    fn note_deleted(&mut self, name: &str) {
        if !self.converger.known.forget(name) {
            return;
        }
        tracing::info!(slice = name, "somebody else deleted a ResourceSlice");
        if self.converger.known.is_empty() {
            // A kubelet does that when it starts, and nothing more will come.
            self.now();
        } else {
            self.no_later_than(Instant::now() + self.pace.settle);
        }
    }

    async fn step(&mut self) {
        self.due = None;
        match self.attempt().await {
            Ok(()) => {
                self.metrics.published(Outcome::Ok);
                self.delays = self.pace.backoff().build();
                self.failed = None;
            }
            Err(error) => self.failed(error),
        }
        for complaint in self.converger.complaints() {
            tracing::warn!(%complaint, "publish ResourceSlices");
            self.events.warn_node("ResourceSliceAltered", &complaint);
            // A feature may have been switched off since.
            self.ask = true;
            self.no_later_than(Instant::now());
        }
        self.tell();
    }

    fn failed(&mut self, error: Error) {
        let refused = matches!(error, Error::Invalid { .. });
        self.metrics.published(if refused { Outcome::Refused } else { Outcome::Failed });
        let delay = match error {
            Error::Invalid { .. } => self.pace.refused,
            _ => self.delays.next().unwrap_or(self.pace.refused),
        };
        self.no_later_than(Instant::now() + delay);
        if self.failed.as_ref() != Some(&error) {
            tracing::warn!(%error, "publish ResourceSlices");
            if matches!(error, Error::Invalid { .. }) {
                self.events.warn_node("ResourceSliceInvalid", &error.to_string());
            }
        }
        self.failed = Some(error);
    }

    async fn attempt(&mut self) -> Result<(), Error> {
        if self.ask {
            self.ask_features().await?;
        }
        let Some(desired) = self.latest() else { return Ok(()) };
        if self.server.borrow().as_ref().map(|server| server.features) != Some(desired.features) {
            // The wish for the new features is on its way.
            return Ok(());
        }
        let done = self.converger.converge(&desired.content, self.pace.order).await?;
        self.state.send_modify(|state| {
            state.slices = done.slices;
            state.generation = done.generation;
            state.at = Some(SystemTime::now());
        });
        if let Some(then) = done.order_due {
            self.no_later_than(then);
        }
        Ok(())
    }

    /// The newest wish, which may be younger than the one that `changed` told of.
    fn latest(&mut self) -> Option<Arc<Desired>> {
        if self.desired.has_changed().unwrap_or(false) {
            self.converger.forget_altered();
        }
        self.desired.borrow_and_update().clone()
    }

    async fn ask_features(&mut self) -> Result<(), Error> {
        self.ask = true;
        let features = features(&self.cluster, &self.settings).await?;
        let found = self.server.borrow().as_ref().map(|server| server.found.clone());
        let found = match found {
            Some(found) => found,
            None => self.converger.found().await?,
        };
        self.ask = false;
        self.server.send_if_modified(|known| {
            let news = known.as_ref().map(|known| known.features) != Some(features);
            if news {
                tracing::info!(?features, "the API server's optional ResourceSlice fields");
                *known = Some(Server { features, found });
            }
            news
        });
        Ok(())
    }

    fn tell(&self) {
        let failed = self.failed.as_ref().map(ToString::to_string);
        let error = failed.or_else(|| self.blind.clone());
        self.state.send_if_modified(|state| {
            let news = state.error != error;
            state.error = error;
            news
        });
    }
}

/// The next kick; never, when nobody can give one any more.
async fn kicked(kicks: &mut watch::Receiver<u64>) {
    if kicks.changed().await.is_err() {
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests;
