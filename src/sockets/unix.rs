//! Unix sockets, which only their owner may call, whatever the umask.

use std::{io, os::unix::net::UnixListener as Std, path::Path};

use rustix::{
    fs::{Mode, fchmod},
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind as bind_to, listen,
        socket_with,
    },
};
use tokio::net::UnixListener;

/// The owner's, who is root: the kubelet, and whoever may do as root does.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Binds a socket and listens. Its file has its mode from the beginning: Linux makes it with that of the
/// descriptor, less the umask.
///
/// # Errors
/// A path that is taken, too long, or in a directory that is not there.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(&socket, MODE)?;
    bind_to(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    UnixListener::from_std(Std::from(socket))
}
