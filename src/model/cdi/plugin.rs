//! The CDI file of the device plugin: one for all that it gives out, under the names of NVIDIA's plugin, so
//! that a container that was given devices by that one starts again.

use std::path::Path;

use super::{ClaimDevice, Device, HookProgram, HostFiles, Spec, common_edits, device_edits};

/// Vendor and class of NVIDIA's plugin.
const KIND: &str = "k8s.device-plugin.nvidia.com/gpu";

/// The file's name, which is that of NVIDIA's plugin: names in it must not be in two files.
pub const PLUGIN_FILE: &str = "k8s.device-plugin.nvidia.com-gpu.json";

/// The name by which a runtime is asked for a device that the plugin calls `name`.
pub fn plugin_name(name: &str) -> String {
    format!("{KIND}={name}")
}

/// The CDI file for these devices; absent without any, since an empty one is invalid. `hook` is as for
/// [`claim_spec`](super::claim_spec).
pub fn plugin_spec(
    devices: &[ClaimDevice],
    files: &HostFiles,
    hook: Option<&Path>,
) -> Option<Spec> {
    let hook = hook.map(HookProgram::new);
    let named = devices.iter().map(|device| Device {
        name: device.name.clone(),
        container_edits: device_edits(device, files, hook.as_ref()),
    });
    let named: Vec<_> = named.collect();
    let common = common_edits(files, hook.as_ref());
    (!named.is_empty()).then(|| Spec::new(KIND.to_owned(), named, common))
}
