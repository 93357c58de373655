//! `/healthz` and `/readyz` over HTTP, for people and probes.

use std::{io, sync::Arc};

use axum::{Router, http::StatusCode, routing::get};
use tokio::net::TcpListener;

/// What stands in the way of readiness, one line each; none if ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// Serves on `listener` until it fails.
///
/// # Errors
/// A listener that fails.
pub async fn serve(listener: TcpListener, readiness: Readiness) -> io::Result<()> {
    let ready = move || async move {
        let reasons = readiness();
        if reasons.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
        }
    };
    let router =
        Router::new().route("/healthz", get(|| async { "alive\n" })).route("/readyz", get(ready));
    axum::serve(listener, router).await
}
