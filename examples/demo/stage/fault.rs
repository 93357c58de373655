//! A GPU that fails under work, and what is said of it.

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::api::{
    events::v1::Event,
    resource::v1::{Device, DeviceTaint, ResourceSlice},
};
use kerf_testbed::{
    apiserver::ApiServer,
    kubelet::{DeviceKey, Health, State},
    node::DRIVER,
};
use tokio::time::timeout;

use super::{PATIENCE, Place, Stage};

/// An uncontained memory error.
const XID: u64 = 95;

/// The driver asks for a reset (`NVML_GPU_RECOVERY_ACTION_GPU_RESET`).
const RESET: u32 = 1;

/// What was said of a GPU that failed.
pub(crate) struct Fault {
    /// The whole GPU.
    pub(crate) place: Place,
    /// What the driver wrote into the kernel's log.
    pub(crate) log: String,
    /// The whole GPU's taints, and how many devices have some.
    pub(crate) taints: String,
    pub(crate) tainted: usize,
    /// What the kubelet's health stream said of the whole GPU.
    pub(crate) told: String,
    /// Reason and note of the event on the node.
    pub(crate) event: String,
    /// From the fault until all of that was said.
    pub(crate) said_in: Duration,
}

impl Stage {
    /// Breaks the last whole GPU on which somebody works, and returns what was said of it.
    pub(crate) async fn break_gpu(&mut self) -> anyhow::Result<Fault> {
        let place = self.work.iter().rfind(|place| place.is_whole()).context("no GPU in use")?;
        let place = place.clone();
        self.work.retain(|working| working.pid != place.pid);
        let machine = &self.testbed.machine;
        let begin = Instant::now();
        machine.xid(place.gpu, XID, None, None)?;
        machine.set_recovery_action(place.gpu, RESET, true)?;
        machine.stop_process(place.pid)?;
        let said = async {
            let told = self.told(&place, Health::Unhealthy).await;
            let all =
                |api: &ApiServer| devices(api).filter(|device| place.has(&device.name)).count();
            self.testbed.api.wait_until(|api| tainted(api).len() == all(api)).await;
            (told, self.event("GpuUnhealthy").await)
        };
        let (told, event) = timeout(PATIENCE, said).await.context("a fault is not told of")?;
        let said_in = begin.elapsed();
        let tainted = tainted(&self.testbed.api);
        let taints = tainted.iter().find(|(device, _)| *device == place.device);
        Ok(Fault {
            log: self.logged()?,
            taints: taints.map(|(_, taints)| taints.clone()).unwrap_or_default(),
            tainted: tainted.len(),
            place,
            told,
            event,
            said_in,
        })
    }

    /// Waits for what the kubelet is told of a device.
    pub(super) async fn told(&self, place: &Place, health: Health) -> String {
        let pool = self.testbed.name().to_owned();
        let told = |state: &State| state.health(DRIVER, &pool, &place.device) == health;
        let state = self.testbed.kubelet.wait_for(told).await;
        let key = DeviceKey { driver: DRIVER.to_owned(), pool, device: place.device.clone() };
        state.health.get(&key).map(|said| said.message.clone()).unwrap_or_default()
    }

    /// Waits for an event of this reason on the node.
    pub(super) async fn event(&self, reason: &str) -> String {
        let events = |api: &ApiServer| {
            let events = api.list::<Event>().into_iter();
            let mut events = events.filter(|event| event.reason.as_deref() == Some(reason));
            events.find(|event| is_on(event, "Node"))
        };
        self.testbed.api.wait_until(|api| events(api).is_some()).await;
        let event = events(&self.testbed.api).unwrap_or_default();
        format!("{reason}: {}", event.note.unwrap_or_default())
    }

    /// The line of the kernel's log with the XID.
    fn logged(&self) -> anyhow::Result<String> {
        let log = std::fs::read_to_string(self.testbed.machine.kernel_log())?;
        let xid = format!("): {XID},");
        let line = log.lines().rfind(|line| line.contains(&xid));
        let text = line.and_then(|line| line.split_once(';')).map(|(_, text)| text.to_owned());
        text.context("no XID in the kernel's log")
    }
}

fn is_on(event: &Event, kind: &str) -> bool {
    event.regarding.as_ref().and_then(|object| object.kind.as_deref()) == Some(kind)
}

fn devices(api: &ApiServer) -> impl Iterator<Item = Device> {
    let slices = api.list::<ResourceSlice>().into_iter();
    slices.filter_map(|slice| slice.spec.devices).flatten()
}

/// Devices with taints, and what each has.
pub(super) fn tainted(api: &ApiServer) -> Vec<(String, String)> {
    let text = |taint: DeviceTaint| {
        format!("{}={}:{}", taint.key, taint.value.unwrap_or_default(), taint.effect)
    };
    let tainted = devices(api).filter_map(|device| {
        let taints: Vec<_> = device.taints.into_iter().flatten().map(text).collect();
        (!taints.is_empty()).then(|| (device.name, taints.join(", ")))
    });
    tainted.collect()
}
