//! Readings: what a GPU says of its own health. They are as a test sets them; a reset clears some.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A GPU's readings. A whole GPU has zeros, and a fabric that it calls healthy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readings {
    /// What the driver asks for (field 230): 0 nothing, 1 reset, 2 reboot, 3 drain peer-to-peer, 4 drain
    /// and reset, and so on. A reset answers it.
    pub recovery_action: u32,
    /// ECC errors since the last reset, which clears them.
    pub volatile_ecc: EccErrors,
    /// ECC errors ever.
    pub aggregate_ecc: EccErrors,
    /// Rows of memory, since Ampere.
    pub remapped_rows: RemappedRows,
    /// Banks of memory that have no row left to stand in for another, since Ampere.
    pub banks_without_spare_rows: u32,
    /// Pages of memory, before Ampere: retired for corrected errors, for uncorrected ones, and whether
    /// more wait for a reset.
    pub retired_pages: (u32, u32, bool),
    /// Whether SRAM has had more uncorrectable errors than it should.
    pub sram_threshold_exceeded: bool,
    /// Whether a memory channel waits for a reset to be repaired.
    pub channel_repair_pending: bool,
    /// Whether a part that computes waits for it.
    pub tpc_repair_pending: bool,
    /// What it says of the NVLink fabric that it has joined.
    pub fabric: FabricHealth,
    /// For how long clocks were held down, in nanoseconds.
    pub violations: Violations,
    /// `nvmlClocksEventReason…` bits beside those that follow from what runs.
    pub clock_event_reasons: u64,
    /// What went over PCIe twice.
    pub pcie_replays: u32,
    /// Fatal errors on PCIe (field 180).
    pub pcie_fatal: u32,
    /// Errors on NVLinks, all links together.
    pub nvlink_errors: NvLinkErrors,
    /// Fields that answer this `nvmlReturn_t` of their own, by id, while the call succeeds.
    pub refused_fields: BTreeMap<u32, u32>,
}

/// Counts of memory errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EccErrors {
    /// Set right by the hardware.
    pub corrected: u64,
    /// Not set right.
    pub uncorrected: u64,
}

/// Rows that others stand in for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemappedRows {
    /// For corrected errors.
    pub corrected: u32,
    /// For uncorrected errors.
    pub uncorrected: u32,
    /// Whether more wait for a reset.
    pub pending: bool,
    /// Whether remapping ever failed.
    pub failure: bool,
}

/// `nvmlGpuFabricInfo_v3_t`'s verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricHealth {
    /// Parts of 2 and 4 bits, as `NVML_GPU_FABRIC_HEALTH_MASK_…` places them.
    pub mask: u32,
    /// 1 healthy, 2 unhealthy, 3 limited capacity.
    pub summary: u8,
}

impl Default for FabricHealth {
    /// "False" in each part of two bits, and no wrong configuration.
    fn default() -> Self {
        Self { mask: 0x1aa, summary: 1 }
    }
}

/// Nanoseconds for which clocks were lower than they could be, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violations {
    /// Power cap.
    pub power: u64,
    /// Thermal policy.
    pub thermal: u64,
    /// Sync boost.
    pub sync_boost: u64,
    /// Limit of the board.
    pub board_limit: u64,
    /// Too little to do.
    pub low_utilization: u64,
    /// Reliability.
    pub reliability: u64,
    /// Slowed down by the driver for heat.
    pub software_thermal: u64,
    /// Slowed down by the hardware for heat.
    pub hardware_thermal: u64,
    /// Slowed down by the power supply.
    pub power_brake: u64,
}

/// Counts of NVLink errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvLinkErrors {
    /// Checksums of flits.
    pub crc_flit: u64,
    /// Checksums of data.
    pub crc_data: u64,
    /// Replays.
    pub replay: u64,
    /// Recoveries.
    pub recovery: u64,
}

impl Readings {
    /// Whether nothing was ever wrong.
    pub(crate) fn are_of_a_whole_gpu(&self) -> bool {
        *self == Self::default()
    }

    /// A reset does what waited for it and begins volatile counts anew.
    pub(crate) fn reset(&mut self) {
        self.recovery_action = 0;
        self.volatile_ecc = EccErrors::default();
        self.remapped_rows.pending = false;
        self.retired_pages.2 = false;
        self.channel_repair_pending = false;
        self.tpc_repair_pending = false;
    }
}
