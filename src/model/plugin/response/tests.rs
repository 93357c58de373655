use super::*;
use crate::model::plugin::config::Sharing;

const A: &str = "GPU-00000000-0000-0000-0000-00000000000a";
const B: &str = "GPU-00000000-0000-0000-0000-00000000000b";

fn config(strategies: impl IntoIterator<Item = ListStrategy>) -> Config {
    Config {
        list_strategies: strategies.into_iter().collect(),
        sharing: Sharing::default(),
        ..Config::default()
    }
}

fn node(path: &str) -> DeviceNode {
    DeviceNode { path: path.to_owned(), ..DeviceNode::default() }
}

fn given(uuid: &str, minor: u32) -> Given {
    Given {
        id: uuid.to_owned(),
        carved: false,
        uuid: uuid.to_owned(),
        index: Some(minor.to_string()),
        nodes: vec![node(&format!("/dev/nvidia{minor}")), node("/dev/dri/renderD128")],
    }
}

fn both() -> Vec<Given> {
    vec![given(A, 0), given(B, 1)]
}

fn control() -> Vec<DeviceNode> {
    vec![node("/dev/nvidiactl"), node("/dev/nvidia-uvm"), node("/dev/nvidia-uvm-tools")]
}

fn map<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn answer(config: &Config, given: &[Given]) -> Response {
    response(config, given, &control())
}

#[test]
fn by_environment() {
    let envvar = Config { imex_channels: vec![0], ..config([ListStrategy::Envvar]) };
    let envs =
        map([("NVIDIA_VISIBLE_DEVICES", &format!("{A},{B}")), ("NVIDIA_IMEX_CHANNELS", "0")]);
    assert_eq!(answer(&envvar, &both()), Response { envs, ..Response::default() });
    let by_index = Config { id_strategy: IdStrategy::Index, ..config([ListStrategy::Envvar]) };
    let envs = map([("NVIDIA_VISIBLE_DEVICES", "0,1")]);
    assert_eq!(answer(&by_index, &both()), Response { envs, ..Response::default() });
}

#[test]
fn by_mounts() {
    let mounts = Config { imex_channels: vec![0], ..config([ListStrategy::VolumeMounts]) };
    let expected = Response {
        envs: map([("NVIDIA_VISIBLE_DEVICES", "/var/run/nvidia-container-devices")]),
        mounts: map([
            (&format!("/var/run/nvidia-container-devices/{A}"), "/dev/null"),
            (&format!("/var/run/nvidia-container-devices/{B}"), "/dev/null"),
            ("/var/run/nvidia-container-devices/imex/0", "/dev/null"),
        ]),
        ..Response::default()
    };
    assert_eq!(answer(&mounts, &both()), expected);
}

#[test]
fn by_annotation() {
    let annotated = config([ListStrategy::CdiAnnotations]);
    let names =
        format!("k8s.device-plugin.nvidia.com/gpu={A},k8s.device-plugin.nvidia.com/gpu={B}");
    let answered = answer(&annotated, &both());
    let (key, value) = answered.annotations.first_key_value().unwrap();
    assert!(key.starts_with("cdi.k8s.io/nvidia-device-plugin_"), "{key}");
    // The name part of an annotation's key has no more.
    assert!(key.len() - "cdi.k8s.io/".len() <= 63, "{key}");
    assert_eq!((value, answered.annotations.len()), (&names, 1));
    let other = answer(&annotated, &[given(B, 1)]);
    assert_ne!(answered.annotations.keys().next(), other.annotations.keys().next());
    let prefixed = Config { cdi_annotation_prefix: "example.com/".to_owned(), ..annotated };
    assert!(
        answer(&prefixed, &both()).annotations.keys().all(|key| key.starts_with("example.com/"))
    );
}

#[test]
fn by_cdi_names() {
    let names = [A, B].map(|uuid| format!("k8s.device-plugin.nvidia.com/gpu={uuid}"));
    let expected = Response { cdi: names.to_vec(), ..Response::default() };
    assert_eq!(answer(&config([ListStrategy::CdiCri]), &both()), expected);
}

#[test]
fn shares_of_a_gpu_are_one_device() {
    let envs = map([("NVIDIA_VISIBLE_DEVICES", A)]);
    let shares = [given(A, 0), given(A, 0)];
    let expected = Response { envs, ..Response::default() };
    assert_eq!(answer(&config([ListStrategy::Envvar]), &shares), expected);
}

#[test]
fn device_nodes_where_they_are_asked_for_and_not_by_cdi_alone() {
    let nodes = ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidiactl"];
    let nodes: BTreeMap<_, _> = nodes.map(|path| (path.to_owned(), path.to_owned())).into();
    let with = |strategies: &[ListStrategy]| {
        let config = Config { pass_device_specs: true, ..config(strategies.iter().copied()) };
        answer(&config, &[given(A, 0)]).devices
    };
    assert_eq!(with(&[ListStrategy::Envvar]), nodes);
    assert_eq!(with(&[ListStrategy::Envvar, ListStrategy::CdiCri]), nodes);
    assert_eq!(with(&[ListStrategy::CdiCri, ListStrategy::CdiAnnotations]), BTreeMap::new());
}

#[test]
fn direct_access_of_other_devices_is_named_in_the_environment() {
    let direct = Config { gds: true, mofed: true, gdrcopy: true, ..config([ListStrategy::CdiCri]) };
    let envs = map([
        ("NVIDIA_GDS", "enabled"),
        ("NVIDIA_MOFED", "enabled"),
        ("NVIDIA_GDRCOPY", "enabled"),
    ]);
    assert_eq!(answer(&direct, &both()).envs, envs);
}

#[test]
fn what_was_carved_goes_by_its_cdi_name_whatever_is_configured() {
    let id = format!("{A}-mig-19-4");
    let carved = Given { id: id.clone(), carved: true, uuid: "MIG-1".to_owned(), ..given(A, 0) };
    let cdi = vec![format!("k8s.device-plugin.nvidia.com/gpu={id}")];
    let plain = Config { pass_device_specs: true, ..config([ListStrategy::Envvar]) };
    let expected = Response { cdi: cdi.clone(), ..Response::default() };
    assert_eq!(answer(&plain, std::slice::from_ref(&carved)), expected);
    let annotated = answer(&config([ListStrategy::CdiAnnotations]), &[carved]);
    assert_eq!(annotated.annotations.values().collect::<Vec<_>>(), [&cdi[0]]);
    assert_eq!(annotated.cdi, [""; 0]);
}
