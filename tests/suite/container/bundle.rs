//! What a container is made of: a root with a shell and the program under test, and the runtime's
//! configuration with the edits of CDI files in it.

use std::{
    collections::BTreeSet,
    fs::create_dir_all,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use kerf::model::cdi::{ContainerEdits, NodeEdit};
use serde_json::{Value, json};

/// The program in the container.
pub(super) const KERF: &str = "/bin/kerf";

/// A root as distributions lay it out, with the links that the CDI files' hooks are to make.
pub(super) fn root(root: &Path, edits: &[ContainerEdits]) {
    for dir in ["usr/bin", "usr/lib", "usr/lib64"] {
        create_dir_all(root.join(dir)).unwrap();
        symlink(dir, root.join(dir.trim_start_matches("usr/"))).unwrap();
    }
    let args = edits.iter().flat_map(|edits| &edits.hooks).flat_map(|hook| &hook.args);
    let links: BTreeSet<_> = args.filter_map(|arg| arg.split_once("::")).collect();
    for (target, link) in links {
        let link = root.join(link.trim_start_matches('/'));
        create_dir_all(link.parent().unwrap()).unwrap();
        symlink(target, link).unwrap();
    }
}

/// The runtime's configuration. What is edited later takes the place of what has the same path.
pub(super) fn config(edits: &[ContainerEdits]) -> Value {
    let mounts = edits.iter().flat_map(|edits| &edits.mounts);
    let mounts = mounts.map(|mount| {
        let (from, to) = (&mount.host_path, &mount.container_path);
        json!({ "source": from, "destination": to, "type": "bind", "options": mount.options })
    });
    let nodes: Vec<_> = edits.iter().flat_map(|edits| &edits.device_nodes).collect();
    let nothing = json!({ "allow": false, "access": "rwm" });
    let allowed: Vec<_> = [nothing].into_iter().chain(nodes.iter().map(allowance)).collect();
    let env: Vec<_> = edits.iter().flat_map(|edits| &edits.env).collect();
    let namespaces = ["pid", "mount", "ipc", "uts", "network"].map(|kind| json!({ "type": kind }));
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": "rootfs", "readonly": true },
        "process": {
            "args": ["/bin/sh", "-c", "echo up; read end"],
            "cwd": "/", "user": { "uid": 0, "gid": 0 }, "noNewPrivileges": true,
            "env": env,
        },
        "mounts": latest("destination", own_mounts().into_iter().chain(mounts)),
        "linux": {
            "namespaces": namespaces,
            "devices": latest("path", nodes.iter().map(device)),
            "resources": { "devices": allowed },
        },
    })
}

fn latest(key: &str, items: impl Iterator<Item = Value>) -> Vec<Value> {
    let mut latest: Vec<Value> = Vec::new();
    for item in items {
        latest.retain(|other| other[key] != item[key]);
        latest.push(item);
    }
    latest
}

fn device(node: &&NodeEdit) -> Value {
    json!({
        "path": node.path, "type": node.kind, "major": node.major, "minor": node.minor,
        "fileMode": node.file_mode, "uid": 0, "gid": node.gid.unwrap_or(0),
    })
}

fn allowance(node: &&NodeEdit) -> Value {
    json!({
        "allow": true, "type": node.kind, "major": node.major, "minor": node.minor,
        "access": node.permissions,
    })
}

/// What is there without any claim: the shell, the program, and the libraries that they need.
fn own_mounts() -> Vec<Value> {
    let programs = [("/bin/sh", "/bin/sh"), (env!("CARGO_BIN_EXE_kerf"), KERF)];
    let libraries: BTreeSet<_> =
        programs.iter().flat_map(|(program, _)| libraries(Path::new(program))).collect();
    let libraries = libraries.iter().map(|path| (path.to_str().unwrap(), path.to_str().unwrap()));
    let files = programs.into_iter().chain(libraries).map(|(from, to)| {
        json!({ "source": from, "destination": to, "type": "bind", "options": ["bind", "ro"] })
    });
    let proc = json!({ "source": "proc", "destination": "/proc", "type": "proc" });
    let dev = json!({ "source": "tmpfs", "destination": "/dev", "type": "tmpfs" });
    [proc, dev].into_iter().chain(files).collect()
}

/// The libraries of a program and its linker, as `ldd` finds them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    assert!(output.status.success(), "ldd {}", program.display());
    let text = String::from_utf8(output.stdout).unwrap();
    let words = text.split_whitespace().filter(|word| word.starts_with('/'));
    words.map(PathBuf::from).collect()
}
