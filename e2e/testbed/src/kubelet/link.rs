//! The one connection to a plugin's DRA socket: opened at registration, used by every call, opened
//! again as soon as it breaks.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tonic::transport::{Channel, Endpoint};

use super::Shared;

/// A connection that broke sooner than this is not opened again at once.
const SHORT_LIVED: Duration = Duration::from_millis(10);

/// State of the connection.
#[derive(Clone, Debug)]
pub(super) enum Link {
    /// Being opened: calls wait.
    Connecting,
    /// Open.
    Ready(Channel),
    /// The last attempt failed: calls fail at once.
    Down(String),
}

/// Keeps the connection of the plugin `id` open, for ever.
pub(super) async fn keep(shared: &Shared, id: u64, endpoint: &Path, link: &watch::Sender<Link>) {
    let connected = |now: bool| {
        shared.state.send_modify(|state| {
            state.connections += u64::from(now);
            for plugin in state.plugins.iter_mut().filter(|plugin| plugin.id == id) {
                plugin.connected = now;
            }
        });
    };
    loop {
        match connect(endpoint).await {
            Ok((channel, broken)) => {
                let since = Instant::now();
                link.send_replace(Link::Ready(channel));
                connected(true);
                // The sender is dropped with the stream, and nothing is ever sent.
                let _dropped = broken.await;
                link.send_replace(Link::Connecting);
                connected(false);
                if since.elapsed() >= SHORT_LIVED {
                    continue;
                }
            }
            Err(error) => drop(link.send_replace(Link::Down(error))),
        }
        tokio::time::sleep(shared.options.reconnect).await;
    }
}

async fn connect(endpoint: &Path) -> Result<(Channel, oneshot::Receiver<()>), String> {
    let failed = |error: &dyn std::fmt::Display| {
        format!(
            "connection error: desc = \"transport: Error while dialing: dial unix {}: {error}\"",
            endpoint.display()
        )
    };
    let stream = UnixStream::connect(endpoint).await.map_err(|error| failed(&error))?;
    let (alive, broken) = oneshot::channel();
    let mut stream = Some(TokioIo::new(Watched { stream, _alive: alive }));
    let connector = tower::service_fn(move |_| {
        // tonic would connect again by itself, unseen.
        let stream = stream.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { stream }
    });
    // A `unix:` target makes grpc-go send this authority.
    let endpoint = Endpoint::from_static("http://localhost");
    let channel =
        endpoint.connect_with_connector(connector).await.map_err(|error| failed(&error))?;
    Ok((channel, broken))
}

/// A stream whose end is noticed: HTTP/2 drops it when the connection is over.
struct Watched {
    stream: UnixStream,
    _alive: oneshot::Sender<()>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
