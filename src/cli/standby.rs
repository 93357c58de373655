//! Waiting to be the node's acting agent.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::AsyncReadExt,
    net::UnixStream,
    task::spawn_blocking,
    time::{Instant, sleep, timeout},
};

use crate::{driver::AgentLock, node::lock};

/// A holder that has not answered on its socket for so long is a corpse: a thread stuck in the driver
/// keeps its lock although it was killed.
const CORPSE: Duration = Duration::from_secs(30);

/// How often the holder is asked, and how long it may take.
const ASK: Duration = Duration::from_secs(1);

/// Takes the lock in `state_dir` if nobody holds it.
///
/// # Errors
/// A lock file that cannot be opened.
pub(super) fn try_acquire(state_dir: &Path) -> io::Result<Option<AgentLock>> {
    let path = path(state_dir);
    Ok(lock::try_lock(&path)?.map(|file| AgentLock { file, path }))
}

/// Takes the lock in `state_dir` when its holder lets go. The lock file of a corpse is replaced.
///
/// # Errors
/// A lock file that cannot be opened.
pub(super) async fn acquire(state_dir: &Path) -> io::Result<AgentLock> {
    let path = path(state_dir);
    let holder = state_dir.join("agent.sock");
    loop {
        let file = tokio::select! {
            file = released(path.clone()) => file?,
            () = dead(&holder) => replace(&path)?,
        };
        // Another newcomer may have replaced the file that this one waited for.
        if lock::is_current(&file, &path) {
            return Ok(AgentLock { file, path });
        }
    }
}

fn path(state_dir: &Path) -> PathBuf {
    state_dir.join("agent.lock")
}

/// The lock file once its holder has let go.
async fn released(path: PathBuf) -> io::Result<File> {
    let locked = spawn_blocking(move || lock::lock(&path)).await;
    locked.unwrap_or_else(|panic| Err(io::Error::other(panic)))
}

/// Returns when the holder has been silent for [`CORPSE`].
async fn dead(socket: &Path) {
    let mut heard = Instant::now();
    while heard.elapsed() < CORPSE {
        if matches!(timeout(ASK, hear(socket)).await, Ok(Ok(()))) {
            heard = Instant::now();
        }
        sleep(ASK).await;
    }
    tracing::warn!("the acting agent has not answered for {} s: taking over", CORPSE.as_secs());
}

async fn hear(socket: &Path) -> io::Result<()> {
    let mut byte = [0];
    let mut stream = UnixStream::connect(socket).await?;
    stream.read_exact(&mut byte).await?;
    Ok(())
}

/// Puts a lock file of our own in the place of the corpse's.
fn replace(path: &Path) -> io::Result<File> {
    let own = path.with_extension(format!("lock-{}", std::process::id()));
    let file = lock::try_lock(&own)?.ok_or_else(|| io::Error::other("our own lock is taken"))?;
    std::fs::rename(&own, path)?;
    Ok(file)
}
