//! What the agent measures of itself: every instrument by name, in one place.
//!
//! Callers hold a [`Metrics`], which is cheap to clone, and write one line:
//! `let timed = metrics.prepare(Door::Dra); … timed.end(Outcome::Ok);`. A timer that is dropped without an end
//! counts as failed: the call gave up, or was given up.

mod instrument;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use self::instrument::{Counters, Histograms};
use crate::model::{
    exposition::{Family, Labels},
    gpu::GpuUuid,
    holder::Holder,
};

/// Seconds, from what takes no time to what the kubelet gives up on (45 s) and beyond.
const CALL_BUCKETS: &[f64] = &[0.0005, 0.002, 0.01, 0.05, 0.2, 1.0, 5.0, 15.0, 60.0];

/// Few: there is one set for each function.
const NVML_BUCKETS: &[f64] = &[0.0005, 0.005, 0.05, 0.5, 5.0, 60.0];

/// The instruments.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Instruments>);

#[derive(Debug)]
struct Instruments {
    prepare: Histograms<(Door, Outcome)>,
    unprepare: Histograms<(Door, Outcome)>,
    gpu_lock_wait: Histograms<()>,
    nvml_call: Histograms<&'static str>,
    carved: Counters<String>,
    destroyed: Counters<String>,
    publishes: Counters<Outcome>,
    recoveries: Counters<Recovered>,
    evictions: Counters<Outcome>,
    xids: Counters<(u32, GpuUuid, u32)>,
}

/// By which of the kubelet's interfaces a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Door {
    /// A claim.
    Dra,
    /// An extended resource.
    DevicePlugin,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// As asked.
    Ok,
    /// Not to be done, and nothing was.
    Refused,
    /// Begun, or about to be.
    Failed,
}

/// What came back to order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Recovered {
    /// What a crash had left of a claim.
    Record,
    /// A GPU that had not answered.
    Gpu,
}

impl Door {
    /// By which a holder came.
    pub fn of(holder: &Holder) -> Self {
        match holder {
            Holder::Claim(_) => Self::Dra,
            Holder::Container(_) => Self::DevicePlugin,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Dra => "dra",
            Self::DevicePlugin => "device-plugin",
        }
    }
}

impl Outcome {
    fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Recovered {
    fn label(self) -> &'static str {
        match self {
            Self::Record => "record",
            Self::Gpu => "gpu",
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self(Arc::new(Instruments {
            prepare: Histograms::new(CALL_BUCKETS),
            unprepare: Histograms::new(CALL_BUCKETS),
            gpu_lock_wait: Histograms::new(CALL_BUCKETS),
            nvml_call: Histograms::new(NVML_BUCKETS),
            carved: Counters::default(),
            destroyed: Counters::default(),
            publishes: Counters::default(),
            recoveries: Counters::default(),
            evictions: Counters::default(),
            xids: Counters::default(),
        }))
    }
}

impl Metrics {
    /// Begins to prepare a claim, or what a container was given.
    pub fn prepare(&self, door: Door) -> Timed {
        self.timed(What::Prepare, door)
    }

    /// Begins to take it back.
    pub fn unprepare(&self, door: Door) -> Timed {
        self.timed(What::Unprepare, door)
    }

    fn timed(&self, what: What, door: Door) -> Timed {
        let (begin, outcome) = (Instant::now(), Some(Outcome::Failed));
        Timed { metrics: self.clone(), what, door, begin, outcome }
    }

    /// A GPU's lock was waited for.
    pub fn gpu_lock_waited(&self, wait: Duration) {
        self.0.gpu_lock_wait.observe((), wait);
    }

    /// An NVML function answered, or its call failed.
    pub fn nvml_called(&self, function: &'static str, took: Duration) {
        self.0.nvml_call.observe(function, took);
    }

    /// An instance of the profile was made.
    pub fn carved(&self, profile: &str) {
        self.0.carved.add(profile.to_owned());
    }

    /// An instance of the profile was destroyed.
    pub fn destroyed(&self, profile: &str) {
        self.0.destroyed.add(profile.to_owned());
    }

    /// The pool was written to the API server, or was to be.
    pub fn published(&self, outcome: Outcome) {
        self.0.publishes.add(outcome);
    }

