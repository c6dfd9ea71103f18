//! A network that can be made slow, silent or broken.

use crate::{Error, Result};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

/// Bytes per read, and reads that may wait in one direction of one connection; then the sender is held up, as it would
/// be by a full window.
const CHUNK: usize = 16 * 1024;
const WAITING: usize = 256;

/// What a [`TcpProxy`] does with what passes through it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ProxyMode {
    /// Nothing.
    #[default]
    Pass,
    /// Everything arrives later, in order.
    Delay {
        /// From the client to the server.
        to_server: Duration,
        /// From the server to the client.
        to_client: Duration,
    },
    /// Nothing arrives, and nobody is told: connections stay open, new ones too. It arrives after a change to another mode.
    Blackhole,
    /// The same for what the server says only: requests still reach it.
    BlackholeToClient,
    /// Connections are reset and new ones refused. What was under way is lost.
    Cut,
}

#[derive(Clone, Copy)]
enum Direction {
    ToServer,
    ToClient,
}

impl ProxyMode {
    /// When something that arrived at `arrived` may go on; never is `None`.
    fn due(self, direction: Direction, arrived: Instant) -> Option<Instant> {
        match (self, direction) {
            (Self::Pass, _) | (Self::BlackholeToClient, Direction::ToServer) => Some(arrived),
            (Self::Delay { to_server, .. }, Direction::ToServer) => Some(arrived + to_server),
            (Self::Delay { to_client, .. }, Direction::ToClient) => Some(arrived + to_client),
            (Self::Blackhole | Self::Cut, _) | (Self::BlackholeToClient, Direction::ToClient) => None,
        }
    }
}

/// A TCP proxy in front of one server. It listens on the server's address and another port, so that a certificate for
/// the server fits. It ends when the value is dropped, with all connections.
pub struct TcpProxy {
    address: SocketAddr,
    mode: watch::Sender<ProxyMode>,
    accepting: watch::Receiver<bool>,
    connections: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl TcpProxy {
    /// Starts one that passes everything on to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((target.ip(), 0)).await;
        let listener = listener.map_err(Error::io(format!("listening in front of {target}")))?;
        let address = listener.local_addr().map_err(Error::io("looking at the proxy's address"))?;
        let (mode, modes) = watch::channel(ProxyMode::Pass);
        let (accepts, accepting) = watch::channel(true);
        let connections = Arc::new(AtomicUsize::new(0));
        let run = serve(listener, address, target, modes, accepts, Arc::clone(&connections));
        Ok(Self { address, mode, accepting, connections, task: tokio::spawn(run).abort_handle() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as the URL of an API server.
    pub fn https_url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What it does now.
    pub fn mode(&self) -> ProxyMode {
        *self.mode.borrow()
    }

    /// Changes what it does, for open and for new connections. Returns when new connections are refused, or accepted
    /// again.
    pub async fn set(&self, mode: ProxyMode) -> Result<()> {
        self.mode.send_replace(mode);
        let mut accepting = self.accepting.clone();
        let changed = accepting.wait_for(|&now| now == (mode != ProxyMode::Cut)).await;
        changed.map(drop).map_err(|_| Error::io("changing a proxy")(io::ErrorKind::BrokenPipe.into()))
    }

    /// How many connections are open through it.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Acquire)
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Accepts connections while the mode allows. Dropping this drops all of them.
async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    target: SocketAddr,
    mut modes: watch::Receiver<ProxyMode>,
    accepts: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        let cut = *modes.borrow_and_update() == ProxyMode::Cut;
        if cut {
            listener = None;
            connections.shutdown().await;
            accepts.send_replace(false);
        } else if listener.is_none() {
            match TcpListener::bind(address).await {
                Ok(again) => listener = Some(again),
                // The port is lost. Whoever waits for the change is told by the end of this task.
                Err(_) => return,
            }
        }
        let Some(listening) = &listener else {
            if modes.changed().await.is_err() {
                return;
            }
            continue;
        };
        accepts.send_replace(true);
        tokio::select! {
            changed = modes.changed() => if changed.is_err() { return },
            accepted = listening.accept() => if let Ok((client, _)) = accepted {
                connections.spawn(connection(client, target, modes.clone(), Open::new(&open)));
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts a connection while it lives.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn connection(client: TcpStream, target: SocketAddr, modes: watch::Receiver<ProxyMode>, _open: Open) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    for side in [&client, &server] {
        // What is small is not held back to be joined with more: delays are those that were asked for.
        let _ = side.set_nodelay(true);
    }
    let (client_in, client_out) = tokio::io::split(client);
    let (server_in, server_out) = tokio::io::split(server);
    let there = one_way(client_in, server_out, Direction::ToServer, modes.clone());
    let back = one_way(server_in, client_out, Direction::ToClient, modes);
    // An error in one direction ends both; an orderly end in one leaves the other open.
    let _ = tokio::try_join!(there, back);
}

/// Carries bytes one way, each when the mode says that it is due.
async fn one_way(
    mut from: ReadHalf<TcpStream>,
    mut to: WriteHalf<TcpStream>,
    direction: Direction,
    mut modes: watch::Receiver<ProxyMode>,
) -> io::Result<()> {
    let (sender, mut waiting) = mpsc::channel::<(Instant, Vec<u8>)>(WAITING);
    let read = async move {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await?;
            // An empty chunk is the end of the stream: it is delayed and held like bytes.
            let sent = sender.send((Instant::now(), buffer[..read].to_vec())).await;
            if read == 0 || sent.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((arrived, bytes)) = waiting.recv().await {
            wait_until_due(&mut modes, direction, arrived).await?;
            if bytes.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(drop)
}

async fn wait_until_due(
    modes: &mut watch::Receiver<ProxyMode>,
    direction: Direction,
    arrived: Instant,
) -> io::Result<()> {
    loop {
        let due = modes.borrow_and_update().due(direction, arrived);
        let passed = async {
            match due {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = passed => return Ok(()),
            changed = modes.changed() => changed.map_err(|_| io::ErrorKind::ConnectionAborted)?,
        }
    }
}
