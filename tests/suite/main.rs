//! The integration tests, as one program: linking it once is quicker than linking many.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod claims;
mod commands;
mod container;
mod crash;
mod deploy;
mod doors;
mod eviction;
mod given;
mod handover;
mod hang;
mod health;
mod hook;
mod hostile_input;
mod hostile_peer;
mod init_containers;
mod kernel_log;
mod labels;
mod layers;
mod machine;
mod metrics;
mod monitoring;
mod named;
mod plugin;
mod publishing;
mod random;
mod release;
mod reload;
mod takeover;
