//! Which NVML calls are under way, so that one that hangs can be named.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The calls under way; clones share one list.
#[derive(Clone, Debug, Default)]
pub struct Calls {
    underway: Arc<Mutex<Underway>>,
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
        underway.calls.remove(&self.id);
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
}
