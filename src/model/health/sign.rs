//! What is seen of a GPU's health: signs, which come once, and readings, which are asked for.

/// Something that a GPU or its driver reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sign {
    /// An XID, from an NVML event or from the kernel's log.
    Xid {
        /// The code; NVML says 999 for one that it does not know.
        code: u32,
        /// What the report names.
        attribution: Attribution,
        /// How bad the kernel's log calls an NVLink error (XIDs 144 to 150).
        link: Option<LinkSeverity>,
    },
    /// Another NVML event.
    Notice(Notice),
}

/// Which instance a report names, by NVML's ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attribution {
    /// None.
    Gpu,
    /// A GPU instance.
    GpuInstance(u32),
    /// A compute instance in a GPU instance.
    ComputeInstance(u32, u32),
}

/// How bad an NVLink error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkSeverity {
    /// Work goes on.
    NonFatal,
    /// The link, or all of them, are down.
    Fatal,
}

/// NVML events without an XID (`nvmlEventType…`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// 0x2.
    DoubleBitEccError,
    /// 0x200.
    SingleBitEccErrorStorm,
    /// 0x400.
    DramRetirement,
    /// 0x800.
    DramRetirementFailure,
    /// 0x1000.
    NonFatalPoison,
    /// 0x2000.
    FatalPoison,
    /// 0x4000.
    GpuUnavailable,
    /// 0x8000.
    RecoveryActionChanged,
}

/// What one look at a GPU's health found. A reading that the GPU or its driver does not have is absent,
/// which is evidence of nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Whether it answers.
    pub answer: Answer,
    /// `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION` (field 230).
    pub recovery_action: Option<u32>,
    /// Remapped rows (fields 144 and 145).
    pub remapping: Option<Remapping>,
    /// Uncorrected ECC errors since the driver was loaded (field 4).
    pub uncorrected_volatile: Option<u64>,
    /// `nvmlDeviceGetSramEccErrorStatus`: whether the threshold is exceeded.
    pub sram_threshold_exceeded: Option<bool>,
    /// `nvmlDeviceGetRepairStatus`: whether a repair of a channel or a TPC waits for a reset.
    pub repair_pending: Option<bool>,
    /// State, summary and mask of `nvmlDeviceGetGpuFabricInfoV`.
    pub fabric: Option<FabricHealth>,
    /// Nanoseconds that hardware slowed the clocks down for heat, ever (field 270; 252 before driver
    /// 580.82).
    pub hardware_thermal_slowdown: Option<u64>,
    /// Nanoseconds that a power brake slowed the clocks down, ever (field 271; 253 before driver 580.82).
    pub power_brake_slowdown: Option<u64>,
    /// Fatal PCIe errors, ever (field 180).
    pub pcie_fatal_errors: Option<u64>,
}

/// Whether a GPU answers NVML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// It does.
    #[default]
    Good,
    /// NVML's return code, and the answer as a line. 15 is a GPU that is lost.
    Error(u32, String),
    /// A call that has not come back, as a line.
    Hangs(String),
    /// The driver lists no GPU with its UUID any more.
    Gone,
}

/// Row remapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Remapping {
    /// Waits for a reset.
    pub pending: bool,
    /// Has failed, ever.
    pub failed: bool,
}

/// NVLink fabric (`nvmlGpuFabricInfo_v3_t`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FabricHealth {
    /// `NVML_GPU_FABRIC_STATE_…`.
    pub state: u32,
    /// `NVML_GPU_FABRIC_HEALTH_SUMMARY_…`; absent before version 3.
    pub summary: Option<u32>,
    /// `NVML_GPU_FABRIC_HEALTH_MASK_…`.
    pub mask: u32,
}
