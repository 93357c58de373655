//! The device plugin's side: what is offered as extended resources, under which names and IDs, and what a
//! container is given.

pub mod choice;
pub mod config;
