//! DRA: one answer for each claim that the kubelet asks about, whatever became of the others.

use std::{collections::BTreeMap, future::Future, panic::AssertUnwindSafe, time::Duration};

use futures::{FutureExt, future::join_all};
use tokio::time::timeout;
use tonic::{Request, Response, Status, metadata::MetadataMap};

use super::turn::{Answerer, Turn};
use crate::{
    driver::{self, Answer, Driver},
    model::claim::ClaimRef,
    proto::{
        dra_v1::{
            self as v1, dra_plugin_client::DraPluginClient, dra_plugin_server::DraPlugin as DraV1,
        },
        dra_v1beta1::{self as v1beta1, dra_plugin_server::DraPlugin as DraV1Beta1},
    },
};

/// How long the kubelet waits (`PluginClientTimeout`) when the call does not say.
const KUBELET_WAITS: Duration = Duration::from_secs(45);

/// How long before the kubelet gives up it gets an answer.
const MARGIN: Duration = Duration::from_secs(5);

/// Answers on the DRA socket.
#[derive(Clone)]
pub(super) struct Service {
    turn: Turn,
}

/// The answers to a call, by claim UID.
type Answers<T> = BTreeMap<String, Result<T, String>>;

impl Service {
    pub(super) fn new(turn: Turn) -> Self {
        Self { turn }
    }

    async fn prepare(
        &self,
        metadata: &MetadataMap,
        claims: Vec<ClaimRef>,
    ) -> Result<Answers<Vec<Answer>>, Status> {
        let (limit, claims) = (limit(metadata), each(claims));
        // A probe asks whether this agent answers, not the one that acts.
        if claims.is_empty() {
            return Ok(Answers::new());
        }
        let question =
            v1::NodePrepareResourcesRequest { claims: claims.iter().map(Into::into).collect() };
        let ask = |mut other: DraPluginClient<_>, request| async move {
            other.node_prepare_resources(request).await
        };
        match self.turn.take(metadata, limit, &question, ask).await? {
            Answerer::Own(driver) => {
                let work = |claim: ClaimRef| {
                    let driver = driver.clone();
                    async move { driver.prepare(&claim).await }
                };
                answer_all("prepare", &driver, limit, claims, work).await
            }
            Answerer::Other(answers) => {
                Ok(answers.claims.into_iter().map(|(uid, answer)| (uid, answer.into())).collect())
            }
        }
    }

    async fn unprepare(
        &self,
        metadata: &MetadataMap,
        claims: Vec<ClaimRef>,
    ) -> Result<Answers<()>, Status> {
        let (limit, claims) = (limit(metadata), each(claims));
        let question =
            v1::NodeUnprepareResourcesRequest { claims: claims.iter().map(Into::into).collect() };
        let ask = |mut other: DraPluginClient<_>, request| async move {
            other.node_unprepare_resources(request).await
        };
        match self.turn.take(metadata, limit, &question, ask).await? {
            Answerer::Own(driver) => {
                let work = |claim: ClaimRef| {
                    let driver = driver.clone();
                    async move { driver.unprepare(&claim).await }
                };
                answer_all("unprepare", &driver, limit, claims, work).await
            }
            Answerer::Other(answers) => Ok(answers
                .claims
                .into_iter()
                .map(|(uid, answer)| (uid, outcome((), answer.error)))
                .collect()),
        }
    }
}

/// What an answer on the wire says.
fn outcome<T>(done: T, error: String) -> Result<T, String> {
    if error.is_empty() { Ok(done) } else { Err(error) }
}

/// All answers to a call, each within `limit`.
///
/// # Errors
/// The agent hands over: then it answers for nobody, and the kubelet, or the next agent, asks again.
async fn answer_all<T, F: Future<Output = Result<T, driver::Error>>>(
    verb: &str,
    driver: &Driver,
    limit: Duration,
    claims: Vec<ClaimRef>,
    work: impl Fn(ClaimRef) -> F,
) -> Result<Answers<T>, Status> {
    let answers =
        claims.into_iter().map(|claim| answer(verb, driver, limit, claim.clone(), work(claim)));
    join_all(answers).await.into_iter().collect()
}

/// A claim's UID and its answer, within `limit` and whatever happens.
async fn answer<T>(
    verb: &str,
    driver: &Driver,
    limit: Duration,
    claim: ClaimRef,
    work: impl Future<Output = Result<T, driver::Error>>,
) -> Result<(String, Result<T, String>), Status> {
    let outcome = match timeout(limit, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(Ok(answer))) => Ok(answer),
        Ok(Ok(Err(error @ driver::Error::HandingOver))) => {
            return Err(Status::unavailable(error.line()));
        }
        Ok(Ok(Err(error))) => Err(error.line()),
        Ok(Err(_)) => Err("internal error; see the agent's log".to_owned()),
        Err(_) => {
            let delay = driver.delay(&claim);
            Err(format!("not done yet: {delay}; the kubelet will ask again"))
        }
    };
    let outcome = outcome.map_err(|error| format!("{verb} `{claim}`: {error}"));
    if let Err(error) = &outcome {
        tracing::warn!(uid = claim.uid, "{error}");
    }
    Ok((claim.uid, outcome))
}

