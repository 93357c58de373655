//! The hook in real containers: a real linker, real mounts, a real runtime. All of it needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kerf::model::cdi::{ContainerEdits, Hook, Mount, NodeEdit, Spec};
use kerf_nvml::Model;
use serde_json::{Value, json};

use super::{
    CACHE, Container, DONE, FIRST_VERSION, Ran, fingerprint, mounted, output, program, run,
};
use crate::{
    claims::{prepare, spec},
    given,
};

/// Says by which libraries each name is found, and where each path leads.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int count, char **names) {
    for (int i = 1; i < count; i++) {
        char target[256] = {0};
        struct link_map *map;
        if (names[i][0] == '/') {
            readlink(names[i], target, sizeof target - 1);
            printf("%s -> %s\n", names[i], target);
            continue;
        }
        void *library = dlopen(names[i], RTLD_NOW);
        if (!library) { printf("%s\n", dlerror()); continue; }
        dlinfo(library, RTLD_DI_LINKMAP, &map);
        printf("%s: %s\n", names[i], map->l_name);
    }
    return 0;
}
"#;

/// The least of an image with glibc: a linker, ldconfig, a shell, and [`PROBE`], each taken from here.
fn glibc_image() -> Container {
    let image = Container::new();
    let source = image.dir.path().join("probe.c");
    super::put(&source, PROBE.as_bytes());
    let made = Command::new("cc").arg("-o").args([&image.at("probe"), &source]).status();
    assert!(made.expect("a C compiler, as Rust needs one").success());
    for program in ["/bin/sh", "/sbin/ldconfig"] {
        copy(&image, Path::new(program));
    }
    // Of the shell, and of the simulated library that stands in for NVML.
    for program in [PathBuf::from("/bin/sh"), kerf_nvml::built_library().unwrap()] {
        let listed = output(Command::new("ldd").arg(program), "");
        let listed = String::from_utf8(listed.stdout).unwrap();
        for path in listed.split_whitespace().filter(|word| word.starts_with('/')) {
            copy(&image, Path::new(path));
        }
    }
    image
}

fn copy(image: &Container, path: &Path) {
    fs::copy(path, image.at(path.to_str().unwrap())).unwrap();
}

