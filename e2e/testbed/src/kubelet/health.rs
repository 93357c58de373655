//! Reads the health stream of a plugin, over the connection of its calls, and opens it again after it
//! has ended.

use std::time::{Duration, Instant};

use kerf::proto::{dra_health_v1, dra_health_v1alpha1};
use tokio::sync::watch;
use tonic::{Status, Streaming};

use super::link::Link;
use super::state::{DeviceHealth, DeviceKey, Health, HealthService, Plugin};
use super::{Shared, calls};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_MESSAGE: usize = 1024;

type News = Vec<(DeviceKey, DeviceHealth)>;

/// Follows the plugin's health for as long as it is registered.
pub(super) async fn follow(shared: &Shared, plugin: &Plugin, mut link: watch::Receiver<Link>) {
    let Some(service) = plugin.health else { return };
    loop {
        // However it ended: the kubelet tries again.
        let _ended = match service {
            HealthService::V1 => v1::stream(shared, plugin, &mut link).await,
            HealthService::V1alpha1 => v1alpha1::stream(shared, plugin, &mut link).await,
        };
        tokio::time::sleep(shared.options.health_retry).await;
    }
}

/// What a stream has said is forgotten when it ends.
struct Open<'a> {
    shared: &'a Shared,
    driver: &'a str,
}

impl<'a> Open<'a> {
    fn new(shared: &'a Shared, driver: &'a str) -> Self {
        shared.state.send_modify(|state| state.streams += 1);
        Self { shared, driver }
    }

    async fn read<T>(
        &self,
        mut stream: Streaming<T>,
        news: impl Fn(T) -> News,
    ) -> Result<(), Status> {
        while let Some(message) = stream.message().await? {
            let news = news(message);
            self.shared.state.send_modify(|state| state.health.extend(news));
        }
        Ok(())
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.shared.state.send_modify(|state| {
            state.streams -= 1;
            state.health.retain(|device, _| device.driver != self.driver);
        });
    }
}

/// The same stream for both versions, whose messages are equal but not of one type.
macro_rules! version {
    ($module:ident, $proto:ident) => {
        mod $module {
            use super::*;
            use $proto::dra_resource_health_client::DraResourceHealthClient;
            use $proto::{DeviceHealth as Said, HealthStatus, NodeWatchResourcesRequest};

            pub(super) async fn stream(
                shared: &Shared,
                plugin: &Plugin,
                link: &mut watch::Receiver<Link>,
            ) -> Result<(), Status> {
                let mut client = DraResourceHealthClient::new(calls::channel(link).await?);
                let stream =
                    client.node_watch_resources(NodeWatchResourcesRequest {}).await?.into_inner();
                let news = |said: Said| heard(&plugin.driver, said);
                let open = Open::new(shared, &plugin.driver);
                open.read(stream, |message| message.devices.into_iter().map(news).collect()).await
            }

            fn heard(driver: &str, said: Said) -> (DeviceKey, DeviceHealth) {
                let health = match said.health() {
                    HealthStatus::Unknown => Health::Unknown,
                    HealthStatus::Healthy => Health::Healthy,
                    HealthStatus::Unhealthy => Health::Unhealthy,
                };
                let device = said.device.unwrap_or_default();
                let key = DeviceKey {
                    driver: driver.into(),
                    pool: device.pool_name,
                    device: device.device_name,
                };
                let timeout = timeout(said.health_check_timeout_seconds);
                (
                    key,
                    DeviceHealth {
                        health,
                        message: cut(said.message),
                        received: Instant::now(),
                        timeout,
                    },
                )
            }
        }
    };
}

version!(v1, dra_health_v1);
version!(v1alpha1, dra_health_v1alpha1);

fn timeout(seconds: i64) -> Duration {
    match u64::try_from(seconds) {
        Ok(seconds @ 1..) => Duration::from_secs(seconds),
        _ => DEFAULT_TIMEOUT,
    }
}

fn cut(message: String) -> String {
    if message.chars().count() <= LONGEST_MESSAGE {
        return message;
    }
    message.chars().take(LONGEST_MESSAGE - 3).chain("...".chars()).collect()
}
