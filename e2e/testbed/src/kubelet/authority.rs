//! A connection as the kubelet opens it to a plugin's socket: `:authority` may be the path of the
//! socket, which no HTTP/2 client in Rust agrees to send. tonic therefore speaks to a pipe, and the
//! header is replaced on its way to the socket.

use std::io;
use std::path::Path;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::task::Task;

/// `:authority: localhost` as h2's encoder writes it the first time: literal with incremental
/// indexing, name 1 of the static table, value in Huffman code (RFC 7541, 6.2.1). Later requests
/// refer to the entry that the receiver then made, so replacing the first one replaces all.
const LOCALHOST: [u8; 8] = [0x41, 0x86, 0xa0, 0xe4, 0x1d, 0x13, 0x9d, 0x09];
const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;

/// What the kubelet sends to a device plugin as `:authority`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// `localhost`: from 1.26 on.
    Localhost,
    /// The path of the socket as it is: before that.
    Path,
    /// The path percent-encoded, as newer grpc-go does with a path that it dials.
    EncodedPath,
}

impl Authority {
    /// The header for a socket.
    pub(super) fn of(self, socket: &Path) -> String {
        match self {
            Self::Localhost => "localhost".into(),
            Self::Path => socket.display().to_string(),
            Self::EncodedPath => encode(socket),
        }
    }
}

/// A gRPC channel over `stream` whose requests carry `authority`, whatever it holds.
/// The connection ends when the channel and the task are dropped.
pub(super) async fn channel(
    stream: UnixStream,
    authority: String,
) -> Result<(Channel, Task), tonic::transport::Error> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let pump = Task::spawn(async move {
        // Either side ending ends the connection; tonic then reports it.
        let _ended = pump(far, stream, &authority).await;
    });
    let mut near = Some(TokioIo::new(near));
    let connector = tower::service_fn(move |_| {
        let near = near.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected));
        async move { near }
    });
    let channel =
        Endpoint::from_static("http://localhost").connect_with_connector(connector).await?;
    Ok((channel, pump))
}

/// The socket's path as grpc-go puts it into `:authority`: what RFC 3986 allows in an authority
/// stays, `@` included, everything else is percent-encoded, `/` included.
pub(super) fn encode(socket: &Path) -> String {
    let mut authority = String::new();
    for byte in socket.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => authority.push(char::from(*byte)),
            _ if b"-._~!$&'()*+,;=:[]@".contains(byte) => authority.push(char::from(*byte)),
            _ => authority.push_str(&format!("%{byte:02X}")),
        }
    }
    authority
}

async fn pump(client: DuplexStream, server: UnixStream, authority: &str) -> io::Result<()> {
    let (from_client, mut to_client) = tokio::io::split(client);
    let (mut from_server, to_server) = server.into_split();
    tokio::select! {
        sent = send(from_client, to_server, authority) => sent,
        received = tokio::io::copy(&mut from_server, &mut to_client) => received.map(drop),
    }
}

async fn send(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    authority: &str,
) -> io::Result<()> {
    let mut preface = [0; PREFACE];
    from.read_exact(&mut preface).await?;
    to.write_all(&preface).await?;
    let mut replaced = false;
    loop {
        let mut frame = frame(&mut from).await?;
        if frame[3] == HEADERS && !replaced {
            frame = replace(&frame, authority)?;
            replaced = true;
        }
        to.write_all(&frame).await?;
    }
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; FRAME_HEADER];
    from.read_exact(&mut frame).await?;
    let length = usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2]);
    frame.resize(FRAME_HEADER + length, 0);
    from.read_exact(&mut frame[FRAME_HEADER..]).await?;
    Ok(frame)
}

/// The same HEADERS frame with another authority, not in Huffman code.
fn replace(frame: &[u8], authority: &str) -> io::Result<Vec<u8>> {
    let at = frame
        .windows(LOCALHOST.len())
        .position(|window| window == LOCALHOST)
        .ok_or_else(|| io::Error::other("no `:authority` in the first request"))?;
    let mut changed = frame[..at].to_vec();
    changed.push(LOCALHOST[0]);
    changed.extend(integer(authority.len()));
    changed.extend(authority.as_bytes());
    changed.extend(&frame[at + LOCALHOST.len()..]);
    let length = u32::try_from(changed.len() - FRAME_HEADER).map_err(io::Error::other)?;
    changed[..3].copy_from_slice(&length.to_be_bytes()[1..]);
    Ok(changed)
}

/// A string's length in HPACK: 7 bits, then groups of 7 (RFC 7541, 5.1).
fn integer(length: usize) -> Vec<u8> {
    let Some(mut rest) = length.checked_sub(127) else {
        return length.to_le_bytes()[..1].to_vec();
    };
    let mut bytes = vec![127];
    while rest >= 128 {
        bytes.push(rest.to_le_bytes()[0] | 128);
        rest >>= 7;
    }
    bytes.push(rest.to_le_bytes()[0]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_are_encoded_and_the_at_is_not() {
        assert_eq!(
            encode(Path::new("/var/lib/kubelet/plugins_registry/gpu.nvidia.com@a b-reg.sock")),
            "%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fgpu.nvidia.com@a%20b-reg.sock"
        );
    }

    #[test]
    fn lengths_follow_the_examples_of_the_rfc() {
        assert_eq!(integer(10), [10]);
        assert_eq!(integer(127), [127, 0]);
        assert_eq!(integer(1337), [127, 186, 9]);
    }

    #[test]
    fn a_frame_keeps_what_stands_around_the_authority() {
        let mut frame = vec![0, 0, 10, HEADERS, 4, 0, 0, 0, 1, 0x83];
        frame.extend(LOCALHOST);
        frame.push(0x86);
        assert_eq!(
            replace(&frame, "%2Fx").unwrap(),
            [0, 0, 8, HEADERS, 4, 0, 0, 0, 1, 0x83, 0x41, 4, b'%', b'2', b'F', b'x', 0x86]
        );
    }
}
