//! Prepare and unprepare as calls to a plugin: which plugin, which version, the deadline, and what
//! the kubelet makes of an answer. Nothing is cached here.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kerf::model::claim::ClaimRef;
use kerf::proto::dra_v1::dra_plugin_client::DraPluginClient as V1;
use kerf::proto::dra_v1beta1::dra_plugin_client::DraPluginClient as V1beta1;
use kerf::proto::{dra_v1 as v1, dra_v1beta1 as v1beta1};
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use super::link::Link;
use super::state::{Device, DraService};
use super::{Kubelet, Plugin};

/// A result for each claim of a call, by UID.
pub type Results<T> = BTreeMap<String, Result<T, String>>;

/// A call to a driver. Dropping its future cancels it, as the kubelet cancels: with RST_STREAM.
#[derive(Debug)]
pub struct Call<'a> {
    kubelet: &'a Kubelet,
    driver: &'a str,
    deadline: Duration,
    endpoint: Option<PathBuf>,
}

impl Kubelet {
    /// A call to the newest connected plugin of the driver, with the kubelet's deadline.
    pub fn call<'a>(&'a self, driver: &'a str) -> Call<'a> {
        Call { kubelet: self, driver, deadline: self.shared.options.deadline, endpoint: None }
    }

    /// One NodePrepareResources for these claims; see [`Call::prepare`].
    pub async fn prepare(&self, driver: &str, claims: &[ClaimRef]) -> Results<Vec<Device>> {
        self.call(driver).prepare(claims).await
    }

    /// One NodeUnprepareResources for these claims; see [`Call::unprepare`].
    pub async fn unprepare(&self, driver: &str, claims: &[ClaimRef]) -> Results<()> {
        self.call(driver).unprepare(claims).await
    }
}

impl Call<'_> {
    /// Another deadline, which is also sent.
    #[must_use]
    pub fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    /// To the plugin with this DRA socket, instead of the newest.
    #[must_use]
    pub fn via(self, endpoint: &Path) -> Self {
        Self { endpoint: Some(endpoint.to_path_buf()), ..self }
    }

    /// What each claim was given, after the kubelet's checks; what fails the call fails every claim.
    pub async fn prepare(&self, claims: &[ClaimRef]) -> Results<Vec<Device>> {
        let answer = self.send_prepare(claims).await.map(|answer| {
            let results = answer.claims.into_iter();
            results.map(|(uid, result)| (uid, failed(result.error, result.devices))).collect()
        });
        check("NodePrepareResources", claims, answer)
    }

    /// Whether each claim was given back, after the kubelet's checks.
    pub async fn unprepare(&self, claims: &[ClaimRef]) -> Results<()> {
        let answer = self.send_unprepare(claims).await.map(|answer| {
            let results = answer.claims.into_iter();
            results.map(|(uid, result)| (uid, failed(result.error, ()))).collect()
        });
        check("NodeUnprepareResources", claims, answer)
    }

    /// The answer to NodePrepareResources, unchecked.
    ///
    /// # Errors
    /// Why there is none, as the kubelet says it.
    pub async fn send_prepare(
        &self,
        claims: &[ClaimRef],
    ) -> Result<v1::NodePrepareResourcesResponse, String> {
        let (plugin, link) = self.plugin()?;
        let call = open(link.clone(), |channel| async move {
            match plugin.service {
                DraService::V1 => {
                    let body = v1::NodePrepareResourcesRequest {
                        claims: claims.iter().map(claim).collect(),
                    };
                    V1::new(channel).node_prepare_resources(request(body, self.deadline)).await
                }
                DraService::V1beta1 => {
                    let body = v1beta1::NodePrepareResourcesRequest {
                        claims: claims.iter().map(old_claim).collect(),
                    };
                    let answer = V1beta1::new(channel)
                        .node_prepare_resources(request(body, self.deadline))
                        .await?;
                    Ok(answer.map(prepared))
                }
            }
        });
        self.ended(link, call)
            .await
            .map_err(|status| format!("NodePrepareResources: {}", text(&status)))
    }

    /// The answer to NodeUnprepareResources, unchecked.
    ///
    /// # Errors
    /// Why there is none, as the kubelet says it.
    pub async fn send_unprepare(
        &self,
        claims: &[ClaimRef],
    ) -> Result<v1::NodeUnprepareResourcesResponse, String> {
        let (plugin, link) = self.plugin()?;
        let call = open(link.clone(), |channel| async move {
            match plugin.service {
                DraService::V1 => {
                    let body = v1::NodeUnprepareResourcesRequest {
                        claims: claims.iter().map(claim).collect(),
                    };
                    V1::new(channel).node_unprepare_resources(request(body, self.deadline)).await
                }
                DraService::V1beta1 => {
                    let body = v1beta1::NodeUnprepareResourcesRequest {
                        claims: claims.iter().map(old_claim).collect(),
                    };
                    let answer = V1beta1::new(channel)
                        .node_unprepare_resources(request(body, self.deadline))
                        .await?;
                    Ok(answer.map(unprepared))
                }
            }
        });
        self.ended(link, call)
            .await
            .map_err(|status| format!("NodeUnprepareResources: {}", text(&status)))
    }

    fn plugin(&self) -> Result<(Plugin, watch::Receiver<Link>), String> {
        let state = self.kubelet.shared.state.borrow();
        let plugin = match &self.endpoint {
            Some(endpoint) => {
                state.plugins.iter().find(|p| p.driver == self.driver && p.endpoint == *endpoint)
            }
            None => state.plugin(self.driver),
        };
        let link = plugin.and_then(|plugin| self.kubelet.shared.links().get(&plugin.id).cloned());
        plugin
            .cloned()
            .zip(link)
            .ok_or_else(|| format!("DRA driver {} is not registered", self.driver))
    }

    /// A plugin that is deregistered takes its calls with it.
    async fn ended<T>(
        &self,
        mut link: watch::Receiver<Link>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let closed = async { while link.changed().await.is_ok() {} };
        tokio::select! {
            biased;
            answer = within(self.deadline, call) => answer,
            () = closed => Err(closing()),
        }
    }
}

