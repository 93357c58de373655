//! Power, warmth, clocks and ways out of each model's board: what data sheets promise, and what idle GPUs
//! were seen to show.

/// A board's numbers.
#[derive(Debug)]
pub(crate) struct Board {
    /// In milliwatts, with nothing to do.
    pub(crate) idle_power: u64,
    /// In milliwatts; also the limit.
    pub(crate) most_power: u64,
    /// In degrees Celsius, with nothing to do.
    pub(crate) cool: u64,
    /// In degrees Celsius, with all to do.
    pub(crate) hot: u64,
    /// Multiprocessors' clock in MHz, with nothing to do.
    pub(crate) idle_clock: u32,
    /// The same with something to do.
    pub(crate) clock: u32,
    /// Memory's clock in MHz.
    pub(crate) memory_clock: u32,
    /// Whether its memory has a thermometer.
    pub(crate) memory_sensor: bool,
    /// MiB/s over PCIe in each direction, with all to do.
    pub(crate) pcie: u32,
    /// MiB/s over each NVLink in each direction, with all to do.
    pub(crate) nvlink: u32,
}

/// Watts, degrees and megahertz, each idle and busy; memory's clock, and whether it has a thermometer;
/// MiB/s over PCIe and over each NVLink.
const fn board(
    power: (u64, u64),
    (cool, hot): (u64, u64),
    (idle_clock, clock): (u32, u32),
    (memory_clock, memory_sensor): (u32, bool),
    (pcie, nvlink): (u32, u32),
) -> Board {
    Board {
        idle_power: power.0 * 1000,
        most_power: power.1 * 1000,
        cool,
        hot,
        idle_clock,
        clock,
        memory_clock,
        memory_sensor,
        pcie,
        nvlink,
    }
}

pub(super) const A30: Board = board((30, 165), (32, 66), (210, 1440), (1215, true), (8_000, 6_000));
pub(super) const A100_40: Board =
    board((55, 400), (30, 64), (210, 1410), (1215, true), (8_000, 8_000));
pub(super) const A100_80: Board =
    board((62, 400), (30, 66), (210, 1410), (1593, true), (8_000, 8_000));
pub(super) const H100_80: Board =
    board((70, 700), (30, 70), (345, 1980), (2619, true), (16_000, 8_000));
pub(super) const H200_141: Board =
    board((76, 700), (30, 70), (345, 1980), (3201, true), (16_000, 8_000));
pub(super) const B200: Board =
    board((140, 1000), (32, 68), (120, 1965), (3996, true), (32_000, 16_000));
pub(super) const RTX_PRO_6000: Board =
    board((35, 600), (31, 74), (180, 2430), (12481, false), (32_000, 0));
pub(super) const L4: Board = board((12, 72), (38, 72), (210, 2040), (6251, false), (4_000, 0));
pub(super) const T4: Board = board((10, 70), (36, 74), (300, 1590), (5001, false), (4_000, 0));
