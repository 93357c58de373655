use super::*;
use crate::model::{
    cdi::{ClaimDevice, claim_spec},
    linker::cache::Cache,
};

/// What a driver's installer leaves in a plain container: names of libraries, their SONAME where it
/// is not the file's name, and the links that lie beside them.
const LIBRARIES: [(&str, &str, &[&str]); 27] = [
    ("libEGL_nvidia.so.550.163.01", "libEGL_nvidia.so.0", &["libEGL_nvidia.so"]),
    ("libGLX_nvidia.so.550.163.01", "libGLX_nvidia.so.0", &["libGLX_nvidia.so"]),
    ("libcuda.so.550.163.01", "libcuda.so.1", &["libcuda.so"]),
    ("libcudadebugger.so.550.163.01", "libcudadebugger.so.1", &["libcudadebugger.so"]),
    ("libnvcuvid.so.550.163.01", "libnvcuvid.so.1", &["libnvcuvid.so"]),
    ("libnvidia-allocator.so.550.163.01", "libnvidia-allocator.so.1", &["libnvidia-allocator.so"]),
    ("libnvidia-cfg.so.550.163.01", "libnvidia-cfg.so.1", &["libnvidia-cfg.so"]),
    ("libnvidia-egl-gbm.so.1.1.1", "", &[]),
    ("libnvidia-egl-wayland.so.1.1.13", "", &[]),
    ("libnvidia-eglcore.so.550.163.01", "", &[]),
    ("libnvidia-encode.so.550.163.01", "libnvidia-encode.so.1", &["libnvidia-encode.so"]),
    ("libnvidia-fbc.so.550.163.01", "libnvidia-fbc.so.1", &["libnvidia-fbc.so"]),
    ("libnvidia-glcore.so.550.163.01", "", &[]),
    ("libnvidia-glsi.so.550.163.01", "", &[]),
    ("libnvidia-gpucomp.so.550.163.01", "", &[]),
    ("libnvidia-ml.so.550.163.01", "libnvidia-ml.so.1", &["libnvidia-ml.so"]),
    ("libnvidia-ngx.so.550.163.01", "libnvidia-ngx.so.1", &["libnvidia-ngx.so"]),
    ("libnvidia-nscq.so.550.163.01", "", &[]),
    ("libnvidia-nvvm.so.550.163.01", "", &[]),
    ("libnvidia-opencl.so.550.163.01", "libnvidia-opencl.so.1", &["libnvidia-opencl.so"]),
    ("libnvidia-opticalflow.so.550.163.01", "libnvidia-opticalflow.so.1", &[]),
    ("libnvidia-pkcs11.so.550.163.01", "", &[]),
    (
        "libnvidia-ptxjitcompiler.so.550.163.01",
        "libnvidia-ptxjitcompiler.so.1",
        &["libnvidia-ptxjitcompiler.so"],
    ),
    ("libnvidia-rtcore.so.550.163.01", "", &[]),
    ("libnvidia-tls.so.550.163.01", "", &[]),
    ("libnvidia-vulkan-producer.so.550.163.01", "", &[]),
    ("vdpau/libvdpau_nvidia.so.550.163.01", "libvdpau_nvidia.so.1", &[]),
];

const OTHER_FILES: [&str; 17] = [
    "etc/OpenCL/vendors/nvidia.icd",
    "etc/vulkan/icd.d/nvidia_icd.json",
    "lib/firmware/nvidia/550.163.01/gsp_ga10x.bin",
    "lib/firmware/nvidia/550.163.01/gsp_tu10x.bin",
    "run/nvidia-fabricmanager/socket",
    "run/nvidia-persistenced/socket",
    "usr/bin/nvidia-cuda-mps-control",
    "usr/bin/nvidia-cuda-mps-server",
    "usr/bin/nvidia-debugdump",
    "usr/bin/nvidia-imex",
    "usr/bin/nvidia-imex-ctl",
    "usr/bin/nvidia-persistenced",
    "usr/bin/nvidia-smi",
    "usr/lib/x86_64-linux-gnu/nvidia/xorg/libglxserver_nvidia.so.550.163.01",
    "usr/lib/x86_64-linux-gnu/nvidia/xorg/nvidia_drv.so",
    "usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "usr/share/not-nvidia.json",
];

