//! The tables. Where no read-out of a number has been published, the neighbours' proportions are used:
//! B200 from three slices up, and the graphics profiles of the RTX PRO 6000.

use super::{Architecture, Engines, MigSpec, NvLinks, Profile, Spec, boards};
use crate::node::Model;

const TESLA: u32 = 2;
const NVIDIA: u32 = 14;

impl Model {
    /// The model's numbers.
    pub(crate) const fn spec(self) -> &'static Spec {
        match self {
            Self::A30 => &A30,
            Self::A100_40 => &A100_40,
            Self::A100_80 => &A100_80,
            Self::H100_80 => &H100_80,
            Self::H200_141 => &H200_141,
            Self::B200 => &B200,
            Self::RtxPro6000 => &RTX_PRO_6000,
            Self::L4 => &L4,
            Self::T4 => &T4,
        }
    }
}

/// Copy engines, decoders, encoders, JPEG and optical flow engines.
const fn engines(copy: u32, decoders: u32, encoders: u32, jpeg: u32, ofa: u32) -> Engines {
    Engines { copy, decoders, encoders, jpeg, ofa }
}

/// Enumerator, id and name; slices and how many instances; multiprocessors, MiB and engines; placement.
const fn profile(
    (index, id, name): (u32, u32, &'static str),
    (slices, instances): (u32, u32),
    (multiprocessors, memory_mib, engines): (u32, u64, Engines),
    (starts, size): (&'static [u32], u32),
) -> Profile {
    Profile {
        index,
        id,
        name,
        slices,
        size,
        starts,
        instances,
        multiprocessors,
        memory_mib,
        engines,
    }
}

/// Placements of the GPUs with eight memory slices, by size of instance.
mod eighths {
    pub(super) const ONE: (&[u32], u32) = (&[0, 1, 2, 3, 4, 5, 6], 1);
    pub(super) const ONE_DOUBLE: (&[u32], u32) = (&[0, 2, 4, 6], 2);
    pub(super) const TWO: (&[u32], u32) = (&[0, 2, 4], 2);
    pub(super) const THREE: (&[u32], u32) = (&[0, 4], 4);
    pub(super) const FOUR: (&[u32], u32) = (&[0], 4);
    pub(super) const ALL: (&[u32], u32) = (&[0], 8);
}

static A30: Spec = Spec {
    name: "NVIDIA A30",
    pci_device: 0x20b7,
    architecture: Architecture::Ampere,
    brand: NVIDIA,
    compute_capability: (8, 0),
    memory_mib: 24576,
    nvlinks: NvLinks::Bridged(4),
    board: boards::A30,
    mig: Some(MigSpec {
        slices: 4,
        memory_slices: 4,
        unit: 1,
        engines: engines(4, 4, 0, 1, 1),
        profiles: &[
            profile(
                (0, 14, "1g.6gb"),
                (1, 4),
                (14, 5952, engines(1, 1, 0, 0, 0)),
                (&[0, 1, 2, 3], 1),
            ),
            profile((1, 5, "2g.12gb"), (2, 2), (28, 11968, engines(2, 2, 0, 0, 0)), (&[0, 2], 2)),
            profile((3, 0, "4g.24gb"), (4, 1), (56, 24000, engines(4, 4, 0, 1, 1)), (&[0], 4)),
            profile(
                (7, 21, "1g.6gb+me"),
                (1, 1),
                (14, 5952, engines(1, 1, 0, 1, 1)),
                (&[0, 1, 2, 3], 1),
            ),
            profile(
                (8, 6, "2g.12gb+me"),
                (2, 1),
                (28, 11968, engines(2, 2, 0, 1, 1)),
                (&[0, 2], 2),
            ),
        ],
    }),
};

static A100_40: Spec = Spec {
    name: "NVIDIA A100-SXM4-40GB",
    pci_device: 0x20b0,
    architecture: Architecture::Ampere,
    brand: NVIDIA,
    compute_capability: (8, 0),
    memory_mib: 40960,
    nvlinks: NvLinks::Switched(12),
    board: boards::A100_40,
    mig: Some(MigSpec {
        slices: 7,
        memory_slices: 8,
        unit: 1,
        engines: engines(7, 5, 0, 1, 1),
        profiles: &[
            profile((0, 19, "1g.5gb"), (1, 7), (14, 4864, engines(1, 0, 0, 0, 0)), eighths::ONE),
            profile((1, 14, "2g.10gb"), (2, 3), (28, 9984, engines(2, 1, 0, 0, 0)), eighths::TWO),
            profile((2, 9, "3g.20gb"), (3, 2), (42, 20096, engines(3, 2, 0, 0, 0)), eighths::THREE),
            profile((3, 5, "4g.20gb"), (4, 1), (56, 20096, engines(4, 2, 0, 0, 0)), eighths::FOUR),
            profile((4, 0, "7g.40gb"), (7, 1), (98, 40192, engines(7, 5, 0, 1, 1)), eighths::ALL),
            profile((7, 20, "1g.5gb+me"), (1, 1), (14, 4864, engines(1, 1, 0, 1, 1)), eighths::ONE),
            profile(
                (9, 15, "1g.10gb"),
                (1, 4),
                (14, 9984, engines(1, 1, 0, 0, 0)),
                eighths::ONE_DOUBLE,
            ),
        ],
    }),
};

static A100_80: Spec = Spec {
    name: "NVIDIA A100-SXM4-80GB",
    pci_device: 0x20b2,
    architecture: Architecture::Ampere,
    brand: NVIDIA,
    compute_capability: (8, 0),
    memory_mib: 81920,
    nvlinks: NvLinks::Switched(12),
    board: boards::A100_80,
    mig: Some(MigSpec {
        slices: 7,
        memory_slices: 8,
        unit: 1,
        engines: engines(7, 5, 0, 1, 1),
        profiles: &[
            profile((0, 19, "1g.10gb"), (1, 7), (14, 9856, engines(1, 0, 0, 0, 0)), eighths::ONE),
            profile((1, 14, "2g.20gb"), (2, 3), (28, 19968, engines(2, 1, 0, 0, 0)), eighths::TWO),
            profile((2, 9, "3g.40gb"), (3, 2), (42, 40192, engines(3, 2, 0, 0, 0)), eighths::THREE),
            profile((3, 5, "4g.40gb"), (4, 1), (56, 40192, engines(4, 2, 0, 0, 0)), eighths::FOUR),
            profile((4, 0, "7g.80gb"), (7, 1), (98, 80384, engines(7, 5, 0, 1, 1)), eighths::ALL),
            profile(
                (7, 20, "1g.10gb+me"),
                (1, 1),
                (14, 9856, engines(1, 1, 0, 1, 1)),
                eighths::ONE,
            ),
            profile(
                (9, 15, "1g.20gb"),
                (1, 4),
                (14, 19968, engines(1, 1, 0, 0, 0)),
                eighths::ONE_DOUBLE,
            ),
        ],
    }),
};

static H100_80: Spec = Spec {
    name: "NVIDIA H100 80GB HBM3",
    pci_device: 0x2330,
    architecture: Architecture::Hopper,
    brand: NVIDIA,
    compute_capability: (9, 0),
    memory_mib: 81559,
    nvlinks: NvLinks::Switched(18),
    board: boards::H100_80,
    mig: Some(MigSpec {
        slices: 7,
        memory_slices: 8,
        unit: 1,
        engines: engines(8, 7, 0, 7, 1),
        profiles: &[
            profile((0, 19, "1g.10gb"), (1, 7), (16, 9984, engines(1, 1, 0, 1, 0)), eighths::ONE),
            profile((1, 14, "2g.20gb"), (2, 3), (32, 20096, engines(2, 2, 0, 2, 0)), eighths::TWO),
            profile((2, 9, "3g.40gb"), (3, 2), (60, 40448, engines(3, 3, 0, 3, 0)), eighths::THREE),
            profile((3, 5, "4g.40gb"), (4, 1), (64, 40448, engines(4, 4, 0, 4, 0)), eighths::FOUR),
            profile((4, 0, "7g.80gb"), (7, 1), (132, 81152, engines(8, 7, 0, 7, 1)), eighths::ALL),
            profile(
                (7, 20, "1g.10gb+me"),
                (1, 1),
                (16, 9984, engines(1, 1, 0, 1, 1)),
                eighths::ONE,
            ),
            profile(
                (9, 15, "1g.20gb"),
                (1, 4),
                (26, 20096, engines(1, 1, 0, 1, 0)),
                eighths::ONE_DOUBLE,
            ),
        ],
    }),
};

static H200_141: Spec = Spec {
    name: "NVIDIA H200",
    pci_device: 0x2335,
    architecture: Architecture::Hopper,
    brand: NVIDIA,
    compute_capability: (9, 0),
    memory_mib: 143771,
    nvlinks: NvLinks::Switched(18),
    board: boards::H200_141,
    mig: Some(MigSpec {
        slices: 7,
        memory_slices: 8,
        unit: 1,
        engines: engines(8, 7, 0, 7, 1),
        profiles: &[
            profile((0, 19, "1g.18gb"), (1, 7), (16, 16384, engines(1, 1, 0, 1, 0)), eighths::ONE),
            profile((1, 14, "2g.35gb"), (2, 3), (32, 33024, engines(2, 2, 0, 2, 0)), eighths::TWO),
            profile((2, 9, "3g.71gb"), (3, 2), (60, 71168, engines(3, 3, 0, 3, 0)), eighths::THREE),
            profile((3, 5, "4g.71gb"), (4, 1), (64, 71168, engines(4, 4, 0, 4, 0)), eighths::FOUR),
            profile(
                (4, 0, "7g.141gb"),
                (7, 1),
                (132, 143104, engines(8, 7, 0, 7, 1)),
                eighths::ALL,
            ),
            profile(
                (7, 20, "1g.18gb+me"),
                (1, 1),
                (16, 16384, engines(1, 1, 0, 1, 1)),
                eighths::ONE,
            ),
            profile(
                (9, 15, "1g.35gb"),
                (1, 4),
                (26, 33024, engines(1, 1, 0, 1, 0)),
                eighths::ONE_DOUBLE,
            ),
        ],
    }),
};

static B200: Spec = Spec {
    name: "NVIDIA B200",
    pci_device: 0x2901,
    architecture: Architecture::Blackwell,
    brand: NVIDIA,
    compute_capability: (10, 0),
    memory_mib: 183359,
    nvlinks: NvLinks::Switched(18),
    board: boards::B200,
    mig: Some(MigSpec {
        slices: 7,
        memory_slices: 8,
        unit: 1,
        engines: engines(16, 7, 0, 7, 1),
        profiles: &[
            profile((0, 19, "1g.23gb"), (1, 7), (18, 20992, engines(2, 1, 0, 1, 0)), eighths::ONE),
            profile((1, 14, "2g.45gb"), (2, 3), (36, 45312, engines(4, 2, 0, 2, 0)), eighths::TWO),
            profile((2, 9, "3g.90gb"), (3, 2), (70, 91136, engines(6, 3, 0, 3, 0)), eighths::THREE),
            profile((3, 5, "4g.90gb"), (4, 1), (72, 91136, engines(8, 4, 0, 4, 0)), eighths::FOUR),
            profile(
                (4, 0, "7g.180gb"),
                (7, 1),
                (148, 182272, engines(16, 7, 0, 7, 1)),
                eighths::ALL,
            ),
            profile(
                (7, 20, "1g.23gb+me"),
                (1, 1),
                (18, 20992, engines(2, 1, 0, 1, 1)),
                eighths::ONE,
            ),
            profile(
                (9, 15, "1g.45gb"),
                (1, 4),
                (30, 45312, engines(2, 1, 0, 1, 0)),
                eighths::ONE_DOUBLE,
            ),
        ],
    }),
};

/// Placements of the RTX PRO 6000, on a grid of twelve.
mod twelfths {
    pub(super) const ONE: (&[u32], u32) = (&[0, 3, 6, 9], 3);
    pub(super) const TWO: (&[u32], u32) = (&[0, 6], 6);
    pub(super) const ALL: (&[u32], u32) = (&[0], 12);
}

static RTX_PRO_6000: Spec = Spec {
    name: "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    pci_device: 0x2bb5,
    architecture: Architecture::Blackwell,
    brand: NVIDIA,
    compute_capability: (12, 0),
    memory_mib: 97887,
    nvlinks: NvLinks::None,
    board: boards::RTX_PRO_6000,
    mig: Some(MigSpec {
        slices: 4,
        memory_slices: 12,
        unit: 3,
        engines: engines(4, 4, 4, 4, 1),
        profiles: &[
            profile((0, 14, "1g.24gb"), (1, 4), (46, 24192, engines(1, 1, 1, 1, 0)), twelfths::ONE),
            profile((1, 5, "2g.48gb"), (2, 2), (94, 48512, engines(2, 2, 2, 2, 0)), twelfths::TWO),
            profile((3, 0, "4g.96gb"), (4, 1), (188, 97408, engines(4, 4, 4, 4, 1)), twelfths::ALL),
            profile(
                (7, 21, "1g.24gb+me"),
                (1, 1),
                (46, 24192, engines(1, 1, 1, 1, 1)),
                twelfths::ONE,
            ),
            profile(
                (10, 47, "1g.24gb+gfx"),
                (1, 4),
                (46, 24192, engines(1, 1, 1, 1, 0)),
                twelfths::ONE,
            ),
            profile(
                (11, 35, "2g.48gb+gfx"),
                (2, 2),
                (94, 48512, engines(2, 2, 2, 2, 0)),
                twelfths::TWO,
            ),
            profile(
                (12, 32, "4g.96gb+gfx"),
                (4, 1),
                (188, 97408, engines(4, 4, 4, 4, 1)),
                twelfths::ALL,
            ),
            profile(
                (13, 67, "1g.24gb-me"),
                (1, 4),
                (46, 24192, engines(1, 0, 0, 0, 0)),
                twelfths::ONE,
            ),
            profile(
                (14, 66, "2g.48gb-me"),
                (2, 2),
                (94, 48512, engines(2, 0, 0, 0, 0)),
                twelfths::TWO,
            ),
            profile(
                (15, 65, "1g.24gb+me.all"),
                (1, 1),
                (46, 24192, engines(1, 4, 4, 4, 1)),
                twelfths::ONE,
            ),
            profile(
                (16, 64, "2g.48gb+me.all"),
                (2, 1),
                (94, 48512, engines(2, 4, 4, 4, 1)),
                twelfths::TWO,
            ),
        ],
    }),
};

static L4: Spec = Spec {
    name: "NVIDIA L4",
    pci_device: 0x27b8,
    architecture: Architecture::Ada,
    brand: NVIDIA,
    compute_capability: (8, 9),
    memory_mib: 23034,
    nvlinks: NvLinks::None,
    board: boards::L4,
    mig: None,
};

static T4: Spec = Spec {
    name: "Tesla T4",
    pci_device: 0x1eb8,
    architecture: Architecture::Turing,
    brand: TESLA,
    compute_capability: (7, 5),
    memory_mib: 15360,
    nvlinks: NvLinks::None,
    board: boards::T4,
    mig: None,
};