/// The claims of a call, each once.
fn each(claims: Vec<ClaimRef>) -> Vec<ClaimRef> {
    let by_uid: BTreeMap<String, ClaimRef> =
        claims.into_iter().map(|claim| (claim.uid.clone(), claim)).collect();
    by_uid.into_values().collect()
}

/// When to answer a call: a little before its deadline.
fn limit(metadata: &MetadataMap) -> Duration {
    let header = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    let waits = header.and_then(grpc_timeout).unwrap_or(KUBELET_WAITS);
    waits.saturating_sub(MARGIN).max(waits / 2)
}

/// The gRPC wire format's `TimeoutValue TimeoutUnit`, such as `45S` or `44999m`.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let amount: u64 = text.strip_suffix(unit)?.parse().ok()?;
    let duration = match unit {
        'H' => Duration::from_secs(amount.checked_mul(3600)?),
        'M' => Duration::from_secs(amount.checked_mul(60)?),
        'S' => Duration::from_secs(amount),
        'm' => Duration::from_millis(amount),
        'u' => Duration::from_micros(amount),
        'n' => Duration::from_nanos(amount),
        _ => return None,
    };
    Some(duration)
}

/// Serves one version of the API: v1beta1 is v1 without share IDs.
macro_rules! serve {
    ($server:ident, $version:ident, |$answer:ident| { $($extra:tt)* }) => {
        #[tonic::async_trait]
        impl $server for Service {
            async fn node_prepare_resources(
                &self,
                request: Request<$version::NodePrepareResourcesRequest>,
            ) -> Result<Response<$version::NodePrepareResourcesResponse>, Status> {
                let (metadata, _, request) = request.into_parts();
                let claims = request.claims.into_iter().map(Into::into).collect();
                let answers = self.prepare(&metadata, claims).await?.into_iter();
                let claims = answers.map(|(uid, answer)| (uid, answer.into())).collect();
                Ok(Response::new($version::NodePrepareResourcesResponse { claims }))
            }

            async fn node_unprepare_resources(
                &self,
                request: Request<$version::NodeUnprepareResourcesRequest>,
            ) -> Result<Response<$version::NodeUnprepareResourcesResponse>, Status> {
                let (metadata, _, request) = request.into_parts();
                let claims = request.claims.into_iter().map(Into::into).collect();
                let answers = self.unprepare(&metadata, claims).await?.into_iter();
                let claims = answers.map(|(uid, answer)| {
                    let error = answer.err().unwrap_or_default();
                    (uid, $version::NodeUnprepareResourceResponse { error })
                });
                let claims = claims.collect();
                Ok(Response::new($version::NodeUnprepareResourcesResponse { claims }))
            }
        }

        impl From<$version::Claim> for ClaimRef {
            fn from(claim: $version::Claim) -> Self {
                let $version::Claim { namespace, uid, name } = claim;
                Self { namespace, name, uid }
            }
        }

        impl From<Result<Vec<Answer>, String>> for $version::NodePrepareResourceResponse {
            fn from(answer: Result<Vec<Answer>, String>) -> Self {
                match answer {
                    Ok(devices) => Self {
                        devices: devices.into_iter().map(Into::into).collect(),
                        error: String::new(),
                    },
                    Err(error) => Self { devices: Vec::new(), error },
                }
            }
        }

        impl From<Answer> for $version::Device {
            fn from($answer: Answer) -> Self {
                Self {
                    request_names: $answer.requests,
                    pool_name: $answer.pool,
                    device_name: $answer.device,
                    cdi_device_ids: $answer.cdi,
                    $($extra)*
                }
            }
        }
    };
}

impl From<&ClaimRef> for v1::Claim {
    fn from(claim: &ClaimRef) -> Self {
        let ClaimRef { namespace, name, uid } = claim.clone();
        Self { namespace, uid, name }
    }
}

impl From<v1::NodePrepareResourceResponse> for Result<Vec<Answer>, String> {
    fn from(answer: v1::NodePrepareResourceResponse) -> Self {
        outcome(answer.devices.into_iter().map(Into::into).collect(), answer.error)
    }
}

impl From<v1::Device> for Answer {
    fn from(device: v1::Device) -> Self {
        Self {
            requests: device.request_names,
            pool: device.pool_name,
            device: device.device_name,
            cdi: device.cdi_device_ids,
            share_id: device.share_id,
        }
    }
}

serve!(DraV1, v1, |answer| { share_id: answer.share_id });
serve!(DraV1Beta1, v1beta1, |answer| {});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_answered_a_little_before_its_deadline() {
        let limit_of = |timeout: Option<&str>| {
            let mut metadata = MetadataMap::new();
            if let Some(timeout) = timeout {
                metadata.insert("grpc-timeout", timeout.parse().unwrap());
            }
            limit(&metadata)
        };
        assert_eq!(limit_of(Some("44999m")), Duration::from_millis(39_999));
        assert_eq!(limit_of(Some("2S")), Duration::from_secs(1));
        assert_eq!(limit_of(None), Duration::from_secs(40));
        assert_eq!(limit_of(Some("soon")), Duration::from_secs(40));
        assert_eq!(limit_of(Some("99999999999999999999H")), Duration::from_secs(40));
    }
}
