//! `/healthz`, `/readyz` and `/metrics` over HTTP, for people, probes and Prometheus.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{
        HeaderMap, StatusCode,
        header::{ACCEPT, CONTENT_TYPE, VARY},
    },
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, time::timeout};

use crate::{
    model::exposition::Format,
    sockets::{Connections, Limits},
};

/// What stands in the way of readiness, one line each; none if ready.
pub type Readiness = Arc<dyn Fn() -> Vec<String> + Send + Sync>;

/// The page of metrics, made anew for each who asks, from what is known: it waits for nothing.
pub type Page = Arc<dyn Fn(Format) -> String + Send + Sync>;

/// A page of eight cut GPUs is some 300 KB, and each connection may wait for one to be read.
const LIMITS: Limits = Limits { connections: 128, idle: Some(Duration::from_secs(30)) };

/// How long a request may take to arrive.
const REQUEST: Duration = Duration::from_secs(10);

/// How long a connection may take in all: no scrape waits for a page for longer.
const WHOLE: Duration = Duration::from_secs(60);

/// Bytes of a request that has not arrived yet.
const LONGEST: usize = 16 * 1024;

/// Serves on `listener` for ever: one request a connection, so that nobody is owed more than one page.
pub async fn serve(listener: TcpListener, readiness: Readiness, page: Page) -> Infallible {
    let service = TowerToHyperService::new(router(readiness, page));
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST)
        .max_buf_size(LONGEST)
        .keep_alive(false);
    let connections = Connections::new("HTTP", listener, LIMITS);
    loop {
        let connection = TokioIo::new(connections.next().await);
        let served = server.serve_connection(connection, service.clone());
        tokio::spawn(async {
            match timeout(WHOLE, served).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "HTTP connection"),
                Err(_) => tracing::debug!("HTTP connection: an answer is not taken"),
            }
        });
    }
}

fn router(readiness: Readiness, page: Page) -> Router {
    let ready = move || async move {
        let reasons = readiness();
        if reasons.is_empty() {
            (StatusCode::OK, "ready\n".to_owned())
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n")
        }
    };
    let metrics = move |headers: HeaderMap| async move { metrics(&headers, &page) };
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

fn metrics(headers: &HeaderMap, page: &Page) -> impl IntoResponse + use<> {
    let accept: Vec<_> =
        headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let format = Format::accepted(&accept.join(","));
    ([(CONTENT_TYPE, format.content_type()), (VARY, "Accept")], page(format))
}

#[cfg(test)]
mod tests;
