use super::*;
use crate::model::{
    fixtures::gpus::{self, A30, A100_80, H100, L4, RTX_PRO_6000, Shape, carve, gpu, node},
    gpu::{Fabric, Placement},
    plugin::config::{
        IdStrategy, ListStrategy, Names, Replicated, SharedDevices, SharedPolicy, Sharing,
    },
};

fn config(mig_strategy: MigStrategy) -> Config {
    Config {
        mig_strategy,
        list_strategies: BTreeSet::from([ListStrategy::Envvar]),
        id_strategy: IdStrategy::Uuid,
        pass_device_specs: false,
        gdrcopy: false,
        gds: false,
        mofed: false,
        cdi_annotation_prefix: "cdi.k8s.io/".to_owned(),
        shared_policy: SharedPolicy::Distributed,
        imex_channels: Vec::new(),
        names: Names::default(),
        sharing: Sharing::default(),
    }
}

/// With each of these resources shared, under a name of its own or not.
fn sharing(mig_strategy: MigStrategy, shared: &[(&str, u32, bool)]) -> Config {
    let resources = shared.iter().map(|&(name, replicas, renamed)| Replicated {
        name: name.to_owned(),
        rename: if renamed { format!("{name}.shared") } else { name.to_owned() },
        devices: SharedDevices::All,
        replicas,
    });
    let sharing = Sharing { resources: resources.collect(), ..Sharing::default() };
    Config { sharing, ..config(mig_strategy) }
}

fn facts() -> Facts {
    Facts {
        machine_type: Some("DGXH100\n".to_owned()),
        timestamp: Some(1_795_430_448),
        vgpu: Some(Vgpu::Absent),
    }
}

/// A GPU of a model with MIG mode off.
fn whole(model: &gpus::Model, number: u32) -> Gpu {
    let mut gpu = cut(model, number, &[]);
    if let Some(mig) = &mut gpu.mig {
        (mig.enabled, mig.pending) = (false, false);
    }
    gpu
}

/// A GPU of a model with these profiles carved, by name and first memory slice.
fn cut(model: &gpus::Model, number: u32, instances: &[(&str, u32)]) -> Gpu {
    let mut gpu = Gpu { pci_class: Some("0x030200".to_owned()), ..gpu(model, number) };
    for &(name, start) in instances {
        let (profile, placement) = place(&gpu, name, start);
        carve(&mut gpu, profile, placement, Shape::Filled);
    }
    gpu
}

fn place(gpu: &Gpu, name: &str, start: u32) -> (u32, Placement) {
    let mut profiles = gpu.mig.as_ref().unwrap().profiles.iter();
    let profile = profiles.find(|profile| profile.name == name).unwrap();
    let mut places = profile.placements.iter().copied();
    (profile.id, places.find(|place| place.start == start).unwrap())
}

fn eight(make: impl Fn(u32) -> Gpu) -> Vec<Gpu> {
    (0..8).map(make).collect()
}

fn sevenths(number: u32) -> Gpu {
    cut(&H100, number, &[0, 1, 2, 3, 4, 5, 6].map(|start| ("1g.10gb", start)))
}

