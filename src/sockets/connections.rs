//! A listener's connections: accepted, bounded, and closed when nothing happens on them.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, stream, task::AtomicWaker};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Notify,
    time::{Instant, Sleep, sleep},
};
use tonic::transport::server::Connected;

use super::bound::{Bound, Id};

/// After a connection that could not be accepted: one that has ended may have left what was missing.
const PAUSE: Duration = Duration::from_millis(100);

/// What a listener's peers may have.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// For how long nothing may happen on one; for ever if `None`.
    pub idle: Option<Duration>,
}

/// What accepts connections.
pub trait Listener: Send {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<TcpStream> {
        Ok(Self::accept(self).await?.0)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(Self::accept(self).await?.0)
    }
}

/// Whoever connects to a listener, never more at a time than it is limited to.
#[derive(Debug)]
pub struct Connections<L> {
    name: &'static str,
    listener: L,
    limits: Limits,
    open: Arc<Open>,
}

#[derive(Debug)]
struct Open {
    bound: Mutex<Bound<Arc<Close>>>,
    /// One has ended.
    ended: Notify,
}

/// Tells a connection that it is to end.
#[derive(Debug, Default)]
struct Close {
    told: AtomicBool,
    waiting: AtomicWaker,
}

impl Open {
    fn bound(&self) -> MutexGuard<'_, Bound<Arc<Close>>> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; the one that has been idle longest makes room.
    async fn place(self: &Arc<Self>) -> (Id, Arc<Close>) {
        let mut close = Arc::new(Close::default());
        loop {
            let ended = self.ended.notified();
            close = match self.bound().open(close.clone()) {
                Ok(id) => return (id, close),
                Err(close) => close,
            };
            self.close_idle_longest();
            ended.await;
        }
    }

    fn close_idle_longest(&self) {
        if let Some(close) = self.bound().idle_longest() {
            close.told.store(true, Ordering::SeqCst);
            close.waiting.wake();
        }
    }
}

impl<L: Listener> Connections<L> {
    /// Those of a listener, which is called `name` in the log.
    pub fn new(name: &'static str, listener: L, limits: Limits) -> Self {
        let bound = Mutex::new(Bound::new(limits.connections));
        Self { name, listener, limits, open: Arc::new(Open { bound, ended: Notify::new() }) }
    }

    /// The next connection. A listener does not fail: what is missing to accept one is there again later.
    pub async fn next(&self) -> Connection<L::Stream> {
        let stream = self.accept().await;
        let (id, close) = self.open.place().await;
        Connection {
            stream,
            place: Place { open: self.open.clone(), id },
            close,
            idle: self.limits.idle.map(|limit| (limit, Box::pin(sleep(limit)))),
        }
    }

    /// The same, one after another, as tonic takes them.
    pub fn incoming(self) -> impl Stream<Item = io::Result<Connection<L::Stream>>>
    where
        L: Sync,
    {
        stream::unfold(self, async |connections| {
            let connection = connections.next().await;
            Some((Ok(connection), connections))
        })
    }

    async fn accept(&self) -> L::Stream {
        let mut failing = false;
        loop {
            match self.listener.accept().await {
                Ok(stream) => return stream,
                Err(error) => {
                    if !failing {
                        tracing::warn!(%error, "{}: a connection cannot be accepted", self.name);
                    }
                    failing = true;
                    // Descriptors and memory are what connections have.
                    self.open.close_idle_longest();
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A connection that has a place among those of its listener, until it is dropped.
#[derive(Debug)]
pub struct Connection<S> {
    stream: S,
    place: Place,
    close: Arc<Close>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

#[derive(Debug)]
struct Place {
    open: Arc<Open>,
    id: Id,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.bound().ended(self.id);
        self.open.ended.notify_one();
    }
}

impl<S> Connection<S> {
    /// Takes it out of the bound: it has shown that it is there for a reason.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// Fails if it is to end.
    fn poll_open(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        self.close.waiting.register(context.waker());
        if self.close.told.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let idle = self.idle.as_mut().map(|(_, idle)| idle.as_mut().poll(context));
        if idle.is_some_and(|idle| idle.is_ready()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    fn active(&mut self) {
        self.place.open.bound().active(self.place.id);
        if let Some((limit, idle)) = &mut self.idle {
            idle.as_mut().reset(Instant::now() + *limit);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.poll_open(context)?;
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.active();
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    fn poll_written(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut S>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        self.poll_open(context)?;
        let written = write(Pin::new(&mut self.stream), context);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.active();
        }
        written
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream, context| stream.poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_written(context, |stream, context| stream.poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl<S> Connected for Connection<S> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

#[cfg(test)]
mod tests;
