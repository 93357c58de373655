//! What is true, as plain values: no IO, no async, no clock, and nothing of ours imported.

pub mod abandoned;
pub mod cdi;
pub mod claim;
pub mod claim_status;
pub mod config;
pub mod device;
pub mod ended;
pub mod exposition;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod gpu;
pub mod health;
pub mod holder;
pub mod kubelet_checkpoint;
pub mod labels;
pub mod linker;
pub mod plan;
pub mod plugin;
pub mod pool;
pub mod record;
pub mod sample;
pub mod series;
pub mod status;
pub mod strict;
pub mod takeover;
pub mod topology;
pub mod unread;

/// The name under which the kubelet and the scheduler know this driver: NVIDIA's, so that existing
/// classes and claims work.
pub const DRIVER: &str = "gpu.nvidia.com";
