//! The socket of `kerf release-gpu`: a GPU is let go for as long as whoever asked stays connected.
//!
//! The client sends one line, the GPU by index or UUID. The agent answers with one JSON document a line:
//! an [`Answer`] when the GPU is released or refused, and one when it is taken up again, which it is
//! once the client has sent another line, or has hung up.

use std::{io, sync::Arc};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

/// Longer than any GPU's name.
const LONGEST_LINE: u64 = 256;

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The GPU with this UUID is let go.
    Released(String),
    /// It is not, and why.
    Refused(String),
    /// It is taken up again; what is wrong with it, one line each.
    TakenUp(Vec<String>),
}

/// Who lets GPUs go.
pub trait Release: Send + Sync {
    /// Lets go of a GPU, by index or UUID; the answer is its UUID, or why not.
    fn release<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<String, String>>;
    /// Takes up the GPU with this UUID; the answer is what is wrong with it.
    fn take_up<'a>(&'a self, uuid: &'a str) -> BoxFuture<'a, Vec<String>>;
}

/// Answers until dropped.
pub async fn serve(listener: UnixListener, gpus: Arc<dyn Release>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let gpus = gpus.clone();
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &*gpus).await {
                        tracing::debug!(%error, "whoever asked for a GPU has gone");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "release socket");
                tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            }
        }
    }
}

async fn answer(mut stream: UnixStream, gpus: &dyn Release) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(read, LONGEST_LINE)).lines();
    let Some(gpu) = lines.next_line().await? else { return Ok(()) };
    let uuid = match gpus.release(gpu.trim()).await {
        Ok(uuid) => uuid,
        Err(reason) => return say(&mut write, &Answer::Refused(reason)).await,
    };
    // From here on it is taken up again, whatever becomes of the connection.
    let told = say(&mut write, &Answer::Released(uuid.clone())).await;
    if told.is_ok() {
        let _ = lines.next_line().await;
    }
    let findings = gpus.take_up(&uuid).await;
    say(&mut write, &Answer::TakenUp(findings)).await
}

async fn say(to: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line).await
}