/// As a feature file has them.
fn text(gpus: Vec<Gpu>, config: &Config) -> String {
    let driver = DriverVersions { driver: "550.163.01".to_owned(), cuda: (12, 4) };
    let inventory = Inventory { driver, ..node(gpus) };
    let labels = labels(&facts(), &inventory, config);
    labels.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

/// The values of labels whose names begin like this.
fn values(gpus: Vec<Gpu>, config: &Config, prefix: &str) -> Vec<(String, String)> {
    let all = labels(&Facts::default(), &node(gpus), config).into_iter();
    let short =
        |name: &str| Some(name.strip_prefix("nvidia.com/")?.strip_prefix(prefix)?.to_owned());
    all.filter_map(|(name, value)| Some((short(&name)?, value))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn whole_gpus() {
    let gpus = eight(|number| whole(&H100, number));
    insta::assert_snapshot!(text(gpus.clone(), &config(MigStrategy::None)));
    // The strategy counts where there is MIG.
    let single = text(gpus, &config(MigStrategy::Single));
    assert!(single.contains("nvidia.com/mig.strategy=single\n"));
}

#[test]
fn mig_devices_as_gpus() {
    insta::assert_snapshot!(text(eight(sevenths), &config(MigStrategy::Single)));
}

#[test]
fn mig_devices_by_profile() {
    let mixed = [("1g.10gb", 0), ("1g.10gb+me", 1), ("2g.20gb", 2), ("3g.40gb", 4)];
    let mut gpus = eight(|number| whole(&H100, number));
    for number in [1, 5, 6] {
        gpus[number as usize] = cut(&H100, number, &mixed);
    }
    gpus[6] = cut(&H100, 6, &[]);
    insta::assert_snapshot!(text(gpus, &config(MigStrategy::Mixed)));
}

#[test]
fn shared_gpus() {
    let config = sharing(MigStrategy::None, &[("nvidia.com/gpu", 4, false)]);
    insta::assert_snapshot!(text(eight(|number| whole(&H100, number)), &config));
}

#[test]
fn shared_gpus_of_another_name() {
    let config = sharing(MigStrategy::None, &[("nvidia.com/gpu", 4, true)]);
    insta::assert_snapshot!(text(eight(|number| whole(&H100, number)), &config));
}

#[test]
fn mig_devices_that_are_no_gpus() {
    let mut gpus = eight(sevenths);
    gpus[7] = cut(&H100, 7, &[("3g.40gb", 0)]);
    insta::assert_snapshot!(text(gpus, &config(MigStrategy::Single)));
}

#[test]
fn a_node_without_mig_devices_of_one_profile_alone_is_invalid() {
    let mut split = sevenths(1);
    let id = split.mig.as_mut().unwrap().instances.remove(0).profile;
    carve(&mut split, id, Placement { start: 0, size: 1 }, Shape::Split);
    let mut empty = cut(&H100, 1, &[]);
    let (profile, placement) = place(&empty, "1g.10gb", 0);
    carve(&mut empty, profile, placement, Shape::Empty);
    for other in [split, empty, whole(&H100, 1), cut(&H100, 1, &[]), whole(&L4, 1)] {
        let gpus = vec![sevenths(0), other];
        let product = values(gpus, &config(MigStrategy::Single), "gpu.product");
        assert_eq!(product, pairs(&[("", "NVIDIA-H100-80GB-HBM3-MIG-INVALID")]));
    }
}

#[test]
fn shared_mig_devices_are_known_by_their_own_resource() {
    let gpus = vec![cut(&H100, 0, &[("1g.10gb", 0), ("1g.10gb+me", 1)]), whole(&H100, 1)];
    let shared = [("nvidia.com/gpu", 2, true), ("nvidia.com/mig-1g.10gb.me", 3, false)];
    let mixed = sharing(MigStrategy::Mixed, &shared);
    let expected = pairs(&[
        ("count", "1"),
        ("engines.copy", "1"),
        ("engines.decoder", "1"),
        ("engines.encoder", "0"),
        ("engines.jpeg", "1"),
        ("engines.ofa", "1"),
        ("memory", "9984"),
        ("multiprocessors", "16"),
        ("product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gbme-SHARED"),
        ("replicas", "3"),
        ("sharing-strategy", "time-slicing"),
        ("slices.ci", "1"),
        ("slices.gi", "1"),
    ]);
    assert_eq!(values(gpus.clone(), &mixed, "mig-1g.10gb.me."), expected);
    // A GPU that is not cut speaks for those of its product.
    let product = values(gpus.clone(), &mixed, "gpu.product");
    assert_eq!(product, pairs(&[("", "NVIDIA-H100-80GB-HBM3")]));
    assert_eq!(values(gpus, &mixed, "gpu.replicas"), pairs(&[("", "2")]));
    let single = sharing(MigStrategy::Single, &shared[..1]);
    let product = values(vec![sevenths(0)], &single, "gpu.product");
    assert_eq!(product, pairs(&[("", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb")]));
}

#[test]
fn of_several_products_the_one_of_most_gpus_counts() {
    let gpus = |models: &[&gpus::Model]| -> Vec<Gpu> {
        (0..).zip(models).map(|(number, model)| whole(model, number)).collect()
    };
    let told = |models: &[&gpus::Model]| {
        let gpus = gpus(models);
        let labels = labels(&Facts::default(), &node(gpus), &config(MigStrategy::None));
        ["product", "count", "memory", "family"]
            .map(|n| labels[&format!("nvidia.com/gpu.{n}")].clone())
    };
    assert_eq!(told(&[&L4, &A30, &A30]), ["NVIDIA-A30", "2", "24576", "ampere"]);
    assert_eq!(told(&[&L4, &A30]), ["NVIDIA-L4", "1", "23034", "ada-lovelace"]);

    let one = [("1g.10gb", 0)];
    let both = vec![cut(&A100_80, 0, &one), cut(&H100, 1, &[("1g.10gb", 0), ("1g.10gb", 1)])];
    let mixed = config(MigStrategy::Mixed);
    let found =
        ["count", "product"].map(|n| values(both.clone(), &mixed, &format!("mig-1g.10gb.{n}")));
    assert_eq!(found.concat(), pairs(&[("", "3"), ("", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb")]));
}

#[test]
fn profiles_with_suffixes_have_names_that_labels_may_have() {
    let names = [("1g.24gb+me.all", 0), ("1g.24gb+gfx", 3), ("2g.48gb-me", 6)];
    let gpus = vec![cut(&RTX_PRO_6000, 0, &names)];
    let products = |name: &str| values(gpus.clone(), &config(MigStrategy::Mixed), name);
    let product = "NVIDIA-RTX-PRO-6000-Blackwell-Server-Edition-MIG";
    for (resource, profile) in [
        ("mig-1g.24gb.me.all", "1g.24gbme.all"),
        ("mig-1g.24gb.gfx", "1g.24gbgfx"),
        ("mig-2g.48gb-me", "2g.48gb-me"),
    ] {
        let found = products(&format!("{resource}.product"));
        assert_eq!(found, pairs(&[("", &format!("{product}-{profile}"))]));
    }
}

#[test]
fn a_node_without_gpus_has_labels_of_itself_alone() {
    let found = labels(&facts(), &Inventory::default(), &config(MigStrategy::Mixed));
    let expected =
        [("nvidia.com/gfd.timestamp", "1795430448"), ("nvidia.com/vgpu.present", "false")];
    assert_eq!(found.into_iter().collect::<Vec<_>>(), pairs(&expected));
    let found = labels(&Facts::default(), &Inventory::default(), &config(MigStrategy::None));
    assert_eq!(found, BTreeMap::new());
}

#[test]
fn virtual_gpus_name_their_hypervisors_driver() {
    let told = |vgpu| {
        let facts = Facts { vgpu, ..Facts::default() };
        let found = labels(&facts, &Inventory::default(), &config(MigStrategy::None));
        found.into_iter().collect::<Vec<_>>()
    };
    let driver = HostDriver { version: "550.54.16".to_owned(), branch: "r550_40".to_owned() };
    let expected = pairs(&[
        ("nvidia.com/vgpu.host-driver-branch", "r550_40"),
        ("nvidia.com/vgpu.host-driver-version", "550.54.16"),
        ("nvidia.com/vgpu.present", "true"),
    ]);
    assert_eq!(told(Some(Vgpu::Present(Some(driver)))), expected);
    assert_eq!(told(Some(Vgpu::Present(None))), expected[2..]);
    assert_eq!(told(None), []);
}

#[test]
fn a_clique_is_told_if_there_is_one() {
    let clique = |cliques: &[Option<u32>]| {
        let fabric = |clique| Fabric { cluster: "7b968a6d-7e2f".to_owned(), clique };
        let gpus = (0..).zip(cliques);
        let gpus = gpus.map(|(n, clique)| Gpu { fabric: clique.map(fabric), ..whole(&H100, n) });
        values(gpus.collect(), &config(MigStrategy::None), "gpu.clique")
    };
    assert_eq!(clique(&[Some(7), None, Some(7)]), pairs(&[("", "7b968a6d-7e2f.7")]));
    assert_eq!(clique(&[Some(7), Some(8)]), []);
    assert_eq!(clique(&[None]), []);
}

#[test]
fn the_mode_is_that_of_all_gpus() {
    let told = |classes: &[Option<&str>]| {
        let gpus = (0..).zip(classes);
        let class = |class: &Option<&str>| class.map(str::to_owned);
        let gpus = gpus.map(|(n, given)| Gpu { pci_class: class(given), ..whole(&L4, n) });
        mode(&gpus.collect::<Vec<_>>())
    };
    assert_eq!(told(&[Some("0x030200"), Some("0x030200")]), "compute");
    assert_eq!(told(&[Some("0x030000")]), "graphics");
    for others in [&[Some("0x030000"), Some("0x030200")][..], &[None, Some("0x030200")], &[None]] {
        assert_eq!(told(others), "unknown");
    }
    assert_eq!(told(&[Some("0x120000")]), "unknown");
}

#[test]
fn a_driver_version_has_two_or_three_parts() {
    let told = |driver: &str| {
        let mut labels = Labels::default();
        labels.versions(&DriverVersions { driver: driver.to_owned(), cuda: (13, 0) });
        let parts = labels.0.into_iter();
        let parts = parts.filter_map(|(name, value)| {
            Some((name.strip_prefix("nvidia.com/cuda.driver")?.to_owned(), value))
        });
        parts.collect::<Vec<_>>()
    };
    let expected = pairs(&[
        ("-version.full", "570.86"),
        ("-version.major", "570"),
        ("-version.minor", "86"),
        ("-version.revision", ""),
        (".major", "570"),
        (".minor", "86"),
        (".rev", ""),
    ]);
    assert_eq!(told("570.86"), expected);
    assert_eq!(told("570"), []);
    assert_eq!(told("570.86.1.2"), []);
}

#[test]
fn families_are_told_by_compute_capability() {
    let capabilities =
        [(3, 5), (5, 2), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 3), (12, 0)];
    let families = capabilities.map(|(major, minor)| resources::family(major, minor));
    let expected = [
        "kepler",
        "maxwell",
        "pascal",
        "volta",
        "turing",
        "ampere",
        "ampere",
        "ada-lovelace",
        "hopper",
        "blackwell",
        "blackwell",
    ];
    assert_eq!(families, expected);
    assert_eq!(
        [(13, 0), (4, 0), (11, 0)].map(|(x, y)| resources::family(x, y)),
        ["rubin", "undefined", "undefined"]
    );
}

#[test]
fn values_have_what_labels_may_have() {
    let texts = [
        ("PowerEdge R750 (SKU=090E)\n", "PowerEdge-R750-SKU090E"),
        ("  Standard\tPC  (Q35 + ICH9, 2009) ", "Standard-PC-Q35-ICH9-2009"),
        ("Some Corp.", "Some-Corp"),
        ("  ", ""),
    ];
    assert_eq!(texts.map(|(text, _)| sanitised(text)), texts.map(|(_, value)| value));
    assert_eq!(
        [None, Some("\n"), Some("DGX A100")].map(machine),
        ["unknown", "unknown", "DGX-A100"]
    );
}
