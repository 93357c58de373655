//! The kubelet's `grpc:` probes: gRPC health over TCP.

use std::net::SocketAddr;

use kerf::proto::grpc_health::HealthCheckRequest;
pub use kerf::proto::grpc_health::health_check_response::ServingStatus;
use kerf::proto::grpc_health::health_client::HealthClient;
use tonic::transport::Endpoint;

use super::calls;

/// Asks once how a service is; `""` is the whole process.
///
/// # Errors
/// When nobody answers, or the service is not known there.
pub async fn probe(address: SocketAddr, service: &str) -> Result<ServingStatus, String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let channel = endpoint
        .connect()
        .await
        .map_err(|error| format!("cannot connect to `{address}`: {error}"))?;
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer =
        HealthClient::new(channel).check(request).await.map_err(|status| calls::text(&status))?;
    Ok(answer.into_inner().status())
}
