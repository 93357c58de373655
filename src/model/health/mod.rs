//! Health: signs and readings go in, findings come out.
//!
//! A finding says what is wrong with a GPU or with a part of it, how bad that is, since when, and what a
//! person can do. What raises and what ends one is a table of rules.

mod finding;
mod sign;

pub use finding::{Class, Extent, Finding, Findings, Severity};
pub use sign::{
    Answer, Attribution, FabricHealth, LinkSeverity, Notice, Readings, Remapping, Sign,
};
