//! The device plugin's side: what is offered as extended resources, under which names and IDs, and what a
//! container is given.

pub mod carving;
pub mod choice;
pub mod config;
pub mod id;
pub mod names;
pub mod offer;
pub mod prefer;
pub mod response;
