//! The socket of `kerf release-gpu` and `kerf clear-gpu`: what an operator wants done with one GPU.
//!
//! The client sends an [`Order`] as one line of JSON, and the agent answers with an [`Answer`], a line too. A
//! GPU that was released is taken up again once the client has sent another line, or has hung up; the
//! second answer says how it is then.

use std::{io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
};

use crate::sockets::{Connection, Connections, Limits};

/// Longer than any order.
const LONGEST: u64 = 1024;

/// What is to be done with a GPU, which is named by index or UUID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Order {
    /// Let it go, so that it can be reset.
    Release(String),
    /// Forget what is wrong with it.
    Clear(String),
}

/// What an agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The GPU with this UUID is let go.
    Released(String),
    /// It is served; what is wrong with it, one line each.
    Served(Vec<String>),
    /// The order was not carried out, and why.
    Refused(String),
}

/// Who carries out orders.
pub trait Gpus: Send + Sync {
    /// Lets go of a GPU; the answer is its UUID, or why not.
    fn release<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<String, String>>;
    /// Takes up the GPU with this UUID; the answer is what is wrong with it.
    fn take_up<'a>(&'a self, uuid: &'a str) -> BoxFuture<'a, Vec<String>>;
    /// Forgets what is wrong with a GPU; the answer is what is found wrong with it at once, or why not.
    fn clear<'a>(&'a self, gpu: &'a str) -> BoxFuture<'a, Result<Vec<String>, String>>;
}

/// Connections that have given no order yet.
const LIMITS: Limits = Limits { connections: 16, idle: Some(Duration::from_secs(10)) };

/// Answers until dropped.
pub async fn serve(listener: UnixListener, gpus: Arc<dyn Gpus>) {
    let connections = Connections::new("socket for orders", listener, LIMITS);
    loop {
        let connection = connections.next().await;
        let gpus = gpus.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(connection, &*gpus).await {
                tracing::debug!(%error, "whoever gave an order has gone");
            }
        });
    }
}

async fn answer(mut connection: Connection<UnixStream>, gpus: &dyn Gpus) -> io::Result<()> {
    let Some(order) = line(&mut connection).await? else { return Ok(()) };
    // A released GPU may be waited for as long as its reset takes.
    let mut stream = connection.into_inner();
    let uuid = match serde_json::from_slice(&order) {
        Ok(Order::Release(gpu)) => gpus.release(&gpu).await,
        Ok(Order::Clear(gpu)) => {
            let answer = gpus.clear(&gpu).await.map_or_else(Answer::Refused, Answer::Served);
            return say(&mut stream, &answer).await;
        }
        Err(error) => Err(format!("not an order: {error}")),
    };
    let uuid = match uuid {
        Ok(uuid) => uuid,
        Err(reason) => return say(&mut stream, &Answer::Refused(reason)).await,
    };
    // From here on it is taken up again, whatever becomes of the connection.
    let told = say(&mut stream, &Answer::Released(uuid.clone())).await;
    if told.is_ok() {
        let _ = line(&mut stream).await;
    }
    let findings = gpus.take_up(&uuid).await;
    say(&mut stream, &Answer::Served(findings)).await
}

/// A line, without what may follow it; `None` if there is none.
async fn line(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let mut lines = BufReader::new(from.take(LONGEST));
    let read = lines.read_until(b'\n', &mut line).await?;
    Ok((read > 0).then_some(line))
}

async fn say(to: &mut (impl AsyncWriteExt + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    to.write_all(&line).await
}
