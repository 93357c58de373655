//! How near the GPUs of a node are to each other.

use std::collections::BTreeMap;

use super::gpu::GpuUuid;

/// How far two GPUs must go over PCIe to reach each other, the furthest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PcieLevel {
    /// Between NUMA nodes.
    System,
    /// Within a NUMA node, over several host bridges.
    Node,
    /// Over one host bridge.
    HostBridge,
    /// Over several PCIe switches.
    Multiple,
    /// Over one PCIe switch.
    Single,
    /// On one board.
    Internal,
}

impl PcieLevel {
    fn score(self) -> u32 {
        match self {
            Self::System => 10,
            Self::Node => 20,
            Self::HostBridge => 30,
            Self::Multiple => 40,
            Self::Single => 50,
            Self::Internal => 60,
        }
    }
}

/// What joins two GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Absent where the driver does not tell.
    pub pcie: Option<PcieLevel>,
    /// How many NVLinks.
    pub nvlinks: u32,
}

impl Link {
    /// How near the two are: a single NVLink counts for more than any way over PCIe.
    pub fn score(self) -> u32 {
        let pcie = self.pcie.map_or(0, PcieLevel::score);
        self.nvlinks.saturating_mul(100).saturating_add(pcie)
    }
}

/// Where an NVLink of a GPU leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvLink {
    /// To the GPU at this PCI address.
    Gpu(String),
    /// To an NVSwitch, and so to every GPU that is joined to one.
    Switch,
}

/// What one GPU sees of the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// The GPU.
    pub uuid: GpuUuid,
    /// Its PCI address in sysfs's spelling.
    pub pci: String,
    /// The way to other GPUs; one way of each two is enough.
    pub pcie: BTreeMap<GpuUuid, PcieLevel>,
    /// Its NVLinks that are up.
    pub nvlinks: Vec<NvLink>,
}

impl Surroundings {
    /// NVLinks of its own that reach the other.
    fn nvlinks_to(&self, other: &Self) -> u32 {
        let direct = |link: &&NvLink| matches!(link, NvLink::Gpu(pci) if *pci == other.pci);
        let direct = self.nvlinks.iter().filter(direct).count();
        let count = direct.saturating_add(self.switched().min(other.switched()));
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn switched(&self) -> usize {
        self.nvlinks.iter().filter(|link| **link == NvLink::Switch).count()
    }

    /// What joins the two. One that could not be asked is still seen by the other.
    fn link_to(&self, other: &Self) -> Link {
        let pcie = self.pcie.get(&other.uuid).or_else(|| other.pcie.get(&self.uuid)).copied();
        Link { pcie, nvlinks: self.nvlinks_to(other).max(other.nvlinks_to(self)) }
    }
}

/// What joins each two GPUs; without any, all are equally far apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Links {
    /// By the lesser UUID, then by the greater.
    pairs: BTreeMap<GpuUuid, BTreeMap<GpuUuid, Link>>,
}

impl Links {
    /// Puts together what each GPU sees.
    pub fn of(gpus: &[Surroundings]) -> Self {
        let mut links = Self::default();
        for (index, gpu) in gpus.iter().enumerate() {
            for other in &gpus[index + 1..] {
                links.insert(gpu.uuid.clone(), other.uuid.clone(), gpu.link_to(other));
            }
        }
        links
    }

    /// Notes what joins two GPUs.
    pub fn insert(&mut self, one: GpuUuid, other: GpuUuid, link: Link) {
        let (lesser, greater) = if one < other { (one, other) } else { (other, one) };
        self.pairs.entry(lesser).or_default().insert(greater, link);
    }

    /// What joins two GPUs; nothing if that is not known.
    pub fn between(&self, one: &GpuUuid, other: &GpuUuid) -> Link {
        let (lesser, greater) = if one < other { (one, other) } else { (other, one) };
        let link = self.pairs.get(lesser).and_then(|others| others.get(greater));
        link.copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(number: u32, pcie: &[(u32, PcieLevel)], nvlinks: Vec<NvLink>) -> Surroundings {
        let pcie = pcie.iter().map(|&(other, level)| (uuid(other), level)).collect();
        Surroundings { uuid: uuid(number), pci: pci(number), pcie, nvlinks }
    }

    fn uuid(number: u32) -> GpuUuid {
        GpuUuid(format!("GPU-{number}"))
    }

    fn pci(number: u32) -> String {
        format!("0000:{number:02x}:00.0")
    }

    fn all(links: &Links, gpus: u32) -> Vec<(u32, u32, Option<PcieLevel>, u32)> {
        let pairs = (0..gpus).flat_map(|one| (one + 1..gpus).map(move |other| (one, other)));
        let link = |(one, other)| {
            let link = links.between(&uuid(other), &uuid(one));
            (one, other, link.pcie, link.nvlinks)
        };
        pairs.map(link).collect()
    }

    #[test]
    fn a_bridge_is_seen_from_either_end() {
        let to = |other| NvLink::Gpu(pci(other));
        let links = Links::of(&[
            gpu(0, &[(1, PcieLevel::Node), (2, PcieLevel::System)], vec![to(1), to(1)]),
            gpu(1, &[], vec![]),
            gpu(2, &[(1, PcieLevel::HostBridge)], vec![to(7)]),
        ]);
        let expected = [
            (0, 1, Some(PcieLevel::Node), 2),
            (0, 2, Some(PcieLevel::System), 0),
            (1, 2, Some(PcieLevel::HostBridge), 0),
        ];
        assert_eq!(all(&links, 3), expected);
    }

    #[test]
    fn switches_join_all_by_as_many_links_as_both_have() {
        let switched = |count| vec![NvLink::Switch; count];
        let links = Links::of(&[
            gpu(0, &[], switched(18)),
            gpu(1, &[], switched(17)),
            gpu(2, &[], switched(18)),
            gpu(3, &[], switched(0)),
        ]);
        let expected = [(0, 1, 17), (0, 2, 18), (0, 3, 0), (1, 2, 17), (1, 3, 0), (2, 3, 0)];
        assert_eq!(all(&links, 4), expected.map(|(one, other, count)| (one, other, None, count)));
    }

    #[test]
    fn an_nvlink_counts_for_more_than_any_way_over_pcie() {
        let levels = [
            PcieLevel::System,
            PcieLevel::Node,
            PcieLevel::HostBridge,
            PcieLevel::Multiple,
            PcieLevel::Single,
            PcieLevel::Internal,
        ];
        let scores = levels.map(|level| Link { pcie: Some(level), nvlinks: 0 }.score());
        assert_eq!(scores, [10, 20, 30, 40, 50, 60]);
        assert_eq!(Link { pcie: Some(PcieLevel::System), nvlinks: 18 }.score(), 1810);
        assert_eq!(Links::default().between(&uuid(0), &uuid(1)).score(), 0);
    }
}
