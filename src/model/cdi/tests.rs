use super::*;

const UID: &str = "8f0c2d4e-1111-4222-8333-444455556666";
const HOOK: &str = "/var/lib/kubelet/plugins/gpu.nvidia.com/kerf-cdi-hook";

fn node(path: &str, major: u32, minor: u32) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        host_path: Some(format!("/run/nvidia/driver{path}")),
        major,
        minor,
        mode: Some(0o666),
        ..DeviceNode::default()
    }
}

fn capability(minor: u32) -> DeviceNode {
    DeviceNode {
        path: format!("/dev/nvidia-caps/nvidia-cap{minor}"),
        major: 234,
        minor,
        mode: Some(0o444),
        ..DeviceNode::default()
    }
}

fn gpu(number: u32) -> ClaimDevice {
    let nodes = vec![node(&format!("/dev/nvidia{number}"), 195, number)];
    ClaimDevice { name: format!("gpu-{number}"), nodes, env: Vec::new() }
}

fn mig(name: &str, first_capability: u32) -> ClaimDevice {
    let mut device = gpu(0);
    device.name = name.to_owned();
    device.nodes.extend([capability(first_capability), capability(first_capability + 1)]);
    device
}

fn file(path: &str, access: Access) -> HostFile {
    HostFile {
        host_path: format!("/run/nvidia/driver{path}"),
        container_path: path.to_owned(),
        access,
    }
}

fn link(target: &str, path: &str) -> Link {
    Link { target: target.to_owned(), path: path.to_owned() }
}

fn files() -> HostFiles {
    HostFiles {
        driver_version: "580.95.05".to_owned(),
        nodes: vec![node("/dev/nvidia-uvm", 510, 0), node("/dev/nvidiactl", 195, 255)],
        cuda_dirs: vec!["/usr/lib64".to_owned()],
        library_dirs: vec!["/usr/lib64".to_owned(), "/usr/lib64/vdpau".to_owned()],
        files: vec![
            file("/run/nvidia-persistenced/socket", Access::Socket),
            file("/usr/lib64/libcuda.so.580.95.05", Access::Read),
        ],
        graphics_links: vec![link(
            "../libnvidia-allocator.so.1",
            "/usr/lib64/gbm/nvidia-drm_gbm.so",
        )],
        library_links: vec![
            link("libcuda.so.1", "/usr/lib64/libcuda.so"),
            link("libcuda.so.580.95.05", "/usr/lib64/libcuda.so.1"),
        ],
    }
}

fn spec(devices: &[ClaimDevice]) -> Spec {
    claim_spec(UID, devices, &files(), Some(Path::new(HOOK)))
}

/// The document as it is written; every one is also one that runtimes read.
fn written(spec: &Spec) -> serde_json::Value {
    spec.validate().unwrap();
    let value = serde_json::to_value(spec).unwrap();
    assert_eq!(serde_json::from_value::<Spec>(value.clone()).unwrap(), *spec);
    value
}

#[test]
fn whole_gpu() {
    insta::assert_json_snapshot!(written(&spec(&[gpu(0)])));
}

#[test]
fn mig_device() {
    let devices = [mig("gpu-0-mig-1g10gb-19-0", 66)];
    insta::assert_json_snapshot!(written(&spec(&devices))["devices"]);
}

#[test]
fn two_gpus_with_environment_and_drm() {
    let mut second = gpu(1);
    second.env = vec![("CUDA_MPS_PIPE_DIRECTORY".to_owned(), "/tmp/nvidia-mps".to_owned())];
    let mut drm = node("/dev/dri/card1", 226, 1);
    (drm.mode, drm.gid) = (Some(0o660), Some(44));
    drm.links = vec![link("../card1", "/dev/dri/by-path/pci-0000:1b:00.0-card")];
    second.nodes.push(drm);
    let value = written(&spec(&[gpu(0), second]));
    assert_eq!(value["cdiVersion"], "0.7.0");
    insta::assert_json_snapshot!(value["devices"]);
}

#[test]
fn no_hooks_is_the_same_without_hooks() {
    let without = claim_spec(UID, &[gpu(0)], &files(), None);
    let mut with = spec(&[gpu(0)]);
    with.container_edits.hooks.clear();
    assert_eq!(written(&without), written(&with));
}

#[test]
fn the_hooks_name_is_its_first_argument() {
    let spec = claim_spec(UID, &[gpu(0)], &files(), Some(Path::new("/opt/nvidia-cdi-hook")));
    let first: Vec<_> = spec.container_edits.hooks.iter().map(|hook| &hook.args[0]).collect();
    assert_eq!(first, ["nvidia-cdi-hook"; 5]);
}

#[test]
fn what_all_containers_get_and_what_comes_twice_is_left_out_of_devices() {
    let mut device = gpu(0);
    device.nodes.push(node("/dev/nvidiactl", 195, 255));
    device.nodes.push(node("/dev/nvidia0", 195, 0));
    assert_eq!(spec(&[device.clone(), device]), spec(&[gpu(0)]));
}

