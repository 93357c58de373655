//! An incident: one fault of a GPU, from its first sign until its end is proven.

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Extent, Finding, Readings, Severity,
    cause::Cause,
    looks,
    rules::{End, Rule, Verdict, of},
};

/// How long the driver has to say that nothing has to be done before that is believed.
const SETTLED: SignedDuration = SignedDuration::from_secs(10);

/// How long heat may last before it is more than a warning.
const LASTING: SignedDuration = SignedDuration::from_mins(30);

/// How long a warning that may mount has to be quiet.
const QUIET_WARNING: SignedDuration = SignedDuration::from_hours(1);

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Incident {
    pub(super) cause: Cause,
    pub(super) extent: Extent,
    pub(super) severity: Severity,
    pub(super) since: Timestamp,
    /// When it became as bad as it is.
    raised: Timestamp,
    /// The latest sign of it.
    last: Timestamp,
    /// Whether the driver says that nothing has to be done.
    outranked: bool,
    /// Whether the driver says that running work may go on.
    #[serde(default)]
    spared: bool,
    /// Whether the first half of a proof in two halves is there.
    half: bool,
    /// Seconds that it has to be clean after the proof.
    pub(super) wait: i64,
    /// When it ends, if nothing comes between.
    pub(super) until: Option<Timestamp>,
    /// How often it came within a day, with this time.
    times: usize,
}

/// What may prove that an incident is over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Evidence<'r> {
    /// The GPU was reset, or its driver loaded anew.
    Reset,
    /// The node was booted.
    Boot,
    Xid(u32),
    Readings(&'r Readings),
}

/// What evidence means for an incident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Judged {
    Over,
    HalfOver,
    GoesOn,
}

impl Incident {
    /// One that begins now.
    pub(super) fn new(cause: Cause, extent: Extent, severity: Severity, now: Timestamp) -> Self {
        let mut incident = Self {
            cause,
            extent,
            severity,
            since: now,
            raised: now,
            last: now,
            outranked: false,
            spared: false,
            half: false,
            wait: cause.hold_down(),
            until: None,
            times: 1,
        };
        incident.go_on();
        incident
    }

    /// The same, with what came before it: so often within a day, and so long a wait.
    pub(super) fn after(self, times: usize, wait: i64) -> Self {
        let mut incident = Self { times, wait, ..self };
        incident.go_on();
        incident
    }

    pub(super) fn is(&self, cause: &Cause, extent: Extent) -> bool {
        self.cause.is(cause) && self.extent == extent
    }

    /// Another sign of it. It never becomes less bad by one.
    pub(super) fn again(&mut self, cause: Cause, severity: Severity, now: Timestamp) {
        let outranked = self.outranked && cause.rule().is_some_and(|rule| rule.outranked);
        let severity = if outranked { Severity::Warning } else { severity };
        if severity > self.severity {
            self.severity = severity;
            self.raised = now;
        }
        if severity >= self.severity {
            self.cause = cause;
        }
        self.last = self.last.max(now);
        self.half = false;
        self.go_on();
    }

    /// It is not over: what waited for its end begins anew.
    pub(super) fn go_on(&mut self) {
        self.until = match self.ends() {
            End::Quiet(time) | End::QuietOrBoot(time) if !self.by_hand() => {
                Some(after(self.last, time))
            }
            _ => None,
        };
    }

    /// Whether it has gone on for too long for a warning.
    pub(super) fn lasts(&self, now: Timestamp) -> bool {
        now.duration_since(self.since) >= LASTING
    }

    /// Whether it came so often that no proof is believed.
    fn by_hand(&self) -> bool {
        self.times >= 3
    }

    fn ends(&self) -> End {
        match (self.cause, self.cause.rule()) {
            (Cause::Reading(condition), _) => condition.rule().ends,
            // Only an operator's wish opens it, and then nothing but proof ends it.
            (_, Some(Rule { ends: End::AtOnce, .. }) | None) => End::Reset,
            (_, Some(Rule { verdict: Verdict::Mounting(_), .. }))
                if self.severity == Severity::Warning =>
            {
                End::Quiet(QUIET_WARNING)
            }
            (_, Some(rule)) => rule.ends,
        }
    }

    /// Takes evidence.
    pub(super) fn weigh(&mut self, evidence: Evidence<'_>, now: Timestamp) {
        if let Evidence::Readings(readings) = evidence {
            self.outrank(readings, now);
        }
        match self.judge(evidence) {
            Some(Judged::Over) => self.prove(now),
            Some(Judged::HalfOver) => self.half = true,
            Some(Judged::GoesOn) => self.go_on(),
            None => {}
        }
    }

