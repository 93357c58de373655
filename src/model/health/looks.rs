//! What readings show: which conditions they find, and which they find gone.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Answer, FabricHealth, Readings, rules::Condition};

/// How often `NVML_ERROR_UNKNOWN` has to come before it says something.
const UNKNOWN_ANSWERS: u32 = 3;

/// How long a fabric may take to register a GPU.
const REGISTRATION: SignedDuration = SignedDuration::from_mins(5);

/// What a look finds of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It is there.
    Bad,
    /// It is not enough to begin it, and too much to end it.
    Between,
    /// It is not there.
    Clean,
}

/// What is remembered of a GPU's readings from look to look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Looks {
    uncorrected: Option<u64>,
    pcie_fatal: Option<u64>,
    unknown_answers: u32,
    incomplete_since: Option<Timestamp>,
    thermal: Window,
    power_brake: Window,
}

/// Whether an answer shows that the GPU can be used; absent where it is evidence of nothing.
pub(super) fn usable(answer: &Answer) -> Option<bool> {
    match answer {
        Answer::Good => Some(true),
        Answer::Error(8 | 11 | 14 | 15 | 16 | 28, _) | Answer::Hangs(_) | Answer::Gone => {
            Some(false)
        }
        Answer::Error(..) => None,
    }
}

impl Looks {
    /// What a look shows. A reading that is absent shows nothing.
    pub(super) fn look(&mut self, readings: &Readings, now: Timestamp) -> Vec<(Condition, Shown)> {
        let mut shown = self.answer(readings);
        if let Some(value @ 1..) = readings.recovery_action {
            shown.push((Condition::RecoveryAction(value), Shown::Bad));
        }
        let remapping = readings.remapping;
        let flags = [
            (Condition::RemapPending, remapping.map(|rows| rows.pending)),
            (Condition::RepairPending, readings.repair_pending),
            (Condition::RemapFailed, remapping.map(|rows| rows.failed)),
            (Condition::SramThreshold, readings.sram_threshold_exceeded),
            (Condition::Uncorrected, grew(&mut self.uncorrected, readings.uncorrected_volatile)),
            (Condition::PcieFatal, grew(&mut self.pcie_fatal, readings.pcie_fatal_errors)),
        ];
        shown.extend(flags.into_iter().filter_map(|(of, bad)| Some((of, is(bad?)))));
        if let Some(fabric) = readings.fabric {
            shown.extend(self.fabric(fabric, now));
        }
        let windows = [
            (Condition::Thermal, &mut self.thermal, readings.hardware_thermal_slowdown),
            (Condition::PowerBrake, &mut self.power_brake, readings.power_brake_slowdown),
        ];
        for (condition, window, total) in windows {
            let found = total.and_then(|total| window.look(total, now));
            shown.extend(found.map(|found| (condition, found)));
        }
        shown
    }

    /// By NVML's return codes (`nvmlReturn_t`); those that are not named say nothing of a GPU.
    fn answer(&mut self, readings: &Readings) -> Vec<(Condition, Shown)> {
        let bad = |condition| vec![(condition, Shown::Bad)];
        match &readings.answer {
            Answer::Good => {
                self.unknown_answers = 0;
                let mut clean = vec![
                    Condition::Lost,
                    Condition::Unavailable,
                    Condition::Hangs,
                    Condition::PowerCable,
                    Condition::InfoRom,
                    Condition::UnknownAnswer,
                ];
                if readings.recovery_action.is_none_or(|value| value == 0) {
                    clean.push(Condition::ResetRequired);
                }
                clean.into_iter().map(|condition| (condition, Shown::Clean)).collect()
            }
            Answer::Hangs(_) => bad(Condition::Hangs),
            Answer::Gone | Answer::Error(15 | 28, _) => bad(Condition::Lost),
            Answer::Error(16, _) => bad(Condition::ResetRequired),
            Answer::Error(8, _) => bad(Condition::PowerCable),
            Answer::Error(11, _) => bad(Condition::Interrupts),
            Answer::Error(14, _) => bad(Condition::InfoRom),
            Answer::Error(999, _) => {
                self.unknown_answers = self.unknown_answers.saturating_add(1);
                let enough = self.unknown_answers >= UNKNOWN_ANSWERS;
                if enough { bad(Condition::UnknownAnswer) } else { Vec::new() }
            }
            Answer::Error(..) => Vec::new(),
        }
    }

    /// By `nvmlGpuFabricInfo_v3_t`. In parts of two bits of the mask 1 is yes, 2 is no, and 0 that the
    /// GPU does not tell: a healthy GPU's mask is not 0.
    fn fabric(&mut self, fabric: FabricHealth, now: Timestamp) -> Vec<(Condition, Shown)> {
        if fabric.state == 0 {
            self.incomplete_since = None;
            return Vec::new();
        }
        let part = |shift: u32, mask: u32| fabric.mask >> shift & mask;
        let wrong = part(8, 0xf);
        let unhealthy =
            fabric.summary == Some(2) || part(4, 3) == 1 || matches!(wrong, 2 | 3 | 6..=8);
        let slow = [0, 2, 6].iter().any(|&shift| part(shift, 3) == 1);
        let degraded = fabric.summary == Some(3) || slow || wrong == 5;
        let mut shown = vec![
            (Condition::FabricUnhealthy, is(unhealthy)),
            (Condition::FabricDegraded, is(degraded)),
        ];
        if matches!(fabric.state, 1 | 2) || wrong == 4 || part(12, 3) == 2 {
            let since = *self.incomplete_since.get_or_insert(now);
            if now.duration_since(since) >= REGISTRATION {
                shown.push((Condition::FabricIncomplete, Shown::Bad));
            }
        } else {
            self.incomplete_since = None;
            shown.push((Condition::FabricIncomplete, Shown::Clean));
        }
        shown
    }
}

fn is(bad: bool) -> Shown {
    if bad { Shown::Bad } else { Shown::Clean }
}

/// Whether a counter grew since the last look at it; a first look, and one after it began anew, say
/// nothing.
fn grew(last: &mut Option<u64>, count: Option<u64>) -> Option<bool> {
    let count = count?;
    last.replace(count).filter(|last| *last <= count).map(|last| last < count)
}

/// Looks at how long something went on in total, over the last ten minutes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
struct Window(Vec<(Timestamp, u64)>);

impl Window {
    const LENGTH: SignedDuration = SignedDuration::from_mins(10);
    const SPACING: SignedDuration = SignedDuration::from_secs(30);
    /// What has to be seen before it may be called clean.
    const ENOUGH: SignedDuration = SignedDuration::from_mins(5);

    /// Bad above a tenth of the time, clean under half of that; `total` is in nanoseconds.
    fn look(&mut self, total: u64, now: Timestamp) -> Option<Shown> {
        if self.0.last().is_some_and(|&(at, before)| now < at || total < before) {
            self.0.clear();
        }
        if self.0.last().is_none_or(|&(at, _)| now.duration_since(at) >= Self::SPACING) {
            self.0.push((now, total));
        }
        while self.0.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= Self::LENGTH) {
            self.0.remove(0);
        }
        let &(since, first) = self.0.first()?;
        let seen = now.duration_since(since);
        let limit = seen.max(Self::LENGTH).as_nanos() / 10;
        match i128::from(total.saturating_sub(first)) {
            slowed if slowed > limit => Some(Shown::Bad),
            slowed if slowed >= limit / 2 => Some(Shown::Between),
            _ => (seen >= Self::ENOUGH).then_some(Shown::Clean),
        }
    }
}
