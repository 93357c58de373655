//! The kubelet's directory for device plugins: their sockets, its own, and its checkpoint.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use kerf::proto::device_plugin::registration_server::RegistrationServer;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tonic::service::Routes;

use super::state::Pod;
use super::{Devices, registration};
use crate::kubelet::serve;
use crate::kubelet::state::State;

const CHECKPOINT: &str = "kubelet_internal_checkpoint";

impl Devices {
    /// What the kubelet does at its start: the directory is made and cleaned, then its socket appears.
    pub(super) fn listen(self: &Arc<Self>) -> io::Result<()> {
        std::fs::create_dir_all(&self.directory)?;
        clean(&self.directory, self.shared.options.release)?;
        let listener = UnixListener::bind(self.directory.join("kubelet.sock"))?;
        let service = RegistrationServer::new(registration::Server(self.clone()));
        let server = serve::serve(listener, Routes::new(service));
        *self.server() = Some(server);
        Ok(())
    }

    /// What an earlier kubelet left: without the checkpoint it knows of no resource and no allocation.
    pub(super) fn read_checkpoint(&self) {
        let kept = self.directory.join(CHECKPOINT).exists();
        self.change(|_, state| {
            state.resources.retain(|_, resource| {
                resource.devices.clear();
                if !kept {
                    resource.allocated.clear();
                }
                kept && (resource.registered || !resource.allocated.is_empty())
            });
            if !kept {
                let containers =
                    state.pods.values_mut().flat_map(|pod| pod.containers.values_mut());
                containers.for_each(|container| container.allocation.clear());
            }
        });
    }

    /// Written as often as the real one, in the same directory: with each list of devices, and after a container
    /// was given some, not when a pod ends. It fails where the real one does. The checksum is over Go's own
    /// notation of it, and zero here.
    pub(super) fn write_checkpoint(&self) -> Result<(), String> {
        let content = checkpoint(&self.shared.state.borrow());
        replace(&self.directory, &content.to_string())
            .map_err(|error| format!("failed to write checkpoint file {CHECKPOINT:?}: {error}"))
    }
}

/// Removes the sockets; to 1.25 other files too. Never folders, nor the checkpoint.
fn clean(directory: &Path, release: u32) -> io::Result<()> {
    for entry in directory.read_dir()? {
        let path = entry?.path();
        let Ok(file) = path.metadata() else { continue };
        let goes = file.file_type().is_socket() || release <= 25 && !file.is_dir();
        if goes && !path.ends_with(CHECKPOINT) {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn replace(directory: &Path, content: &str) -> io::Result<()> {
    let mut file = tempfile::Builder::new().prefix(".").tempfile_in(directory)?;
    io::Write::write_all(&mut file, content.as_bytes())?;
    file.persist(directory.join(CHECKPOINT))?;
    Ok(())
}

fn checkpoint(state: &State) -> Value {
    let registered = state.resources.iter().filter(|(_, resource)| resource.registered);
    let registered = registered.map(|(name, resource)| (name.clone(), json!(resource.healthy())));
    let entries: Vec<Value> = state.pods.values().flat_map(entries).collect();
    let registered: serde_json::Map<_, _> = registered.collect();
    let entries = Some(entries).filter(|entries| !entries.is_empty());
    json!({"Data": {"PodDeviceEntries": entries, "RegisteredDevices": registered}, "Checksum": 0})
}

fn entries(pod: &Pod) -> Vec<Value> {
    let mut entries = vec![];
    for (name, container) in &pod.containers {
        for (resource, granted) in &container.allocation {
            entries.push(json!({
                "PodUID": pod.pod.uid,
                "ContainerName": name,
                "ResourceName": resource,
                "DeviceIDs": by_node(&granted.devices),
                "AllocResp": ByteString(granted.answer.encode_to_vec()),
            }));
        }
    }
    entries
}

/// Devices without topology are those of node -1.
fn by_node(devices: &BTreeMap<String, Vec<i64>>) -> BTreeMap<i64, Vec<&String>> {
    let mut nodes: BTreeMap<i64, Vec<&String>> = BTreeMap::new();
    for (id, numa) in devices {
        let numa = if numa.is_empty() { &[-1][..] } else { numa };
        numa.iter().for_each(|node| nodes.entry(*node).or_default().push(id));
    }
    nodes
}