#[test]
fn devices_keep_the_order_of_the_claim() {
    let spec = spec(&[gpu(3), mig("gpu-0-mig-1g10gb-19-4", 70), gpu(1)]);
    let names: Vec<_> = spec.devices.iter().map(|device| device.name.as_str()).collect();
    assert_eq!(
        names,
        [format!("{UID}-gpu-3"), format!("{UID}-gpu-0-mig-1g10gb-19-4"), format!("{UID}-gpu-1")]
    );
}

#[test]
fn a_group_is_joined_only_where_it_is_needed() {
    let cases = [
        (Some(0o666), Some(44), vec![]),
        (Some(0o660), Some(44), vec![44]),
        (Some(0o664), Some(44), vec![44]),
        (Some(0o660), Some(0), vec![]),
        (Some(0o660), None, vec![]),
        (None, Some(44), vec![]),
    ];
    for (mode, gid, expected) in cases {
        let mut device = gpu(0);
        (device.nodes[0].mode, device.nodes[0].gid) = (mode, gid);
        let spec = spec(&[device]);
        assert_eq!(spec.devices[0].container_edits.additional_gids, expected, "{mode:?} {gid:?}");
    }
}

#[test]
fn names_of_devices_and_files_are_those_of_nvidias_driver() {
    assert_eq!(qualified_name("u-1", "gpu-0"), "k8s.gpu.nvidia.com/claim=u-1-gpu-0");
    assert_eq!(file_name("u-1"), "k8s.gpu.nvidia.com-claim_u-1.json");
    assert_eq!(claim_of_file(&file_name("u-1")), Some("u-1"));
    for other in [
        "k8s.gpu.nvidia.com-claim_u-1.yaml",
        "k8s.gpu.nvidia.com-claim_.json",
        "k8s.gpu.nvidia.com-claim_u-1.json.tmp",
        "nvidia.com-gpu.json",
    ] {
        assert_eq!(claim_of_file(other), None, "{other}");
    }
}

/// A document of which each part can be spoilt.
fn complete() -> Spec {
    let mut device = gpu(0);
    device.env.push(("A".to_owned(), "b".to_owned()));
    spec(&[device, gpu(1)])
}

