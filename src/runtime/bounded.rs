//! Connections to servers that few have reason to ask: bounded in number, and in how long they may carry nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::ConnectInfo;
use axum::serve::Listener;
use axum::{Extension, Router};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server;

use super::listen;

/// Serves until `shutdown`.
///
/// Not by `axum::serve`, which speaks HTTP/2 with whoever begins so: a connection would carry hundreds of requests at once, and answer
/// pings that keep it open for nothing. Nor gracefully: whoever asks keeps connections open. An answer takes microseconds, and
/// nobody depends on the last one.
pub async fn serve<L: Listener<Addr = SocketAddr>>(mut listener: L, router: Router, shutdown: &CancellationToken) {
    while let Some((stream, from)) = shutdown.run_until_cancelled(listener.accept()).await {
        let service = TowerToHyperService::new(router.clone().layer(Extension(ConnectInfo(Remote(from)))));
        tokio::spawn(async move {
            let connection = auto::Builder::new(TokioExecutor::new()).http1_only();
            // How it ended is nobody's concern but the client's.
            let _ = connection.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Remote(pub SocketAddr);

/// Of connections that are given from the oldest on, the one that gives way to a newcomer: of the address from which most have come,
/// the oldest. So however fast they come from one address, they take the places of each other.
pub fn gives_way<K>(by_age: impl IntoIterator<Item = (K, IpAddr)>) -> Option<K> {
    let mut by_address: HashMap<IpAddr, (usize, Reverse<usize>, K)> = HashMap::new();
    for (place, (key, from)) in by_age.into_iter().enumerate() {
        by_address.entry(from).or_insert((0, Reverse(place), key)).0 += 1;
    }
    let most = by_address.into_values().max_by_key(|(count, oldest, _)| (*count, *oldest));
    most.map(|(_, _, key)| key)
}

/// Accepts a bounded number of connections at a time. If there are more, [one gives way](gives_way), and of those from one address the
/// one that was answered longest ago: whoever asks at once is answered, so nobody keeps others out by holding connections open or by
/// opening many.
#[derive(Debug)]
pub struct BoundedListener {
    inner: TcpListener,
    open: Arc<Mutex<Open>>,
    most: usize,
    timeout: Duration,
}

impl BoundedListener {
    /// Accepts so many at a time. Each ends when it has carried no answer for `timeout`, be it idle, slow to ask or slow to read.
    pub fn new(inner: TcpListener, connections: usize, timeout: Duration) -> Self {
        Self { inner, open: Arc::default(), most: connections, timeout }
    }
}

impl Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        // axum's own accept logs and retries errors.
        let (stream, peer) = Listener::accept(&mut self.inner).await;
        let peer = listen::from(peer);
        let end = CancellationToken::new();
        let place = {
            let mut open = self.open.lock();
            if open.by_age.len() >= self.most {
                open.give_way();
            }
            open.put(peer.ip(), end.clone())
        };
        let (ended, deadline) = (Box::pin(end.cancelled_owned()), Box::pin(sleep(self.timeout)));
        (BoundedStream { stream, deadline, timeout: self.timeout, ended, place, open: self.open.clone() }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// The connections that are open, those that were answered last at the end.
#[derive(Debug, Default)]
struct Open {
    last: u64,
    by_age: BTreeMap<u64, (IpAddr, CancellationToken)>,
}

impl Open {
    fn put(&mut self, from: IpAddr, end: CancellationToken) -> u64 {
        self.last += 1;
        self.by_age.insert(self.last, (from, end));
        self.last
    }

    fn give_way(&mut self) {
        let place = gives_way(self.by_age.iter().map(|(place, (from, _))| (*place, *from)));
        if let Some((_, end)) = place.and_then(|place| self.by_age.remove(&place)) {
            end.cancel();
        }
    }
}

/// A connection that fails when it has written nothing for too long, or had to give way. Bytes that come in do not count, so that
/// nobody keeps it open by asking slowly.
#[derive(Debug)]
pub struct BoundedStream {
    stream: TcpStream,
    deadline: Pin<Box<Sleep>>,
    timeout: Duration,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    place: u64,
    open: Arc<Mutex<Open>>,
}

impl BoundedStream {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        match self.deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }

    /// It has carried a part of an answer.
    fn has_answered(&mut self) {
        let next = Instant::now() + self.timeout;
        self.deadline.as_mut().reset(next);
        let mut open = self.open.lock();
        // If it is not there, it has to give way already.
        if let Some((from, end)) = open.by_age.remove(&self.place) {
            self.place = open.put(from, end);
        }
    }
}

impl Drop for BoundedStream {
    fn drop(&mut self) {
        self.open.lock().by_age.remove(&self.place);
    }
}

impl server::Connected for BoundedStream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for BoundedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.has_answered();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