fn stdout(command: &mut Command) -> String {
    let output = output(command.env_clear(), "");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn chroot(image: &Container, arguments: &[&str]) -> String {
    stdout(Command::new("/usr/sbin/chroot").arg(image.root()).args(arguments))
}

/// A shell script in a mount namespace of its own; `$0` is the hook, `$1` the root, `$2` a file with the
/// container's state.
fn in_namespace(image: &Container, script: &str) -> String {
    let state = image.dir.path().join("state.json");
    super::put(&state, image.state().as_bytes());
    let mut unshare = Command::new("/usr/bin/unshare");
    unshare.args(["-m", "/bin/sh", "-ec", script]).arg(program());
    stdout(unshare.arg(image.root()).arg(state))
}

#[test]
#[ignore = "needs root: .ci/run runs this"]
fn glibcs_linker_finds_what_was_added() {
    let image = glibc_image();
    image.library("opt/lib/libcuda.so.580.95.05", "libcuda.so.1");
    image.link("libcuda.so.580.95.05", "opt/lib/libcuda.so.1");
    image.link("libcuda.so.1", "opt/lib/libcuda.so");
    let names = ["/probe", "libcuda.so.1", "libcuda.so", "libc.so.6"];
    let missing = "libcuda.so.1: cannot open shared object file: No such file or directory\n";
    assert!(chroot(&image, &names).starts_with(missing));
    let found = "libcuda.so.1: /opt/lib/libcuda.so.1\nlibcuda.so: /opt/lib/libcuda.so.1\n";
    // Without a cache of the image's own, and with one of its ldconfig's, in both forms that there are.
    image.write("etc/ld.so.conf", "include /etc/ld.so.conf.d/*.conf\n");
    image.at("etc/ld.so.conf.d/x");
    for form in [None, Some("compat"), Some("new")] {
        if let Some(form) = form {
            fs::remove_file(image.root().join("etc/ld.so.conf.d/zz-kerf.conf")).unwrap();
            chroot(&image, &["/sbin/ldconfig", "-c", form]);
            assert!(chroot(&image, &names).starts_with(missing));
        }
        assert_eq!(image.hook(&["update-ldcache", "--folder", "/opt/lib"]), DONE());
        let said = chroot(&image, &names);
        assert!(said.starts_with(found), "{said}");
        let listed = chroot(&image, &["/sbin/ldconfig", "-p"]);
        let ours = "\tlibcuda.so.1 (libc6,x86-64) => /opt/lib/libcuda.so.1\n";
        let own = listed.contains("\tlibc.so.6 (libc6,x86-64) => ");
        assert_eq!((listed.contains(ours), own), (true, form.is_some()), "{form:?}: {listed}");
    }
    fs::remove_file(image.root().join(CACHE)).unwrap();
    chroot(&image, &["/sbin/ldconfig"]);
    let said = chroot(&image, &names);
    assert!(said.starts_with(found), "after another ldconfig: {said}");
}

/// Every name in a real cache, with what was added to it, is found by the linker's own search.
#[test]
#[ignore = "needs root: .ci/run runs this"]
fn a_cache_stays_in_the_order_that_the_linker_searches() {
    let image = glibc_image();
    let names = [
        "libA.so.1",
        "libc.so.6",
        "libcuda.so",
        "libcuda.so.1",
        "libcuda.so.10",
        "libz.so.1",
        "libz3.so",
    ];
    image.write("etc/ld.so.conf", "/own\n");
    for (n, name) in names.iter().enumerate() {
        let dir = if n % 2 == 0 { "own" } else { "opt/lib" };
        if *name != "libc.so.6" {
            image.library(&format!("{dir}/{name}"), name);
        }
    }
    chroot(&image, &["/sbin/ldconfig"]);
    assert_eq!(image.hook(&["update-ldcache", "--folder", "/opt/lib"]), DONE());
    let said = chroot(&image, &[&["/probe"], &names[..]].concat());
    let found: Vec<_> = said.lines().map(|line| line.split(": /").next().unwrap()).collect();
    assert_eq!(found, names, "{said}");
}

#[test]
#[ignore = "needs root: .ci/run runs this"]
fn the_drivers_parameters_are_covered() {
    let image = Container::new();
    let parameters = "ResmanDebugLevel: 4294967295\nModifyDeviceFiles: 1\nDeviceFileMode: 438\n";
    image.write("proc/driver/nvidia/params", parameters);
    image.write("proc/driver/nvidia/version", "580\n");
    let before = fingerprint(&image.dir.path().join("rootfs"));
    let script = r#"
        cd "$1/proc/driver/nvidia"
        "$0" disable-device-node-modification < "$2"
        cat "$1"/proc/driver/nvidia/params "$1"/proc/driver/nvidia/version
        ls "$1"/proc/driver/nvidia
        grep -c "$1" /proc/self/mountinfo
        echo 1 2> /dev/null > "$1"/proc/driver/nvidia/params || echo read-only
        "$0" disable-device-node-modification < "$2"
        grep -c "$1" /proc/self/mountinfo
    "#;
    let covered = parameters.replace("Files: 1", "Files: 0");
    assert_eq!(
        in_namespace(&image, script),
        format!("{covered}580\nparams\nversion\n1\nread-only\n1\n")
    );
    assert_eq!(
        fingerprint(&image.dir.path().join("rootfs")),
        before,
        "only the namespace's view changed"
    );

    // Nothing to cover: no driver, or one that says no already.
    image.write("proc/driver/nvidia/params", &covered);
    let script =
        r#""$0" disable-device-node-modification < "$2"; grep -c "$1" /proc/self/mountinfo || :"#;
    assert_eq!(in_namespace(&image, script), "0\n");
    fs::remove_dir_all(image.root().join("proc")).unwrap();
    assert_eq!(in_namespace(&image, script), "0\n");
}

#[test]
#[ignore = "needs root: .ci/run runs this"]
fn a_read_only_root_is_no_hindrance_once_it_is_as_it_should_be() {
    let image = Container::new();
    mounted(&image);
    let read_only = |arguments: &[&str]| {
        let script = format!(
            r#"mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"; "$0" {} < "$2" 2>&1 || echo $?"#,
            arguments.join(" ")
        );
        in_namespace(&image, &script)
    };
    let said = FIRST_VERSION.map(read_only);
    let refused = |command: &str, what: &str| {
        let why = "in the container, which is read-only there when hooks run: some releases of crun have it so \
                   with `readOnlyRootFilesystem`, and volumes may be: Read-only file system (os error 30)";
        format!("kerf-cdi-hook: {command}: cannot {what} {why}\n1\n")
    };
    let expected = [
        refused("create-symlinks", "make `/usr/lib/x86_64-linux-gnu/gbm`"),
        refused("create-symlinks", "make the link `/usr/lib/x86_64-linux-gnu/libcuda.so`"),
        String::new(),
        refused("update-ldcache", "make `/etc`"),
        String::new(),
    ];
    assert_eq!(said, expected);
    for arguments in FIRST_VERSION {
        assert_eq!(image.hook(arguments), DONE());
    }
    assert_eq!(FIRST_VERSION.map(read_only), [""; 5]);
}

/// Links of procfs lead anywhere at once, without a path: they are not followed.
#[test]
#[ignore = "needs root: .ci/run runs this"]
fn links_of_procfs_lead_nowhere() {
    let image = Container::new();
    for (target, path) in [
        ("/proc/self/cwd", "usr/lib/x86_64-linux-gnu"),
        ("/proc/self/root", "etc"),
        ("/proc/self/exe", "proc-exe"),
    ] {
        image.link(target, path);
    }
    image.at("proc/x");
    let host = fingerprint(&image.host());
    let script = r#"
        mount -t proc proc "$1/proc"
        cd "$1/../host"
        for command in "create-symlinks --link a::/usr/lib/x86_64-linux-gnu/b" \
            "update-ldcache --folder /usr/lib/x86_64-linux-gnu" "enable-cuda-compat --host-driver-version=580.1"; do
            "$0" $command < "$2" 2>&1 || echo $?
        done
    "#;
    let why = "in the container: Too many levels of symbolic links (os error 40)";
    let expected = format!(
        "kerf-cdi-hook: create-symlinks: cannot open `/usr/lib/x86_64-linux-gnu` {why}\n1\n\
         kerf-cdi-hook: warning: cannot open `/etc/ld.so.cache` {why}; a new cache takes its place\n\
         kerf-cdi-hook: update-ldcache: cannot open `/usr/lib/x86_64-linux-gnu` {why}\n1\n\
         kerf-cdi-hook: enable-cuda-compat: cannot open `/etc/ld.so.conf.d/00-kerf-cuda-compat.conf` {why}\n1\n"
    );
    assert_eq!(in_namespace(&image, script), expected);
    assert_eq!(fingerprint(&image.host()), host);
}

/// The kernel shows root what others may not see, and makes more than directories where it takes some.
#[test]
#[ignore = "needs root: .ci/run runs this"]
fn nothing_of_the_kernels_file_systems_is_read_or_written() {
    let files = [
        "etc/ld.so.cache",
        "etc/ld-musl-x86_64.path",
        "etc/ld.so.conf.d/zz-kerf.conf",
        "usr/lib/x86_64-linux-gnu/libevil.so",
        "usr/local/cuda/compat/libcuda.so.600.1",
    ];
    for target in ["/proc/iomem", "/proc/version", "/sys/kernel/notes"] {
        for file in files {
            let image = Container::new();
            mounted(&image);
            image.write("lib/ld-musl-x86_64.so.1", "");
            image.link(target, file);
            let said = on_file_systems(&image);
            let copied = |path: &PathBuf| {
                let is_file = path.symlink_metadata().unwrap().is_file();
                is_file && String::from_utf8_lossy(&fs::read(path).unwrap()).contains("System RAM")
            };
            let copies: Vec<_> = super::walk(&image.root()).into_iter().filter(copied).collect();
            assert_eq!(copies, Vec::<PathBuf>::new(), "{file} -> {target}: {said}");
        }
    }
    for target in ["/proc", "/proc/sys", "/sys", "/sys/kernel"] {
        let image = Container::new();
        mounted(&image);
        image.link(target, "etc");
        let said = on_file_systems(&image);
        assert!(said.contains("which is the kernel's"), "etc -> {target}: {said}");
    }
}

/// What the commands of old CDI files say in a root in which procfs and sysfs are mounted.
fn on_file_systems(image: &Container) -> String {
    for directory in ["proc/x", "sys/x"] {
        image.at(directory);
    }
    let commands =
        FIRST_VERSION.map(|arguments| format!(r#""$0" {} < "$2" 2>&1 || :"#, arguments.join(" ")));
    let mounts = r#"mount -t proc proc "$1/proc"; mount --rbind /sys "$1/sys"; mount --make-rslave "$1/sys""#;
    in_namespace(image, &format!("{mounts}\n{}", commands.join("\n")))
}

#[test]
#[ignore = "needs strace: .ci/run installs it and runs this"]
fn a_kernel_without_openat2_is_refused() {
    let image = Container::new();
    mounted(&image);
    let before = image.image();
    for arguments in FIRST_VERSION {
        let mut strace = Command::new("strace");
        strace.args(["-o", "/dev/null", "-e", "inject=openat2:error=ENOSYS"]).arg(program());
        let expected = format!(
            "kerf-cdi-hook: {}: this kernel has no `openat2`, without which links in an image may lead out of it: use \
             Linux 5.6 or later, or run `kerf node` with `--no-cdi-hooks`\n",
            arguments[0]
        );
        let ran = run(strace.args(arguments), &image.state());
        assert_eq!(ran, Ran { code: Some(1), said: expected });
    }
    assert_eq!(image.image(), before);
}

/// What a runtime's CDI library does with a file's edits.
fn inject(config: &mut Value, edits: &ContainerEdits) {
    let extend = |config: &mut Value, pointer: &str, values: Vec<Value>| {
        config.pointer_mut(pointer).unwrap().as_array_mut().unwrap().extend(values);
    };
    let env = edits.env.iter().map(|entry| json!(entry));
    let mount = |mount: &Mount| {
        json!({
            "source": mount.host_path, "destination": mount.container_path,
            "type": "bind", "options": mount.options,
        })
    };
    let node = |node: &NodeEdit| {
        json!({
            "path": node.path, "type": node.kind, "major": node.major, "minor": node.minor,
            "fileMode": node.file_mode, "uid": 0, "gid": node.gid.unwrap_or(0),
        })
    };
    let hook = |hook: &Hook| json!({ "path": hook.path, "args": hook.args, "env": hook.env });
    extend(config, "/process/env", env.collect());
    extend(config, "/mounts", edits.mounts.iter().map(mount).collect());
    extend(config, "/linux/devices", edits.device_nodes.iter().map(node).collect());
    extend(config, "/hooks/createContainer", edits.hooks.iter().map(hook).collect());
}

/// A container's configuration, with what is in the CDI file.
fn config(spec: &Spec, arguments: &[&str], read_only: bool) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "args": arguments, "env": [], "cwd": "/",
            "noNewPrivileges": true,
        },
        "root": { "path": "rootfs", "readonly": read_only },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
        ],
        "hooks": { "createContainer": [] },
        "linux": { "namespaces": namespaces, "devices": [] },
    });
    inject(&mut config, &spec.container_edits);
    for device in &spec.devices {
        inject(&mut config, &device.container_edits);
    }
    config
}

