//! What the driver's installation consists of: found by pattern, so that no list of a driver's
//! libraries has to be kept up with its versions.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Error, elf, root::Root, utf8};
use crate::model::{
    cdi::{Access, HostFile, HostFiles, Link},
    linker::cache::Cache,
};

/// Where distributions put libraries; each also with `nvidia/current`, Debian's way.
const LIBRARY_DIRS: [&str; 7] = [
    "/",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
];

const PROGRAM_DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

const PROGRAMS: [&str; 8] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
    "nvidia-imex",
    "nvidia-imex-ctl",
    "nvidia-xconfig",
];

const SOCKETS: [&str; 2] = ["nvidia-persistenced/socket", "nvidia-fabricmanager/socket"];

/// How firmware's names begin: that of the GPU's system processor, and since R615 that of others.
const FIRMWARE: [&str; 2] = ["gsp", "ucodes"];

/// Libraries of the graphics stack that have versions of their own.
const GRAPHICS_LIBRARIES: [&str; 5] = [
    "libnvidia-egl-gbm",
    "libnvidia-egl-wayland",
    "libnvidia-egl-wayland2",
    "libnvidia-egl-xcb",
    "libnvidia-egl-xlib",
];

/// Where configuration may lie; the first that has a file counts.
const CONFIGURATION_DIRS: [&str; 3] = ["/etc", "/usr/local/share", "/usr/share"];

/// Configuration that containers find in `/usr/share`.
const SHARED_CONFIGURATION: [&str; 9] = [
    "glvnd/egl_vendor.d/10_nvidia.json",
    "egl/egl_external_platform.d/15_nvidia_gbm.json",
    "egl/egl_external_platform.d/10_nvidia_wayland.json",
    "egl/egl_external_platform.d/09_nvidia_wayland2.json",
    "egl/egl_external_platform.d/20_nvidia_xcb.json",
    "egl/egl_external_platform.d/20_nvidia_xlib.json",
    "nvidia/nvoptix.bin",
    "X11/xorg.conf.d/10-nvidia.conf",
    "X11/xorg.conf.d/nvidia-drm-outputclass.conf",
];

/// Configuration that containers find in `/etc`.
const SYSTEM_CONFIGURATION: [&str; 6] = [
    "OpenCL/vendors/nvidia.icd",
    "vulkan/icd.d/nvidia_icd.json",
    "vulkan/icd.d/nvidia_layers.json",
    "vulkan/icd.d/nvidia_icd.x86_64.json",
    "vulkan/icd.d/nvidia_icd.aarch64.json",
    "vulkan/implicit_layer.d/nvidia_layers.json",
];

/// NVML's library, as this process sees it.
pub(super) fn nvml(root: &Root<'_>) -> Result<Option<PathBuf>, Error> {
    for dir in LIBRARY_DIRS {
        if let Some(library) = root.file(&Path::new(dir).join("libnvidia-ml.so.1"), false)? {
            return Ok(Some(root.at(&library)));
        }
    }
    Ok(None)
}

/// The installed files that containers need of a driver of this version, in no useful order. Firmware
/// is looked for in the directories given, as programs below the root see them.
pub(super) fn discover(
    root: &Root<'_>,
    firmware_dirs: &[PathBuf],
    version: &str,
) -> Result<HostFiles, Error> {
    let mut found = Discovery::new(root, version);
    let library_dirs = found.library_dirs()?;
    if library_dirs.is_empty() {
        return Err(Error::NoLibraries {
            version: version.to_owned(),
            root: root.here().to_owned(),
        });
    }
    for dir in &library_dirs {
        found.cuda_dirs.push(utf8(dir)?.to_owned());
        found.libraries(dir)?;
        found.libraries(&dir.join("vdpau"))?;
        found.graphics(dir)?;
    }
    found.xorg(&library_dirs)?;
    found.configuration()?;
    found.programs()?;
    found.firmware(firmware_dirs)?;
    Ok(found.finish())
}

/// The sockets of the driver's services that run.
pub(super) fn sockets(root: &Root<'_>) -> Result<Vec<HostFile>, Error> {
    let mut found = Vec::new();
    for name in SOCKETS {
        for dir in ["/run", "/var/run"] {
            let Some(dir) = root.resolve(Path::new(dir))? else { continue };
            let path = dir.join(name);
            if let Some(resolved) = root.file(&path, true)? {
                found.push(host_file(root, &resolved, &path, Access::Socket)?);
                break;
            }
        }
    }
    Ok(found)
}

/// Shallow paths first, so that no mount hides another.
pub(super) fn sort(files: &mut [HostFile]) {
    files.sort_by_cached_key(|file| {
        (file.container_path.matches('/').count(), file.container_path.clone())
    });
}

