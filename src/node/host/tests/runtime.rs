//! Which container runtimes let containers have GPUs without a claim.

use super::*;

const MAIN: &str = "/etc/containerd/config.toml";
const DROP_IN: &str = "/etc/containerd/conf.d/99-nvidia.toml";
const NVIDIA: &str = "/etc/nvidia-container-runtime/config.toml";
const OPERATOR: &str = "/usr/local/nvidia/toolkit/.config/nvidia-container-runtime/config.toml";

const RUNC: &str = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
                    default_runtime_name = \"runc\" # not nvidia";
const V1: &str = "[plugins.cri.containerd]\ndefault_runtime_name = 'nvidia'";
const V2: &str =
    "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"";
const V3: &str =
    "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nvidia'";
const OTHER_NAME: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n\
                          BinaryName = '/usr/local/nvidia/toolkit/nvidia-container-runtime.cdi'";
const NOT_DEFAULT: &str = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.nvidia.options]\n\
                           BinaryName = '/usr/bin/nvidia-container-runtime'";
const CRIO: &str = "[crio.runtime]\ndefault_runtime = \"nvidia\"";
const CRIO_NOT: &str =
    "[crio]\n[crio.runtime.runtimes.nvidia]\nruntime_path = \"/usr/bin/nvidia-container-runtime\"";
const ON: &str = "accept-nvidia-visible-devices-envvar-when-unprivileged = true";
const OFF: &str = "accept-nvidia-visible-devices-envvar-when-unprivileged = false # safe";

/// The host with these files, and whose default runtime is NVIDIA's there.
fn bypassed(files: &[(&str, &str)]) -> Vec<String> {
    let machine = Machine::new();
    for (path, text) in files {
        machine.write(&format!("host{path}"), text);
    }
    let lines = bypasses(&machine.directory.path().join("host"));
    let word = |line: &str, n: usize| line.split(' ').nth(n).unwrap().to_owned();
    lines.iter().map(|line| format!("{} {}", word(line, 2), word(line, 4))).collect()
}

#[test]
fn nvidias_runtime_as_the_default_is_found() {
    let of_containerd: &[&str] = &["`nvidia` containerd"];
    let none: &[&str] = &[];
    for (files, expected) in [
        (&[][..], none),
        (&[(MAIN, RUNC)], none),
        (&[(MAIN, "")], none),
        (&[(MAIN, V1)], of_containerd),
        (&[(MAIN, V2)], of_containerd),
        (&[(MAIN, V3)], of_containerd),
        (&[(MAIN, NOT_DEFAULT)], none),
        (&[(MAIN, OTHER_NAME)], &["`runc` containerd"]),
        // By default, or by name, and then in the place of what the main file says.
        (&[(DROP_IN, V3)], of_containerd),
        (&[(MAIN, "imports = []"), (DROP_IN, V3)], none),
        (&[(MAIN, "imports = [\"/etc/containerd/conf.d/*.toml\"]"), (DROP_IN, V3)], of_containerd),
        (&[(MAIN, "imports = ['conf.d/99-*']"), (DROP_IN, V3)], of_containerd),
        (&[(MAIN, "imports = ['/etc/other.toml']"), ("/etc/other.toml", V2)], of_containerd),
        (&[(MAIN, RUNC), (DROP_IN, V2)], of_containerd),
        (&[(MAIN, V2), (DROP_IN, RUNC)], none),
        (&[("/etc/crio/crio.conf", CRIO)], &["`nvidia` CRI-O"]),
        (&[("/etc/crio/crio.conf.d/99-nvidia.conf", CRIO)], &["`nvidia` CRI-O"]),
        (&[("/etc/crio/crio.conf", CRIO_NOT)], none),
        (
            &[("/etc/crio/crio.conf.d/1", CRIO), ("/etc/crio/crio.conf.d/2", CRIO_NOT)],
            &["`nvidia` CRI-O"],
        ),
        (&[(MAIN, V2), ("/etc/crio/crio.conf", CRIO)], &["`nvidia` containerd", "`nvidia` CRI-O"]),
        // NVIDIA's runtime has an option that makes it harmless.
        (&[(MAIN, V2), (NVIDIA, OFF)], none),
        (&[(MAIN, V2), (NVIDIA, ON)], of_containerd),
        (&[(MAIN, V2), (NVIDIA, "[nvidia-container-cli]\nuser = 'root'")], of_containerd),
        (&[("/etc/crio/crio.conf", CRIO), (NVIDIA, OFF)], none),
        (&[(MAIN, OTHER_NAME), (OPERATOR, OFF)], none),
        (&[(MAIN, OTHER_NAME), (OPERATOR, ON), (NVIDIA, OFF)], &["`runc` containerd"]),
    ] {
        assert_eq!(bypassed(files), expected, "{files:#?}");
    }
}

#[test]
fn a_host_is_seen_below_its_root() {
    let machine = Machine::new();
    machine.write("root/opt/config.toml", V2);
    fs::create_dir_all(machine.path("root/etc/containerd")).unwrap();
    machine.link("/opt/config.toml", "etc/containerd/config.toml");
    assert_eq!(
        bypasses(&machine.directory.path().join("root")),
        [
            "default runtime `nvidia` of containerd (`/etc/containerd/config.toml`) is NVIDIA's: a container whose \
             image sets `NVIDIA_VISIBLE_DEVICES=all` gets every GPU without a claim; make `runc` the default, or \
             set `accept-nvidia-visible-devices-envvar-when-unprivileged = false` in \
             `/etc/nvidia-container-runtime/config.toml`"
        ]
    );
    assert_eq!(bypasses(Path::new("/nowhere")), [""; 0]);
}
