//! The kubelet's connection to one device plugin: dialled when it registers, read until its list of
//! devices ends.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kerf::proto::device_plugin as v1beta1;
use kerf::proto::device_plugin::device_plugin_client::DevicePluginClient;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::Devices;
use super::book::End;
use super::state::{PluginDevice, Resource};
use crate::kubelet::task::Task;
use crate::kubelet::{authority, calls, registration};

/// To call a plugin with.
pub(super) type Api = DevicePluginClient<Channel>;

/// A registration and its connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) id: u64,
    pub(super) resource: String,
    pub(super) socket: PathBuf,
    /// What it said of itself at its registration, which counts to 1.24.
    pub(super) options: v1beta1::DevicePluginOptions,
    connection: Mutex<Option<(Channel, Task)>>,
}

impl Client {
    pub(super) fn new(id: u64, socket: PathBuf, request: &v1beta1::RegisterRequest) -> Self {
        Self {
            id,
            resource: request.resource_name.clone(),
            socket,
            options: request.options.unwrap_or_default(),
            connection: Mutex::default(),
        }
    }

    /// To call the plugin with.
    pub(super) fn api(&self) -> Result<Api, String> {
        let connection = self.connection();
        let (channel, _) = connection
            .as_ref()
            .ok_or("rpc error: code = Canceled desc = grpc: the client connection is closing")?;
        Ok(Api::new(channel.clone()))
    }

    /// Ends the connection, and with it all calls.
    pub(super) fn close(&self) {
        self.connection().take();
    }

    fn connection(&self) -> MutexGuard<'_, Option<(Channel, Task)>> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Devices {
    /// Dials a plugin that registers, and asks for its options.
    pub(super) async fn connect(self: &Arc<Self>, client: Arc<Client>) -> Result<(), String> {
        self.change(|book, _| book.enter(client.clone()));
        let connected = match self.options_of(&client).await {
            Ok(options) => self.connected(&client, options),
            Err(why) => Err(why),
        };
        if connected.is_err() {
            client.close();
            self.change(|book, _| book.strike(&client));
            return connected;
        }
        self.spawn(self.clone().run(client));
        Ok(())
    }

    async fn options_of(&self, client: &Client) -> Result<v1beta1::DevicePluginOptions, String> {
        self.dial(client).await.map_err(|why| format!("failed to dial device plugin: {why}"))?;
        if self.shared.options.release <= 24 {
            return Ok(client.options);
        }
        let answer = client.api()?.get_device_plugin_options(v1beta1::Empty {}).await;
        answer.map(tonic::Response::into_inner).map_err(|status| {
            format!("failed to get device plugin options: {}", calls::text(&status))
        })
    }

    async fn dial(&self, client: &Client) -> Result<(), String> {
        let options = &self.shared.options;
        let stream = timeout(options.plugin_dial, registration::dial(&client.socket))
            .await
            .map_err(|_| "context deadline exceeded")?;
        let authority = options.plugin_authority().of(&client.socket);
        let connection = authority::channel(stream, authority).await;
        *client.connection() = Some(connection.map_err(|error| error.to_string())?);
        Ok(())
    }

    fn connected(
        &self,
        client: &Arc<Client>,
        options: v1beta1::DevicePluginOptions,
    ) -> Result<(), String> {
        let mut connected = Err("the kubelet has stopped".to_owned());
        self.change(|book, state| {
            connected = book.connect(client, options);
            state.plugin_registrations += u64::from(connected.is_ok());
            state.plugin_streams += usize::from(connected.is_ok());
            state.resources.entry(client.resource.clone()).or_default();
        });
        connected
    }

    /// Follows the list of devices. Every stream of a resource replaces the same list, that of an
    /// earlier registration included.
    async fn run(self: Arc<Self>, client: Arc<Client>) {
        if let Ok(mut api) = client.api()
            && let Ok(stream) = api.list_and_watch(v1beta1::Empty {}).await
        {
            let mut stream = stream.into_inner();
            while let Ok(Some(list)) = stream.message().await {
                self.listed(&client.resource, list.devices);
            }
        }
        self.change(|book, state| {
            state.plugin_streams -= 1;
            if book.end(&client) == End::Unhealthy
                && let Some(resource) = state.resources.get_mut(&client.resource)
            {
                resource.mark_unhealthy();
            }
        });
    }

    fn listed(&self, name: &str, devices: Vec<v1beta1::Device>) {
        let devices: BTreeMap<_, _> = devices.into_iter().map(device).collect();
        self.change(|_, state| {
            let resource: &mut Resource = state.resources.entry(name.to_owned()).or_default();
            resource.registered = true;
            resource.devices = devices;
        });
        // The real one only logs it.
        let _logged = self.write_checkpoint();
    }
}

fn device(device: v1beta1::Device) -> (String, PluginDevice) {
    let numa = device.topology.map(|topology| topology.nodes.iter().map(|node| node.id).collect());
    (device.id, PluginDevice { healthy: device.health == "Healthy", numa })
}
