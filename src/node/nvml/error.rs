//! An NVML call that failed: which, on what, and what it means for the caller.

use nvml_wrapper::error::NvmlError;

/// A failed NVML call.
#[derive(Debug, thiserror::Error)]
#[error("{function}{}: {}", on(*gpu), words(answer))]
pub struct Error {
    /// NVML function.
    pub function: &'static str,
    /// NVML index of the GPU; absent for a call about the node.
    pub gpu: Option<u32>,
    /// What NVML answered; part of this error's text, so not its source.
    answer: NvmlError,
}

fn on(gpu: Option<u32>) -> String {
    gpu.map(|index| format!(" on GPU {index}")).unwrap_or_default()
}

/// NVML's answer, in NVIDIA's own word where users will look for that, or where the crate has none.
fn words(answer: &NvmlError) -> String {
    match answer {
        NvmlError::GpuLost => "GPU is lost".to_owned(),
        NvmlError::Uninitialized => "Uninitialized".to_owned(),
        NvmlError::UnexpectedVariant(INSUFFICIENT_RESOURCES) => "Insufficient Resources".to_owned(),
        NvmlError::UnexpectedVariant(code) => format!("NVML's error {code}"),
        other => other.to_string(),
    }
}

/// `NVML_ERROR_INSUFFICIENT_RESOURCES`: no room for an instance, or too little left of something else.
const INSUFFICIENT_RESOURCES: u32 =
    nvml_wrapper_sys::bindings::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES;

impl Error {
    pub(super) fn new(function: &'static str, gpu: Option<u32>, answer: NvmlError) -> Self {
        Self { function, gpu, answer }
    }

    /// The GPU cannot do this, or not in its present mode.
    pub fn not_supported(&self) -> bool {
        matches!(self.answer, NvmlError::NotSupported)
    }

    /// What was named does not exist (any more).
    pub fn not_found(&self) -> bool {
        matches!(self.answer, NvmlError::NotFound)
    }

    /// An argument is out of range, such as an enumerator after the last.
    pub fn invalid_argument(&self) -> bool {
        matches!(self.answer, NvmlError::InvalidArg)
    }

    /// Somebody uses it: worth another try a little later.
    pub fn in_use(&self) -> bool {
        matches!(self.answer, NvmlError::InUse)
    }

    /// The error and, for a GPU that fell off the bus, how to bring it back.
    pub fn with_remedy(&self) -> String {
        match self.gpu {
            Some(index) if self.lost() => {
                format!("{self}; reset it with `nvidia-smi -r -i {index}`")
            }
            _ => self.to_string(),
        }
    }

    /// The GPU fell off the bus: only a reset brings it back.
    pub fn lost(&self) -> bool {
        matches!(self.answer, NvmlError::GpuLost)
    }

    /// The whole library is of no use any more: the driver was unloaded or exchanged.
    pub fn driver_gone(&self) -> bool {
        matches!(
            self.answer,
            NvmlError::Uninitialized
                | NvmlError::DriverNotLoaded
                | NvmlError::LibRmVersionMismatch
                | NvmlError::LibloadingError(_)
        )
    }

    /// The driver lacks the function: an older one than the call needs.
    pub fn no_such_function(&self) -> bool {
        matches!(self.answer, NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound)
    }
}
