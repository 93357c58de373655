//! Device nodes: which there are, and their numbers, modes and groups.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::Path,
};

use super::{Error, Host, if_there, proc::field, utf8};
use crate::model::{
    cdi::{DeviceNode, Link},
    plugin::config::Config,
};

/// What the kernel calls the driver of `/dev/nvidiaN` and `/dev/nvidiactl`, newer name first.
const NVIDIA: [&str; 2] = ["nvidia", "nvidia-frontend"];

/// What the driver itself gives to its nodes unless told otherwise.
const USUAL_MODE: u32 = 0o666;

/// A control node: its path, minor number, names of its driver, and the kernel module to load when
/// it is missing; `None` where containers do without.
type Control = (&'static str, u32, &'static [&'static str], Option<&'static str>);

const CONTROLS: [Control; 4] = [
    ("/dev/nvidia-modeset", 254, &["nvidia-modeset"], None),
    ("/dev/nvidia-uvm", 0, &["nvidia-uvm"], Some("nvidia-uvm")),
    ("/dev/nvidia-uvm-tools", 1, &["nvidia-uvm"], None),
    ("/dev/nvidiactl", 255, &NVIDIA, Some("nvidia")),
];

impl Host {
    /// The nodes that open a whole GPU: `/dev/nvidia<minor>`, and its DRM nodes, which need to exist.
    pub fn gpu_nodes(&self, minor: u32, pci: &str) -> Result<Vec<DeviceNode>, Error> {
        let majors = self.majors()?;
        let path = format!("/dev/nvidia{minor}");
        let node = self.driver_node(&path, majors.of(&NVIDIA), minor)?;
        let missing =
            || Error::NoNode { node: path.clone(), module: "nvidia", devices: self.devices_path() };
        let mut nodes = vec![node.ok_or_else(missing)?];
        for name in self.drm_names(pci)? {
            // Their group is set by udev: without the node, it is not known who may open it.
            if let Some(mut node) = self.existing_node(&format!("/dev/dri/{name}"))? {
                node.links = self.by_path_links(pci, &name)?;
                nodes.push(node);
            }
        }
        Ok(nodes)
    }

    /// The two nodes that open a MIG device, besides those of its GPU. They need not exist: nobody
    /// makes them for an instance that is just made, and runtimes make them from the numbers.
    pub fn mig_nodes(&self, minor: u32, gi: u32, ci: u32) -> Result<Vec<DeviceNode>, Error> {
        let major = self.majors()?.of(&["nvidia-caps"]).ok_or_else(|| Error::Silent {
            path: self.devices_path(),
            what: "the major number of `nvidia-caps`, without which there are no MIG devices"
                .to_owned(),
        })?;
        let instance = format!("gi{gi}/access");
        let compute = format!("gi{gi}/ci{ci}/access");
        [instance, compute].iter().map(|name| self.capability(major, minor, name)).collect()
    }

    fn capability(&self, major: u32, gpu: u32, name: &str) -> Result<DeviceNode, Error> {
        let access = self.proc_file(&format!("driver/nvidia/capabilities/gpu{gpu}/mig/{name}"))?;
        let mode = access.as_deref().and_then(|text| field(text, "DeviceFileMode"));
        let mut minor = access.as_deref().and_then(|text| field(text, "DeviceFileMinor"));
        if minor.is_none() {
            minor = self.listed_minor(&format!("gpu{gpu}/{name}"))?;
        }
        let minor = minor.ok_or_else(|| Error::NoCapability {
            capability: format!("gpu{gpu}/{name}"),
            directory: self.proc_root.join("driver"),
        })?;
        Ok(DeviceNode {
            path: format!("/dev/nvidia-caps/nvidia-cap{minor}"),
            major,
            minor,
            mode: Some(mode.unwrap_or(0o444)),
            ..DeviceNode::default()
        })
    }

    /// The capability's number in the list of all that could be, which some systems show when they
    /// hide those that are.
    fn listed_minor(&self, capability: &str) -> Result<Option<u32>, Error> {
        let list = self.proc_file("driver/nvidia-caps/mig-minors")?;
        let mut lines = list.iter().flat_map(|text| text.lines());
        let number = lines.find_map(|line| line.strip_prefix(capability)?.strip_prefix(' '));
        Ok(number.and_then(|number| number.trim().parse().ok()))
    }

    /// The control nodes, shallow paths first and then by name.
    pub(super) fn control_nodes(&self) -> Result<Vec<DeviceNode>, Error> {
        let majors = self.majors()?;
        let mut nodes = Vec::new();
        for (path, minor, names, module) in CONTROLS {
            match (self.driver_node(path, majors.of(names), minor)?, module) {
                (Some(node), _) => nodes.push(node),
                (None, None) => {}
                // Said here rather than by CUDA in the container, which only says "unknown error".
                (None, Some(module)) => {
                    let (node, devices) = (path.to_owned(), self.devices_path());
                    return Err(Error::NoNode { node, module, devices });
                }
            }
        }
        Ok(nodes)
    }

    /// Nodes of GPUDirect Storage, InfiniBand and GPUDirect copies, as far as they are wanted and there.
    pub fn direct_nodes(&self, config: &Config) -> Result<Vec<DeviceNode>, Error> {
        let wanted = [
            (config.gds, "/dev/", "nvidia-fs"),
            (config.mofed, "/dev/infiniband/", ""),
            (config.gdrcopy, "/dev/", "gdrdrv"),
        ];
        let mut nodes = Vec::new();
        for (_, dir, prefix) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
            let here = self.below_dev_root(dir);
            let entries = if_there(fs::read_dir(&here)).map_err(Error::read(here))?;
            let names = entries.into_iter().flatten().flatten().map(|entry| entry.file_name());
            let names = names.filter_map(|name| name.into_string().ok());
            let mut paths: Vec<_> = names
                .filter(|name| name.starts_with(prefix))
                .map(|name| format!("{dir}{name}"))
                .collect();
            paths.sort();
            for path in paths {
                nodes.extend(self.existing_node(&path)?);
            }
        }
        Ok(nodes)
    }

    /// A node of the NVIDIA driver; `None` when neither the kernel nor the device directory has it.
    ///
    /// The kernel's number goes before that of the node, which may be left over from an earlier load
    /// of the module. And it is enough: on a node without display nobody makes the nodes before the
    /// first program that uses CUDA, and that program may be the container that we are asked for.
    fn driver_node(
        &self,
        path: &str,
        major: Option<u32>,
        minor: u32,
    ) -> Result<Option<DeviceNode>, Error> {
        let existing = self.existing_node(path)?;
        let Some(major) = major else { return Ok(existing) };
        if let Some(node) = existing {
            return Ok(Some(DeviceNode { major, minor, ..node }));
        }
        let parameters = self.proc_file("driver/nvidia/params")?.unwrap_or_default();
        Ok(Some(DeviceNode {
            path: path.to_owned(),
            host_path: self.host_path(path)?,
            major,
            minor,
            mode: Some(field(&parameters, "DeviceFileMode").unwrap_or(USUAL_MODE)),
            gid: field(&parameters, "DeviceFileGID").filter(|&gid| gid != 0),
            links: Vec::new(),
        }))
    }

    /// The character device at a path below the device root, as it is.
    pub(super) fn existing_node(&self, path: &str) -> Result<Option<DeviceNode>, Error> {
        let here = self.below_dev_root(path);
        let metadata = if_there(fs::symlink_metadata(&here)).map_err(Error::read(here))?;
        let Some(metadata) = metadata.filter(|metadata| metadata.file_type().is_char_device())
        else {
            return Ok(None);
        };
        let number = metadata.rdev();
        Ok(Some(DeviceNode {
            path: path.to_owned(),
            host_path: self.host_path(path)?,
            major: rustix::fs::major(number),
            minor: rustix::fs::minor(number),
            mode: Some(metadata.mode() & 0o777),
            gid: Some(metadata.gid()).filter(|&gid| gid != 0),
            links: Vec::new(),
        }))
    }

    /// Where the host has a node, when that is not where containers see it.
    fn host_path(&self, path: &str) -> Result<Option<String>, Error> {
        // A device root elsewhere than in the driver root is the host's own.
        let Ok(below) = self.dev_root.strip_prefix(&self.driver_root) else { return Ok(None) };
        let host = self.host_driver_root.join(below).join(path.trim_start_matches('/'));
        let host = utf8(&host)?;
        Ok((host != path).then(|| host.to_owned()))
    }

    fn by_path_links(&self, pci: &str, name: &str) -> Result<Vec<Link>, Error> {
        let paths = ["card", "render"].map(|kind| format!("/dev/dri/by-path/pci-{pci}-{kind}"));
        let mut links = Vec::new();
        for path in paths {
            let here = self.below_dev_root(&path);
            let target = if_there(fs::read_link(&here)).map_err(Error::read(here))?;
            if target.is_some_and(|target| target.file_name() == Some(name.as_ref())) {
                links.push(Link { target: format!("../{name}"), path });
            }
        }
        Ok(links)
    }

    fn below_dev_root(&self, path: &str) -> std::path::PathBuf {
        self.dev_root.join(Path::new(path.trim_start_matches('/')))
    }
}
