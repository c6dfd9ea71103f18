//! Takes connections, looks after them, and ends them in order.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::clients::Clients;
use super::connection::Connection;
use super::flow::Handler;
use super::handle::{Address, ClientHandle};
use super::limits::{Limits, Verdict};
use super::listen::{ListenError, Socket, tcp};
use crate::runtime::failing::Failing;

/// What one who is one too many is told, as in Redis.
const TOO_MANY: &[u8] = b"-ERR max number of clients reached\r\n";
/// When the system has no files left, more haste would not help.
const PAUSE: Duration = Duration::from_millis(100);

/// Where to listen, and what each connection may take.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address of TCP.
    pub tcp: Option<SocketAddr>,
    /// The path of the Unix socket.
    pub unix: Option<PathBuf>,
    /// The permissions of the Unix socket: 0o600 lets in whoever runs as the same user, 0o660 its group, too.
    pub unix_mode: u32,
    /// What each connection may take.
    pub limits: Limits,
}

/// Somebody who has just connected.
enum Arrival {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// The server, bound but not served yet: so a bad address is an error at the start.
#[derive(Debug)]
pub struct Server {
    tcp: Option<(TcpListener, SocketAddr)>,
    unix: Option<Socket>,
    limits: Limits,
    clients: Arc<Clients>,
}

impl Server {
    /// Begins to listen. From now on clients can connect; they are answered when the server runs.
    pub fn bind(config: &ServerConfig, clients: Arc<Clients>) -> Result<Self, ListenError> {
        if config.tcp.is_none() && config.unix.is_none() {
            return Err(ListenError::Nowhere);
        }
        let listen = |address| {
            let listener = tcp(address)?;
            let local = listener.local_addr().map_err(|source| ListenError::Tcp { address, source })?;
            Ok((listener, local))
        };
        let tcp = config.tcp.map(listen).transpose()?;
        let unix = config.unix.as_ref().map(|path| Socket::listen(path, config.unix_mode)).transpose()?;
        Ok(Self { tcp, unix, limits: config.limits, clients })
    }

    /// The address of TCP, with the port that the system chose if it was to.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().map(|(_, address)| *address)
    }

    /// Serves until the shutdown. Then nobody new is taken, requests that run are finished and answered, and connections
    /// end; those that have not after `drain` are cut.
    pub async fn run<H: Handler + Clone>(self, handler: H, shutdown: CancellationToken, drain: Duration) {
        let Self { tcp, unix, limits, clients } = self;
        let mut serving =
            Serving { limits, clients, handler, connections: JoinSet::new(), failing: Failing::default() };
        let mut tick = interval(limits.tick());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = tick.tick() => serving.look_after(),
                () = serving.clients.exceeded() => serving.clients.relieve(),
                Some(_) = serving.connections.join_next() => {}
                arrival = next_tcp(tcp.as_ref().map(|(listener, _)| listener)) => serving.take(arrival, None),
                arrival = next_unix(unix.as_ref()) => serving.take(arrival, unix.as_ref()),
            }
        }
        drop((tcp, unix));
        serving.end(drain, tick).await;
    }
}

async fn next_tcp(listener: Option<&TcpListener>) -> io::Result<Arrival> {
    match listener {
        Some(listener) => match listener.accept().await {
            Ok((stream, address)) => Ok(Arrival::Tcp(stream, address)),
            Err(error) => Err(unhurried(error).await),
        },
        None => std::future::pending().await,
    }
}

async fn next_unix(socket: Option<&Socket>) -> io::Result<Arrival> {
    match socket {
        Some(socket) => match socket.listener.accept().await {
            Ok((stream, _)) => Ok(Arrival::Unix(stream)),
            Err(error) => Err(unhurried(error).await),
        },
        None => std::future::pending().await,
    }
}

/// Errors that will come again at once are waited for.
async fn unhurried(error: io::Error) -> io::Error {
    if !matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted) {
        sleep(PAUSE).await;
    }
    error
}

