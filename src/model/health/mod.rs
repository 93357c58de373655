//! Health: signs and readings go in, findings come out.
//!
//! A finding says what is wrong with a GPU or with a part of it, how bad that is, since when, and what a
//! person can do. What raises and what ends one is a table of rules.

mod cause;
mod finding;
mod gpu;
mod history;
mod incident;
pub mod kernel_log;
mod looks;
mod node;
mod policy;
mod rules;
mod sign;
mod xids;

pub use finding::{Class, Evicted, Extent, Finding, Findings, Severity};
pub use node::{Health, Saved, Seen, VERSION};
pub use policy::{Policy, UnknownWord};
pub use rules::{reading_table, xid_name, xid_table};
pub use sign::{
    Answer, Attribution, FabricHealth, LinkSeverity, Notice, Readings, Remapping, Sign,
};
pub use xids::{LastXid, Xids};

#[cfg(test)]
mod tests;
