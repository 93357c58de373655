//! Initialised or not, loaded or not, lost and found; and what a description becomes.

use std::{fs, os::unix::fs::FileTypeExt};

use kerf_nvml::{Machine, Model, NodeDescription};
use nvml_wrapper::{Nvml, enum_wrappers::device::Brand};

use crate::rig::*;

#[test]
fn nothing_works_outside_of_init_and_shutdown() {
    let rig = Rig::new(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    rig.init().unwrap();
    assert_eq!(rig.shutdown(), Ok(()));
    assert_eq!(rig.index(gpu), Ok(0), "initialised twice, shut down once");
    assert_eq!(rig.shutdown(), Ok(()));
    assert_eq!([rig.shutdown(), rig.index(gpu).map(|_| ())], [Err(UNINITIALIZED); 2]);
    assert_eq!(rig.by_name("nvmlUnitGetCount"), UNINITIALIZED);
    assert_eq!(rig.error_string(UNINITIALIZED), "Uninitialized");
    rig.init().unwrap();
    assert_eq!(rig.index(gpu), Err(INVALID_ARGUMENT), "a handle of before");
    assert_eq!(rig.by_name("nvmlUnitGetCount"), NOT_SUPPORTED);
    assert_eq!(rig.by_name("nvmlEventSetWait_v3"), NOT_SUPPORTED);
}

/// A go-nvml program ends with a linker's error at the first call of a function that is not there.
#[test]
fn what_came_with_nvml_13_4_is_there() {
    let rig = Rig::new(&[Model::H100_80]);
    let names = [
        "nvmlDeviceGetAdaptiveTgpModeInfo_v1",
        "nvmlDeviceGetBankRemapperStatus_v1",
        "nvmlDeviceGetGpuFabricInfo_v4",
        "nvmlDeviceGetMemoryLimits_v1",
        "nvmlDeviceGetNvLinkTelemetrySamples_v1",
        "nvmlDeviceGetRemappedRows_v2",
        "nvmlDevicePerfMetricsGetSamples_v1",
        "nvmlDeviceSetAdaptiveTgpMode_v1",
        "nvmlDeviceSetDriverModel_v2",
        "nvmlDeviceSetMemoryLimits_v1",
        "nvmlDeviceSetNvlinkBwModeAsync_v1",
        "nvmlEventSetGetContextCount_v1",
        "nvmlEventSetGetContextData_v1",
        "nvmlEventSetGetContextInfo_v1",
        "nvmlEventSetGetGpuOperationalEventContextLegacyXid_v1",
    ];
    assert_eq!(names.map(|name| rig.by_name(name)), [NOT_SUPPORTED; 15]);
}

#[test]
fn a_wrong_handle_is_an_answer() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    let instance = rig.create(gpu, 19, 0, 1).unwrap();
    let wrong = [Handle(0), Handle(8), instance, Handle(gpu.0 + 1), Handle(usize::MAX)];
    assert_eq!(wrong.map(|handle| rig.uuid(handle)), [const { Err(INVALID_ARGUMENT) }; 5]);
    assert_eq!(rig.info(gpu), Err(INVALID_ARGUMENT));
    assert_eq!(rig.gpu(1), Err(INVALID_ARGUMENT));
}

#[test]
fn gpus_are_found_by_every_name() {
    let rig = Rig::new(&[Model::H100_80, Model::A30]);
    let gpu = rig.gpu(1).unwrap();
    let uuid = rig.uuid(gpu).unwrap();
    assert_eq!(rig.by_uuid(&uuid), Ok(gpu));
    let addresses = ["0000:15:00.0", "00000000:15:00.0"];
    assert_eq!(addresses.map(|address| rig.by_address(address)), [Ok(gpu); 2]);
    assert_eq!(rig.by_uuid("GPU-0"), Err(NOT_FOUND));
    assert_eq!(rig.by_address("0000:16:00.0"), Err(NOT_FOUND));
}

#[test]
fn the_wrapper_that_programs_use_reads_a_gpu() {
    let dir = tempfile::tempdir().unwrap();
    let node = NodeDescription::mixed(&[Model::H100_80, Model::T4]);
    let machine = Machine::create(dir.path(), &node).unwrap();
    for _ in 0..2 {
        let nvml = Nvml::builder().lib_path(machine.library().as_os_str()).init().unwrap();
        assert_eq!(nvml.sys_driver_version().unwrap(), "580.95.05");
        assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 13000);
        let names: Vec<_> =
            (0..2).map(|index| nvml.device_by_index(index).unwrap().name().unwrap()).collect();
        assert_eq!(names, ["NVIDIA H100 80GB HBM3", "Tesla T4"]);
        let gpu = nvml.device_by_index(0).unwrap();
        assert_eq!(gpu.brand().unwrap(), Brand::Nvidia);
        assert_eq!(gpu.memory_info().unwrap().total, 81559 << 20);
        assert_eq!(gpu.pci_info().unwrap().bus_id, "00000000:07:00.0");
        let capability = gpu.cuda_compute_capability().unwrap();
        assert_eq!((capability.major, capability.minor), (9, 0));
        let mode = gpu.mig_mode().unwrap();
        assert_eq!((mode.current, mode.pending), (0, 0));
    }
}

