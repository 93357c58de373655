//! Why what NVIDIA's driver kept cannot be taken over, in words for whoever reads the agent's log.

use crate::model::{claim, gpu::GpuUuid, holder::Holder, plan};

/// A checkpoint that cannot be taken over, decided before anything was changed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such document.
    #[error("{0}")]
    Unreadable(String),
    /// A format of a time after this program's.
    #[error("format {0} is not known to this version of Kerf")]
    Format(String),
    /// One of its claims.
    #[error("{holder}: {reason}")]
    Claim {
        /// Whose.
        holder: Box<Holder>,
        /// Why.
        reason: Box<Reason>,
    },
}

/// What is wrong with a claim.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// Something that must be there is not, or is something else.
    #[error("{0}")]
    Unreadable(String),
    /// Neither begun nor done.
    #[error("state `{0}` is not known")]
    State(String),
    /// Its devices have an MPS daemon, which somebody would have to stop.
    #[error("it shares its devices by MPS, which Kerf does not do")]
    Mps,
    /// Neither a whole GPU nor a MIG device.
    #[error("it has a device of kind `{0}`, which Kerf does not do")]
    Kind(String),
    /// Its allocation is not one for this node.
    #[error(transparent)]
    Allocation(#[from] claim::Error),
    /// What was allocated is nothing that this node can give.
    #[error(transparent)]
    Device(#[from] plan::Refusal),
    /// The name means another GPU now.
    #[error("device `{device}` was {was}, and is {is} to Kerf")]
    OtherGpu {
        /// Device name.
        device: String,
        /// To NVIDIA's driver.
        was: GpuUuid,
        /// To Kerf.
        is: GpuUuid,
    },
    /// Prepared without being allocated, or the other way round.
    #[error("device `{0}` is not both allocated and prepared")]
    Unmatched(String),
    /// The kubelet knows the device by names that Kerf's CDI file would not have.
    #[error(
        "the kubelet was told `{told}` for device `{device}`, and Kerf's CDI file has `{ours}`"
    )]
    Cdi {
        /// Device name.
        device: String,
        /// What it was told.
        told: String,
        /// The name in Kerf's file.
        ours: String,
    },
    /// A share of a device.
    #[error("it has a share of device `{0}`, and Kerf gives whole devices")]
    Share(String),
    /// Two claims, one device.
    #[error("device `{device}` overlaps `{other}` of {by}, and Kerf shares no devices")]
    Overlap {
        /// Device name.
        device: String,
        /// The other.
        other: String,
        /// Whose.
        by: Box<Holder>,
    },
    /// The file does not say who made a MIG device, and nobody else did.
    #[error(
        "the file does not say who made MIG device `{0}`: set `--adopt-mig` to `dynamic` if NVIDIA's driver did \
         (feature gate DynamicMIG), so that it goes with its claim, or to `static` if an administrator did"
    )]
    Maker(String),
}

impl Refusal {
    pub(super) fn of(holder: &Holder, reason: impl Into<Reason>) -> Self {
        Self::Claim { holder: Box::new(holder.clone()), reason: Box::new(reason.into()) }
    }
}
