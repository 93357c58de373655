//! Counters and histograms by labels. A label's series begins with its first event.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::model::exposition::{Family, Labels, Series};

/// A counter for each key.
#[derive(Debug)]
pub(super) struct Counters<K>(Mutex<BTreeMap<K, u64>>);

impl<K> Default for Counters<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> Counters<K> {
    pub(super) fn add(&self, key: K) {
        let mut counts = lock(&self.0);
        let count = counts.entry(key).or_default();
        *count = count.saturating_add(1);
    }

    pub(super) fn family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: impl Fn(&K) -> Labels,
    ) -> Family {
        let mut family = Family::counter(name, help);
        lock(&self.0).iter().for_each(|(key, count)| family.add(labels(key), *count as f64));
        family
    }
}

/// A histogram of seconds for each key, all with the same buckets.
#[derive(Debug)]
pub(super) struct Histograms<K> {
    /// Upper bounds, rising; what is above all of them is counted too.
    bounds: &'static [f64],
    by_key: Mutex<BTreeMap<K, Counts>>,
}

#[derive(Debug)]
struct Counts {
    /// One for each bound and one more.
    buckets: Box<[u64]>,
    sum: f64,
}

impl<K: Ord> Histograms<K> {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, by_key: Mutex::default() }
    }

    pub(super) fn observe(&self, key: K, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let mut by_key = lock(&self.by_key);
        let new = || Counts { buckets: vec![0; self.bounds.len() + 1].into(), sum: 0.0 };
        let counts = by_key.entry(key).or_insert_with(new);
        counts.sum += seconds;
        if let Some(count) = counts.buckets.get_mut(bucket) {
            *count = count.saturating_add(1);
        }
    }

    pub(super) fn family(
        &self,
        name: &'static str,
        help: &'static str,
        labels: impl Fn(&K) -> Labels,
    ) -> Family {
        let mut family = Family::histogram(name, help);
        for (key, counts) in lock(&self.by_key).iter() {
            let labels = labels(key);
            let bounds = self.bounds.iter().map(|bound| format!("{bound:?}"));
            let bounds = bounds.chain(["+Inf".to_owned()]);
            let mut below = 0;
            for (bound, count) in bounds.zip(&counts.buckets) {
                below += count;
                let labels = labels.with([("le", &*bound)]);
                family.series.push(Series { suffix: "_bucket", labels, value: below as f64 });
            }
            let sum = Series { suffix: "_sum", labels: labels.clone(), value: counts.sum };
            family.series.extend([sum, Series { suffix: "_count", labels, value: below as f64 }]);
        }
        family
    }
}

/// What a panic left half done is a number that is off by one.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
