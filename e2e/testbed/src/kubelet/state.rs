//! What the stand-in kubelet knows, as plain values that a test can wait for and compare.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kerf::model::claim::ClaimRef;
pub use kerf::proto::dra_v1::Device;

use super::devices::state::{Pod, Resource};

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// In the order of their registration.
    pub plugins: Vec<Plugin>,
    /// Why the last attempt to register a socket failed, by socket; device plugins' sockets too.
    pub refused: BTreeMap<PathBuf, String>,
    /// What pods hold, by `namespace/name` of the claim.
    pub claims: BTreeMap<String, HeldClaim>,
    /// The last that health streams said, by device.
    pub health: BTreeMap<DeviceKey, DeviceHealth>,
    /// Health streams that are open now.
    pub streams: usize,
    /// Registrations that a plugin acknowledged, since this stand-in was made.
    pub registrations: u64,
    /// Connections opened to DRA sockets, since this stand-in was made.
    pub connections: u64,
    /// ResourceSlices removed, oldest first.
    pub wipes: Vec<Wipe>,
    /// What device plugins offer, by resource name.
    pub resources: BTreeMap<String, Resource>,
    /// Pods that were admitted and have not ended, by UID.
    pub pods: BTreeMap<String, Pod>,
    /// Registrations of device plugins that were accepted, since this stand-in was made.
    pub plugin_registrations: u64,
    /// Streams of device plugins that are open now, those that count no more included.
    pub plugin_streams: usize,
}

/// A registered plugin: one instance of a driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Which registration this is, counted from 1.
    pub id: u64,
    /// Driver name.
    pub driver: String,
    /// Registration socket.
    pub socket: PathBuf,
    /// DRA socket.
    pub endpoint: PathBuf,
    /// What prepare and unprepare are called on.
    pub service: DraService,
    /// What health is read from, if anything.
    pub health: Option<HealthService>,
    /// Whether it was told that it is registered, and answered.
    pub acknowledged: bool,
    /// Whether a connection to its DRA socket is open.
    pub connected: bool,
}

/// Version of the DRA service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraService {
    /// Kubernetes 1.34 and later.
    V1,
    /// Kubernetes 1.32 and later.
    V1beta1,
}

/// Version of the health service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthService {
    /// Kubernetes 1.37 and later.
    V1,
    /// Kubernetes 1.34 and later.
    V1alpha1,
}

/// A claim in the kubelet's cache.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldClaim {
    /// Which.
    pub claim: ClaimRef,
    /// The driver that prepares it.
    pub driver: String,
    /// UIDs of the pods that use it.
    pub pods: BTreeSet<String>,
    /// Whether this run of the kubelet has prepared it.
    pub prepared: bool,
    /// What the driver answered.
    pub devices: Vec<Device>,
}

/// A device by its names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceKey {
    /// Driver name.
    pub driver: String,
    /// Pool name.
    pub pool: String,
    /// Device name.
    pub device: String,
}

/// Health of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not known, or not heard of for too long.
    Unknown,
    /// Works.
    Healthy,
    /// Does not work.
    Unhealthy,
}

/// What was said of a device, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceHealth {
    /// As the driver said.
    pub health: Health,
    /// At most 1024 characters.
    pub message: String,
    /// When the stand-in received it.
    pub received: Instant,
    /// For how long it counts.
    pub timeout: Duration,
}

/// ResourceSlices of the node that the kubelet removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wipe {
    /// Of all drivers: the kubelet has started.
    Node,
    /// Of a driver without a connected plugin.
    Driver(String),
}

impl State {
    /// The plugin that calls for a driver go to: the newest connected one, else the newest.
    pub fn plugin(&self, driver: &str) -> Option<&Plugin> {
        let mut newest_first = self.plugins.iter().rev().filter(|p| p.driver == driver);
        newest_first.clone().find(|p| p.connected).or_else(|| newest_first.next())
    }

    /// Whether a plugin of the driver is connected.
    pub fn connected(&self, driver: &str) -> bool {
        self.plugins.iter().any(|p| p.driver == driver && p.connected)
    }

    /// Health as a pod's status would show it now.
    pub fn health(&self, driver: &str, pool: &str, device: &str) -> Health {
        let key = DeviceKey { driver: driver.into(), pool: pool.into(), device: device.into() };
        match self.health.get(&key) {
            Some(said) if said.received.elapsed() <= said.timeout => said.health,
            _ => Health::Unknown,
        }
    }
}