fn host_file(
    root: &Root<'_>,
    resolved: &Path,
    container: &Path,
    access: Access,
) -> Result<HostFile, Error> {
    let host_path = root.on_host(utf8(resolved)?);
    Ok(HostFile { host_path, container_path: utf8(container)?.to_owned(), access })
}

/// What has been found so far. Files and links are kept by their path in containers, where one path
/// is one thing.
struct Discovery<'r> {
    root: &'r Root<'r>,
    version: &'r str,
    /// What the names of the driver's own libraries end in: `.so.580.95.05`.
    suffix: String,
    cuda_dirs: Vec<String>,
    library_dirs: Vec<String>,
    files: BTreeMap<String, HostFile>,
    library_links: BTreeMap<String, Link>,
    graphics_links: BTreeMap<String, Link>,
}

impl<'r> Discovery<'r> {
    fn new(root: &'r Root<'r>, version: &'r str) -> Self {
        Self {
            root,
            version,
            suffix: format!(".so.{version}"),
            cuda_dirs: Vec::new(),
            library_dirs: Vec::new(),
            files: BTreeMap::new(),
            library_links: BTreeMap::new(),
            graphics_links: BTreeMap::new(),
        }
    }

    fn finish(self) -> HostFiles {
        HostFiles {
            driver_version: self.version.to_owned(),
            nodes: Vec::new(),
            cuda_dirs: self.cuda_dirs,
            library_dirs: self.library_dirs,
            files: self.files.into_values().collect(),
            graphics_links: self.graphics_links.into_values().collect(),
            library_links: self.library_links.into_values().collect(),
        }
    }

    /// The directories that hold the versioned `libcuda`, without links, each once: where
    /// distributions have them, else where the linker's cache says.
    fn library_dirs(&self) -> Result<Vec<PathBuf>, Error> {
        let usual = LIBRARY_DIRS.iter().map(Path::new);
        let usual = usual.flat_map(|dir| [dir.to_owned(), dir.join("nvidia/current")]);
        let found = self.with_libcuda(usual)?;
        if !found.is_empty() {
            return Ok(found);
        }
        let cache = self.root.read(Path::new("/etc/ld.so.cache"))?.unwrap_or_default();
        let cache = Cache::parse(&cache).unwrap_or_default();
        let libcuda = cache.libraries().filter(|(name, _)| name.starts_with(b"libcuda.so"));
        let mut dirs = Vec::new();
        for path in libcuda.filter_map(|(_, path)| str::from_utf8(path).ok()).map(PathBuf::from) {
            // Where the cache has a link, the libraries may lie beside it or beside what it names.
            let resolved = self.root.resolve(&path)?;
            let both = [Some(path), resolved].into_iter().flatten();
            dirs.extend(both.filter_map(|path| path.parent().map(Path::to_owned)));
        }
        self.with_libcuda(dirs)
    }

    fn with_libcuda(&self, dirs: impl IntoIterator<Item = PathBuf>) -> Result<Vec<PathBuf>, Error> {
        let libcuda = format!("libcuda{}", self.suffix);
        let mut found = Vec::new();
        for dir in dirs {
            let Some(dir) = self.root.resolve(&dir)? else { continue };
            if !found.contains(&dir) && self.root.file(&dir.join(&libcuda), false)?.is_some() {
                found.push(dir);
            }
        }
        Ok(found)
    }

    /// All of the driver's libraries in a directory, which is then one for the linker cache.
    fn libraries(&mut self, dir: &Path) -> Result<(), Error> {
        let Some(dir) = self.root.resolve(dir)? else { return Ok(()) };
        let mut any = false;
        for name in self.root.names(&dir)? {
            let ours = name.ends_with(&self.suffix) || name.starts_with("libnvidia-nvvm70.so.");
            if ours && self.library(&dir, &name)? {
                any = true;
            }
        }
        if any {
            self.library_dirs.push(utf8(&dir)?.to_owned());
        }
        Ok(())
    }

    fn graphics(&mut self, dir: &Path) -> Result<(), Error> {
        for name in self.root.names(dir)? {
            let Some((stem, version)) = name.split_once(".so.") else { continue };
            if GRAPHICS_LIBRARIES.contains(&stem) && version.contains('.') {
                self.library(dir, &name)?;
            }
        }
        Ok(())
    }

    /// Modules of the X server, which lie in one of many places.
    fn xorg(&mut self, library_dirs: &[PathBuf]) -> Result<(), Error> {
        let mut dirs: Vec<_> = library_dirs.iter().map(|dir| dir.join("nvidia/xorg")).collect();
        let modules = library_dirs.iter().map(|dir| dir.join("xorg/modules"));
        let common = ["/usr/lib/xorg/modules", "/usr/lib64/xorg/modules", "/usr/X11R6/lib/modules"];
        for modules in modules.chain(common.map(PathBuf::from)) {
            let kinds = ["drivers", "extensions", "updates/drivers", "updates/extensions"];
            dirs.extend(kinds.map(|kind| modules.join(kind)));
        }
        let server = format!("libglxserver_nvidia{}", self.suffix);
        for dir in dirs {
            let Some(dir) = self.root.resolve(&dir)? else { continue };
            self.file(&dir.join("nvidia_drv.so"), &dir.join("nvidia_drv.so"))?;
            if self.file(&dir.join(&server), &dir.join(&server))?.is_some() {
                self.graphics_link(&dir.join("libglxserver_nvidia.so"), &server)?;
            }
        }
        Ok(())
    }

