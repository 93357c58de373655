//! An NVML call that failed: which, on what, and what it means for the caller.

use std::mem::discriminant;

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

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
const INSUFFICIENT_RESOURCES: u32 = sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES;

/// `NVML_ERROR_UNKNOWN`.
const UNKNOWN: u32 = sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN;

/// What is wrong with the question, the asker or the moment, not with the GPU.
const NO_EVIDENCE: [u32; 13] = [
    sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT,
    sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
    sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION,
    sys::nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE,
    sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT,
    sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND,
    sys::nvmlReturn_enum_NVML_ERROR_OPERATING_SYSTEM,
    sys::nvmlReturn_enum_NVML_ERROR_IN_USE,
    sys::nvmlReturn_enum_NVML_ERROR_NO_DATA,
    sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    sys::nvmlReturn_enum_NVML_ERROR_DEPRECATED,
    sys::nvmlReturn_enum_NVML_ERROR_NOT_READY,
    sys::nvmlReturn_enum_NVML_ERROR_INVALID_STATE,
];

impl Error {
    pub(super) fn new(function: &'static str, gpu: Option<u32>, answer: NvmlError) -> Self {
        Self { function, gpu, answer }
    }

    /// The GPU cannot do this, or not in its present mode.
    pub fn not_supported(&self) -> bool {
        matches!(self.answer, NvmlError::NotSupported)
    }

    /// The GPU does not have what was asked for, or its driver does not.
    pub(super) fn lacking(&self) -> bool {
        self.not_supported() || self.no_such_function()
    }

    /// What was named does not exist (any more).
    pub fn not_found(&self) -> bool {
        matches!(self.answer, NvmlError::NotFound)
    }

    /// An argument is out of range, such as an enumerator after the last.
    pub fn invalid_argument(&self) -> bool {
        matches!(self.answer, NvmlError::InvalidArg)
    }

    /// A driver that does not know this version of a struct.
    pub fn version_mismatch(&self) -> bool {
        self.code() == sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH
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

    /// Nothing can be done on the GPU before it is reset.
    pub fn until_reset(&self) -> bool {
        self.lost() || matches!(self.answer, NvmlError::ResetRequired)
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

    /// Nothing happened in time.
    pub fn timed_out(&self) -> bool {
        matches!(self.answer, NvmlError::Timeout)
    }

    /// NVML has no word for what went wrong.
    pub fn unknown(&self) -> bool {
        self.code() == UNKNOWN
    }

    /// NVML's return code (`nvmlReturn_t`).
    pub fn code(&self) -> u32 {
        match &self.answer {
            NvmlError::FailedToLoadSymbol(_) => sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND,
            NvmlError::LibloadingError(_) => sys::nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND,
            NvmlError::UnexpectedVariant(code) => *code,
            // The crate tells codes only of errors that it is given to keep.
            answer => (1..=sys::nvmlReturn_enum_NVML_ERROR_RESET_TYPE_NOT_SUPPORTED)
                .find(|&code| discriminant(&NvmlError::from(code)) == discriminant(answer))
                .unwrap_or(UNKNOWN),
        }
    }

    /// It says nothing of the GPU's health: the GPU or its driver lacks the reading, this process may not
    /// ask for it, or it is not to be had just now.
    pub fn no_evidence(&self) -> bool {
        NO_EVIDENCE.contains(&self.code())
    }

    /// The driver lacks the function: an older one than the call needs.
    pub fn no_such_function(&self) -> bool {
        matches!(self.answer, NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_keeps_its_code() {
        let code = |answer| Error::new("nvmlDeviceGetName", Some(0), answer).code();
        for number in (1..=40).chain([UNKNOWN]) {
            assert_eq!(code(number.into()), number);
        }
        let missing = NvmlError::FailedToLoadSymbol("nvmlDeviceGetRepairStatus".to_owned());
        assert_eq!(code(missing), sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND);
        assert_eq!(code(NvmlError::SetReleaseFailed), UNKNOWN);
    }
}
