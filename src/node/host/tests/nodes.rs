use super::*;
use crate::model::{cdi::Link, plugin::config::Config};

#[test]
fn nodes_that_nobody_made_yet_come_from_the_kernels_numbers() {
    let machine = Machine::with_driver();
    assert_eq!(
        machine.files().nodes,
        [
            node("/dev/nvidia-modeset", 195, 254),
            node("/dev/nvidia-uvm", 510, 0),
            node("/dev/nvidia-uvm-tools", 510, 1),
            node("/dev/nvidiactl", 195, 255),
        ]
    );
    assert_eq!(machine.host.gpu_nodes(3, PCI).unwrap(), [node("/dev/nvidia3", 195, 3)]);
}

#[test]
fn nodes_that_nobody_made_yet_get_the_mode_that_the_driver_was_told() {
    let machine = Machine::new();
    machine.write(
        "proc/driver/nvidia/params",
        "DeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n",
    );
    let expected = DeviceNode { mode: Some(0o660), gid: Some(44), ..node("/dev/nvidia0", 195, 0) };
    assert_eq!(machine.host.gpu_nodes(0, PCI).unwrap(), [expected]);
}

#[test]
fn older_drivers_names_are_known_and_modeset_is_not_guessed() {
    let machine = Machine::new();
    machine.write("proc/devices", "Character devices:\n195 nvidia-frontend\n510 nvidia-uvm\n");
    let paths: Vec<_> =
        machine.host.control_nodes().unwrap().into_iter().map(|node| node.path).collect();
    assert_eq!(paths, ["/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidiactl"]);
}

#[test]
fn a_missing_module_is_named() {
    let machine = Machine::with_driver();
    machine.write("proc/devices", "Character devices:\n195 nvidia\n");
    let devices = machine.host.proc_root.join("devices");
    assert_eq!(
        machine.host.files(VERSION).unwrap_err().to_string(),
        format!(
            "no `/dev/nvidia-uvm`, and no `nvidia-uvm` in `{}`: load the kernel module with \
             `modprobe nvidia-uvm`",
            devices.display()
        )
    );
    machine.write("proc/devices", "");
    assert_eq!(
        machine.host.gpu_nodes(7, PCI).unwrap_err().to_string(),
        format!(
            "no `/dev/nvidia7`, and no `nvidia` in `{}`: load the kernel module with \
             `modprobe nvidia`",
            devices.display()
        )
    );
}

#[test]
fn a_block_device_of_that_name_is_not_the_driver() {
    let machine = Machine::new();
    machine.write("proc/devices", "Character devices:\n  1 mem\n\nBlock devices:\n195 nvidia\n");
    assert!(matches!(machine.host.gpu_nodes(0, PCI), Err(Error::NoNode { .. })));
}

#[test]
fn an_existing_node_is_taken_as_it_is() {
    let root = || PathBuf::from("/");
    let host = Host {
        driver_root: root(),
        host_driver_root: root(),
        dev_root: root(),
        proc_root: "/proc".into(),
        sys_root: "/sys".into(),
    };
    let null = DeviceNode { host_path: None, ..node("/dev/null", 1, 3) };
    assert_eq!(host.existing_node("/dev/null").unwrap(), Some(null));
    assert_eq!(host.existing_node("/dev/kerf-none").unwrap(), None);
    assert_eq!(host.existing_node("/dev").unwrap(), None);
}

#[test]
fn the_kernels_number_goes_before_that_of_a_stale_node() {
    let machine = Machine::new();
    if !machine.character_device("root/dev/nvidia-uvm", 0o660, (509, 0)) {
        return; // Only root makes device nodes.
    }
    let expected = DeviceNode { mode: Some(0o660), ..node("/dev/nvidia-uvm", 510, 0) };
    assert!(machine.host.control_nodes().unwrap().contains(&expected));
}

#[test]
fn drm_nodes_come_with_their_links() {
    let machine = Machine::new();
    for name in ["card1", "renderD128", "not-drm"] {
        machine.write(&format!("sys/bus/pci/devices/{PCI}/drm/{name}/dev"), "");
    }
    if !machine.character_device("root/dev/dri/card1", 0o660, (226, 1)) {
        return; // Only root makes device nodes.
    }
    machine.link("../card1", &format!("dev/dri/by-path/pci-{PCI}-card"));
    let path = format!("/dev/dri/by-path/pci-{PCI}-card");
    let card = DeviceNode {
        mode: Some(0o660),
        links: vec![Link { target: "../card1".to_owned(), path }],
        ..node("/dev/dri/card1", 226, 1)
    };
    assert_eq!(machine.host.gpu_nodes(0, PCI).unwrap(), [node("/dev/nvidia0", 195, 0), card]);
}

