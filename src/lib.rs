//! Kerf: a Kubernetes DRA kubelet driver for NVIDIA GPUs.
//!
//! Kerf reads GPUs through NVML, publishes each whole GPU and each MIG placement as a device of one
//! pool per node, and, when the kubelet asks, carves exactly the devices a claim was given, writes one
//! CDI file for the claim and answers with its names; everything it made for the claim goes away with
//! the claim.
//!
//! ```text
//! NVML ──► node::nvml ──► model::gpu ──► model::device ──► model::pool ──► cluster::publish ──► API server
//!                                            │
//! kubelet ──► kubelet::dra ──► driver::prepare: cluster claim ──► model::claim ──► model::plan
//!             ──► record Preparing ──► carve ──► CDI file ──► record Prepared ──► answer
//!
//! model::plugin::offer ──► kubelet::plugin ──► kubelet ──► driver::containers ──► the same from model::plan on
//! ```
//!
//! Layout, and who may import whom:
//!
//! * [`model`]: what is true, as plain values. Imports nothing of ours.
//! * [`metrics`]: what the agent measures of itself: every instrument by name. Imports `model`.
//! * [`node`]: the machine: NVML, the kernel's log, the host's files, records and CDI files on disk. Imports `model`,
//!   `metrics`.
//! * [`cluster`]: the API server: claims in, slices and events out. Imports `model`, `metrics`.
//! * [`driver`]: the order of things: prepare, unprepare, recover. Imports `node`, `cluster`, `model`, `metrics`.
//! * [`kubelet`]: the kubelet's sockets: claims, extended resources, pod resources. Imports `driver`, `model`,
//!   `metrics`, `proto`, `sockets`.
//! * [`telemetry`]: what the agent says about itself. Imports `model`, `metrics`, `sockets`.
//! * [`cli`]: one file per subcommand; it alone wires the rest together.
//! * [`sockets`]: what listens: modes of sockets, bounds of connections. Imports nothing of ours.
//! * [`proto`]: the wire contracts, generated.
//!
//! `src/bin/kerf-cdi-hook` is the other program: container runtimes run it, as CDI files say. Imports
//! `model`.

pub mod cli;
pub mod cluster;
pub mod driver;
pub mod kubelet;
pub mod metrics;
pub mod model;
pub mod node;
pub mod proto;
pub mod sockets;
pub mod telemetry;