    /// Something came back to order.
    pub fn recovered(&self, what: Recovered) {
        self.0.recoveries.add(what);
    }

    /// A pod was asked to leave a GPU.
    pub fn evicted(&self, outcome: Outcome) {
        self.0.evictions.add(outcome);
    }

    /// A GPU with this index reported an XID.
    pub fn xid(&self, index: u32, gpu: &GpuUuid, code: u32) {
        self.0.xids.add((index, gpu.clone(), code));
    }

    /// What was measured until now.
    pub fn families(&self) -> Vec<Family> {
        let mut families = vec![build_info()];
        families.extend(self.durations());
        families.extend(self.counts());
        families
    }

    fn durations(&self) -> [Family; 4] {
        let of = |(door, outcome): &(Door, Outcome)| {
            Labels::new([("door", door.label()), ("outcome", outcome.label())])
        };
        [
            self.0.prepare.family(
                "kerf_prepare_duration_seconds",
                "Time to prepare a claim or what a container was given.",
                of,
            ),
            self.0.unprepare.family(
                "kerf_unprepare_duration_seconds",
                "Time to take back what was prepared.",
                of,
            ),
            self.0.gpu_lock_wait.family(
                "kerf_gpu_lock_wait_seconds",
                "Time that a change waited for other changes of its GPU.",
                |()| Labels::default(),
            ),
            self.0.nvml_call.family(
                "kerf_nvml_call_duration_seconds",
                "Time of calls of the driver's library.",
                |function| Labels::new([("function", *function)]),
            ),
        ]
    }

    fn counts(&self) -> [Family; 6] {
        let profile = |profile: &String| Labels::new([("profile", &**profile)]);
        let outcome = |outcome: &Outcome| Labels::new([("outcome", outcome.label())]);
        let of_gpu = |(index, gpu, code): &(u32, GpuUuid, u32)| {
            let (index, code) = (index.to_string(), code.to_string());
            Labels::new([("gpu", &*index), ("UUID", &*gpu.0), ("xid", &*code)])
        };
        [
            self.0.carved.family("kerf_instances_carved_total", "GPU instances made.", profile),
            self.0.destroyed.family(
                "kerf_instances_destroyed_total",
                "GPU instances destroyed.",
                profile,
            ),
            self.0.publishes.family(
                "kerf_publishes_total",
                "Writes of the node's pool to the API server.",
                outcome,
            ),
            self.0.recoveries.family("kerf_recoveries_total", "What came back to order.", |what| {
                Labels::new([("what", what.label())])
            }),
            self.0.evictions.family(
                "kerf_evictions_total",
                "Pods asked to leave a GPU that is unhealthy.",
                outcome,
            ),
            self.0.xids.family("kerf_xids_total", "XIDs that GPUs reported.", of_gpu),
        ]
    }
}

fn build_info() -> Family {
    let mut family = Family::gauge("kerf_build_info", "The program that runs, as labels.");
    family.add(Labels::new([("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    family
}

/// Whether the agent is ready: what stands in the way of that is for people, at `/readyz`.
pub fn readiness(is_ready: bool) -> Family {
    let help =
        "Whether the agent is ready: 1 if nothing stands in the way, else /readyz says what.";
    let mut family = Family::gauge("kerf_ready", help);
    family.add(Labels::default(), f64::from(u8::from(is_ready)));
    family
}

#[derive(Clone, Copy, Debug)]
enum What {
    Prepare,
    Unprepare,
}

/// Measures until it is ended or cancelled, or dropped, which counts as failed.
#[derive(Debug)]
#[must_use]
pub struct Timed {
    metrics: Metrics,
    what: What,
    door: Door,
    begin: Instant,
    /// Absent for one that does not count.
    outcome: Option<Outcome>,
}

impl Timed {
    /// Ends it.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// Forgets it: there was nothing to do.
    pub fn cancel(mut self) {
        self.outcome = None;
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let Some(outcome) = self.outcome else { return };
        let durations = match self.what {
            What::Prepare => &self.metrics.0.prepare,
            What::Unprepare => &self.metrics.0.unprepare,
        };
        durations.observe((self.door, outcome), self.begin.elapsed());
    }
}

#[cfg(test)]
mod tests;
