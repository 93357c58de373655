//! A simulated `libnvidia-ml.so.1`, and the machine that it speaks for.
//!
//! The machine is a directory: what its GPUs are and how they are cut, in files that every process
//! which loads the library reads and writes under locks, and the files that a driver leaves in
//! `/proc`, `/sys`, `/dev` and its own root. Tests make and disturb it with [`machine::Machine`].

mod abi;
mod cell;
mod changes;
mod clock;
mod code;
pub mod elf;
mod event;
mod fault;
mod files;
mod guest;
mod hardware;
mod library;
mod load;
mod log;
pub mod machine;
mod mig;
pub mod node;
mod numbers;
mod reading;
mod spec;
mod state;

pub use code::Code;
pub use fault::{Effect, Fault};
pub use load::Load;
pub use machine::{Machine, built_library};
pub use node::{FabricDescription, GpuDescription, Model, NodeDescription};
pub use reading::{EccErrors, FabricHealth, NvLinkErrors, Readings, RemappedRows, Violations};