/// Calls with the open connection: waits while it is being opened, fails at once when it is down.
async fn open<T, F>(
    mut link: watch::Receiver<Link>,
    call: impl FnOnce(Channel) -> F,
) -> Result<Response<T>, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    call(channel(&mut link).await?).await
}

/// The open connection of a plugin.
pub(super) async fn channel(link: &mut watch::Receiver<Link>) -> Result<Channel, Status> {
    loop {
        let now = link.borrow_and_update().clone();
        match now {
            Link::Ready(channel) => return Ok(channel),
            Link::Down(why) => return Err(Status::unavailable(why)),
            Link::Connecting => link.changed().await.map_err(|_| closing())?,
        }
    }
}

/// A request that tells the server its deadline.
pub(super) fn request<T>(body: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(body);
    request.set_timeout(deadline);
    request
}

/// A call that ends at its deadline. tonic, here and at the server, has other words for that.
pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    let start = Instant::now();
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) if start.elapsed() < deadline => Err(status),
        _ => Err(Status::deadline_exceeded("context deadline exceeded")),
    }
}

/// A status as grpc-go prints it.
pub(super) fn text(status: &Status) -> String {
    // Go spells it with one l.
    let code = if status.code() == Code::Cancelled {
        "Canceled".into()
    } else {
        format!("{:?}", status.code())
    };
    let reset = reset(status)
        .map(|reason| format!("stream terminated by RST_STREAM with error code: {reason:?}"));
    format!("rpc error: code = {code} desc = {}", reset.as_deref().unwrap_or(status.message()))
}

/// The reason with which the server reset the stream, if that is what happened.
fn reset(status: &Status) -> Option<h2::Reason> {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().filter(|_| error.is_reset());
        }
        cause = error.source();
    }
    None
}

fn closing() -> Status {
    Status::cancelled("grpc: the client connection is closing")
}

fn failed<T>(error: String, result: T) -> Result<T, String> {
    if error.is_empty() { Ok(result) } else { Err(error) }
}

/// The kubelet's checks, each claim with its own result where there is one.
fn check<T>(method: &str, claims: &[ClaimRef], answer: Result<Results<T>, String>) -> Results<T> {
    let all =
        |why: String| claims.iter().map(|claim| (claim.uid.clone(), Err(why.clone()))).collect();
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(why) => return all(why),
    };
    if let Some(uid) = answer.keys().find(|uid| claims.iter().all(|claim| claim.uid != **uid)) {
        return all(format!("{method} returned result for unknown claim UID {uid}"));
    }
    let skipped = claims.len() - answer.len();
    let result = |claim: &ClaimRef| match answer.remove(&claim.uid) {
        Some(Ok(result)) => Ok(result),
        Some(Err(error)) => {
            Err(format!("{method} failed for ResourceClaim {}: {error}", claim.name))
        }
        None => Err(format!("{method} skipped {skipped} ResourceClaims")),
    };
    let results: Vec<_> = claims.iter().map(result).collect();
    claims.iter().map(|claim| claim.uid.clone()).zip(results).collect()
}

fn claim(claim: &ClaimRef) -> v1::Claim {
    let ClaimRef { namespace, name, uid } = claim.clone();
    v1::Claim { namespace, uid, name }
}

fn old_claim(claim: &ClaimRef) -> v1beta1::Claim {
    let ClaimRef { namespace, name, uid } = claim.clone();
    v1beta1::Claim { namespace, uid, name }
}

fn prepared(answer: v1beta1::NodePrepareResourcesResponse) -> v1::NodePrepareResourcesResponse {
    let device = |device: v1beta1::Device| v1::Device {
        request_names: device.request_names,
        pool_name: device.pool_name,
        device_name: device.device_name,
        cdi_device_ids: device.cdi_device_ids,
        share_id: None,
    };
    let result = |(uid, result): (String, v1beta1::NodePrepareResourceResponse)| {
        let devices = result.devices.into_iter().map(device).collect();
        (uid, v1::NodePrepareResourceResponse { devices, error: result.error })
    };
    v1::NodePrepareResourcesResponse { claims: answer.claims.into_iter().map(result).collect() }
}

fn unprepared(
    answer: v1beta1::NodeUnprepareResourcesResponse,
) -> v1::NodeUnprepareResourcesResponse {
    let result = |(uid, result): (String, v1beta1::NodeUnprepareResourceResponse)| {
        (uid, v1::NodeUnprepareResourceResponse { error: result.error })
    };
    v1::NodeUnprepareResourcesResponse { claims: answer.claims.into_iter().map(result).collect() }
}
