//! The CDI file of a claim: what a container runtime puts into each container that uses the claim.

mod plugin;
mod spec;
mod validate;

use std::{borrow::Cow, collections::BTreeSet, path::Path};

pub use self::{
    plugin::{PLUGIN_FILE, plugin_name, plugin_spec},
    spec::{ContainerEdits, Device, Hook, Mount, NodeEdit, Spec},
    validate::Invalid,
};

/// Vendor and class of our devices; those of NVIDIA's driver, so that what reads its names reads ours.
const VENDOR: &str = "k8s.gpu.nvidia.com";
const CLASS: &str = "claim";

/// What the driver's installation on this node gives to every container that has a GPU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFiles {
    /// Such as `580.95.05`.
    pub driver_version: String,
    /// Control nodes that all GPUs share, such as `/dev/nvidiactl`.
    pub nodes: Vec<DeviceNode>,
    /// Directories with the versioned `libcuda`, as a container sees them.
    pub cuda_dirs: Vec<String>,
    /// Directories that a container's linker cache must know, as a container sees them.
    pub library_dirs: Vec<String>,
    /// Libraries, programs, sockets, firmware and configuration.
    pub files: Vec<HostFile>,
    /// Links that graphics libraries are looked up by.
    pub graphics_links: Vec<Link>,
    /// Links that the other libraries are looked up by.
    pub library_links: Vec<Link>,
}

/// A file of the host that appears in containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFile {
    /// Where the host has it; no link.
    pub host_path: String,
    /// Where containers see it.
    pub container_path: String,
    /// What it is there for.
    pub access: Access,
}

/// What a container may do with a file of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and run it.
    Read,
    /// Connect to it: a socket is written to, and never run.
    Socket,
}

/// A symbolic link to be made in containers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// What it says; relative to its own directory.
    pub target: String,
    /// Where it lies, as a container sees it.
    pub path: String,
}

/// A character device. Its numbers are always known, so that a runtime can make it in the container
/// whether or not the host has the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceNode {
    /// Where containers see it.
    pub path: String,
    /// Where the host has it; absent when that is the same.
    pub host_path: Option<String>,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owning group, when it is not root's.
    pub gid: Option<u32>,
    /// Links by which it is looked up, such as those in `/dev/dri/by-path`.
    pub links: Vec<Link>,
}

/// A device of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimDevice {
    /// Device name, as published.
    pub name: String,
    /// What opens it: `/dev/nvidiaN`, DRM nodes, MIG capabilities.
    pub nodes: Vec<DeviceNode>,
    /// Environment that only this device brings.
    pub env: Vec<(String, String)>,
}

/// The name by which a runtime is asked for a device of a claim.
pub fn qualified_name(claim_uid: &str, device_name: &str) -> String {
    format!("{VENDOR}/{CLASS}={}", local_name(claim_uid, device_name))
}

/// The name of a claim's file in the CDI directory. Runtimes read `*.json` and `*.yaml`; ours are
/// JSON, and so never mistaken for those of NVIDIA's driver.
pub fn file_name(claim_uid: &str) -> String {
    format!("{VENDOR}-{CLASS}_{claim_uid}.json")
}

/// The name that NVIDIA's driver gives to its file for the claim.
pub fn predecessors_file_name(claim_uid: &str) -> String {
    format!("{VENDOR}-{CLASS}_{claim_uid}.yaml")
}

/// The claim that a file of this name in the CDI directory belongs to; `None` if it is not ours.
pub fn claim_of_file(file_name: &str) -> Option<&str> {
    claim_of(file_name, ".json")
}

/// The claim that a file of this name belongs to; `None` if it is not one of NVIDIA's driver.
pub fn claim_of_predecessors_file(file_name: &str) -> Option<&str> {
    claim_of(file_name, ".yaml")
}

fn claim_of<'n>(file_name: &'n str, suffix: &str) -> Option<&'n str> {
    let rest = file_name.strip_prefix(VENDOR)?.strip_prefix('-')?.strip_prefix(CLASS)?;
    rest.strip_prefix('_')?.strip_suffix(suffix).filter(|uid| !uid.is_empty())
}

/// The device's name within the claim's kind; with the UID, since kinds are shared by all claims.
fn local_name(claim_uid: &str, device_name: &str) -> String {
    format!("{claim_uid}-{device_name}")
}

/// The published name of a device that a claim's file calls so; `None` if the file is of another claim.
pub fn device_of_local_name<'n>(claim_uid: &str, name: &'n str) -> Option<&'n str> {
    name.strip_prefix(claim_uid)?.strip_prefix('-')
}

/// The published name of a device that a runtime is asked for so; `None` if it is none of the claim.
pub fn device_of_name<'n>(claim_uid: &str, qualified: &'n str) -> Option<&'n str> {
    let local = qualified.strip_prefix(VENDOR)?.strip_prefix('/')?.strip_prefix(CLASS)?;
    device_of_local_name(claim_uid, local.strip_prefix('=')?)
}

