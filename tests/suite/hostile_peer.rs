//! Peers who have shown no credential hold as many connections as they can, and do with them what costs the
//! agent most. It goes on, and its memory stays what it is.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kerf_nvml::Model;
use kerf_testbed::{
    agent::{Agent, AgentOptions},
    kubelet::{ServingStatus, probe},
    node::{DRIVER, Testbed},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{claims, given};

/// Half of what the chart gives the agent.
const MOST_MEMORY: u64 = 96 << 20;

/// Peers that hold a connection each.
const PEERS: usize = 2000;

/// Before a peer whose connection was closed comes again.
const AGAIN: Duration = Duration::from_secs(3);

/// As often as the kubelet asks before it takes an agent for dead: a flood may close one connection in between.
const ATTEMPTS: usize = 5;

/// The client's preface of HTTP/2, and its empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What a peer does on its connection, until that is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Peer {
    /// A header of HTTP that never ends.
    EndlessHeader,
    /// A header that stops in its middle.
    HalfHeader,
    /// Ten thousand questions for the page at once, whose answers it does not read.
    Pipelined,
    /// HTTP/2 and no call.
    IdleHttp2,
    /// As many calls of HTTP/2 as it can open, none of which it ends.
    OpenCalls,
    /// A connection to the health port, and not a byte.
    HalfOpen,
    /// Watches health.
    Watcher,
    /// A connection to the agent's own socket, which it does not read.
    Status,
    /// An order that is not finished.
    HalfOrder,
}

const KINDS: [Peer; 9] = [
    Peer::EndlessHeader,
    Peer::HalfHeader,
    Peer::Pipelined,
    Peer::IdleHttp2,
    Peer::OpenCalls,
    Peer::HalfOpen,
    Peer::Watcher,
    Peer::Status,
    Peer::HalfOrder,
];

/// Where the agent listens.
#[derive(Clone)]
struct Listeners {
    http: SocketAddr,
    health: SocketAddr,
    sockets: PathBuf,
}

impl Peer {
    /// One connection, until the agent closes it.
    async fn once(self, at: &Listeners, connected: &AtomicUsize) -> std::io::Result<()> {
        match self {
            Self::EndlessHeader | Self::HalfHeader | Self::Pipelined => {
                let stream = TcpStream::connect(at.http).await?;
                connected.fetch_add(1, Ordering::SeqCst);
                self.say(stream).await
            }
            Self::IdleHttp2 | Self::OpenCalls | Self::HalfOpen | Self::Watcher => {
                let stream = TcpStream::connect(at.health).await?;
                connected.fetch_add(1, Ordering::SeqCst);
                self.say(stream).await
            }
            Self::Status | Self::HalfOrder => {
                let name = if self == Self::Status { "agent.sock" } else { "orders.sock" };
                let stream = UnixStream::connect(at.sockets.join(name)).await?;
                connected.fetch_add(1, Ordering::SeqCst);
                self.say(stream).await
            }
        }
    }

    async fn say(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        match self {
            Self::HalfOpen | Self::Status => {}
            Self::HalfHeader => {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nx: ").await?
            }
            Self::EndlessHeader => {
                stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\nx: ").await?;
                for _ in 0..500 {
                    stream.write_all(&[b'x'; 1024]).await?;
                }
            }
            Self::Pipelined => {
                for _ in 0..10_000 {
                    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n").await?;
                }
            }
            Self::IdleHttp2 => stream.write_all(PREFACE).await?,
            Self::OpenCalls => {
                stream.write_all(PREFACE).await?;
                for call in (1..2000).step_by(2) {
                    stream.write_all(&call_of_health("Check", call)).await?;
                    // The beginning of a question of 4 MB.
                    stream
                        .write_all(&frame(
                            0,
                            0,
                            call,
                            &[&[0, 0, 0x3f, 0xff, 0xff][..], &[7; 900]].concat(),
                        ))
                        .await?;
                }
            }
            Self::Watcher => {
                stream.write_all(PREFACE).await?;
                for call in (1..200).step_by(2) {
                    stream.write_all(&call_of_health("Watch", call)).await?;
                    stream.write_all(&frame(0, 1, call, &[0; 5])).await?;
                }
            }
            Self::HalfOrder => stream.write_all(b"{\"release\":").await?,
        }
        // A peer of HTTP reads as slowly as it can; the end is heard of by what cannot be written.
        match self {
            Self::Pipelined | Self::Status => loop {
                sleep(AGAIN).await;
                stream.write_all(b"x").await?;
            },
            _ => {
                let mut byte = [0];
                while stream.read(&mut byte).await? > 0 {}
                Ok(())
            }
        }
    }
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [head, payload.to_vec()].concat()
}

