//! Connections over real sockets.

use std::{os::unix::net::UnixStream as Peer, sync::atomic::AtomicUsize};

use tokio::io::AsyncReadExt;

use super::*;
use crate::sockets;

const TWO: Limits = Limits { connections: 2, idle: None };

fn listen(limits: Limits) -> (tempfile::TempDir, Connections<UnixListener>, impl Fn() -> Peer) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let connections = Connections::new("test", sockets::bind(&path).unwrap(), limits);
    (dir, connections, move || Peer::connect(&path).unwrap())
}

/// Reads until the connection ends, and says how.
fn ends(mut connection: Connection<UnixStream>) -> tokio::task::JoinHandle<io::Error> {
    tokio::spawn(async move {
        let mut bytes = Vec::new();
        connection.read_to_end(&mut bytes).await.unwrap_err()
    })
}

#[tokio::test]
async fn a_third_connection_closes_the_one_idle_longest() {
    let (_dir, connections, connect) = listen(TWO);
    let (mut first_peer, _second_peer, _third_peer) = (connect(), connect(), connect());
    let mut first = connections.next().await;
    let second = ends(connections.next().await);
    // The first one does something after the second has come.
    io::Write::write_all(&mut first_peer, b"x").unwrap();
    assert_eq!(first.read_u8().await.unwrap(), b'x');
    let _third = connections.next().await;
    assert_eq!(second.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
    assert!(!first.close.told.load(Ordering::SeqCst));
}

#[tokio::test]
async fn who_has_left_the_bound_is_not_closed_for_others() {
    let (_dir, connections, connect) = listen(TWO);
    let _peers: Vec<_> = (0..4).map(|_| connect()).collect();
    let _kept = connections.next().await.into_inner();
    let (first, second) = (connections.next().await, connections.next().await);
    let first = ends(first);
    let _fourth = connections.next().await;
    assert_eq!(first.await.unwrap().kind(), io::ErrorKind::ConnectionAborted);
    assert!(!second.close.told.load(Ordering::SeqCst));
}

#[tokio::test(start_paused = true)]
async fn a_connection_on_which_nothing_happens_ends() {
    let (_dir, connections, connect) =
        listen(Limits { connections: 2, idle: Some(Duration::from_secs(60)) });
    let _peer = connect();
    let begun = Instant::now();
    let ended = ends(connections.next().await).await.unwrap();
    assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), 60);
}

/// A listener that has no descriptors left for a while.
struct Exhausted(UnixListener, AtomicUsize);

impl Listener for Exhausted {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        if self.1.fetch_sub(1, Ordering::SeqCst) > 1 {
            return Err(rustix::io::Errno::MFILE.into());
        }
        Listener::accept(&self.0).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_listener_without_descriptors_pauses_and_goes_on() {
    let (_dir, connections, connect) = listen(TWO);
    let listener = Exhausted(connections.listener, AtomicUsize::new(11));
    let connections = Connections::new("test", listener, TWO);
    let _peer = connect();
    let begun = Instant::now();
    connections.next().await;
    assert_eq!(begun.elapsed(), PAUSE * 10);
}
