//! Load: what processes do to a GPU, and what that costs over time.

use serde::{Deserialize, Serialize};

use crate::{
    spec::{Board, MigSpec, Spec},
    state::{GpuState, Instance, Process},
};

/// All of a GPU or an instance: activity is counted in these.
pub(crate) const WHOLE: u64 = 10_000;
/// A GPU's distance from the warmth that suits its load halves in this many microseconds.
const HALF_LIFE: u64 = 15_000_000;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Load {
    /// How busy it keeps the GPU or its compute instance, in percent.
    pub utilization: u32,
    /// GPU memory that it uses, in bytes.
    pub memory: u64,
}

impl Default for Load {
    /// All of the GPU, and little memory.
    fn default() -> Self {
        Self { utilization: 100, memory: 256 << 20 }
    }
}

/// What has been added up to a time, which is when the load last changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Meter {
    /// The time, in microseconds since 1970.
    at: u64,
    /// Energy since the driver was loaded, in nanojoules.
    energy: u64,
    /// In thousandths of a degree Celsius.
    warmth: u64,
    /// Activity times microseconds.
    work: u64,
}

/// What sensors show at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sensors {
    /// Of [`WHOLE`].
    pub(crate) activity: u64,
    /// In milliwatts.
    pub(crate) power: u64,
    /// Since the driver was loaded, in nanojoules.
    pub(crate) energy: u64,
    /// In thousandths of a degree Celsius.
    pub(crate) warmth: u64,
    /// Activity times microseconds.
    pub(crate) work: u64,
}

impl Meter {
    /// Of a driver that was loaded just now, on a GPU that has long been idle.
    pub(crate) fn begin(board: &Board, now: u64) -> Self {
        Self { at: now, energy: 0, warmth: board.warmth(0), work: 0 }
    }
}

impl Board {
    /// In milliwatts.
    fn power(&self, activity: u64) -> u64 {
        self.idle_power + (self.most_power - self.idle_power) * activity / WHOLE
    }

    /// Where it ends up, in thousandths of a degree Celsius.
    fn warmth(&self, activity: u64) -> u64 {
        1000 * self.cool + 1000 * (self.hot - self.cool) * activity / WHOLE
    }
}

impl GpuState {
    /// What sensors show now.
    pub(crate) fn sensors(&self, spec: &Spec, now: u64) -> Sensors {
        let (activity, passed) = (self.activity(spec), now.saturating_sub(self.meter.at));
        let power = spec.board.power(activity);
        Sensors {
            activity,
            power,
            energy: self.meter.energy + power * passed,
            warmth: approach(self.meter.warmth, spec.board.warmth(activity), passed),
            work: self.meter.work + activity * passed,
        }
    }

    /// An instance's activity times microseconds.
    pub(crate) fn work_of(&self, mig: &MigSpec, instance: &Instance, now: u64) -> u64 {
        let passed = now.saturating_sub(self.meter.at);
        instance.work + self.activity_of(mig, instance) * passed
    }

    /// Adds up what was until now. The load, who runs and on what, stays as it is meanwhile.
    pub(crate) fn add_up(&mut self, spec: &Spec, now: u64) {
        let Sensors { energy, warmth, work, .. } = self.sensors(spec, now);
        if let Some(mig) = &spec.mig {
            let works = self.instances.iter().map(|instance| self.work_of(mig, instance, now));
            let works: Vec<_> = works.collect();
            for (instance, work) in self.instances.iter_mut().zip(works) {
                instance.work = work;
            }
        }
        self.meter = Meter { at: now, energy, warmth, work };
    }

    /// How much of the GPU is busy.
    fn activity(&self, spec: &Spec) -> u64 {
        let Some(mig) = spec.mig.as_ref().filter(|_| self.mig.0) else {
            return busy(self.processes.iter());
        };
        let part = |instance: &Instance| {
            let profile = mig.by_id(instance.profile);
            let slices = profile.map_or(0, |profile| profile.slices);
            self.activity_of(mig, instance) * u64::from(slices)
        };
        self.instances.iter().map(part).sum::<u64>() / u64::from(mig.slices)
    }

    /// How much of an instance is busy.
    fn activity_of(&self, mig: &MigSpec, instance: &Instance) -> u64 {
        let slices = mig.by_id(instance.profile).map_or(1, |profile| profile.slices);
        let part = |ci: &crate::state::Compute| {
            let here = Some((instance.id, ci.id));
            let within = self.processes.iter().filter(move |process| process.instance == here);
            busy(within) * u64::from(ci.size)
        };
        instance.compute.iter().map(part).sum::<u64>() / u64::from(slices)
    }
}

/// What these keep busy together of what they share.
fn busy<'p>(processes: impl Iterator<Item = &'p Process>) -> u64 {
    let percent = processes.map(|process| u64::from(process.load.utilization));
    (percent.sum::<u64>() * WHOLE / 100).min(WHOLE)
}

/// From one value towards another: half of the way each half-life, in a straight line within one.
fn approach(from: u64, to: u64, passed: u64) -> u64 {
    let halvings = u32::try_from(passed / HALF_LIFE).unwrap_or(u32::MAX);
    let straight = 2 * HALF_LIFE - passed % HALF_LIFE;
    let left = from.abs_diff(to).checked_shr(halvings).unwrap_or(0);
    let left = left * straight / (2 * HALF_LIFE);
    if from < to { to - left } else { to + left }
}

#[cfg(test)]
mod tests;
