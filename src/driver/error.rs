//! Why a claim was not prepared or unprepared: one line for the pod's events.

use crate::{
    cluster,
    driver::machine::Missing,
    metrics::Outcome,
    model::{claim, plan, takeover},
    node::{host, nvml, store},
};

/// A failure of one claim.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The claim's object could not be had, or is not the one asked for.
    #[error(transparent)]
    Cluster(#[from] cluster::Error),
    /// The claim does not say what this node can do.
    #[error(transparent)]
    Claim(#[from] claim::Error),
    /// What it asks for cannot be given.
    #[error(transparent)]
    Refusal(#[from] Box<plan::Refusal>),
    /// A device of an extended resource cannot be given.
    #[error("invalid allocation request for \"{resource}\": {reason}")]
    Resource {
        /// Full name.
        resource: String,
        /// What is wrong, what to do.
        reason: String,
    },
    /// The GPU said no.
    #[error("device `{device}`: {reason}")]
    Device {
        /// Device name.
        device: String,
        /// What failed, why, what to do.
        reason: String,
    },
    /// NVML failed outside a device's own work.
    #[error(transparent)]
    Nvml(nvml::Error),
    /// NVML as a whole is of no use any more.
    #[error(
        "the NVIDIA driver was unloaded or exchanged: {0}; once it is loaded, the kubelet will ask again"
    )]
    Unloaded(nvml::Error),
    /// No driver is loaded.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The driver's files are not there.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A record or CDI file could not be written.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// What an operator wants done with a GPU cannot be done.
    #[error("{gpu}: {reason}")]
    Order {
        /// As people know it.
        gpu: String,
        /// Why, and what to do.
        reason: String,
    },
    /// This agent is about to end.
    #[error("handing over to another agent; the kubelet will ask again")]
    HandingOver,
    /// Another process has the GPU.
    #[error("GPU {gpu} is being changed by another agent (`{lock}` is locked)")]
    Locked {
        /// UUID.
        gpu: String,
        /// Lock file.
        lock: String,
    },
    /// NVIDIA's driver left something that Kerf cannot go on with; nothing was changed.
    #[error(
        "cannot take over `{file}` from NVIDIA's driver: {reason}; drain the node and remove the file, or go back \
         to NVIDIA's driver"
    )]
    Takeover {
        /// Its checkpoint.
        file: String,
        /// What is wrong with it.
        reason: Box<takeover::Refusal>,
    },
    /// NVIDIA's driver prepares or unprepares a claim.
    #[error(
        "cannot take over from NVIDIA's driver while it is at work; remove its DaemonSet first"
    )]
    PredecessorWorks,
    /// What was made for the claim before could not be destroyed.
    #[error(
        "what was made for it before could not be destroyed: {0}; reset the GPU after `kerf release-gpu`, or delete \
         the pod so that it is scheduled again"
    )]
    Leftover(String),
    /// The call was given up before anything was changed.
    #[error("the call was cancelled")]
    Cancelled,
    /// A bug: the work panicked. The claim's record says how far it came.
    #[error("internal error: {0}")]
    Panic(String),
}

impl Error {
    /// The error and its causes in one line.
    pub fn line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line.push_str(": ");
            line.push_str(&error.to_string());
            cause = error.source();
        }
        line
    }
}

impl From<nvml::Error> for Error {
    fn from(error: nvml::Error) -> Self {
        if error.driver_gone() { Self::Unloaded(error) } else { Self::Nvml(error) }
    }
}

/// How work went, for its metrics: refused is what was not begun.
pub(super) fn outcome<T>(done: &Result<T, Error>) -> Outcome {
    match done {
        Ok(_) => Outcome::Ok,
        Err(Error::Claim(_) | Error::Refusal(_) | Error::Resource { .. } | Error::HandingOver) => {
            Outcome::Refused
        }
        Err(_) => Outcome::Failed,
    }
}
