//! What dcgm-exporter says of a GPU and of a GPU instance: names, help, types and units are those of its
//! `etc/default-counters.csv`, each with the sample's value for it.

use crate::model::{
    exposition::Kind::{self, Counter, Gauge},
    sample::{Activity, MemoryUse, Sample},
};

/// One name, its help and type, and its value; absent where the GPU does not give it.
pub(super) type Row<S> = (&'static str, &'static str, Kind, fn(&S) -> Option<f64>);

fn number(value: Option<u32>) -> Option<f64> {
    value.map(f64::from)
}

/// Prometheus has only such numbers: exact to 2⁵³.
fn count(value: Option<u64>) -> Option<f64> {
    value.map(|value| value as f64)
}

fn flag(value: Option<bool>) -> Option<f64> {
    value.map(|value| f64::from(u8::from(value)))
}

/// Whole MiB, rounded down as DCGM does.
fn mebibytes(bytes: u64) -> Option<f64> {
    count(Some(bytes >> 20))
}

/// Of the GPU as a whole, whether it is cut or not.
pub(super) const GPU: &[Row<Sample>] = &[
    ("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", Gauge, |s| number(s.sm_clock)),
    ("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", Gauge, |s| {
        number(s.memory_clock)
    }),
    ("DCGM_FI_DEV_MEMORY_TEMP", "Memory temperature (in C).", Gauge, |s| {
        number(s.memory_temperature)
    }),
    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", Gauge, |s| number(s.temperature)),
    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", Gauge, |s| {
        number(s.power).map(|mw| mw / 1e3)
    }),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Total energy consumption since boot (in mJ).",
        Counter,
        |s| count(s.energy),
    ),
    ("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "Total number of PCIe retries.", Counter, |s| {
        count(s.pcie_replays)
    }),
    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", Gauge, |s| number(s.utilization)),
    ("DCGM_FI_DEV_MEM_COPY_UTIL", "Memory utilization (in %).", Gauge, |s| {
        number(s.memory_utilization)
    }),
    ("DCGM_FI_DEV_ENC_UTIL", "Encoder utilization (in %).", Gauge, |s| {
        number(s.encoder_utilization)
    }),
    ("DCGM_FI_DEV_DEC_UTIL", "Decoder utilization (in %).", Gauge, |s| {
        number(s.decoder_utilization)
    }),
    (
        "DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL",
        "Total number of NVLink bandwidth counters for all lanes.",
        Counter,
        |s| count(s.nvlink_throughput),
    ),
    ("DCGM_FI_DEV_VGPU_LICENSE_STATUS", "vGPU License status", Gauge, |s| flag(s.vgpu_licensed)),
    (
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        "Number of remapped rows for uncorrectable errors",
        Counter,
        |s| count(s.uncorrectable_remapped_rows),
    ),
    (
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        "Number of remapped rows for correctable errors",
        Counter,
        |s| count(s.correctable_remapped_rows),
    ),
    ("DCGM_FI_DEV_ROW_REMAP_FAILURE", "Whether remapping of rows has failed", Gauge, |s| {
        flag(s.row_remap_failure)
    }),
    ("DCGM_FI_DEV_ROW_REMAP_PENDING", "Whether remapping of rows is pending", Gauge, |s| {
        flag(s.row_remap_pending)
    }),
    ("DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "Current clock event reasons.", Gauge, |s| {
        count(s.clocks_event_reasons)
    }),
];

/// The same: counts of errors, and of time with clocks held down.
pub(super) const FAULTS: &[Row<Sample>] = &[
    (
        "DCGM_FI_DEV_POWER_VIOLATION",
        "Throttling duration due to power constraints (in ns).",
        Counter,
        |s| count(s.violations.power),
    ),
    (
        "DCGM_FI_DEV_THERMAL_VIOLATION",
        "Throttling duration due to thermal constraints (in ns).",
        Counter,
        |s| count(s.violations.thermal),
    ),
    (
        "DCGM_FI_DEV_SYNC_BOOST_VIOLATION",
        "Throttling duration due to sync-boost constraints (in ns).",
        Counter,
        |s| count(s.violations.sync_boost),
    ),
    (
        "DCGM_FI_DEV_BOARD_LIMIT_VIOLATION",
        "Throttling duration due to board limit constraints (in ns).",
        Counter,
        |s| count(s.violations.board_limit),
    ),
    (
        "DCGM_FI_DEV_LOW_UTIL_VIOLATION",
        "Throttling duration due to low utilization (in ns).",
        Counter,
        |s| count(s.violations.low_utilization),
    ),
    (
        "DCGM_FI_DEV_RELIABILITY_VIOLATION",
        "Throttling duration due to reliability constraints (in ns).",
        Counter,
        |s| count(s.violations.reliability),
    ),
    (
        "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL",
        "Total number of single-bit volatile ECC errors.",
        Counter,
        |s| count(s.ecc_single.volatile),
    ),
    (
        "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",
        "Total number of double-bit volatile ECC errors.",
        Counter,
        |s| count(s.ecc_double.volatile),
    ),
    (
        "DCGM_FI_DEV_ECC_SBE_AGG_TOTAL",
        "Total number of single-bit persistent ECC errors.",
        Counter,
        |s| count(s.ecc_single.aggregate),
    ),
    (
        "DCGM_FI_DEV_ECC_DBE_AGG_TOTAL",
        "Total number of double-bit persistent ECC errors.",
        Counter,
        |s| count(s.ecc_double.aggregate),
    ),
    (
        "DCGM_FI_DEV_RETIRED_SBE",
        "Total number of retired pages due to single-bit errors.",
        Counter,
        |s| count(s.retired_pages.single),
    ),
    (
        "DCGM_FI_DEV_RETIRED_DBE",
        "Total number of retired pages due to double-bit errors.",
        Counter,
        |s| count(s.retired_pages.double),
    ),
    ("DCGM_FI_DEV_RETIRED_PENDING", "Total number of pages pending retirement.", Counter, |s| {
        count(s.retired_pages.pending)
    }),
    (
        "DCGM_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL",
        "Total number of NVLink flow-control CRC errors.",
        Counter,
        |s| count(s.nvlink_errors.crc_flit),
    ),
    (
        "DCGM_FI_DEV_NVLINK_CRC_DATA_ERROR_COUNT_TOTAL",
        "Total number of NVLink data CRC errors.",
        Counter,
        |s| count(s.nvlink_errors.crc_data),
    ),
    (
        "DCGM_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL",
        "Total number of NVLink retries.",
        Counter,
        |s| count(s.nvlink_errors.replay),
    ),
    (
        "DCGM_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL",
        "Total number of NVLink recovery errors.",
        Counter,
        |s| count(s.nvlink_errors.recovery),
    ),
];