#[test]
fn everything_that_an_installer_leaves_is_found() {
    let machine = Machine::new();
    for (library, soname, links) in LIBRARIES {
        let path = format!("usr/lib/x86_64-linux-gnu/{library}");
        let (dir, name) = path.rsplit_once('/').unwrap();
        machine.library(&path, if soname.is_empty() { name } else { soname });
        if !soname.is_empty() {
            machine.link(name, &format!("{dir}/{soname}"));
        }
        for link in links {
            machine.link(soname, &format!("{dir}/{link}"));
        }
    }
    for file in OTHER_FILES {
        machine.write(&format!("root/{file}"), "");
    }
    let nodes = machine.host.gpu_nodes(0, PCI).unwrap();
    let device = ClaimDevice { name: "gpu-0".to_owned(), nodes, env: Vec::new() };
    let hook = Path::new("/usr/bin/nvidia-cdi-hook");
    let spec = claim_spec("uid", &[device], &machine.files(), Some(hook));
    assert_eq!(spec.validate(), Ok(()));
    insta::assert_json_snapshot!(spec);
}

#[test]
fn without_the_libraries_of_the_loaded_version_nothing_is_found() {
    let machine = Machine::with_driver();
    let error = machine.host.files("580.95.05").unwrap_err().to_string();
    let root = machine.host.driver_root.display();
    assert_eq!(
        error,
        format!(
            "no `libcuda.so.580.95.05` below `{root}`: install the driver's libraries in the version \
             of its kernel module, or set `--driver-root` to where they are"
        )
    );
}

#[test]
fn libraries_that_only_the_linkers_cache_knows_are_found() {
    let machine = Machine::new();
    machine.library("opt/driver/lib/libcuda.so.550.163.01", "libcuda.so.1");
    machine.link("/opt/driver/lib/libcuda.so.550.163.01", "opt/links/libcuda.so.1");
    let mut cache = Cache::default();
    cache.add("libcuda.so.1", "/opt/links/libcuda.so.1");
    machine.write("root/etc/ld.so.cache", cache.encode().unwrap());
    assert_eq!(
        machine.mounts(),
        ["/opt/driver/lib/libcuda.so.550.163.01 \
          <- /run/nvidia/driver/opt/driver/lib/libcuda.so.550.163.01"]
    );
}

#[test]
fn links_are_followed_inside_the_driver_root() {
    let machine = Machine::with_driver();
    // Debian's way to a program, and a directory that is a link.
    machine.link("/etc/alternatives/nvidia-smi", "usr/bin/nvidia-smi");
    machine.link("../../opt/nvidia/nvidia-smi", "etc/alternatives/nvidia-smi");
    machine.write("root/opt/nvidia/nvidia-smi", "");
    machine.link("usr/bin", "bin");
    // Leads nowhere, in a circle, and out of the root, where there is a file of that name.
    machine.link("/nowhere", "usr/bin/nvidia-debugdump");
    machine.link("nvidia-imex", "usr/bin/nvidia-imex");
    machine.link("../../../../outside", "usr/bin/nvidia-persistenced");
    machine.write("outside", "");
    assert_eq!(
        machine.mounts(),
        [
            "/usr/bin/nvidia-smi <- /run/nvidia/driver/opt/nvidia/nvidia-smi",
            "/usr/lib64/libcuda.so.550.163.01 \
             <- /run/nvidia/driver/usr/lib64/libcuda.so.550.163.01",
        ]
    );
}

#[test]
fn a_directory_that_several_names_lead_to_is_one() {
    let machine = Machine::with_driver();
    machine.link("usr/lib64", "lib64");
    machine.link("../lib64", "usr/lib/x86_64-linux-gnu");
    let files = machine.files();
    assert_eq!(
        (files.cuda_dirs, files.library_dirs),
        (vec!["/usr/lib64".to_owned()], vec!["/usr/lib64".to_owned()])
    );
}

#[test]
fn a_link_is_made_only_where_the_host_has_it() {
    let machine = Machine::with_driver();
    machine.library("usr/lib64/libnvidia-ml.so.550.163.01", "libnvidia-ml.so.1");
    let cuda = [
        "/usr/lib64/libcuda.so -> libcuda.so.1",
        "/usr/lib64/libcuda.so.1 -> libcuda.so.550.163.01",
    ];
    assert_eq!(machine.links(), cuda);
    machine.link("libnvidia-ml.so.550.163.01", "usr/lib64/libnvidia-ml.so.1");
    let ml = "/usr/lib64/libnvidia-ml.so.1 -> libnvidia-ml.so.550.163.01";
    assert_eq!(machine.links(), [&cuda[..], &[ml]].concat());
}