#[test]
fn the_hosts_path_of_a_node_depends_on_where_the_device_root_is() {
    let host_path = |driver: &str, on_host: &str, dev: &str| {
        let machine = Machine::new();
        let host = Host {
            driver_root: driver.into(),
            host_driver_root: on_host.into(),
            dev_root: dev.into(),
            ..machine.host.clone()
        };
        host.gpu_nodes(0, PCI).unwrap().remove(0).host_path
    };
    assert_eq!(host_path("/", "/", "/"), None);
    assert_eq!(host_path("/driver-root", "/run/nvidia/driver", "/"), None);
    let in_root = host_path("/driver-root", "/run/nvidia/driver", "/driver-root");
    assert_eq!(in_root.as_deref(), Some("/run/nvidia/driver/dev/nvidia0"));
    assert_eq!(host_path("/", "/", "/tmp/node").as_deref(), Some("/tmp/node/dev/nvidia0"));
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

#[test]
fn mig_nodes_come_from_the_drivers_capabilities() {
    let machine = Machine::new();
    let access = "DeviceFileMinor: 66\nDeviceFileMode: 292\nDeviceFileModify: 1\n";
    machine.write("proc/driver/nvidia/capabilities/gpu0/mig/gi7/access", access);
    let access = access.replace("66", "67");
    machine.write("proc/driver/nvidia/capabilities/gpu0/mig/gi7/ci0/access", access);
    assert_eq!(machine.host.mig_nodes(0, 7, 0).unwrap(), [capability(66), capability(67)]);
}

#[test]
fn mig_nodes_come_from_the_list_where_capabilities_are_hidden() {
    let machine = Machine::new();
    let list = "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n";
    machine.write("proc/driver/nvidia-caps/mig-minors", list);
    assert_eq!(machine.host.mig_nodes(0, 1, 0).unwrap(), [capability(12), capability(13)]);
    assert_eq!(
        machine.host.mig_nodes(0, 11, 0).unwrap_err().to_string(),
        format!(
            "the driver lists no capability for `gpu0/gi11/access` below `{}`",
            machine.host.proc_root.join("driver").display()
        )
    );
}

#[test]
fn mig_nodes_need_the_capability_driver() {
    let machine = Machine::new();
    machine.write("proc/devices", "Character devices:\n195 nvidia\n");
    let devices = machine.host.proc_root.join("devices");
    assert_eq!(
        machine.host.mig_nodes(0, 1, 0).unwrap_err().to_string(),
        format!(
            "`{}` does not say the major number of `nvidia-caps`, without which there are no MIG \
             devices",
            devices.display()
        )
    );
}

#[test]
fn nodes_that_move_data_directly_are_those_that_are_wanted_and_there() {
    let machine = Machine::with_driver();
    let made = [
        ("root/dev/nvidia-fs1", (600, 1)),
        ("root/dev/nvidia-fs0", (600, 0)),
        ("root/dev/gdrdrv", (601, 0)),
        ("root/dev/infiniband/uverbs0", (231, 192)),
    ];
    let made = made.into_iter().all(|(path, number)| machine.character_device(path, 0o666, number));
    if !made {
        return eprintln!("CANNOT RUN: making device nodes needs root");
    }
    let paths = |config: Config| -> Vec<String> {
        let nodes = machine.host.direct_nodes(&config).unwrap();
        nodes.into_iter().map(|node| node.path).collect()
    };
    assert_eq!(paths(Config::default()), [""; 0]);
    let gds = Config { gds: true, ..Config::default() };
    assert_eq!(paths(gds.clone()), ["/dev/nvidia-fs0", "/dev/nvidia-fs1"]);
    let all = Config { mofed: true, gdrcopy: true, ..gds };
    let expected = ["/dev/nvidia-fs0", "/dev/nvidia-fs1", "/dev/infiniband/uverbs0", "/dev/gdrdrv"];
    assert_eq!(paths(all), expected);
}
