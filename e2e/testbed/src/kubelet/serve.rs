//! The kubelet as a server: sockets in its own directories, whose connections end with it.

use std::io;

use tokio::io::copy_bidirectional;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::transport::Server;

use super::task::Task;

/// Serves until it is dropped. tonic would keep connections for their own tasks, so each goes
/// through a pipe that ends here.
pub(super) fn serve(listener: UnixListener, routes: Routes) -> Task {
    Task::spawn(async move {
        let mut pipes = JoinSet::new();
        let (connections, incoming) = mpsc::channel(1);
        let incoming = ReceiverStream::new(incoming).map(Ok::<_, io::Error>);
        let server = Server::builder().add_routes(routes).serve_with_incoming(incoming);
        let mut server = std::pin::pin!(server);
        loop {
            let accepted = tokio::select! {
                _ended = &mut server => return,
                accepted = listener.accept() => accepted,
            };
            let Ok((mut stream, _)) = accepted else { continue };
            let (near, mut far) = tokio::io::duplex(64 * 1024);
            // Either side ending ends the connection.
            pipes.spawn(async move { drop(copy_bidirectional(&mut stream, &mut far).await) });
            tokio::select! {
                _ended = &mut server => return,
                sent = connections.send(near) => if sent.is_err() { return },
            }
        }
    })
}
