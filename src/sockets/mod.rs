//! What listens: sockets that only their owner may call, and connections that have a bound.
//!
//! Whoever reaches a listener has shown no credential. So each listener serves so many connections and no
//! more; the one that has been idle longest makes room for a new one, and never the other way round: many
//! that do nothing must not keep out the kubelet and Prometheus.

mod bound;
mod connections;
mod unix;

pub use connections::{Connection, Connections, Limits, Listener};
pub use unix::bind;