/// The CDI file of a claim. `hook` is the program that runtimes run, as the host sees it; without one
/// the file names no hooks, and containers lack what they do: links to the libraries, the linker cache.
pub fn claim_spec(
    claim_uid: &str,
    devices: &[ClaimDevice],
    files: &HostFiles,
    hook: Option<&Path>,
) -> Spec {
    let hook = hook.map(HookProgram::new);
    let mut named = BTreeSet::new();
    // A device that serves several requests of the claim comes more than once.
    let devices = devices.iter().filter(|device| named.insert(&device.name));
    let devices = devices.map(|device| Device {
        name: local_name(claim_uid, &device.name),
        container_edits: device_edits(device, files, hook.as_ref()),
    });
    Spec::new(format!("{VENDOR}/{CLASS}"), devices.collect(), common_edits(files, hook.as_ref()))
}

/// What a container gets once, however many of the claim's devices it uses.
fn common_edits(files: &HostFiles, hook: Option<&HookProgram>) -> ContainerEdits {
    let mut edits = node_edits(&files.nodes.iter().collect::<Vec<_>>());
    edits.env = vec![
        format!("NVIDIA_CTK_LIBCUDA_DIR={}", files.cuda_dirs.join(":")),
        // Keeps the older hook of the NVIDIA container runtime from injecting all GPUs.
        "NVIDIA_VISIBLE_DEVICES=void".to_owned(),
    ];
    edits.mounts = files.files.iter().map(mount).collect();
    edits.hooks = hook.map(|hook| common_hooks(files, hook)).unwrap_or_default();
    edits
}

/// In this order: the compatibility directory must be configured before the linker cache is made.
fn common_hooks(files: &HostFiles, hook: &HookProgram) -> Vec<Hook> {
    let version = format!("--host-driver-version={}", files.driver_version);
    let folders = files.library_dirs.iter().flat_map(|dir| ["--folder".to_owned(), dir.clone()]);
    let links = [&files.graphics_links, &files.library_links];
    let links = links.into_iter().filter_map(|links| hook.links(links));
    links
        .chain([
            hook.call("enable-cuda-compat", [version]),
            hook.call("update-ldcache", folders),
            hook.call("disable-device-node-modification", []),
        ])
        .collect()
}

/// What a container gets for one device, less what the common part brings.
fn device_edits(
    device: &ClaimDevice,
    files: &HostFiles,
    hook: Option<&HookProgram>,
) -> ContainerEdits {
    let mut seen: BTreeSet<_> = files.nodes.iter().map(|node| &node.path).collect();
    let own = device.nodes.iter().filter(|node| seen.insert(&node.path));
    let own: Vec<_> = own.collect();
    let mut edits = node_edits(&own);
    edits.env = device.env.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let links: Vec<_> = own.iter().flat_map(|node| node.links.iter().cloned()).collect();
    edits.hooks = hook.and_then(|hook| hook.links(&links)).into_iter().collect();
    edits
}

/// The nodes, and the groups that a process must be in to open those that are not for everybody.
fn node_edits(nodes: &[&DeviceNode]) -> ContainerEdits {
    const WORLD_READ_WRITE: u32 = 0o006;
    let guarded = nodes
        .iter()
        .filter(|node| node.mode.is_some_and(|mode| mode & WORLD_READ_WRITE != WORLD_READ_WRITE));
    let gids: BTreeSet<u32> = guarded.filter_map(|node| node.gid).filter(|&gid| gid != 0).collect();
    ContainerEdits {
        device_nodes: nodes.iter().copied().map(node_edit).collect(),
        additional_gids: gids.into_iter().collect(),
        ..ContainerEdits::default()
    }
}

fn node_edit(node: &DeviceNode) -> NodeEdit {
    NodeEdit {
        path: node.path.clone(),
        host_path: node.host_path.clone(),
        kind: Some("c".into()),
        major: Some(node.major),
        minor: Some(node.minor),
        file_mode: node.mode,
        permissions: Some("rwm".into()),
        gid: node.gid.filter(|&gid| gid != 0),
    }
}

fn mount(file: &HostFile) -> Mount {
    let options: &[&str] = match file.access {
        Access::Read => &["ro", "nosuid", "nodev", "rbind", "rprivate"],
        Access::Socket => &["nosuid", "nodev", "rbind", "rprivate", "noexec"],
    };
    Mount {
        host_path: file.host_path.clone(),
        container_path: file.container_path.clone(),
        options: options.iter().map(|&option| Cow::Borrowed(option)).collect(),
    }
}

/// The program that runtimes run while they make a container.
struct HookProgram {
    path: String,
    name: String,
}

impl HookProgram {
    fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or(path.as_os_str());
        Self { path: path.display().to_string(), name: name.display().to_string() }
    }

    /// Runs in the container's namespaces before its root is entered, so host files are still seen.
    fn call(&self, command: &str, args: impl IntoIterator<Item = String>) -> Hook {
        Hook {
            hook_name: "createContainer".into(),
            path: self.path.clone(),
            args: [self.name.clone(), command.to_owned()].into_iter().chain(args).collect(),
            env: vec!["NVIDIA_CTK_DEBUG=false".into()],
        }
    }

    fn links(&self, links: &[Link]) -> Option<Hook> {
        let args = links
            .iter()
            .flat_map(|link| ["--link".to_owned(), format!("{}::{}", link.target, link.path)]);
        (!links.is_empty()).then(|| self.call("create-symlinks", args))
    }
}

#[cfg(test)]
mod tests;
