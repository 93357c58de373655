//! TCP ports of the agent, on all addresses of its pod: a pod network has IPv4, IPv6 or both.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use rustix::{
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with, sockopt},
};
use tokio::net::TcpListener;

/// Connections that wait to be accepted; the kernel caps it.
const BACKLOG: i32 = 1024;

/// Listens on a port of all addresses.
///
/// # Errors
/// A port that is taken.
pub(super) fn port(port: u16) -> io::Result<TcpListener> {
    let listener = everywhere(port, bound)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// An address as NVIDIA's driver takes it: `:8080` is all addresses.
///
/// # Errors
/// No such address, or one that is taken.
pub(super) async fn endpoint(endpoint: &str) -> io::Result<TcpListener> {
    match endpoint.strip_prefix(':').and_then(|port| port.parse().ok()) {
        Some(port) => self::port(port),
        None => TcpListener::bind(endpoint).await,
    }
}

/// `[::]` serves both; where the kernel has no IPv6 there is IPv4 alone.
fn everywhere<L>(
    port: u16,
    bound: impl Fn(SocketAddr) -> rustix::io::Result<L>,
) -> rustix::io::Result<L> {
    let on = |address: IpAddr| bound(SocketAddr::new(address, port));
    match on(Ipv6Addr::UNSPECIFIED.into()) {
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) => on(Ipv4Addr::UNSPECIFIED.into()),
        done => done,
    }
}

fn bound(address: SocketAddr) -> rustix::io::Result<std::net::TcpListener> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    if address.is_ipv6() {
        // A host's `net.ipv6.bindv6only` may say otherwise.
        sockopt::set_ipv6_v6only(&socket, false)?;
    }
    bind(&socket, &address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use super::*;

    #[test]
    fn a_port_answers_on_both_families() {
        let listener = everywhere(0, bound).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok());
        // Containers of some engines have no such address.
        let there = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
        assert_eq!(TcpStream::connect((Ipv6Addr::LOCALHOST, port)).is_ok(), there);
    }

    #[test]
    fn ipv4_is_enough_where_the_kernel_has_no_ipv6() {
        for missing in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            let without =
                |address: SocketAddr| if address.is_ipv6() { Err(missing) } else { Ok(address) };
            assert_eq!(everywhere(80, without), Ok(SocketAddr::from(([0, 0, 0, 0], 80))));
        }
        let taken = |_: SocketAddr| -> rustix::io::Result<()> { Err(Errno::ADDRINUSE) };
        assert_eq!(everywhere(80, taken), Err(Errno::ADDRINUSE));
    }
}
