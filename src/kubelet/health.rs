//! Device health for the kubelet: complete lists, sent at every change and often enough to stay valid.

use std::{
    pin::Pin,
    time::{Duration, SystemTime},
};

use futures::Stream;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::turn::Turn;
use crate::{
    driver::Driver,
    model::{
        device::Device,
        health::{Finding, Severity},
    },
    proto::{
        dra_health_v1::{self as v1, dra_resource_health_server::DraResourceHealth as HealthV1},
        dra_health_v1alpha1::{
            self as v1alpha1, dra_resource_health_server::DraResourceHealth as HealthV1Alpha1,
        },
    },
};

/// After this time without news the kubelet says Unknown.
const VALID: Duration = Duration::from_secs(30);

/// Answers on the DRA socket.
#[derive(Clone)]
pub(super) struct Service {
    turn: Turn,
}

impl Service {
    pub(super) fn new(turn: Turn) -> Self {
        Self { turn }
    }

    /// The answers to one call, each made by `list`.
    fn stream<T: Send + 'static>(
        &self,
        list: impl Fn(Vec<DeviceState>) -> T + Send + 'static,
    ) -> Answers<T> {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(self.clone().tell(sender, list));
        Box::pin(ReceiverStream::new(receiver))
    }

    /// Sends the devices now, whenever there are others, and twice within their validity, until the
    /// kubelet hangs up.
    async fn tell<T>(
        self,
        sender: mpsc::Sender<Result<T, Status>>,
        list: impl Fn(Vec<DeviceState>) -> T,
    ) {
        // Who stands by has nothing to say: the kubelet hears it from the agent that acts.
        let driver = tokio::select! {
            driver = self.turn.own() => driver,
            () = sender.closed() => return,
        };
        let Ok(driver) = driver else { return };
        let mut inventory = driver.machine().watch();
        let mut findings = driver.watch_findings();
        let mut again = interval(VALID / 2);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Vec::new();
        loop {
            let due = tokio::select! {
                _ = again.tick() => true,
                Ok(()) = inventory.changed() => false,
                Ok(()) = findings.changed() => false,
                () = sender.closed() => return,
            };
            inventory.mark_unchanged();
            findings.mark_unchanged();
            let devices = devices(&driver);
            // Most changes are of how a GPU is cut, and leave its devices as they are.
            if due || devices != told {
                told.clone_from(&devices);
                if sender.send(Ok(list(devices))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// What the kubelet is told of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
struct DeviceState {
    pool: String,
    name: String,
    healthy: bool,
    /// What is wrong; of a healthy device, what somebody should look at. Empty if nothing is.
    message: String,
}

/// All devices, those of GPUs that have fallen silent included.
fn devices(driver: &Driver) -> Vec<DeviceState> {
    let inventory = driver.machine().inventory();
    let findings = driver.findings();
    let state = |device: Device<'_>| {
        let target = device.target();
        let worst = findings.of(&target).next();
        let silence = inventory.silence(target.gpu());
        DeviceState {
            pool: driver.node().to_owned(),
            name: device.name(),
            healthy: silence.is_none()
                && worst.is_none_or(|worst| worst.severity < Severity::Unhealthy),
            message: worst
                .map(Finding::line)
                .or_else(|| Some(silence?.reason.clone()))
                .unwrap_or_default(),
        }
    };
    inventory.known().into_iter().flat_map(Device::all).map(state).collect()
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Serves one version of the API: they differ in name alone.
macro_rules! serve {
    ($server:ident, $version:ident) => {
        #[tonic::async_trait]
        impl $server for Service {
            type NodeWatchResourcesStream = Answers<$version::NodeWatchResourcesResponse>;

            async fn node_watch_resources(
                &self,
                _: Request<$version::NodeWatchResourcesRequest>,
            ) -> Result<Response<Self::NodeWatchResourcesStream>, Status> {
                let health = |device: DeviceState| $version::DeviceHealth {
                    device: Some($version::DeviceIdentifier {
                        pool_name: device.pool,
                        device_name: device.name,
                    }),
                    health: match device.healthy {
                        true => $version::HealthStatus::Healthy.into(),
                        false => $version::HealthStatus::Unhealthy.into(),
                    },
                    last_updated_time: unix_seconds(),
                    health_check_timeout_seconds: i64::try_from(VALID.as_secs()).unwrap_or(0),
                    message: device.message,
                };
                Ok(Response::new(self.stream(move |devices| {
                    let devices = devices.into_iter().map(health).collect();
                    $version::NodeWatchResourcesResponse { devices }
                })))
            }
        }
    };
}

serve!(HealthV1, v1);
serve!(HealthV1Alpha1, v1alpha1);
