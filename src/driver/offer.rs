//! What the device plugin offers, made anew when the GPUs, the records or the configuration change.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::Driver;
use crate::model::{
    plugin::{
        config::{Config, IdStrategy},
        offer::{self, Offer, OfferInput},
    },
    record::Held,
};

/// How long an allocation waits for the kubelet to be sent what it changes.
const DELIVERY: Duration = Duration::from_millis(200);

/// What is offered, and how far each stream to the kubelet is.
#[derive(Debug, Default)]
pub(super) struct Offers {
    now: watch::Sender<Versioned>,
    streams: Mutex<BTreeMap<u64, Arc<AtomicU64>>>,
    next: AtomicU64,
    sent: Notify,
}

/// An offer and its number.
#[derive(Clone, Debug, Default)]
pub struct Versioned {
    /// Rises with each change.
    pub version: u64,
    /// What is offered.
    pub offer: Arc<Offer>,
}

/// A stream that tells the kubelet what is offered. Counted until it is dropped.
pub struct Stream {
    driver: Arc<Driver>,
    number: u64,
    sent: Arc<AtomicU64>,
}

impl Stream {
    /// Notes that the kubelet was sent this version.
    pub fn sent(&self, version: u64) {
        self.sent.store(version, Ordering::SeqCst);
        self.driver.offers.sent.notify_waiters();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let offers = &self.driver.offers;
        offers.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        offers.sent.notify_waiters();
    }
}

impl Driver {
    /// What is offered, as it changes.
    pub fn offers(&self) -> watch::Receiver<Versioned> {
        self.offers.now.subscribe()
    }

    /// What is offered now.
    pub fn offer(&self) -> Arc<Offer> {
        self.offers.now.borrow().offer.clone()
    }

    /// A stream to the kubelet begins.
    pub fn stream(self: &Arc<Self>) -> Stream {
        let number = self.offers.next.fetch_add(1, Ordering::SeqCst);
        let sent = Arc::<AtomicU64>::default();
        let mut streams = self.offers.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.insert(number, sent.clone());
        Stream { driver: self.clone(), number, sent }
    }

    /// Keeps the offer up to date for as long as there is a configuration to come.
    pub async fn describe_offer(self: Arc<Self>) {
        let mut machine = self.machine.watch();
        let mut ledger = self.ledger_changes();
        let mut config = self.plugin.clone();
        loop {
            machine.mark_unchanged();
            ledger.mark_unchanged();
            config.mark_unchanged();
            self.renew_offer();
            let changed = tokio::select! {
                changed = machine.changed() => changed,
                changed = ledger.changed() => changed,
                changed = config.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Makes the offer anew and tells the streams of what has changed.
    pub(super) fn renew_offer(&self) {
        let Some(config) = self.plugin_config() else { return };
        let records = self.ledger.all();
        let held: Vec<Held<'_>> = records.iter().flat_map(|record| record.held()).collect();
        let inventory = self.machine.inventory();
        self.offers.now.send_if_modified(|now| {
            let input = OfferInput {
                inventory: &inventory,
                config: &config,
                held: &held,
                on_demand: self.on_demand,
                split: self.split.as_deref(),
            };
            let offer = offer::offer(&input, &now.offer);
            let same = offer == *now.offer;
            if !same {
                *now = Versioned { version: now.version + 1, offer: Arc::new(offer) };
            }
            !same
        });
    }

    /// Makes the offer anew and waits until the kubelet was sent it: what overlaps a device must not be
    /// chosen after the answer.
    pub(super) async fn tell_offer(&self) {
        self.renew_offer();
        let version = self.offers.now.borrow().version;
        let all_sent = async {
            loop {
                let sent = self.offers.sent.notified();
                if self.offers.all_sent(version) {
                    return;
                }
                sent.await;
            }
        };
        if timeout(DELIVERY, all_sent).await.is_err() {
            tracing::debug!("the kubelet is slow to take what is offered");
        }
    }

    /// Those of `available` that a container that needs `size` should get, `must` among them; fewer where fewer are
    /// free.
    pub fn preferred(
        &self,
        resource: &str,
        available: &[String],
        must: &[String],
        size: usize,
    ) -> Vec<String> {
        let offer = self.offer();
        let free = |id: &&String| {
            offer.device(resource, id).is_some_and(|device| device.unhealthy.is_none())
        };
        let rest = available.iter().filter(|id| !must.contains(id)).filter(free);
        must.iter().chain(rest).take(size).cloned().collect()
    }

    pub(super) fn plugin_config(&self) -> Option<Arc<Config>> {
        self.plugin.borrow().clone()
    }

    pub(super) fn id_strategy(&self) -> IdStrategy {
        self.plugin_config().map(|config| config.id_strategy).unwrap_or_default()
    }
}

impl Offers {
    fn all_sent(&self, version: u64) -> bool {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.values().all(|sent| sent.load(Ordering::SeqCst) >= version)
    }
}