#[test]
fn a_reboot_keeps_what_hardware_keeps() {
    let rig = Rig::cut(&[Model::A100_40, Model::H100_80]);
    for gpu in 0..2 {
        rig.machine.create_instance(gpu, 19, 0, true).unwrap();
        rig.machine.start_process(gpu, Some(0), 4711, "python3").unwrap();
    }
    let mut expected = rig.machine.snapshot().unwrap();
    let old = expected.boot_id.clone();
    rig.machine.reboot().unwrap();
    let boot_id = rig.machine.proc_root().join("sys/kernel/random/boot_id");
    expected.boot_id = fs::read_to_string(boot_id).unwrap().trim().to_owned();
    for gpu in &mut expected.gpus {
        gpu.instances.clear();
        gpu.pids.clear();
    }
    expected.gpus[1].mig = Some((false, false));
    assert_eq!(rig.machine.snapshot().unwrap(), expected);
    assert_ne!(expected.boot_id, old);
    assert_eq!(rig.driver_version(), Err(UNINITIALIZED), "the driver of before the boot");
    rig.shutdown().unwrap();
    rig.init().unwrap();
    assert_eq!(rig.driver_version(), Ok("580.95.05".to_owned()));
}

#[test]
fn a_driver_that_is_unloaded_takes_all_with_it() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    rig.create(gpu, 19, 0, 1).unwrap();
    rig.machine.unload_driver().unwrap();
    let proc = rig.machine.proc_root();
    assert!(!proc.join("driver/nvidia").exists());
    assert!(!fs::read_to_string(proc.join("devices")).unwrap().contains("nvidia"));
    assert_eq!(rig.uuid(gpu), Err(GPU_IS_LOST));
    assert_eq!(rig.driver_version(), Err(UNINITIALIZED));
    assert!(rig.machine.set_mig_mode(0, true).is_err());
    rig.shutdown().unwrap();
    assert_eq!(rig.init(), Err(DRIVER_NOT_LOADED));
    rig.machine.load_driver().unwrap();
    rig.init().unwrap();
    assert_eq!(rig.mig_mode(rig.gpu(0).unwrap()), Ok((0, 0)));
    assert!(proc.join("driver/nvidia/capabilities/gpu0/mig").is_dir());
}

#[test]
fn a_lost_gpu_says_so_and_stops_no_other() {
    let rig = Rig::cut(&[Model::H100_80, Model::H100_80]);
    let [one, two] = [0, 1].map(|index| rig.gpu(index).unwrap());
    let made = rig.machine.create_instance(0, 19, 0, true).unwrap();
    let other = rig.machine.create_instance(1, 19, 0, true).unwrap();
    rig.machine.lose_gpu(0).unwrap();
    assert_eq!(rig.uuid(one), Err(GPU_IS_LOST));
    assert_eq!(rig.gpu(0), Err(GPU_IS_LOST));
    assert_eq!(rig.uuid(two).map(|_| ()), Ok(()));
    assert!(rig.by_uuid(&other.compute[0].uuid).is_ok());
    rig.machine.find_gpu(0).unwrap();
    assert!(rig.by_uuid(&made.compute[0].uuid).is_ok());
    rig.machine.reset_gpu(0).unwrap();
    assert_eq!(rig.machine.snapshot().unwrap().gpus[0].instances, []);
}

#[test]
fn events_wait_for_who_registered() {
    let rig = Rig::cut(&[Model::H100_80, Model::H100_80]);
    let [one, two] = [0, 1].map(|index| rig.gpu(index).unwrap());
    rig.machine.xid(0, 31, None, None).unwrap();
    let set = rig.event_set().unwrap();
    rig.register(one, 0x8, set).unwrap();
    assert_eq!(rig.wait(set, 0), Err(TIMEOUT), "what was before is not told");
    rig.machine.xid(1, 48, None, None).unwrap();
    rig.machine.xid(0, 94, Some(2), Some(0)).unwrap();
    rig.machine.xid(0, 63, None, None).unwrap();
    assert_eq!(rig.wait(set, 1000), Ok((one, 0x8, 94, 2, 0)));
    assert_eq!(rig.wait(set, 1000), Ok((one, 0x8, 63, u32::MAX, u32::MAX)));
    assert_eq!(rig.wait(set, 0), Err(TIMEOUT));
    rig.register(two, 0x8, set).unwrap();
    rig.machine.lose_gpu(1).unwrap();
    assert_eq!([rig.wait(set, 60_000), rig.wait(set, 60_000)], [Err(GPU_IS_LOST); 2]);
    let made = rig.machine.create_instance(0, 19, 0, true).unwrap();
    let mig = rig.by_uuid(&made.compute[0].uuid).unwrap();
    assert_eq!(rig.register(mig, 0x8, set), Err(NOT_SUPPORTED));
}

