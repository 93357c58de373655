//! The cause of an incident: what finds its rule.

use serde::{Deserialize, Serialize};

use super::{
    Class,
    rules::{self, Condition, Rule},
};

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Cause {
    /// An XID, and what finds its rule.
    #[serde(rename_all = "camelCase")]
    Xid {
        code: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        fatal: Option<bool>,
        before_ampere: bool,
    },
    Reading(Condition),
}

impl Cause {
    /// The rule of an XID.
    pub(super) fn rule(&self) -> Option<&'static Rule> {
        match *self {
            Self::Xid { code, fatal, before_ampere } => Some(rules::of(code, fatal, before_ampere)),
            Self::Reading(_) => None,
        }
    }

    /// One word for programs.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Xid { code, .. } => format!("xid-{code}"),
            Self::Reading(condition) => condition.reason(),
        }
    }

    /// Whether both are the same fault, in whatever words it was told.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Xid { code, .. }, Self::Xid { code: other, .. }) => code == other,
            (Self::Reading(condition), Self::Reading(other)) => condition == other,
            _ => false,
        }
    }

    pub(super) fn class(&self) -> Class {
        match self {
            Self::Xid { code, fatal, before_ampere } => {
                rules::of(*code, *fatal, *before_ampere).class
            }
            Self::Reading(condition) => condition.rule().class,
        }
    }

    /// Seconds that it has to be clean after the proof that it is over.
    pub(super) fn hold_down(&self) -> i64 {
        let slow = matches!(self.class(), Class::Link | Class::Thermal)
            || *self == Self::Reading(Condition::PowerBrake);
        if slow { 300 } else { 60 }
    }
}