/// What goes over the GPU's links, which its instances share.
pub(super) const LINKS: &[Row<Activity>] = &[
    (
        "DCGM_FI_PROF_PCIE_TX_BYTES",
        "The rate of data transmitted over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
        Gauge,
        |a| a.pcie_sent,
    ),
    (
        "DCGM_FI_PROF_PCIE_RX_BYTES",
        "The rate of data received over the PCIe bus - including both protocol headers and data payloads - in bytes per second.",
        Gauge,
        |a| a.pcie_received,
    ),
    (
        "DCGM_FI_PROF_NVLINK_TX_BYTES",
        "The rate of data transmitted over NVLink, not including protocol headers, in bytes per second.",
        Gauge,
        |a| a.nvlink_sent,
    ),
    (
        "DCGM_FI_PROF_NVLINK_RX_BYTES",
        "The rate of data received over NVLink, not including protocol headers, in bytes per second.",
        Gauge,
        |a| a.nvlink_received,
    ),
];

/// Of each instance of a GPU that is cut, else of the GPU.
pub(super) const MEMORY: &[Row<MemoryUse>] = &[
    ("DCGM_FI_DEV_FB_TOTAL", "Total framebuffer memory (in MiB).", Gauge, |m| mebibytes(m.total)),
    ("DCGM_FI_DEV_FB_FREE", "Framebuffer memory free (in MiB).", Gauge, |m| mebibytes(m.free)),
    ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", Gauge, |m| mebibytes(m.used)),
    ("DCGM_FI_DEV_FB_RESERVED", "Framebuffer memory reserved (in MiB).", Gauge, |m| {
        mebibytes(m.reserved)
    }),
    (
        "DCGM_FI_DEV_FB_USED_PERCENT",
        "Ratio of framebuffer memory used to what is not reserved (0 to 1).",
        Gauge,
        |m| {
            Some(
                m.used as f64
                    / m.total.checked_sub(m.reserved).filter(|usable| *usable > 0)? as f64,
            )
        },
    ),
];

/// The same.
pub(super) const ENGINES: &[Row<Activity>] = &[
    ("DCGM_FI_PROF_GR_ENGINE_ACTIVE", "Ratio of time the graphics engine is active.", Gauge, |a| {
        a.graphics
    }),
    (
        "DCGM_FI_PROF_SM_ACTIVE",
        "The ratio of cycles an SM has at least 1 warp assigned.",
        Gauge,
        |a| a.sm,
    ),
    ("DCGM_FI_PROF_SM_OCCUPANCY", "The ratio of number of warps resident on an SM.", Gauge, |a| {
        a.sm_occupancy
    }),
    (
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        "Ratio of cycles the tensor (HMMA) pipe is active.",
        Gauge,
        |a| a.tensor,
    ),
    (
        "DCGM_FI_PROF_PIPE_TENSOR_DFMA_ACTIVE",
        "Ratio of cycles the tensor (DFMA) pipe is active.",
        Gauge,
        |a| a.tensor_dfma,
    ),
    (
        "DCGM_FI_PROF_PIPE_TENSOR_HMMA_ACTIVE",
        "Ratio of cycles the tensor (HMMA) pipe is active.",
        Gauge,
        |a| a.tensor_hmma,
    ),
    (
        "DCGM_FI_PROF_PIPE_TENSOR_IMMA_ACTIVE",
        "Ratio of cycles the tensor (IMMA) pipe is active.",
        Gauge,
        |a| a.tensor_imma,
    ),
    (
        "DCGM_FI_PROF_DRAM_ACTIVE",
        "Ratio of cycles the device memory interface is active sending or receiving data.",
        Gauge,
        |a| a.dram,
    ),
    ("DCGM_FI_PROF_PIPE_FP64_ACTIVE", "Ratio of cycles the fp64 pipes are active.", Gauge, |a| {
        a.fp64
    }),
    ("DCGM_FI_PROF_PIPE_FP32_ACTIVE", "Ratio of cycles the fp32 pipes are active.", Gauge, |a| {
        a.fp32
    }),
    ("DCGM_FI_PROF_PIPE_FP16_ACTIVE", "Ratio of cycles the fp16 pipes are active.", Gauge, |a| {
        a.fp16
    }),
    ("DCGM_FI_PROF_PIPE_INT_ACTIVE", "Ratio of cycles the integer pipe is active.", Gauge, |a| {
        a.integer
    }),
];
