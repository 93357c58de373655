//! The agent's own socket: whoever connects gets one JSON document, and the end.

use std::{io, path::Path, sync::Arc};

use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};

use crate::model::status::Status;

/// The state to give out, made anew for each who asks.
pub type Report = Arc<dyn Fn() -> Status + Send + Sync>;

/// Binds the socket in the place of one that an earlier agent left. The caller is the acting agent.
///
/// # Errors
/// A directory that is not there, or a path too long for a socket.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Answers until dropped.
pub async fn serve(listener: UnixListener, report: Report) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let report = report.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &report()).await {
                        tracing::debug!(%error, "status not delivered");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "status socket");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, status: &Status) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(status)?).await?;
    stream.shutdown().await
}
