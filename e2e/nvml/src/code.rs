//! `nvmlReturn_t`: what a call answers.

use std::{ffi::CStr, fmt, io};

/// An answer other than success, by NVML's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

impl Code {
    /// Called before `nvmlInit`, or after the driver went away.
    pub const UNINITIALIZED: Self = Self(1);
    /// A null pointer, a handle that is none, a number out of range.
    pub const INVALID_ARGUMENT: Self = Self(2);
    /// Not on this GPU or not in its present mode.
    pub const NOT_SUPPORTED: Self = Self(3);
    /// The caller lacks a privilege.
    pub const NO_PERMISSION: Self = Self(4);
    /// No such object.
    pub const NOT_FOUND: Self = Self(6);
    /// The buffer is too small; the count says how much is needed.
    pub const INSUFFICIENT_SIZE: Self = Self(7);
    /// The kernel driver is not loaded.
    pub const DRIVER_NOT_LOADED: Self = Self(9);
    /// Nothing happened in time.
    pub const TIMEOUT: Self = Self(10);
    /// The GPU fell off the bus.
    pub const GPU_IS_LOST: Self = Self(15);
    /// Somebody uses it.
    pub const IN_USE: Self = Self(19);
    /// No room, or no engine left.
    pub const INSUFFICIENT_RESOURCES: Self = Self(23);
    /// The structure's version word is none that is known.
    pub const ARGUMENT_VERSION_MISMATCH: Self = Self(25);
    /// All else, such as a state file that cannot be read.
    pub const UNKNOWN: Self = Self(999);

    /// The text of `nvmlErrorString`.
    pub fn text(self) -> &'static CStr {
        match self.0 {
            0 => c"Success",
            1 => c"Uninitialized",
            2 => c"Invalid Argument",
            3 => c"Not Supported",
            4 => c"Insufficient Permissions",
            5 => c"Already Initialized",
            6 => c"Not Found",
            7 => c"Insufficient Size",
            8 => c"Insufficient External Power",
            9 => c"Driver Not Loaded",
            10 => c"Timeout",
            11 => c"Interrupt Request Issue",
            12 => c"NVML Shared Library Not Found",
            13 => c"Function Not Found",
            14 => c"Corrupted infoROM",
            15 => c"GPU is lost",
            16 => c"GPU requires reset",
            17 => c"The operating system has blocked the request.",
            18 => c"RM has detected an NVML/RM version mismatch.",
            19 => c"In use by another client",
            20 => c"Insufficient Memory",
            21 => c"No data",
            22 => c"The requested vgpu operation is not available on target device",
            23 => c"Insufficient Resources",
            24 => c"Requested frequency is not supported",
            25 => c"Argument version mismatch",
            26 => c"Function is deprecated",
            27 => c"System not ready",
            28 => c"GPU not found",
            29 => c"Invalid state",
            30 => c"Reset type not supported",
            _ => c"Unknown Error",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text().to_string_lossy())
    }
}

impl std::error::Error for Code {}

/// A library has no better word for a file that it cannot read.
impl From<io::Error> for Code {
    fn from(_: io::Error) -> Self {
        Self::UNKNOWN
    }
}

/// What an administrator is told.
impl From<Code> for io::Error {
    fn from(code: Code) -> Self {
        Self::other(code)
    }
}