#[test]
fn processes_are_listed_where_they_run() {
    let rig = Rig::cut(&[Model::H100_80]);
    let gpu = rig.gpu(0).unwrap();
    for start in [0, 4] {
        rig.machine.create_instance(0, 9, start, true).unwrap();
    }
    rig.machine.start_process(0, Some(4), 4711, "python3").unwrap();
    let devices = [0, 1].map(|index| rig.mig_device(gpu, index).unwrap());
    assert_eq!(
        devices.map(|device| rig.processes(device, 4)),
        [Ok(vec![]), Ok(vec![(4711, 2, 0)])]
    );
    assert_eq!(rig.processes(gpu, 4), Ok(vec![(4711, 2, 0)]));
    assert_eq!(rig.processes(gpu, 0), Err(INSUFFICIENT_SIZE));
    assert_eq!(rig.process_name(4711), Ok("python3".to_owned()));
    assert_eq!(rig.process_name(4712), Err(NOT_FOUND));
}

#[test]
fn the_files_are_where_programs_look() {
    let rig = Rig::new(&[Model::H100_80, Model::T4]);
    let machine = &rig.machine;
    let sys = machine.sys_root().join("bus/pci/devices");
    let devices = fs::read_dir(&sys).unwrap().map(|entry| entry.unwrap().file_name());
    let mut devices: Vec<_> = devices.map(|name| name.into_string().unwrap()).collect();
    devices.sort();
    assert_eq!(devices, ["0000:07:00.0", "0000:15:00.0"]);
    let read = |name: &str| fs::read_to_string(sys.join(&devices[1]).join(name)).unwrap();
    assert_eq!(
        [read("numa_node"), read("vendor"), read("device")],
        ["1\n", "0x10de\n", "0x1eb8\n"]
    );
    let place = sys.join(&devices[1]).canonicalize().unwrap();
    assert!(place.ends_with("devices/pci0000:14/0000:14:01.0/0000:15:00.0"), "{place:?}");

    let devices = fs::read_to_string(machine.proc_root().join("devices")).unwrap();
    let named = devices.lines().filter(|line| line.contains("nvidia"));
    assert_eq!(
        named.collect::<Vec<_>>(),
        ["195 nvidia", "195 nvidia-modeset", "195 nvidiactl", "510 nvidia-uvm", "511 nvidia-caps"]
    );

    let libraries = machine.driver_root().join("usr/lib/x86_64-linux-gnu");
    let link = fs::read_link(libraries.join("libnvidia-ml.so.1")).unwrap();
    assert_eq!(link.to_str(), Some("libnvidia-ml.so.580.95.05"));
    let cuda = fs::read(libraries.join("libcuda.so.580.95.05")).unwrap();
    assert!(cuda.starts_with(b"\x7fELF"));
    assert!(cuda.windows(14).any(|bytes| bytes == b"\0libcuda.so.1\0"));
    if let Ok(node) = fs::symlink_metadata(machine.dev_root().join("dev/nvidia0")) {
        assert!(node.file_type().is_char_device());
    }
}

/// Numbers of nodes as the files in procfs and the nodes themselves have them.
#[test]
fn a_machine_for_containers_has_other_numbers_and_no_display() {
    let models = [Model::H100_80, Model::T4, Model::A30];
    let node = NodeDescription::mixed(&models).with_mig_enabled().for_containers();
    let rig = Rig::of(&node);
    let proc = rig.machine.proc_root();
    let read = |path: &str| fs::read_to_string(proc.join(path)).unwrap();
    let devices = read("devices");
    let named = devices.lines().filter(|line| line.contains("nvidia") || line.contains("drm"));
    let expected = ["  4 nvidia", "  4 nvidiactl", "  7 nvidia-uvm", "  4 nvidia-caps"];
    assert_eq!(named.collect::<Vec<_>>(), expected);

    rig.machine.create_instance(2, 5, 2, true).unwrap();
    let minors = read("driver/nvidia-caps/mig-minors");
    for (name, minor) in [("gpu2/mig/gi2/access", 20), ("gpu2/mig/gi2/ci0/access", 25)] {
        let access = read(&format!("driver/nvidia/capabilities/{name}"));
        assert!(access.starts_with(&format!("DeviceFileMinor: {minor}\n")), "{name}: {access}");
        let listed = format!("{} {minor}", name.replace("mig/", ""));
        assert!(minors.lines().any(|line| line == listed), "{listed}: {minors}");
    }
    assert!(!minors.contains("gpu1/"), "a T4 has no instances: {minors}");
    assert!(!rig.machine.sys_root().join("bus/pci/devices/0000:07:00.0/drm").exists());
}
