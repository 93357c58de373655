//! Whose turn it is to answer the kubelet. It calls the agent that registered last, which may still stand
//! by: until that acts, it asks the agent that does. So no call fails while one agent follows another;
//! a pod whose call failed would wait for a minute and more until the kubelet asks again.

use std::{
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{
    Request, Response, Status,
    metadata::{MetadataMap, MetadataValue},
    transport::Channel,
};

use super::{probe, socket};
use crate::{driver::Driver, proto::dra_v1::dra_plugin_client::DraPluginClient};

/// Marks a call that another agent passes on: two that stand by must not ask each other.
const PASSED_ON: &str = "kerf-passed-on";

/// When an agent that does not answer is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// This agent's turn, once it acts.
#[derive(Clone)]
pub(super) struct Turn {
    acting: watch::Receiver<Option<Arc<Driver>>>,
    /// This agent's DRA socket, beside which those of others are.
    own: PathBuf,
}

/// Who answers a call.
pub(super) enum Answerer<A> {
    /// This agent.
    Own(Arc<Driver>),
    /// Another, and so it did.
    Other(A),
}

impl Turn {
    pub(super) fn new(acting: watch::Receiver<Option<Arc<Driver>>>, own: &Path) -> Self {
        Self { acting, own: own.to_owned() }
    }

    /// This agent's driver, when it acts.
    pub(super) async fn own(&self) -> Result<Arc<Driver>, Status> {
        let mut acting = self.acting.clone();
        let driver = acting.wait_for(Option::is_some).await.ok().and_then(|driver| driver.clone());
        driver.ok_or_else(|| Status::unavailable("this agent ends"))
    }

    /// This agent's driver if it acts within `limit`, or the answer of the one that acts meanwhile.
    /// `metadata` is that of the call.
    pub(super) async fn take<Q, A, F>(
        &self,
        metadata: &MetadataMap,
        limit: Duration,
        question: &Q,
        ask: impl Fn(DraPluginClient<Channel>, Request<Q>) -> F,
    ) -> Result<Answerer<A>, Status>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        if let Some(driver) = self.acting.borrow().clone() {
            return Ok(Answerer::Own(driver));
        }
        if metadata.contains_key(PASSED_ON) {
            return Err(Status::unavailable("standing by"));
        }
        let asked = async {
            tokio::select! {
                driver = self.own() => driver.map(Answerer::Own),
                answer = self.ask_others(limit, question, ask) => Ok(Answerer::Other(answer)),
            }
        };
        let late = "standing by, and the acting agent does not answer; the kubelet will ask again";
        timeout(limit, asked).await.unwrap_or_else(|_| Err(Status::unavailable(late)))
    }

    /// The answer of the agent that acts, as soon as one does.
    async fn ask_others<Q, A, F>(
        &self,
        limit: Duration,
        question: &Q,
        ask: impl Fn(DraPluginClient<Channel>, Request<Q>) -> F,
    ) -> A
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        loop {
            for other in socket::others(&self.own) {
                let Ok(channel) = probe::connect(other).await else { continue };
                let mut request = Request::new(question.clone());
                request.set_timeout(limit);
                let mark = MetadataValue::from_static("true");
                request.metadata_mut().insert(PASSED_ON, mark);
                if let Ok(answer) = ask(DraPluginClient::new(channel), request).await {
                    return answer.into_inner();
                }
            }
            sleep(AGAIN).await;
        }
    }
}
