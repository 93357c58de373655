//! Faults: what is to go wrong at which call, consulted by every call of every process.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The function's name, such as `nvmlDeviceCreateGpuInstanceWithPlacement`, with or without its
    /// `_v2`; any function if absent, but for a wait for events, which is nothing that a program does.
    pub function: Option<String>,
    /// Index of the GPU whose handle the call is given; any call if absent.
    pub gpu: Option<usize>,
    /// The first call that it strikes, of those that match: 1 is the next.
    pub at: u64,
    /// How many calls that match it strikes from then on.
    pub times: u64,
    /// What happens.
    pub what: Effect,
}

/// What happens to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// It answers this `nvmlReturn_t` and does nothing.
    Fail(u32),
    /// It waits before it does what it does; calls on other GPUs go on meanwhile.
    Delay(Duration),
    /// It waits until the faults are cleared, then does what it does.
    Hang,
    /// The calling process is killed before the call has any effect.
    Kill,
    /// The calling process is killed after the call's effect, before it returns.
    KillAfter,
}

impl Fault {
    /// Strikes the next call of a function, once.
    pub fn next(function: &str, what: Effect) -> Self {
        Self { function: Some(function.to_owned()), gpu: None, at: 1, times: 1, what }
    }

    /// Strikes every call of a function until cleared.
    pub fn always(function: &str, what: Effect) -> Self {
        Self { times: u64::MAX, ..Self::next(function, what) }
    }

    /// The same, for one GPU only.
    pub fn on_gpu(self, gpu: usize) -> Self {
        Self { gpu: Some(gpu), ..self }
    }

    fn matches(&self, function: &str, gpu: Option<usize>) -> bool {
        let named = |name: &String| name == function || name == without_version(function);
        let any = || !waits(function);
        self.function.as_ref().map_or_else(any, named)
            && self.gpu.is_none_or(|only| gpu == Some(only))
    }
}

/// Whether the function waits for events: how often a program does is up to the clock.
fn waits(function: &str) -> bool {
    without_version(function) == "nvmlEventSetWait"
}

/// `nvmlInit` of `nvmlInit_v2`.
fn without_version(function: &str) -> &str {
    match function.rsplit_once("_v") {
        Some((name, version)) if version.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => function,
    }
}

/// The faults of a machine, and how many calls were made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// Changes when the faults are cleared, which is what a hanging call waits for.
    pub(crate) epoch: u64,
    pub(crate) counting: bool,
    pub(crate) calls: u64,
    armed: Vec<Armed>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Armed {
    fault: Fault,
    /// Calls that matched so far.
    seen: u64,
}

impl Armed {
    /// Counts a call that matches and says whether it is struck.
    fn strikes(&mut self) -> bool {
        self.seen += 1;
        self.seen >= self.fault.at && self.seen - self.fault.at < self.fault.times
    }

    fn spent(&self) -> bool {
        self.seen >= self.fault.at.saturating_add(self.fault.times).saturating_sub(1)
    }
}

impl Faults {
    /// Whether calls have to tell of themselves.
    pub(crate) fn watching(&self) -> bool {
        self.counting || !self.armed.is_empty()
    }

    pub(crate) fn arm(&mut self, fault: Fault) {
        self.armed.push(Armed { fault, seen: 0 });
        if !self.counting {
            self.count();
        }
    }

    /// Counts calls from here.
    pub(crate) fn count(&mut self) {
        self.counting = true;
        self.calls = 0;
    }

    /// Drops the faults, lets hanging calls go on, and counts no further.
    pub(crate) fn clear(&mut self) {
        self.epoch += 1;
        self.counting = false;
        self.armed.clear();
    }

    /// Counts a call; the answer is what happens to it.
    pub(crate) fn call(&mut self, function: &str, gpu: Option<usize>) -> Option<Effect> {
        self.calls += u64::from(!waits(function));
        let mut effect = None;
        for armed in &mut self.armed {
            if armed.fault.matches(function, gpu) && armed.strikes() {
                effect = effect.or_else(|| Some(armed.fault.what.clone()));
            }
        }
        self.armed.retain(|armed| !armed.spent());
        effect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_from_its_call_on_as_often_as_it_says() {
        let mut faults = Faults::default();
        faults.arm(Fault { at: 2, times: 2, ..Fault::next("nvmlInit", Effect::Fail(9)) });
        let calls = ["nvmlInit_v2", "nvmlShutdown", "nvmlInit_v2", "nvmlInit", "nvmlInit_v2"];
        let struck = calls.map(|function| faults.call(function, None).is_some());
        assert_eq!(struck, [false, false, true, true, false]);
        assert_eq!(faults.calls, 5);
    }

    #[test]
    fn a_gpus_fault_leaves_the_others_alone() {
        let mut faults = Faults::default();
        faults.arm(Fault::always("nvmlDeviceGetUUID", Effect::Hang).on_gpu(1));
        let mut call = |gpu| faults.call("nvmlDeviceGetUUID", gpu);
        assert_eq!([call(None), call(Some(0)), call(Some(1))], [None, None, Some(Effect::Hang)]);
    }
}
