//! How a socket becomes a plugin: dial, GetInfo, checks, NotifyRegistrationStatus; and again, ever
//! more slowly, until it works.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kerf::proto::registration::registration_client::RegistrationClient;
use kerf::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::link::{self, Link};
use super::state::{DraService, HealthService, Plugin};
use super::task::Task;
use super::{Shared, authority, calls, health};

const DIAL: Duration = Duration::from_secs(10);
const DIAL_AGAIN: Duration = Duration::from_millis(1);
const GET_INFO: Duration = Duration::from_secs(1);
const NOTIFY: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_secs(122);

/// A plugin from its registration to the drop of this.
struct Entry {
    shared: Arc<Shared>,
    id: u64,
    _connection: Task,
    _health: Task,
}

/// The life of a registration socket, from its appearance on: ends only by being dropped.
pub(super) async fn live(shared: Arc<Shared>, socket: PathBuf) {
    let mut backoff = shared.options.registration_backoff;
    let _entry = loop {
        match register(&shared, &socket).await {
            Ok(entry) => break entry,
            Err(why) => {
                shared.state.send_modify(|state| drop(state.refused.insert(socket.clone(), why)));
                sleep(backoff).await;
                backoff = (backoff * 2).min(LONGEST_BACKOFF);
            }
        }
    };
    shared.state.send_modify(|state| drop(state.refused.remove(&socket)));
    std::future::pending().await
}

async fn register(shared: &Arc<Shared>, socket: &Path) -> Result<Entry, String> {
    let stream = timeout(DIAL, dial(socket))
        .await
        .map_err(|_| format!("failed to dial `{}`", socket.display()))?;
    // A fresh connection for each attempt, closed right after it.
    let (channel, _connection) = authority::channel(stream, authority::encode(socket))
        .await
        .map_err(|error| error.to_string())?;
    let mut client = RegistrationClient::new(channel);
    let info = get_info(&mut client).await?;
    let entry = match accept(shared, socket, &info) {
        Ok(entry) => entry,
        Err(why) => {
            // The plugin may answer with an error; the registration has failed anyway.
            let _answer = notify(&mut client, Some(why.clone())).await;
            return Err(why);
        }
    };
    match notify(&mut client, None).await {
        Ok(()) => entry.acknowledged(),
        Err(why) if shared.options.release >= 36 => return Err(why),
        Err(_) => {}
    }
    Ok(entry)
}

/// The kubelet blocks until the connection is there: a socket is bound before it is listened on.
pub(super) async fn dial(socket: &Path) -> UnixStream {
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => return stream,
            Err(_not_yet) => sleep(DIAL_AGAIN).await,
        }
    }
}

async fn get_info(client: &mut RegistrationClient<Channel>) -> Result<PluginInfo, String> {
    let request = calls::request(InfoRequest {}, GET_INFO);
    let answer = calls::within(GET_INFO, client.get_info(request)).await;
    answer.map_err(|status| {
        format!("failed to get plugin info using RPC GetInfo: {}", calls::text(&status))
    })
}

async fn notify(
    client: &mut RegistrationClient<Channel>,
    refusal: Option<String>,
) -> Result<(), String> {
    let status = RegistrationStatus {
        plugin_registered: refusal.is_none(),
        error: refusal.unwrap_or_default(),
    };
    let request = calls::request(status, NOTIFY);
    let answer = calls::within(NOTIFY, client.notify_registration_status(request)).await;
    answer
        .map(drop)
        .map_err(|status| format!("failed to notify the plugin: {}", calls::text(&status)))
}

fn accept(shared: &Arc<Shared>, socket: &Path, info: &PluginInfo) -> Result<Entry, String> {
    if info.r#type != "DRAPlugin" {
        return Err(format!(
            "no handler registered for plugin type: {} at socket {}",
            info.r#type,
            socket.display()
        ));
    }
    if info.name.is_empty() {
        return Err(format!("DRA driver name is empty at socket {}", socket.display()));
    }
    let service = dra_service(shared, &info.supported_versions)?;
    let endpoint =
        if info.endpoint.is_empty() { socket.to_path_buf() } else { PathBuf::from(&info.endpoint) };
    let plugin = Plugin {
        id: 0,
        driver: info.name.clone(),
        socket: socket.to_path_buf(),
        endpoint,
        service,
        health: health_service(shared, &info.supported_versions),
        acknowledged: false,
        connected: false,
    };
    Entry::new(shared, plugin)
}

/// The first version that this kubelet knows: the order is the plugin's preference.
fn dra_service(shared: &Shared, versions: &[String]) -> Result<DraService, String> {
    if versions.is_empty() {
        return Err("empty list for supported gRPC services (aka supported versions)".into());
    }
    let known = |version: &String| match version.as_str() {
        "v1.DRAPlugin" if shared.options.release >= 34 && !shared.options.only_v1beta1 => {
            Some(DraService::V1)
        }
        "v1beta1.DRAPlugin" if shared.options.release >= 32 => Some(DraService::V1beta1),
        _ => None,
    };
    versions
        .iter()
        .find_map(known)
        .ok_or_else(|| format!("none of the gRPC services is known: {}", versions.join(", ")))
}

/// 1.37 asks only who offers it, v1 first; 1.34 to 1.36 ask everybody for v1alpha1.
fn health_service(shared: &Shared, versions: &[String]) -> Option<HealthService> {
    let offers = |version: &str| versions.iter().any(|offered| offered == version);
    match shared.options.release {
        _ if !shared.options.health => None,
        0..=33 => None,
        34..=36 => Some(HealthService::V1alpha1),
        _ if offers("v1.DRAResourceHealth") => Some(HealthService::V1),
        _ if offers("v1alpha1.DRAResourceHealth") => Some(HealthService::V1alpha1),
        _ => None,
    }
}

impl Entry {
    fn new(shared: &Arc<Shared>, mut plugin: Plugin) -> Result<Self, String> {
        let id = shared.next_id();
        plugin.id = id;
        let (sender, link) = watch::channel(Link::Connecting);
        add(shared, plugin.clone(), &link)?;
        let connection = Task::spawn({
            let (shared, endpoint) = (shared.clone(), plugin.endpoint.clone());
            async move { link::keep(&shared, id, &endpoint, &sender).await }
        });
        let health = Task::spawn({
            let shared = shared.clone();
            async move { health::follow(&shared, &plugin, link).await }
        });
        Ok(Self { shared: shared.clone(), id, _connection: connection, _health: health })
    }

    fn acknowledged(&self) {
        self.shared.state.send_modify(|state| {
            state.registrations += 1;
            for plugin in state.plugins.iter_mut().filter(|plugin| plugin.id == self.id) {
                plugin.acknowledged = true;
            }
        });
    }
}

fn add(shared: &Shared, plugin: Plugin, link: &watch::Receiver<Link>) -> Result<(), String> {
    let (driver, endpoint) = (plugin.driver.clone(), plugin.endpoint.clone());
    let id = plugin.id;
    let added = shared.state.send_if_modified(|state| {
        let taken =
            state.plugins.iter().any(|other| other.driver == driver && other.endpoint == endpoint);
        if !taken {
            shared.links().insert(id, link.clone());
            state.plugins.push(plugin);
        }
        !taken
    });
    let endpoint = endpoint.display();
    added.then_some(()).ok_or_else(|| {
        format!("endpoint {endpoint} already registered for DRA driver plugin {driver}")
    })
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.links().remove(&self.id);
        self.shared.state.send_modify(|state| state.plugins.retain(|plugin| plugin.id != self.id));
    }
}