/// What `runc` has a container of this image and CDI file print.
fn runc(image: &Container, spec: &Spec, arguments: &[&str], read_only: bool) -> String {
    let config = config(spec, arguments, read_only);
    let bundle = image.dir.path();
    super::put(&bundle.join("config.json"), config.to_string().as_bytes());
    let id = bundle.file_name().unwrap().to_str().unwrap().trim_start_matches('.');
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(bundle.join("runc")).args(["run", "--bundle"]).arg(bundle);
    let ran = output(runc.arg(format!("kerf-{id}")), "");
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success(), "{said}");
    String::from_utf8(ran.stdout).unwrap()
}

/// From the kubelet's call to a program in the container: the agent's own CDI file, its hook, a real
/// runtime, a real linker.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runc: .ci/run installs it and runs this"]
async fn a_container_of_a_real_runtime_finds_the_drivers_libraries() {
    let mut builder = given::node(Model::H100_80, 1);
    if let Some(program) = std::env::var_os("KERF_CDI_HOOK") {
        builder = builder.flag("--nvidia-cdi-hook-path").flag(program);
    }
    let testbed = builder.start().await.unwrap();
    let claim = given::claim(&testbed, "c", &["gpu-0-mig-1g10gb-19-4"]);
    prepare(&testbed, &claim).await.unwrap();
    let spec = spec(&testbed, &claim);
    let version = spec.container_edits.mounts.iter().find_map(|mount| {
        mount.container_path.strip_prefix("/usr/lib/x86_64-linux-gnu/libcuda.so.")
    });
    let version = version.unwrap();
    let names = ["libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1", "libvdpau_nvidia.so.1"];
    let links = ["/usr/lib/x86_64-linux-gnu/libcuda.so.1", "/usr/lib/x86_64-linux-gnu/libcuda.so"];
    let probe = [&["/probe"], &links[..], &names[..]].concat();
    let expected = format!(
        "/usr/lib/x86_64-linux-gnu/libcuda.so.1 -> libcuda.so.{version}
/usr/lib/x86_64-linux-gnu/libcuda.so -> libcuda.so.1
libcuda.so.1: /usr/lib/x86_64-linux-gnu/libcuda.so.1
libcuda.so: /usr/lib/x86_64-linux-gnu/libcuda.so.1
libnvidia-ml.so.1: /usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1
libvdpau_nvidia.so.1: /usr/lib/x86_64-linux-gnu/vdpau/libvdpau_nvidia.so.1
"
    );
    for (read_only, own_cache) in [(false, false), (true, true)] {
        let image = glibc_image();
        if own_cache {
            image.at("etc/x");
            chroot(&image, &["/sbin/ldconfig"]);
        }
        assert_eq!(runc(&image, &spec, &probe, read_only), expected);
        let listed = runc(&image, &spec, &["/sbin/ldconfig", "-p"], read_only);
        let line = "\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1\n";
        assert!(listed.contains(line), "{listed}");
        assert!(image.root().join(CACHE).exists());
    }
}

