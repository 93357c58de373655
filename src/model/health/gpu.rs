//! The health of one GPU: its incidents, and what they are judged by.

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    Extent, Finding, Policy, Readings, Severity,
    cause::Cause,
    history::{self, Course, Tally},
    incident::{Evidence, Incident},
    looks::{Looks, Shown},
    rules::{Condition, End, Rule, Verdict},
};

/// What is known of one GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct GpuHealth {
    incidents: Vec<Incident>,
    courses: Vec<Course>,
    tallies: Vec<Tally>,
    /// What a person has cleared although its reading is as bad as before.
    acknowledged: Vec<Condition>,
    looks: Looks,
    recovery_action: Option<u32>,
}

impl GpuHealth {
    /// Takes a report with a code. `rule` is the cause's, `enabled` whether an operator wants it.
    pub(super) fn report(
        &mut self,
        (code, cause): (u32, Cause),
        extent: Extent,
        (rule, enabled): (&Rule, bool),
        now: Timestamp,
    ) {
        self.weigh(Evidence::Xid(code), now);
        let severity = match rule.verdict {
            Verdict::Notice => None,
            Verdict::Event => enabled.then_some(Severity::Unhealthy),
            Verdict::At(severity) => Some(severity),
            Verdict::Repeated(threshold) => {
                let enough =
                    history::count(&mut self.tallies, code, threshold, now) >= threshold.times;
                let open = self.incidents.iter().any(|incident| incident.is(&cause, extent));
                match (enabled, enough || open) {
                    (true, _) => Some(Severity::Unhealthy),
                    (false, open) => open.then_some(Severity::Warning),
                }
            }
            Verdict::Mounting(threshold) => {
                let seen = history::count(&mut self.tallies, code, threshold, now);
                let enough = seen >= threshold.times;
                Some(if enough { Severity::Unhealthy } else { Severity::Warning })
            }
        };
        if let Some(severity) = severity {
            self.open(cause, extent, severity, now);
        }
    }

    /// Takes a condition that was told of rather than read.
    pub(super) fn told(&mut self, condition: Condition, now: Timestamp) {
        self.open(Cause::Reading(condition), Extent::Gpu, condition.rule().severity, now);
    }

    /// Takes a look; `count` says whether conditions may be found by it.
    pub(super) fn read(&mut self, readings: &Readings, count: bool, now: Timestamp) {
        for (condition, shown) in self.looks.look(readings, now) {
            if count {
                self.show(condition, shown, now);
            }
        }
        self.weigh(Evidence::Readings(readings), now);
        if let Some(action) = readings.recovery_action {
            let before = self.recovery_action.replace(action);
            // Nothing but a reset takes these demands back.
            if action == 0 && matches!(before, Some(1 | 4 | 6)) {
                self.weigh(Evidence::Reset, now);
            }
        }
    }

    fn show(&mut self, condition: Condition, shown: Shown, now: Timestamp) {
        let cause = Cause::Reading(condition);
        match shown {
            Shown::Bad if self.acknowledged.contains(&condition) => {}
            Shown::Bad => {
                let severity = self.severity(condition, now);
                self.open(cause, Extent::Gpu, severity, now);
            }
            Shown::Between => {
                if let Some(incident) = self.open_incident(&cause, Extent::Gpu) {
                    incident.go_on();
                }
            }
            Shown::Clean => {
                self.acknowledged.retain(|acknowledged| *acknowledged != condition);
                if condition.rule().ends == End::Clean
                    && let Some(incident) = self.open_incident(&cause, Extent::Gpu)
                {
                    incident.prove(now);
                }
            }
        }
    }

    /// Heat that lasts is more than a warning.
    fn severity(&mut self, condition: Condition, now: Timestamp) -> Severity {
        let lasts = self
            .open_incident(&Cause::Reading(condition), Extent::Gpu)
            .is_some_and(|incident| incident.lasts(now));
        match condition {
            Condition::Thermal if lasts => Severity::Unhealthy,
            _ => condition.rule().severity,
        }
    }

    fn open_incident(&mut self, cause: &Cause, extent: Extent) -> Option<&mut Incident> {
        self.incidents.iter_mut().find(|incident| incident.is(cause, extent))
    }

    fn open(&mut self, cause: Cause, extent: Extent, severity: Severity, now: Timestamp) {
        if let Some(incident) = self.open_incident(&cause, extent) {
            return incident.again(cause, severity, now);
        }
        let name = (cause.reason(), extent);
        let (times, wait) = history::begin(&mut self.courses, name, cause.hold_down(), now);
        self.incidents.push(Incident::new(cause, extent, severity, now).after(times, wait));
    }

    /// Takes evidence that something may be over.
    pub(super) fn weigh(&mut self, evidence: Evidence<'_>, now: Timestamp) {
        for incident in &mut self.incidents {
            incident.weigh(evidence, now);
        }
    }

    /// Ends what is over.
    pub(super) fn expire(&mut self, now: Timestamp) {
        self.end(now, |incident| incident.until.is_some_and(|until| until <= now));
    }

    /// The node was booted since `now`, the last that is known.
    pub(super) fn booted(&mut self, now: Timestamp) {
        self.end(now, Incident::ends_by_boot);
        self.weigh(Evidence::Boot, now);
        self.looks = Looks::default();
        self.recovery_action = None;
    }

    fn end(&mut self, now: Timestamp, over: impl Fn(&Incident) -> bool) {
        let (ended, open) = self.incidents.drain(..).partition(over);
        self.incidents = open;
        let ended: Vec<Incident> = ended;
        for incident in ended {
            let name = (incident.cause.reason(), incident.extent);
            history::end(&mut self.courses, name, incident.wait, now);
        }
    }

    /// A person says that all is well.
    pub(super) fn clear(&mut self) {
        for incident in self.incidents.drain(..) {
            if let Cause::Reading(condition) = incident.cause
                && condition.rule().ends == End::Hand
            {
                self.acknowledged.push(condition);
            }
        }
        self.courses.clear();
        self.tallies.clear();
    }

    /// Drops what does not count any more.
    pub(super) fn keep(&mut self, policy: &Policy) {
        self.incidents.retain(|incident| match incident.cause {
            Cause::Xid { code, .. } => policy.counts(code),
            Cause::Reading(_) => policy.readings,
        });
    }

    pub(super) fn due(&self) -> Option<Timestamp> {
        self.incidents.iter().filter_map(|incident| incident.until).min()
    }

    /// What is wrong, worst first.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings: Vec<_> = self.incidents.iter().map(Incident::finding).collect();
        findings.sort_by(|a, b| {
            let worst = b.severity.cmp(&a.severity);
            worst.then_with(|| (a.since, &a.reason, a.extent).cmp(&(b.since, &b.reason, b.extent)))
        });
        findings
    }
}
