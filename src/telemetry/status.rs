//! The agent's own socket: whoever connects gets one JSON document, and the end.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
};

use crate::{
    model::status::Status,
    sockets::{self, Connection, Connections, Limits},
};

/// The state to give out, made anew for each who asks.
pub type Report = Arc<dyn Fn() -> Status + Send + Sync>;

/// The socket's file, which goes with this.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "status socket not removed");
        }
    }
}

impl SocketFile {
    /// Leaves the path to a successor, whose socket is there now.
    pub fn leave(self) {
        std::mem::forget(self);
    }
}

/// Binds the socket in the place of one that an earlier agent left. The caller is the acting agent, and
/// lets go of the file before it stops being that.
///
/// # Errors
/// A directory that is not there, or a path too long for a socket.
pub fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    Ok((sockets::bind(path)?, SocketFile(path.to_owned())))
}

/// Whoever does not take the document is gone.
const LIMITS: Limits = Limits { connections: 16, idle: Some(Duration::from_secs(10)) };

/// Answers until dropped.
pub async fn serve(listener: UnixListener, report: Report) {
    let connections = Connections::new("status socket", listener, LIMITS);
    loop {
        let connection = connections.next().await;
        let report = report.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(connection, &report()).await {
                tracing::debug!(%error, "status not delivered");
            }
        });
    }
}

async fn answer(mut connection: Connection<UnixStream>, status: &Status) -> io::Result<()> {
    connection.write_all(&serde_json::to_vec(status)?).await?;
    connection.shutdown().await
}
