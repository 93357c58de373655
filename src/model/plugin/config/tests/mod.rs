//! What the file may say, what flags make of it, and that nothing breaks the reader.

mod refused;
mod total;

use super::*;

fn read(text: &str) -> Result<Config, String> {
    Config::read(text, &Overrides::default()).map_err(|error| error.to_string())
}

fn shares(name: &str, rename: &str, devices: SharedDevices, replicas: u32) -> Replicated {
    let full = |name: &str| format!("nvidia.com/{name}");
    Replicated { name: full(name), rename: full(rename), devices, replicas }
}

fn shared(fail_requests_greater_than_one: bool, resources: Vec<Replicated>) -> Config {
    let sharing = Sharing { fail_requests_greater_than_one, resources, ..Sharing::default() };
    Config { sharing, ..Config::default() }
}

#[test]
fn what_says_nothing_is_the_defaults() {
    let nothing =
        ["", "---", "# later", "{}", "version: ''", "flags:\nsharing:\nresources: {}\nimex:"];
    for text in nothing {
        assert_eq!(read(text), Ok(Config::default()), "{text}");
    }
    let list_strategies = BTreeSet::from([ListStrategy::Envvar]);
    let plain = Config { list_strategies, ..Config::default() };
    assert_eq!(read(include_str!("plain.yaml")), Ok(plain));
}

#[test]
fn shares_have_the_name_of_what_they_are_shares_of() {
    let expected = shared(false, vec![shares("gpu", "gpu", SharedDevices::All, 10)]);
    assert_eq!(read(include_str!("time-slicing.yaml")), Ok(expected));
}

#[test]
fn shares_are_renamed_where_the_file_says_so() {
    let expected = vec![
        shares("gpu", "gpu.shared", SharedDevices::All, 10),
        shares("mig-1g.10gb", "mig-1g.10gb.shared", SharedDevices::All, 2),
    ];
    assert_eq!(read(include_str!("time-slicing-renamed.yaml")), Ok(shared(true, expected)));
}

#[test]
fn some_devices_are_shared_under_a_name_of_their_own() {
    let uuid = |text: &str| DeviceRef::Uuid(text.to_owned());
    let gpu = "GPU-4404041a-04cf-1ccf-9e70-f139a9b1e23c";
    let gpus = vec![DeviceRef::Gpu(0), DeviceRef::Gpu(1), uuid(gpu)];
    let migs = vec![
        DeviceRef::Mig(0, 1),
        uuid("MIG-0f4b3c8e-1111-2222-3333-0123456789ab"),
        uuid(&format!("MIG-{gpu}/7/0")),
    ];
    let resources = vec![
        shares("gpu", "gpu-small", SharedDevices::Listed(gpus), 4),
        shares("gpu", "gpu-tiny", SharedDevices::Count(2), 8),
        shares("mig-3g.40gb", "mig-3g.40gb", SharedDevices::All, 2),
        shares("mig-1g.10gb", "mig-1g.10gb", SharedDevices::Listed(migs), 3),
    ];
    let expected = Config { mig_strategy: MigStrategy::Mixed, ..shared(false, resources) };
    assert_eq!(read(include_str!("time-slicing-some.yaml")), Ok(expected));
}

#[test]
fn resources_of_mps_are_known_by_name() {
    let by_mps = BTreeSet::from(["nvidia.com/gpu".to_owned()]);
    let sharing = Sharing { by_mps, ..Sharing::default() };
    let expected = Config { sharing, ..Config::default() };
    assert_eq!(read(include_str!("mps.yaml")), Ok(expected));
    assert_eq!(read("sharing: {mps: {renameByDefault: true}}"), Ok(Config::default()));
}

#[test]
fn resources_are_named_by_patterns() {
    let pattern = |pattern: &str, name: &str| Pattern {
        pattern: pattern.to_owned(),
        name: format!("nvidia.com/{name}"),
    };
    let names = Names {
        gpus: vec![pattern("*A100*", "a100"), pattern("*", "gpu")],
        mig: vec![pattern("1g.10gb", "mig-small"), pattern("3g.*", "mig-half")],
    };
    let expected = Config { names, ..Config::default() };
    assert_eq!(read(include_str!("resources.yaml")), Ok(expected));
}

fn everything() -> Config {
    Config {
        mig_strategy: MigStrategy::Single,
        list_strategies: BTreeSet::from([
            ListStrategy::CdiAnnotations,
            ListStrategy::CdiCri,
            ListStrategy::VolumeMounts,
        ]),
        id_strategy: IdStrategy::Index,
        pass_device_specs: true,
        gdrcopy: true,
        gds: true,
        mofed: true,
        cdi_annotation_prefix: "nvidia.cdi.k8s.io/".to_owned(),
        shared_policy: SharedPolicy::Packed,
        imex_channels: vec![0],
        ..Config::default()
    }
}

#[test]
fn every_key_is_read_in_each_of_its_spellings() {
    assert_eq!(read(include_str!("everything.yaml")), Ok(everything()));
    assert_eq!(read(include_str!("everything.json")), Ok(everything()));
}

#[test]
fn flags_and_environment_win_over_the_file() {
    let overrides = Overrides {
        mig_strategy: Some(MigStrategy::None),
        list_strategies: Some(BTreeSet::from([ListStrategy::CdiCri])),
        id_strategy: Some(IdStrategy::Uuid),
        pass_device_specs: Some(false),
        gdrcopy: Some(false),
        gds: Some(false),
        mofed: Some(false),
        cdi_annotation_prefix: Some(CDI_ANNOTATION_PREFIX.to_owned()),
        shared_policy: Some(SharedPolicy::Distributed),
        imex_channels: Some(Vec::new()),
    };
    let text = include_str!("everything.yaml");
    assert_eq!(Config::read(text, &overrides), Ok(Config::default()));
    assert_eq!(Config::default().with(&overrides), Config::default());
    let one = Overrides { gds: Some(false), ..Overrides::default() };
    assert_eq!(Config::read(text, &one), Ok(Config { gds: false, ..everything() }));
}

#[test]
fn booleans_are_spelled_as_in_go_and_yaml() {
    for (text, value) in [
        ("true", Some(true)),
        ("T", Some(true)),
        ("1", Some(true)),
        ("Yes", Some(true)),
        ("on", Some(true)),
        ("FALSE", Some(false)),
        ("0", Some(false)),
        ("no", Some(false)),
        ("", None),
        ("2", None),
        ("enabled", None),
    ] {
        assert_eq!(boolean(text), value, "{text}");
    }
}
