//! What the device plugin offers, made anew when the GPUs, the records or the configuration change.

use std::{
    collections::{BTreeMap, BTreeSet},
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
    device::Target,
    plugin::{
        carving,
        config::{Config, IdStrategy},
        id::DeviceId,
        offer::{self, Offer, OfferInput, Offered},
        prefer::{self, Candidate, Part},
    },
    record::Held,
    unread::Withheld,
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
    /// Rises when it is to be told again though it is the same.
    pub repeats: u64,
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

    /// Keeps the offer up to date, and the CDI file of what is offered: a container that starts again after a reboot
    /// is not allocated anew.
    pub async fn describe_offer(self: Arc<Self>) {
        let mut machine = self.machine.watch();
        let mut ledger = self.ledger_changes();
        let mut config = self.plugin.clone();
        let mut health = self.health.watch();
        loop {
            machine.mark_unchanged();
            ledger.mark_unchanged();
            config.mark_unchanged();
            health.mark_unchanged();
            self.renew_offer();
            self.keep_plugin_spec().await;
            tokio::select! {
                Ok(()) = machine.changed() => {}
                Ok(()) = ledger.changed() => {}
                Ok(()) = health.changed() => {}
                // One that nobody changes any more is still one.
                Ok(()) = config.changed() => {}
                else => return,
            }
        }
    }

    async fn keep_plugin_spec(self: &Arc<Self>) {
        if self.machine.nvml().is_err() {
            return;
        }
        if let Err(error) = self.off_thread(Self::write_plugin_spec).await {
            tracing::warn!(error = %error.line(), "the device plugin's CDI file is not as it should be");
        }
    }

    /// Makes the offer anew and tells the streams of what has changed.
    pub(super) fn renew_offer(&self) {
        let Some(config) = self.plugin_config() else { return };
        let (records, withheld) = (self.ledger.all(), self.withheld());
        let held = records.iter().flat_map(|record| record.held());
        let held: Vec<Held<'_>> = held.chain(withheld.iter().flat_map(Withheld::held)).collect();
        let inventory = self.machine.inventory();
        let findings = self.health.findings();
        self.offers.now.send_if_modified(|now| {
            let input = OfferInput {
                inventory: &inventory,
                config: &config,
                held: &held,
                withheld: &withheld,
                findings: &findings,
                on_demand: self.on_demand,
                split: self.split.as_deref(),
            };
            let offer = offer::offer(&input);
            let same = offer == *now.offer;
            if !same {
                now.version += 1;
                now.offer = Arc::new(offer);
            }
            !same
        });
    }

    /// Tells the kubelet again what is offered: with each list that it is told it writes its checkpoint, without
    /// the pods that have ended.
    pub(super) fn repeat_offer(&self) {
        self.offers.now.send_modify(|now| {
            now.version += 1;
            now.repeats += 1;
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

    /// The `size` devices of `available` that a container had best get, `must_include` among them. Only what can
    /// be had now; where that is too little the kubelet chooses by itself, and may be refused.
    pub fn preferred(
        &self,
        resource: &str,
        available: &[String],
        must_include: &[String],
        size: usize,
    ) -> Vec<String> {
        let offer = self.offer();
        let offered = offer.resources.get(resource).map(Vec::as_slice).unwrap_or_default();
        let asked: BTreeSet<&String> = available.iter().collect();
        let free: Vec<&Offered> = offered
            .iter()
            .filter(|device| device.unhealthy.is_none() && asked.contains(&device.id.to_string()))
            .collect();
        if free.iter().any(|device| device.id.is_placement()) {
            return self.preferred_placements(&free, must_include, size);
        }
        let candidates: Vec<_> = free.iter().map(|device| candidate(device, offered)).collect();
        let policy = self.plugin_config().map(|config| config.shared_policy).unwrap_or_default();
        prefer::preferred(&candidates, must_include, size, &self.machine.links(), policy)
    }

    fn preferred_placements(
        &self,
        free: &[&Offered],
        must_include: &[String],
        size: usize,
    ) -> Vec<String> {
        let (records, withheld) = (self.ledger.all(), self.withheld());
        let held = records.iter().flat_map(|record| record.held());
        let held: Vec<Held<'_>> = held.chain(withheld.iter().flat_map(Withheld::held)).collect();
        let free: Vec<_> = free.iter().map(|device| device.id.clone()).collect();
        let must: Vec<_> = must_include.iter().filter_map(|id| DeviceId::parse(id)).collect();
        let inventory = self.machine.inventory();
        let chosen = carving::best_fit(&inventory, &held, &free, &must, size);
        chosen.iter().map(DeviceId::to_string).collect()
    }

    pub(super) fn plugin_config(&self) -> Option<Arc<Config>> {
        self.plugin.borrow().clone()
    }

    pub(super) fn id_strategy(&self) -> IdStrategy {
        self.plugin_config().map(|config| config.id_strategy).unwrap_or_default()
    }
}

/// A device as it is chosen from, beside the others of its resource.
fn candidate(device: &Offered, offered: &[Offered]) -> Candidate {
    let of = device.id.device_name();
    let part = match (&device.target, device.id.share_number()) {
        (_, Some(_)) => {
            let shares = offered.iter().filter(|one| one.taken && one.id.device_name() == of);
            Part::Share { taken: u32::try_from(shares.count()).unwrap_or(u32::MAX), of }
        }
        (Target::Gpu { .. }, None) => Part::Whole,
        (Target::Mig { .. }, None) => Part::Mig,
    };
    Candidate {
        id: device.id.to_string(),
        gpu: device.target.gpu().clone(),
        numa: device.numa_node,
        part,
    }
}

impl Offers {
    fn all_sent(&self, version: u64) -> bool {
        let streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        streams.values().all(|sent| sent.load(Ordering::SeqCst) >= version)
    }
}
