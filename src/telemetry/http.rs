//! `/healthz`, `/readyz` and `/metrics` over HTTP, for people, probes and Prometheus.

use std::{io, sync::Arc};

use axum::{
    Router,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::model::exposition::Format;

/// What stands in the way of readiness, one line each; none if ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The page of metrics, made anew for each who asks, from what is known: it waits for nothing.
pub type Page = Arc<dyn Fn(Format) -> String + Send + Sync>;

/// Serves on `listener` until it fails.
///
/// # Errors
/// A listener that fails.
pub async fn serve(listener: TcpListener, readiness: Readiness, page: Page) -> io::Result<()> {
    let ready = move || async move {
        let reasons = readiness();
        if reasons.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
        }
    };
    let metrics = move |headers: HeaderMap| async move { metrics(&headers, &page) };
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    axum::serve(listener, router).await
}

fn metrics(headers: &HeaderMap, page: &Page) -> impl IntoResponse + use<> {
    let accept: Vec<_> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    ([(CONTENT_TYPE, format.content_type()), (VARY, "Accept")], page(format))
}

#[cfg(test)]
mod tests;
