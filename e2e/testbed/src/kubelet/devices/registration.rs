//! The service that device plugins register at. The kubelet connects back before it answers.

use std::sync::Arc;

use kerf::proto::device_plugin::registration_server::Registration;
use kerf::proto::device_plugin::{Empty, RegisterRequest};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status};

use super::Devices;
use super::plugin::Client;

const VERSION: &str = "v1beta1";

/// What answers on `kubelet.sock`.
pub(super) struct Server(pub(super) Arc<Devices>);

#[tonic::async_trait]
impl Registration for Server {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<Empty>, Status> {
        let request = request.into_inner();
        match self.0.register(&request).await {
            Ok(()) => Ok(Response::new(Empty {})),
            Err(why) => {
                let socket = self.0.socket(&request.endpoint);
                self.0.change(|_, state| drop(state.refused.insert(socket, why.clone())));
                // What a handler in Go returns as a plain error.
                Err(Status::unknown(why))
            }
        }
    }
}

impl Devices {
    async fn register(self: &Arc<Self>, request: &RegisterRequest) -> Result<(), String> {
        if let Some(why) = self.shared.faults().registration.clone() {
            return Err(why);
        }
        check(request)?;
        let socket = self.socket(&request.endpoint);
        let client = Arc::new(Client::new(self.next_id(), socket, request));
        let (answer, mut connected) = oneshot::channel();
        self.spawn(self.clone().answer(client.clone(), answer));
        let connected = match self.shared.options.release {
            // Answered at once, whatever comes of it.
            0..=24 => Ok(()),
            _ => (&mut connected).await.unwrap_or(Err("the kubelet has stopped".to_owned())),
        };
        self.change(|_, state| {
            if connected.is_ok() {
                state.refused.remove(&client.socket);
            }
        });
        connected
    }

    /// A plugin that gives up waiting ends the attempt from 1.35 on; before, it goes on.
    async fn answer(
        self: Arc<Self>,
        client: Arc<Client>,
        mut to: oneshot::Sender<Result<(), String>>,
    ) {
        let connected = if self.shared.options.release < 35 {
            self.connect(client).await
        } else {
            tokio::select! {
                connected = self.connect(client.clone()) => connected,
                () = to.closed() => {
                    client.close();
                    self.change(|book, _| book.strike(&client));
                    return;
                }
            }
        };
        // Nobody waits for it any more: fine.
        let _answered = to.send(connected);
    }
}

fn check(request: &RegisterRequest) -> Result<(), String> {
    let RegisterRequest { version, resource_name, .. } = request;
    if version != VERSION {
        return Err(format!(
            "requested API version {version:?} is not supported by kubelet. Supported version is [{VERSION:?}]"
        ));
    }
    if !is_extended_resource(resource_name) {
        return Err(format!("the ResourceName {resource_name:?} is invalid"));
    }
    Ok(())
}

/// Whether a pod may ask for it as for a device: a qualified name outside `kubernetes.io`, with
/// room for the prefix that quotas put before it.
fn is_extended_resource(name: &str) -> bool {
    const QUOTA: &str = "requests.";
    let Some((domain, rest)) = name.split_once('/') else { return false };
    let in_domain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let in_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    !name.contains("kubernetes.io/")
        && !name.starts_with(QUOTA)
        && domain.len() + QUOTA.len() <= 253
        && domain.split('.').all(|label| is_word(label, in_domain))
        && rest.len() <= 63
        && is_word(rest, in_name)
}

/// Whether it is not empty, holds only these bytes, and begins and ends with a letter or digit.
fn is_word(word: &str, allowed: impl Fn(u8) -> bool) -> bool {
    let ends = [word.as_bytes().first(), word.as_bytes().last()];
    ends.into_iter().all(|end| end.is_some_and(u8::is_ascii_alphanumeric))
        && word.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resource_names_are_checked_as_the_kubelet_does() {
        let long = format!("nvidia.com/{}", "x".repeat(64));
        let bad = [
            "",
            "gpu",
            "/gpu",
            "nvidia.com/",
            "nvidia.com/a/b",
            "kubernetes.io/gpu",
            "gpu.kubernetes.io/x",
            "requests.nvidia.com/gpu",
            "Nvidia.com/gpu",
            "nvidia..com/gpu",
            "-nvidia.com/gpu",
            "nvidia.com/-gpu",
            "nvidia.com/gpu.",
            "nvidia.com/g u",
            &long,
        ];
        let good = ["nvidia.com/gpu", "nvidia.com/mig-1g.10gb", "nvidia.com/gpu.shared", "a/B_c"];
        let accepted: Vec<_> =
            bad.into_iter().chain(good).filter(|name| is_extended_resource(name)).collect();
        assert_eq!(accepted, good);
    }
}
