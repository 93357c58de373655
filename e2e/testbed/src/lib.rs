//! Stand-ins for the kubelet, the API server and the scheduler, and a whole simulated node made of them.

pub mod agent;
pub mod apiserver;
mod fd;
pub mod kubelet;
pub mod manifests;
pub mod node;
pub mod quantity;
pub mod scheduler;