struct Serving<H> {
    limits: Limits,
    clients: Arc<Clients>,
    handler: H,
    connections: JoinSet<()>,
    /// Connections cannot be taken: that comes again with each of them.
    failing: Failing,
}

impl<H: Handler + Clone> Serving<H> {
    fn take(&mut self, arrival: io::Result<Arrival>, socket: Option<&Socket>) {
        match arrival {
            Ok(Arrival::Tcp(stream, address)) => {
                // Without it, small replies would wait for the acknowledgement of those before.
                let _ = stream.set_nodelay(true);
                let Ok(local) = stream.local_addr() else { return };
                match self.clients.register(Address::Tcp(address), Address::Tcp(local)) {
                    Some(handle) => self.spawn(stream, handle),
                    None => drop(stream.try_write(TOO_MANY)),
                }
            }
            Ok(Arrival::Unix(stream)) => {
                let address = Address::Unix(socket.map(|socket| Arc::clone(&socket.path)).unwrap_or_default());
                match self.clients.register(address.clone(), address) {
                    Some(handle) => self.spawn(stream, handle),
                    None => drop(stream.try_write(TOO_MANY)),
                }
            }
            Err(error) => {
                if self.failing.failed(&error.to_string(), Instant::now()) {
                    warn!(%error, "cannot take connections");
                }
                return;
            }
        }
        if self.failing.over() {
            info!("connections are taken again");
        }
    }

    fn spawn<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(&mut self, stream: S, handle: Arc<ClientHandle>) {
        let connected = Connected::new(self.handler.clone(), Arc::clone(&self.clients), handle);
        let limits = self.limits;
        self.connections.spawn(connected.serve(stream, limits));
    }

    /// Ends connections that take too much time, and has the quiet ones give their buffers back.
    fn look_after(&self) {
        let now = self.clients.clock().tick();
        self.clients.each(|handle| match self.limits.judge(handle, now) {
            Verdict::Fine => {}
            Verdict::Quiet => handle.mailbox().quiet(),
            Verdict::End(why) => handle.mailbox().end(why),
        });
    }

    async fn end(mut self, drain: Duration, mut tick: tokio::time::Interval) {
        let clients = Arc::clone(&self.clients);
        clients.each(|handle| handle.mailbox().leave());
        let deadline = Instant::now() + drain;
        while !self.connections.is_empty() {
            tokio::select! {
                _ = self.connections.join_next() => {}
                _ = tick.tick() => self.look_after(),
                () = clients.exceeded() => clients.relieve(),
                () = sleep_until(deadline) => {
                    info!(connections = self.connections.len(), "cutting connections that have not ended in time");
                    self.connections.shutdown().await;
                }
            }
        }
    }
}

/// A connection's place among the others. It is given back however the connection ends.
struct Connected<H: Handler> {
    handler: H,
    client: Option<H::Client>,
    clients: Arc<Clients>,
    handle: Arc<ClientHandle>,
}

impl<H: Handler> Connected<H> {
    fn new(handler: H, clients: Arc<Clients>, handle: Arc<ClientHandle>) -> Self {
        let client = Some(handler.connect(Arc::clone(&handle)));
        Self { handler, client, clients, handle }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(mut self, stream: S, limits: Limits) {
        let connection = Connection::new(stream, Arc::clone(&self.handle), Arc::clone(&self.clients), limits);
        let Some(client) = self.client.as_mut() else { return };
        let end = connection.run(&self.handler, client).await;
        debug!(client = %self.handle.id(), address = %self.handle.address(), ?end, "connection ended");
    }
}

impl<H: Handler> Drop for Connected<H> {
    fn drop(&mut self) {
        // First of all nobody finds it any more.
        self.clients.unregister(self.handle.id());
        if let Some(client) = self.client.take() {
            self.handler.disconnect(client);
        }
    }
}