#[test]
fn a_library_that_is_no_library_is_mounted_without_links() {
    let machine = Machine::with_driver();
    machine.write("root/usr/lib64/libnvidia-ml.so.550.163.01", "not ELF");
    machine.link("libnvidia-ml.so.550.163.01", "usr/lib64/libnvidia-ml.so.1");
    assert_eq!(machine.mounts().len(), 2);
    assert_eq!(machine.links().len(), 2);
}

#[test]
fn what_comes_and_goes_is_looked_up_again() {
    let machine = Machine::with_driver();
    machine.write("root/run/nvidia-persistenced/socket", "");
    let before = machine.files();
    assert_eq!(machine.host.refreshed(&before).unwrap(), before);

    fs::remove_file(machine.path("root/run/nvidia-persistenced/socket")).unwrap();
    machine.write("root/run/nvidia-fabricmanager/socket", "");
    machine.write("proc/devices", DEVICES.replace("510 ", "511 "));
    let after = machine.host.refreshed(&before).unwrap();
    assert_eq!(after, machine.files());
    assert_eq!(after.files[0].container_path, "/run/nvidia-fabricmanager/socket");
    assert_eq!(after.files.len(), before.files.len());
    assert_eq!(after.nodes[1], DeviceNode { major: 511, ..before.nodes[1].clone() });
}

#[test]
fn firmware_comes_from_the_first_place_that_has_it() {
    let machine = Machine::with_driver();
    machine.write("proc/sys/kernel/osrelease", "6.8.0-31-generic\n");
    let found = || {
        let files = machine.files().files.into_iter().map(|file| file.container_path);
        files.filter(|path| path.ends_with(".bin")).collect::<Vec<_>>()
    };
    let places = [
        "/lib/firmware",
        "/lib/firmware/6.8.0-31-generic",
        "/lib/firmware/updates",
        "/lib/firmware/updates/6.8.0-31-generic",
    ];
    for place in places {
        let file = format!("{place}/nvidia/{VERSION}/gsp_ga10x.bin");
        machine.write(&format!("root{file}"), "");
        assert_eq!(found(), [file]);
    }
    machine.write("root/firmware/nvidia/550.163.01/gsp_ga10x.bin", "");
    machine.write("sys/module/firmware_class/parameters/path", "/firmware\n");
    assert_eq!(found(), ["/firmware/nvidia/550.163.01/gsp_ga10x.bin"]);
}

#[test]
fn firmware_is_for_the_system_processor_and_since_r615_for_others() {
    let machine = Machine::with_driver();
    let dir = format!("/lib/firmware/nvidia/{VERSION}");
    for name in ["gsp_ga10x.bin", "gsp.txt", "other.bin", "ucodes_ga10x.bin", "ucodes"] {
        machine.write(&format!("root{dir}/{name}"), "");
    }
    let found = machine.files().files.into_iter().map(|file| file.container_path);
    assert_eq!(
        found.filter(|path| path.starts_with("/lib/firmware")).collect::<Vec<_>>(),
        ["gsp_ga10x.bin", "ucodes_ga10x.bin"].map(|name| format!("{dir}/{name}"))
    );
}

#[test]
fn configuration_appears_where_containers_look_for_it() {
    let machine = Machine::with_driver();
    machine.write("root/vulkan/icd.d/nvidia_icd.json", "");
    machine.write("root/etc/glvnd/egl_vendor.d/10_nvidia.json", "");
    machine.write("root/usr/share/glvnd/egl_vendor.d/10_nvidia.json", "");
    let mounts = machine.mounts();
    assert!(
        mounts.contains(
            &"/etc/vulkan/icd.d/nvidia_icd.json <- /run/nvidia/driver/vulkan/icd.d/nvidia_icd.json"
                .into()
        )
    );
    assert!(
        mounts.contains(
            &"/usr/share/glvnd/egl_vendor.d/10_nvidia.json \
          <- /run/nvidia/driver/etc/glvnd/egl_vendor.d/10_nvidia.json"
                .into()
        )
    );
}