#[test]
fn the_version_is_the_lowest_that_the_content_needs_and_at_least_0_5_0() {
    let plain = || Spec::new("example.com/gpu".to_owned(), vec![], ContainerEdits::default());
    let device = |name: &str, container_edits| Device { name: name.to_owned(), container_edits };
    let gids = || ContainerEdits { additional_gids: vec![44], ..ContainerEdits::default() };
    let host_path = || ContainerEdits {
        device_nodes: vec![node_edit(&node("/dev/nvidia0", 195, 0))],
        ..ContainerEdits::default()
    };
    type Change<'a> = &'a dyn Fn(&mut Spec);
    let rows: [(Change<'_>, &str); 8] = [
        (&|_| (), "0.3.0"),
        (&|spec| spec.devices.push(device("gpu0", ContainerEdits::default())), "0.3.0"),
        (&|spec| spec.devices.push(device("0", ContainerEdits::default())), "0.5.0"),
        (&|spec| spec.devices.push(device("gpu0", host_path())), "0.5.0"),
        (&|spec| spec.container_edits = host_path(), "0.5.0"),
        (&|spec| spec.kind = "example.com/gpu.shared".to_owned(), "0.6.0"),
        (&|spec| spec.devices.push(device("gpu0", gids())), "0.7.0"),
        (&|spec| spec.container_edits = gids(), "0.7.0"),
    ];
    for (index, (change, required)) in rows.into_iter().enumerate() {
        let mut changed = plain();
        change(&mut changed);
        assert_eq!(changed.required_version(), required, "row {index}");
        let made = Spec::new(changed.kind, changed.devices, changed.container_edits);
        assert_eq!(made.cdi_version, required.max("0.5.0"), "row {index}");
    }
}

#[test]
fn what_runtimes_read_is_valid() {
    type Change = fn(&mut Spec);
    let changes: [Change; 14] = [
        |_| (),
        |spec| spec.cdi_version = "v0.5.0".into(),
        |spec| spec.cdi_version = "1.1.0".into(),
        |spec| spec.kind = "a/b".to_owned(),
        |spec| spec.kind = "vendor-1_x.example.com/class-1_x".to_owned(),
        |spec| spec.devices[0].name = "0".to_owned(),
        |spec| spec.devices[0].name = "0:1_a-b.c".to_owned(),
        |spec| spec.devices[0].container_edits.env.push("A=".to_owned()),
        |spec| spec.container_edits.device_nodes[0].kind = None,
        |spec| spec.container_edits.device_nodes[0].kind = Some("p".into()),
        |spec| spec.container_edits.device_nodes[0].permissions = Some("none".into()),
        |spec| spec.container_edits.device_nodes[0].permissions = Some("".into()),
        |spec| spec.container_edits.hooks[0].hook_name = "poststop".into(),
        |spec| spec.container_edits = ContainerEdits::default(),
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut spec = complete();
        change(&mut spec);
        assert_eq!(spec.validate(), Ok(()), "change {index}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn what_runtimes_refuse_is_not_valid() {
    type Change = fn(&mut Spec);
    let changes: [(Change, &str); 26] = [
        (|spec| spec.cdi_version = "".into(), "`cdiVersion`: `` is not a version of CDI"),
        (|spec| spec.cdi_version = "0.2.0".into(), "`cdiVersion`: `0.2.0` is not a version of CDI"),
        (
            |spec| spec.cdi_version = "0.3.0".into(),
            "`cdiVersion`: `0.3.0` is below 0.5.0, which the content needs",
        ),
        (
            |spec| spec.devices[1].container_edits.additional_gids = vec![44],
            "`cdiVersion`: `0.5.0` is below 0.7.0, which the content needs",
        ),
        (
            |spec| spec.kind = "example.com/gpu.x".to_owned(),
            "`cdiVersion`: `0.5.0` is below 0.6.0, which the content needs",
        ),
        (|spec| spec.kind = "gpu".to_owned(), "`kind`: `gpu` is not `vendor/class`"),
        (|spec| spec.kind = "/gpu".to_owned(), "`kind`: `` cannot be a vendor"),
        (|spec| spec.kind = "1.com/gpu".to_owned(), "`kind`: `1.com` cannot be a vendor"),
        (|spec| spec.kind = "a./gpu".to_owned(), "`kind`: `a.` cannot be a vendor"),
        (|spec| spec.kind = "a/b/c".to_owned(), "`kind`: `b/c` cannot be a class"),
        (|spec| spec.devices.clear(), "`devices`: is empty"),
        (
            |spec| spec.devices[0].name = "-gpu".to_owned(),
            "`devices[0].name`: `-gpu` cannot be the name of a device",
        ),
        (
            |spec| spec.devices[0].name = "gpu:".to_owned(),
            "`devices[0].name`: `gpu:` cannot be the name of a device",
        ),
        (
            |spec| spec.devices[1].name = "gpu/0".to_owned(),
            "`devices[1].name`: `gpu/0` cannot be the name of a device",
        ),
        (
            |spec| spec.devices[1].name = "gpu=0".to_owned(),
            "`devices[1].name`: `gpu=0` cannot be the name of a device",
        ),
        (
            |spec| spec.devices[1].name = spec.devices[0].name.clone(),
            "`devices[1].name`: `8f0c2d4e-1111-4222-8333-444455556666-gpu-0` is in the document twice",
        ),
        (
            |spec| spec.devices[1].container_edits = ContainerEdits::default(),
            "`devices[1].containerEdits`: is empty",
        ),
        (
            |spec| spec.devices[0].container_edits.env[0] = "A".to_owned(),
            "`devices[0].containerEdits.env[0]`: `A` is not `KEY=value`",
        ),
        (
            |spec| spec.container_edits.env[1] = "=a".to_owned(),
            "`containerEdits.env[1]`: `=a` is not `KEY=value`",
        ),
        (
            |spec| spec.container_edits.device_nodes[1].path.clear(),
            "`containerEdits.deviceNodes[1].path`: is missing",
        ),
        (
            |spec| spec.container_edits.device_nodes[0].kind = Some("cc".into()),
            "`containerEdits.deviceNodes[0].type`: `cc` is not a type of device",
        ),
        (
            |spec| spec.container_edits.device_nodes[0].permissions = Some("rwx".into()),
            "`containerEdits.deviceNodes[0].permissions`: `rwx` is not some of `rwm`",
        ),
        (
            |spec| spec.container_edits.hooks[2].hook_name = "create".into(),
            "`containerEdits.hooks[2].hookName`: `create` is not a hook",
        ),
        (
            |spec| spec.container_edits.hooks[0].path = "kerf-cdi-hook".to_owned(),
            "`containerEdits.hooks[0].path`: `kerf-cdi-hook` is not an absolute path",
        ),
        (
            |spec| spec.container_edits.mounts[0].host_path.clear(),
            "`containerEdits.mounts[0].hostPath`: is missing",
        ),
        (
            |spec| spec.container_edits.mounts[1].container_path.clear(),
            "`containerEdits.mounts[1].containerPath`: is missing",
        ),
    ];
    for (change, expected) in changes {
        let mut spec = complete();
        change(&mut spec);
        assert_eq!(spec.validate().unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_key_that_is_not_of_cdi_is_refused_when_read() {
    let mut value = serde_json::to_value(complete()).unwrap();
    value["devices"][0]["containerEdits"]["deviceNode"] = serde_json::json!([]);
    let error = serde_json::from_value::<Spec>(value).unwrap_err();
    assert!(error.to_string().starts_with("unknown field `deviceNode`"), "{error}");
}

#[test]
fn a_driver_with_no_nodes_for_a_device_makes_no_valid_document() {
    let empty = ClaimDevice { name: "gpu-0".to_owned(), ..ClaimDevice::default() };
    let error = spec(&[empty]).validate().unwrap_err();
    assert_eq!(error.to_string(), "`devices[0].containerEdits`: is empty");
}
