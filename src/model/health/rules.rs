//! Rules: what each XID and each reading says about a GPU, and what ends it.

mod readings;
mod tables;
mod xids;

use std::{fmt, ops::RangeInclusive};

use k8s_openapi::jiff::SignedDuration;

pub(super) use readings::Condition;
pub use tables::{reading_table, xid_table};

use super::{Class, Severity};

/// What one or several XIDs say.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) codes: &'static [RangeInclusive<u32>],
    pub(super) when: When,
    pub(super) class: Class,
    /// What it is, as a message begins.
    pub(super) meaning: &'static str,
    pub(super) scope: Scope,
    pub(super) verdict: Verdict,
    pub(super) ends: End,
    /// Whether it is a warning at most once the driver says that nothing has to be done (field 230).
    pub(super) outranked: bool,
    /// Whether what runs may go on although nothing new may come.
    pub(super) keeps_running_work: bool,
    pub(super) action: &'static str,
}

/// What else a report has to say for a rule to be its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Any,
    /// Of GPUs before Ampere, where some codes mean something that newer ones no longer report.
    BeforeAmpere,
    /// The kernel's log calls it fatal.
    Fatal,
    FatalOrUntold,
    NonFatal,
    NonFatalOrUntold,
}

/// What a report with its code concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// A program: what it ran on is fine.
    Application,
    /// The instance that the report names.
    Instance,
    /// The GPU, whatever the report names.
    Gpu,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An announcement: nothing, whatever the policy.
    Notice,
    /// Nothing, unless an operator wants it.
    Event,
    At(Severity),
    /// A warning from so many on.
    Repeated(Threshold),
    /// A warning that goes when it is quiet for an hour, unhealthy from so many on.
    Mounting(Threshold),
}

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threshold {
    pub(super) times: usize,
    pub(super) within: SignedDuration,
    /// Those that are nearer to each other are one.
    pub(super) apart: SignedDuration,
}

/// What ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    AtOnce,
    /// None of it for so long.
    Quiet(SignedDuration),
    QuietOrBoot(SignedDuration),
    /// A reset of the GPU, or a boot.
    Reset,
    Boot,
    /// A reset or a boot, after which the GPU answers.
    ResetAndAnswer,
    /// The GPU answers.
    Answer,
    /// The driver says that nothing has to be done.
    ActionNone,
    /// That, and none of it for so long; or a reset.
    ActionNoneAndQuiet(SignedDuration),
    /// No row waits for being remapped any more; or a reset.
    RemapDone,
    /// No part waits for being retired any more; or a reset.
    RepairDone,
    /// The failure flag is gone after a reset.
    FailureGone,
    /// XID 162, or a reset.
    SmoothingBack,
    /// A person, or another GPU in its place.
    Hand,
    /// Its own reading.
    Clean,
}

/// What an XID that no row names is.
static UNKNOWN: Rule = Rule {
    codes: &[],
    when: When::Any,
    class: Class::Unknown,
    meaning: "unknown",
    scope: Scope::Gpu,
    verdict: Verdict::At(Severity::Warning),
    ends: End::QuietOrBoot(SignedDuration::from_hours(24)),
    outranked: false,
    keeps_running_work: true,
    action: "look at the kernel log",
};

/// The rule for a report: its code, whether the kernel's log calls it fatal, and whether the GPU is
/// older than Ampere.
pub(super) fn of(code: u32, fatal: Option<bool>, before_ampere: bool) -> &'static Rule {
    let named = |rule: &&Rule| {
        rule.codes.iter().any(|codes| codes.contains(&code))
            && rule.when.holds(fatal, before_ampere)
    };
    xids::RULES.iter().find(named).unwrap_or(&UNKNOWN)
}

/// What an XID stands for, in one line.
pub fn xid_name(code: u32) -> String {
    of(code, None, false).message(code)
}

/// The codes that are nothing unless an operator wants them.
pub(super) fn of_applications() -> impl Iterator<Item = u32> {
    let rules = xids::RULES.iter().filter(|rule| rule.verdict == Verdict::Event);
    rules.flat_map(|rule| rule.codes.iter().cloned().flatten())
}

impl Rule {
    /// What it is, with its code.
    pub(super) fn message(&self, code: u32) -> String {
        match self.class {
            Class::Unknown => format!("unknown XID {code}"),
            _ => format!("{} (XID {code})", self.meaning),
        }
    }
}

impl When {
    fn holds(self, fatal: Option<bool>, before_ampere: bool) -> bool {
        match self {
            Self::Any => true,
            Self::BeforeAmpere => before_ampere,
            Self::Fatal => fatal == Some(true),
            Self::FatalOrUntold => fatal != Some(false),
            Self::NonFatal => fatal == Some(false),
            Self::NonFatalOrUntold => fatal != Some(true),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::AtOnce => "at once",
            Self::Quiet(time) => return write!(f, "{} without it", span(*time)),
            Self::QuietOrBoot(time) => return write!(f, "{} without it, or a boot", span(*time)),
            Self::Reset => "a reset or a boot",
            Self::Boot => "a boot",
            Self::ResetAndAnswer => "a reset or a boot, when the GPU answers",
            Self::Answer => "the GPU answers",
            Self::ActionNone => "recovery action none",
            Self::ActionNoneAndQuiet(time) => {
                let time = span(*time);
                return write!(f, "recovery action none and {time} without it, or a reset");
            }
            Self::RemapDone => "no remapping pending, or a reset",
            Self::RepairDone => "no repair pending, or a reset",
            Self::FailureGone => "no remapping failure after a reset, else by hand",
            Self::SmoothingBack => "XID 162, a reset or a boot",
            Self::Hand => "by hand, or another GPU",
            Self::Clean => "the reading is good",
        };
        f.write_str(words)
    }
}

/// A time as people say it: `24 h`, `10 min`.
pub(super) fn span(time: SignedDuration) -> String {
    match time.as_secs() {
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests;