    /// Whether a boot ends it, with nothing else to wait for.
    pub(super) fn ends_by_boot(&self) -> bool {
        !self.by_hand() && self.judge(Evidence::Boot) == Some(Judged::Over)
    }

    /// It is over, if it stays so.
    pub(super) fn prove(&mut self, now: Timestamp) {
        if self.by_hand() {
            return;
        }
        let clean = after(now, SignedDuration::from_secs(self.wait));
        let until = match self.ends() {
            End::ActionNoneAndQuiet(time) => after(self.last, time).max(now),
            _ => clean,
        };
        self.until.get_or_insert(until);
    }

    /// The driver's own verdict outranks some rules: on what runs at once, on new work when the driver
    /// had time to come to it.
    fn outrank(&mut self, readings: &Readings, now: Timestamp) {
        if !self.cause.rule().is_some_and(|rule| rule.outranked) {
            return;
        }
        let settled = now.duration_since(self.raised) >= SETTLED;
        match readings.recovery_action {
            Some(0) if settled => {
                self.outranked = true;
                self.severity = Severity::Warning;
            }
            // DRAIN_P2P and DRAIN_AND_RESET.
            Some(action @ 1..) => self.spared = matches!(action, 3 | 4),
            _ => {}
        }
    }

    fn judge(&self, evidence: Evidence<'_>) -> Option<Judged> {
        let ends = self.ends();
        match evidence {
            Evidence::Reset | Evidence::Boot => {
                let boot = matches!(evidence, Evidence::Boot);
                match ends {
                    End::Reset
                    | End::RemapDone
                    | End::RepairDone
                    | End::SmoothingBack
                    | End::ActionNoneAndQuiet(_) => Some(Judged::Over),
                    End::Boot | End::QuietOrBoot(_) if boot => Some(Judged::Over),
                    End::BootAndAnswer if boot => Some(Judged::HalfOver),
                    End::FailureGone => Some(Judged::HalfOver),
                    _ => None,
                }
            }
            Evidence::Xid(162) if ends == End::SmoothingBack => Some(Judged::Over),
            Evidence::Xid(_) => None,
            Evidence::Readings(readings) => self.judge_readings(ends, readings),
        }
    }

    fn judge_readings(&self, ends: End, readings: &Readings) -> Option<Judged> {
        let action_none = readings.recovery_action.map(|value| value == 0);
        let remapping = readings.remapping;
        let over = match ends {
            End::Answer => looks::usable(&readings.answer),
            End::BootAndAnswer if self.half => looks::usable(&readings.answer),
            End::ActionNone | End::ActionNoneAndQuiet(_) => action_none,
            End::RemapDone => remapping.map(|rows| !rows.pending),
            End::RepairDone => readings.repair_pending.map(|pending| !pending),
            End::FailureGone if self.half => remapping.map(|rows| !rows.failed),
            // What else ends by readings is judged where they are looked at.
            _ => None,
        }?;
        Some(if over { Judged::Over } else { Judged::GoesOn })
    }

    /// As others see it.
    pub(super) fn finding(&self) -> Finding {
        let (message, action, keeps) = match self.cause {
            Cause::Xid { code, fatal, before_ampere } => {
                let rule = of(code, fatal, before_ampere);
                (rule.message(code), rule.action, rule.keeps_running_work)
            }
            Cause::Reading(condition) => {
                let rule = condition.rule();
                (condition.message(), rule.action, rule.keeps_running_work)
            }
        };
        Finding {
            severity: self.severity,
            class: self.cause.class(),
            reason: self.cause.reason(),
            extent: self.extent,
            since: self.since,
            message,
            action: self.advice(action),
            keeps_running_work: keeps || self.spared || self.severity == Severity::Warning,
        }
    }

    fn advice(&self, action: &str) -> String {
        let quiet = matches!(self.ends(), End::Quiet(_) | End::QuietOrBoot(_));
        match self.until {
            _ if self.by_hand() => {
                format!("{action}; it came back {} times in a day, clear it by hand", self.times)
            }
            Some(until) if !quiet => {
                format!("wait: cured, and watched until {}", until.strftime("%H:%M:%SZ"))
            }
            _ => action.to_owned(),
        }
    }
}

/// So long after; the end of time where there is none.
pub(super) fn after(time: Timestamp, duration: SignedDuration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}
