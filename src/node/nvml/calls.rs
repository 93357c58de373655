//! Which NVML calls are under way, so that one that hangs can be named.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// The calls under way; clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    underway: Arc<Mutex<Underway>>,
    observer: Arc<OnceLock<Observer>>,
}

/// Who is told of each call that ended.
struct Observer(Box<dyn Fn(&'static str, Duration) + Send + Sync>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

#[derive(Debug, Default)]
struct Underway {
    next: u64,
    calls: BTreeMap<u64, Call>,
}

/// A call that has not come back yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// NVML function.
    pub function: &'static str,
    /// NVML index of the GPU; absent for a call about the node.
    pub gpu: Option<u32>,
    /// When it began.
    pub since: Instant,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.since.elapsed().as_secs();
        write!(f, "{} has not answered for {seconds} s", self.function)
    }
}

impl Calls {
    /// Notes that a call begins; it ends when the result is dropped.
    #[must_use]
    pub fn enter(&self, function: &'static str, gpu: Option<u32>) -> Entered {
        let mut underway = self.underway.lock().unwrap_or_else(PoisonError::into_inner);
        let id = underway.next;
        underway.next += 1;
        underway.calls.insert(id, Call { function, gpu, since: Instant::now() });
        Entered { calls: self.clone(), id }
    }

    /// Tells `observer` of each call that ends from now on: the function, and how long it took. It is told
    /// by the threads that call. Only the first observer is heard.
    pub fn observed_by(&self, observer: impl Fn(&'static str, Duration) + Send + Sync + 'static) {
        self.observer.get_or_init(|| Observer(Box::new(observer)));
    }

    /// Calls that have been under way for longer than `limit`, oldest first.
    pub fn longer_than(&self, limit: Duration) -> Vec<Call> {
        let underway = self.underway.lock().unwrap_or_else(PoisonError::into_inner);
        let calls = underway.calls.values().filter(|call| call.since.elapsed() > limit);
        calls.copied().collect()
    }
}

/// A call under way.
#[derive(Debug)]
pub struct Entered {
    calls: Calls,
    id: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut underway = self.calls.underway.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = underway.calls.remove(&self.id);
        drop(underway);
        if let (Some(call), Some(Observer(told))) = (ended, self.calls.observer.get()) {
            told(call.function, call.since.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_listed_until_it_ends() {
        let calls = Calls::default();
        let slow = calls.enter("nvmlDeviceGetName", Some(3));
        drop(calls.enter("nvmlDeviceGetCount_v2", None));
        let listed = calls.longer_than(Duration::ZERO);
        assert_eq!(
            listed.iter().map(|call| (call.function, call.gpu)).collect::<Vec<_>>(),
            [("nvmlDeviceGetName", Some(3))]
        );
        drop(slow);
        assert_eq!(calls.longer_than(Duration::ZERO), []);
    }

    #[test]
    fn a_call_is_told_when_it_has_ended_and_to_the_first_who_asked() {
        let calls = Calls::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        drop(calls.enter("nvmlInitWithFlags", None));
        let (clone, listener) = (calls.clone(), told.clone());
        calls.observed_by(move |function, _| {
            // It may look at the calls, as no lock is held.
            listener.lock().unwrap().push((function, clone.longer_than(Duration::ZERO).len()));
        });
        calls.observed_by(|_, _| panic!("the second is not heard"));
        let slow = calls.enter("nvmlDeviceGetName", Some(3));
        drop(calls.clone().enter("nvmlDeviceGetCount_v2", None));
        drop(slow);
        let expected = [("nvmlDeviceGetCount_v2", 1), ("nvmlDeviceGetName", 0)];
        assert_eq!(*told.lock().unwrap(), expected);
    }
}