/// What a runtime shows of a hook that fails.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root and runc: .ci/run installs it and runs this"]
async fn a_runtime_says_why_a_hook_failed() {
    let image = Container::new();
    image.write("etc/ld.so.cache/file", "");
    mounted(&image);
    let hook = Hook {
        hook_name: "createContainer".into(),
        path: program().into_string().unwrap(),
        args: ["kerf-cdi-hook", "update-ldcache", "--folder", super::LIBRARIES]
            .map(str::to_owned)
            .into(),
        env: Vec::new(),
    };
    let edits = ContainerEdits { hooks: vec![hook], ..ContainerEdits::default() };
    let spec = Spec::new("a/b".to_owned(), Vec::new(), edits);
    let config = config(&spec, &["/probe"], false);
    super::put(&image.dir.path().join("config.json"), config.to_string().as_bytes());
    let mut runc = Command::new("runc");
    runc.arg("--root").arg(image.dir.path().join("runc")).args(["run", "--bundle"]);
    let ran = run(runc.arg(image.dir.path()).arg("kerf-fails"), "");
    let Ran { code: Some(1), said } = ran else { panic!("{ran:?}") };
    let expected = "kerf-cdi-hook: update-ldcache: cannot replace `/etc/ld.so.cache` in the container: Is a directory";
    assert!(said.contains(expected), "{said}");
}