    fn configuration(&mut self) -> Result<(), Error> {
        for name in SHARED_CONFIGURATION {
            self.first_file(&CONFIGURATION_DIRS, name, &Path::new("/usr/share").join(name))?;
        }
        for name in SYSTEM_CONFIGURATION {
            let [first, second, third] = CONFIGURATION_DIRS;
            // The root itself comes last: GKE's installer puts `vulkan` there.
            let dirs = [first, second, third, "/"];
            let dirs = if name.starts_with("vulkan/") { &dirs[..] } else { &dirs[..3] };
            self.first_file(dirs, name, &Path::new("/etc").join(name))?;
        }
        Ok(())
    }

    fn first_file(&mut self, dirs: &[&str], name: &str, container: &Path) -> Result<(), Error> {
        for dir in dirs {
            if self.file(&Path::new(dir).join(name), container)?.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn programs(&mut self) -> Result<(), Error> {
        for name in PROGRAMS {
            for dir in PROGRAM_DIRS {
                let Some(dir) = self.root.resolve(Path::new(dir))? else { continue };
                let path = dir.join(name);
                if self.file(&path, &path)?.is_some() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn firmware(&mut self, dirs: &[PathBuf]) -> Result<(), Error> {
        for dir in dirs {
            let dir = dir.join("nvidia").join(self.version);
            let mut any = false;
            for name in self.root.names(&dir)? {
                let ours = FIRMWARE.iter().any(|kind| name.starts_with(kind));
                if ours && name.ends_with(".bin") {
                    let path = dir.join(name);
                    any |= self.file(&path, &path)?.is_some();
                }
            }
            if any {
                break;
            }
        }
        Ok(())
    }

    /// A library and its links, if it is a file; `dir` has no links in it.
    fn library(&mut self, dir: &Path, name: &str) -> Result<bool, Error> {
        let path = dir.join(name);
        let Some(resolved) = self.file(&path, &path)? else { return Ok(false) };
        let here = self.root.at(&resolved);
        let soname = elf::soname(&here).map_err(Error::read(here))?;
        let stem = name.split_once(".so.").map_or(name, |(stem, _)| stem);
        if let Some(soname) = soname {
            let versionless = format!("{stem}.so");
            for (link, target) in [(&soname, name), (&versionless, &*soname)] {
                if link != target && self.root.is_link(&dir.join(link)) {
                    self.library_link(&dir.join(link), target)?;
                }
            }
        }
        // Those that programs count on although installers do not always make them.
        match stem {
            "libcuda" => self.library_link(&dir.join("libcuda.so"), "libcuda.so.1"),
            "libGLX_nvidia" => self.library_link(&dir.join("libGLX_indirect.so.0"), name),
            "libnvidia-opticalflow" => {
                let link = dir.join("libnvidia-opticalflow.so");
                self.library_link(&link, "libnvidia-opticalflow.so.1")
            }
            "libnvidia-allocator" => {
                let link = dir.join("gbm/nvidia-drm_gbm.so");
                self.graphics_link(&link, "../libnvidia-allocator.so.1")
            }
            "libnvidia-vulkan-producer" => {
                self.graphics_link(&dir.join("libnvidia-vulkan-producer.so"), name)
            }
            _ => Ok(()),
        }?;
        Ok(true)
    }

    /// A file, if there is one: where it really is, below the root.
    fn file(&mut self, path: &Path, container: &Path) -> Result<Option<PathBuf>, Error> {
        let Some(resolved) = self.root.file(path, false)? else { return Ok(None) };
        let file = host_file(self.root, &resolved, container, Access::Read)?;
        self.files.insert(file.container_path.clone(), file);
        Ok(Some(resolved))
    }

    fn library_link(&mut self, path: &Path, target: &str) -> Result<(), Error> {
        let link = link(path, target)?;
        self.library_links.insert(link.path.clone(), link);
        Ok(())
    }

    fn graphics_link(&mut self, path: &Path, target: &str) -> Result<(), Error> {
        let link = link(path, target)?;
        self.graphics_links.insert(link.path.clone(), link);
        Ok(())
    }
}

fn link(path: &Path, target: &str) -> Result<Link, Error> {
    Ok(Link { target: target.to_owned(), path: utf8(path)?.to_owned() })
}
