//! What the agent says about itself: over HTTP to probes and Prometheus, over a socket to `kerf status`.

pub mod http;
pub mod orders;
pub mod status;
