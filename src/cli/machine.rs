//! Where the machine is: the flags that every command which looks at it shares.

use std::path::PathBuf;

use crate::{model::DRIVER, node::host::Host};

/// Paths of the machine's parts, as this process sees them.
#[derive(Clone, Debug, clap::Args)]
pub struct MachineArgs {
    /// Library that answers for the GPUs; found by the dynamic linker and under the driver root if not
    /// given.
    #[arg(long, env = "NVML_LIBRARY")]
    pub nvml_library: Option<PathBuf>,
    /// Root of the NVIDIA driver's files, as this process sees it.
    #[arg(
        long,
        env = "DRIVER_ROOT_CTR_PATH",
        default_value = "/",
        alias = "container-driver-root"
    )]
    pub driver_root: PathBuf,
    /// Root of the NVIDIA driver's files, as the host sees it.
    #[arg(long, env = "NVIDIA_DRIVER_ROOT", default_value = "/")]
    pub nvidia_driver_root: PathBuf,
    /// Directory whose `dev` folder has the device nodes; the driver root if it has such a folder, else
    /// `/`, if not given.
    #[arg(long, env = "DEV_ROOT")]
    pub dev_root: Option<PathBuf>,
    /// procfs.
    #[arg(long, env = "PROC_ROOT", default_value = "/proc")]
    pub proc_root: PathBuf,
    /// sysfs.
    #[arg(long, env = "SYS_ROOT", default_value = "/sys")]
    pub sys_root: PathBuf,
    /// Records and locks; `gpu.nvidia.com` in the kubelet's plugins directory if not given.
    #[arg(long, env = "STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// The kubelet's directory of plugins.
    #[arg(
        long,
        env = "KUBELET_PLUGINS_DIRECTORY_PATH",
        default_value = "/var/lib/kubelet/plugins"
    )]
    pub kubelet_plugins_directory_path: PathBuf,
    /// Where CDI files are written for the container runtime.
    #[arg(long, env = "CDI_ROOT", default_value = "/var/run/cdi")]
    pub cdi_root: PathBuf,
}

impl MachineArgs {
    /// Where to look for the driver's files.
    pub fn host(&self) -> Host {
        let in_driver = self.driver_root.join("dev");
        let dev_root = match &self.dev_root {
            Some(root) => root.clone(),
            None if in_driver.is_dir() => self.driver_root.clone(),
            None => PathBuf::from("/"),
        };
        Host {
            driver_root: self.driver_root.clone(),
            host_driver_root: self.nvidia_driver_root.clone(),
            dev_root,
            proc_root: self.proc_root.clone(),
            sys_root: self.sys_root.clone(),
        }
    }

    /// The directory of records and locks.
    pub fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| self.plugin_dir())
    }

    /// The directory of a driver of our name, and so of NVIDIA's.
    pub fn plugin_dir(&self) -> PathBuf {
        self.kubelet_plugins_directory_path.join(DRIVER)
    }
}
