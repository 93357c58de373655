//! What a GPU says of its load and state at one time. A value that it does not give is absent.

use k8s_openapi::jiff::Timestamp;

use crate::model::gpu::GpuUuid;

/// Seconds since 1970, as series count them.
pub fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1e3
}

/// One GPU's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Clocks of multiprocessors, MHz.
    pub sm_clock: Option<u32>,
    /// Clocks of memory, MHz.
    pub memory_clock: Option<u32>,
    /// °C.
    pub temperature: Option<u32>,
    /// °C; only where memory has a sensor.
    pub memory_temperature: Option<u32>,
    /// Milliwatts.
    pub power: Option<u32>,
    /// Millijoules since the driver was loaded.
    pub energy: Option<u64>,
    /// PCIe replays, ever.
    pub pcie_replays: Option<u64>,
    /// Percent of time that something ran; absent in MIG mode.
    pub utilization: Option<u32>,
    /// Percent of time that memory was read or written; absent in MIG mode.
    pub memory_utilization: Option<u32>,
    /// Percent.
    pub encoder_utilization: Option<u32>,
    /// Percent.
    pub decoder_utilization: Option<u32>,
    /// Frame buffer.
    pub memory: Option<MemoryUse>,
    /// KiB over all NVLinks, both ways, ever (fields 138 and 139).
    pub nvlink_throughput: Option<u64>,
    /// Whether a vGPU licence is held; absent where none is needed.
    pub vgpu_licensed: Option<bool>,
    /// Rows remapped for uncorrectable errors (field 143).
    pub uncorrectable_remapped_rows: Option<u64>,
    /// Rows remapped for correctable errors (field 142).
    pub correctable_remapped_rows: Option<u64>,
    /// Whether a remapping has failed (field 145).
    pub row_remap_failure: Option<bool>,
    /// Whether a remapping waits for a reset (field 144).
    pub row_remap_pending: Option<bool>,
    /// Corrected ECC errors since the driver was loaded, and ever.
    pub ecc_single: EccCount,
    /// Uncorrected ones.
    pub ecc_double: EccCount,
    /// Pages retired for single and double bit errors, and whether more wait for a reset (before Ampere).
    pub retired_pages: RetiredPages,
    /// Time that clocks were held down.
    pub violations: Violations,
    /// Bits of `nvmlDeviceGetCurrentClocksEventReasons`.
    pub clocks_event_reasons: Option<u64>,
    /// Errors on NVLinks.
    pub nvlink_errors: NvlinkErrors,
    /// Means over the time since the sample before (GPM, Hopper and later).
    pub activity: Option<Activity>,
    /// The GPU instances.
    pub instances: Vec<InstanceSample>,
}

/// One GPU instance's values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InstanceSample {
    /// NVML's id of the GPU instance.
    pub id: u32,
    /// Of its MIG device.
    pub memory: Option<MemoryUse>,
    /// As for a GPU.
    pub activity: Option<Activity>,
}

/// Frame buffer, bytes (`nvmlDeviceGetMemoryInfo_v2`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Of all of it.
    pub total: u64,
    /// What can be had.
    pub free: u64,
    /// What programs have.
    pub used: u64,
    /// What the driver and the firmware keep.
    pub reserved: u64,
}

/// Counts of ECC errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EccCount {
    /// Since the driver was loaded.
    pub volatile: Option<u64>,
    /// Ever.
    pub aggregate: Option<u64>,
}

/// Retired pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetiredPages {
    /// For single bit errors (field 29).
    pub single: Option<u64>,
    /// For double bit errors (field 30).
    pub double: Option<u64>,
    /// Waiting for a reset (field 31).
    pub pending: Option<u64>,
}

/// Nanoseconds that clocks were held down, ever (fields 74 to 79).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Violations {
    /// For power.
    pub power: Option<u64>,
    /// For temperature.
    pub thermal: Option<u64>,
    /// To run like others.
    pub sync_boost: Option<u64>,
    /// For the board's limits.
    pub board_limit: Option<u64>,
    /// For little load.
    pub low_utilization: Option<u64>,
    /// For reliability.
    pub reliability: Option<u64>,
}

/// Errors over all NVLinks, ever (fields 38, 45, 52 and 59).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NvlinkErrors {
    /// CRC errors of flits.
    pub crc_flit: Option<u64>,
    /// CRC errors of data.
    pub crc_data: Option<u64>,
    /// Replays.
    pub replay: Option<u64>,
    /// Recoveries.
    pub recovery: Option<u64>,
}

/// What was at work (GPM metrics), each over the time since the sample before.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Activity {
    /// Ratio: graphics or compute engine (1).
    pub graphics: Option<f64>,
    /// Ratio: multiprocessors with a warp (2).
    pub sm: Option<f64>,
    /// Ratio: warps of those that fit (3).
    pub sm_occupancy: Option<f64>,
    /// Ratio: tensor cores (5).
    pub tensor: Option<f64>,
    /// Ratio: tensor cores, by double precision (6).
    pub tensor_dfma: Option<f64>,
    /// Ratio: tensor cores, by half precision (7).
    pub tensor_hmma: Option<f64>,
    /// Ratio: tensor cores, by integers (9).
    pub tensor_imma: Option<f64>,
    /// Ratio: memory interface (10).
    pub dram: Option<f64>,
    /// Ratio: double precision (11).
    pub fp64: Option<f64>,
    /// Ratio: single precision (12).
    pub fp32: Option<f64>,
    /// Ratio: half precision (13).
    pub fp16: Option<f64>,
    /// Ratio: integers (4).
    pub integer: Option<f64>,
    /// Bytes a second over PCIe, sent (20).
    pub pcie_sent: Option<f64>,
    /// Bytes a second over PCIe, received (21).
    pub pcie_received: Option<f64>,
    /// Bytes a second over NVLinks, received (60).
    pub nvlink_received: Option<f64>,
    /// Bytes a second over NVLinks, sent (61).
    pub nvlink_sent: Option<f64>,
}

/// The samples of a node's GPUs, with what decides whether they are fresh.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples(pub std::collections::BTreeMap<GpuUuid, Taken>);

/// A sample and when it was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// The values.
    pub sample: std::sync::Arc<Sample>,
}
