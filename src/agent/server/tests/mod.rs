//! The server over real sockets, with a handler that knows a few commands of its own.

mod bounds;
mod conversation;
mod ends;
mod unix;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{ClientHandle, ClientId, Clients, Flow, Handler, Limits, Room, Server, ServerConfig};
use crate::resp::{Protocol, Reply, Request};

/// Longer than anything here takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_mins(1);
/// Limits of time that are not to be met.
const NEVER: Duration = Duration::from_secs(100_000);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(PATIENCE, work).await.expect("it does not come")
}

/// Waits until `condition` holds.
async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

fn unlimited() -> Limits {
    Limits { half_request: NEVER, stalled: NEVER, idle: NEVER, ..Limits::default() }
}

/// What the handler does, and what was done to it.
#[derive(Debug)]
struct Desk {
    /// `WAIT` takes one of these.
    permits: Semaphore,
    waiting: AtomicUsize,
    executed: AtomicUsize,
    connected: AtomicUsize,
    disconnected: AtomicUsize,
    needs_password: bool,
    /// Whoever connects now is taken for one who listens.
    listeners: AtomicBool,
}

#[derive(Debug)]
struct Guest {
    handle: Arc<ClientHandle>,
    trusted: bool,
}

fn bulk(text: impl AsRef<[u8]>) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(text.as_ref()))
}

impl Handler for Arc<Desk> {
    type Client = Guest;

    fn connect(&self, handle: Arc<ClientHandle>) -> Guest {
        self.connected.fetch_add(1, Ordering::SeqCst);
        if self.listeners.load(Ordering::SeqCst) {
            handle.set_subscriptions(0, 1);
        }
        Guest { handle, trusted: !self.needs_password }
    }

    async fn execute(&self, client: &mut Guest, request: Request) -> Flow {
        self.executed.fetch_add(1, Ordering::SeqCst);
        let argument = request.args.get(1).cloned().unwrap_or_default();
        let number = || std::str::from_utf8(&argument).ok().and_then(|text| text.parse().ok()).unwrap_or(0_usize);
        match &request.args[0][..] {
            b"ECHO" => Flow::Reply(Reply::Bulk(argument)),
            b"ID" => Flow::Reply(Reply::Int(i64::try_from(client.handle.id().0).unwrap())),
            b"BIG" => Flow::Reply(Reply::Bulk(vec![b'x'; number()].into())),
            b"MANY" => Flow::Replies((0..number()).map(|n| bulk(n.to_string())).collect()),
            // A turn's worth of work that waits for nobody.
            b"WORK" => {
                let begun = std::time::Instant::now();
                while begun.elapsed() < Duration::from_millis(2) {}
                Flow::None
            }
            b"SILENT" => Flow::None,
            b"WAIT" => {
                self.waiting.fetch_add(1, Ordering::SeqCst);
                self.permits.acquire().await.unwrap().forget();
                Flow::Reply(Reply::Simple("waited".into()))
            }
            // The message comes while the request runs, before its reply.
            b"TELL" => {
                client.handle.mailbox().push(Reply::Push(vec![bulk("told")]));
                Flow::Reply(Reply::OK)
            }
            // The message comes before the request that ends listening, and RESP3.
            b"LEAVE" => {
                client.handle.mailbox().push(Reply::Push(vec![bulk("told")]));
                client.handle.set_subscriptions(0, 0);
                client.handle.set_protocol(Protocol::Resp2);
                Flow::Reply(Reply::OK)
            }
            b"AUTH" => {
                client.trusted = true;
                Flow::Reply(Reply::OK)
            }
            b"HELLO" => {
                client.handle.set_protocol(Protocol::Resp3);
                Flow::Reply(Reply::Null)
            }
            b"QUIT" => Flow::Close(Some(Reply::OK)),
            b"PANIC" => panic!("asked to"),
            _ => Flow::Reply(Reply::Error("ERR what".into())),
        }
    }