/// The header of a call to the health service: `:method POST`, `:scheme http`, the rest as literals.
fn call_of_health(method: &str, stream: u32) -> Vec<u8> {
    let literal = |index: u8, value: &str| {
        let length = u8::try_from(value.len()).unwrap();
        [&[index, length], value.as_bytes()].concat()
    };
    let mut block = vec![0x83, 0x86];
    block.extend(literal(0x04, &format!("/grpc.health.v1.Health/{method}")));
    block.extend(literal(0x01, "a"));
    // `content-type`, the 31st of the static table.
    block.extend([0x0f, 0x10]);
    block.extend([&[16][..], b"application/grpc"].concat());
    frame(1, 4, stream, &block)
}

/// All of them, until dropped.
struct Peers {
    connected: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Peers {
    fn start(count: usize, kinds: &[Peer], at: &Listeners) -> Self {
        let connected = Arc::<AtomicUsize>::default();
        let mut tasks = JoinSet::new();
        for kind in kinds.iter().cycle().take(count).copied() {
            let (at, connected) = (at.clone(), connected.clone());
            tasks.spawn(async move {
                loop {
                    // How a peer is turned away is all the same to it.
                    _ = kind.once(&at, &connected).await;
                    sleep(AGAIN).await;
                }
            });
        }
        Self { connected, _tasks: tasks }
    }

    /// Waits until this many connections were made since now.
    async fn connect(&self, more: usize) {
        let until = self.connected.load(Ordering::SeqCst) + more;
        given::until("all connect", || self.connected.load(Ordering::SeqCst) >= until).await;
    }
}

/// An agent of a node, and who talks to it.
struct Attacked {
    testbed: Testbed,
    options: AgentOptions,
    agent: Agent,
    at: Listeners,
}

impl Attacked {
    async fn start() -> Self {
        let testbed = given::node(Model::H100_80, 2).start_without_agent().await.unwrap();
        let options = testbed.agent_options("a").unwrap();
        let agent = Agent::spawn(&options).unwrap();
        agent.while_running(testbed.kubelet.registered(DRIVER)).await.unwrap();
        let at = Listeners {
            http: options.http_endpoint,
            health: format!("127.0.0.1:{}", options.healthcheck_port).parse().unwrap(),
            sockets: testbed.state_dir(),
        };
        Self { testbed, options, agent, at }
    }

    /// What an orderly peer asks for: readiness, a scrape, a probe, a claim that comes and goes.
    async fn works(&self, round: usize) {
        let ready = self.get("/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        let page = self.get("/metrics").await;
        assert!(page.contains("kerf_ready 1"), "{page}");
        let mut health = probe(self.at.health, "liveness").await;
        for _ in 1..ATTEMPTS {
            if health.is_err() {
                health = probe(self.at.health, "liveness").await;
            }
        }
        assert_eq!(health, Ok(ServingStatus::Serving));
        let claim = given::claim(&self.testbed, &format!("c{round}"), &["gpu-0-mig-1g10gb-19-0"]);
        claims::prepare(&self.testbed, &claim).await.unwrap();
        claims::unprepare(&self.testbed, &claim).await.unwrap();
        let memory = self.agent.resident_memory().unwrap();
        assert!(memory < MOST_MEMORY, "{} MiB", memory >> 20);
    }

    async fn get(&self, path: &str) -> String {
        let asked = || async {
            let mut stream = TcpStream::connect(self.options.http_endpoint).await?;
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let mut answer = timeout(Duration::from_secs(60), asked()).await.unwrap();
        for _ in 1..ATTEMPTS {
            if answer.is_err() {
                answer = timeout(Duration::from_secs(60), asked()).await.unwrap();
            }
        }
        answer.unwrap()
    }
}

/// Each kind of peer alone, so that none is hidden behind another.
#[tokio::test(flavor = "multi_thread")]
async fn no_kind_of_peer_makes_the_agent_grow_or_keeps_others_out() {
    let attacked = Attacked::start().await;
    for (round, kind) in KINDS.into_iter().enumerate() {
        let peers = Peers::start(160, &[kind], &attacked.at);
        peers.connect(320).await;
        attacked.works(round).await;
        let memory = attacked.agent.resident_memory().unwrap();
        println!("{kind:?}: {} MiB", memory >> 20);
    }
}

async fn two_thousand_for(time: Duration) {
    let attacked = Attacked::start().await;
    let peers = Peers::start(PEERS, &KINDS, &attacked.at);
    peers.connect(PEERS).await;
    let begun = Instant::now();
    for round in 0.. {
        attacked.works(round).await;
        if begun.elapsed() >= time {
            break;
        }
    }
    println!("{} connections in {time:?}", peers.connected.load(Ordering::SeqCst));
    drop(peers);
    attacked.works(usize::MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a flood that replaces all connections within a round trip closes orderly ones too"]
async fn two_thousand_peers_change_nothing() {
    two_thousand_for(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute, and is as the one before"]
async fn two_thousand_peers_change_nothing_for_a_minute() {
    two_thousand_for(Duration::from_secs(60)).await;
}