    fn trusts(&self, client: &Guest) -> bool {
        client.trusted
    }

    fn disconnect(&self, client: Guest) {
        drop(client);
        self.disconnected.fetch_add(1, Ordering::SeqCst);
    }
}

/// A server, and all that a test needs of it.
struct Place {
    desk: Arc<Desk>,
    clients: Arc<Clients>,
    server: JoinHandle<()>,
    shutdown: CancellationToken,
    address: std::net::SocketAddr,
}

impl Place {
    fn open(limits: Limits) -> Self {
        Self::open_for(limits, 100, false)
    }

    fn open_for(limits: Limits, most: usize, needs_password: bool) -> Self {
        Self::open_in(Room { clients: most, output: limits.output, memory: 1 << 30 }, limits, needs_password)
    }

    fn open_in(room: Room, limits: Limits, needs_password: bool) -> Self {
        let desk = Arc::new(Desk {
            permits: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            executed: AtomicUsize::new(0),
            connected: AtomicUsize::new(0),
            disconnected: AtomicUsize::new(0),
            needs_password,
            listeners: AtomicBool::new(false),
        });
        let clients = Arc::new(Clients::new(room));
        let config = ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), unix: None, unix_mode: 0o600, limits };
        let server = Server::bind(&config, Arc::clone(&clients)).unwrap();
        let address = server.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(server.run(Arc::clone(&desk), shutdown.clone(), PATIENCE));
        Self { desk, clients, server, shutdown, address }
    }

    async fn enter(&self) -> Visitor {
        Visitor::new(soon(TcpStream::connect(self.address)).await.unwrap())
    }

    /// Connects, and learns the number that the server knows the visitor by.
    async fn enter_known(&self) -> (Visitor, Arc<ClientHandle>) {
        let mut visitor = self.enter().await;
        let id = visitor.asks("ID\r\n").await;
        let id = ClientId(id.trim_start_matches(':').trim_end().parse().unwrap());
        (visitor, self.clients.get(id).unwrap())
    }

    /// Waits until `WAIT` waits so many times.
    async fn until_waiting(&self, count: usize) {
        until(|| self.desk.waiting.load(Ordering::SeqCst) == count).await;
    }

    async fn until_empty(&self) {
        until(|| self.clients.is_empty()).await;
        let Desk { connected, disconnected, .. } = &*self.desk;
        until(|| connected.load(Ordering::SeqCst) == disconnected.load(Ordering::SeqCst)).await;
    }
}

/// The other end of a connection.
struct Visitor {
    stream: TcpStream,
    read: BytesMut,
}

impl Visitor {
    fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, read: BytesMut::new() }
    }

    async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Exactly these bytes come next.
    async fn hears(&mut self, expected: &str) {
        while self.read.len() < expected.len() {
            let read = soon(self.stream.read_buf(&mut self.read)).await.unwrap();
            assert_ne!(read, 0, "only this came: {:?}", self.read);
        }
        let heard = self.read.split_to(expected.len());
        assert_eq!(String::from_utf8_lossy(&heard), expected);
    }

    /// The line that comes next.
    async fn hears_line(&mut self) -> String {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                return String::from_utf8(self.read.split_to(end + 2).to_vec()).unwrap();
            }
            assert_ne!(soon(self.stream.read_buf(&mut self.read)).await.unwrap(), 0, "the connection has ended");
        }
    }

    async fn asks(&mut self, request: &str) -> String {
        self.says(request).await;
        self.hears_line().await
    }

    /// All that comes until the connection ends. How it ends is the system's business.
    async fn hears_the_end(&mut self) -> String {
        loop {
            match soon(self.stream.read_buf(&mut self.read)).await {
                Ok(0) | Err(_) => return String::from_utf8_lossy(&self.read.split()).into_owned(),
                Ok(_) => {}
            }
        }
    }
}
