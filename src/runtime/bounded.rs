//! Connections to servers that few have reason to ask: bounded in number, and in how long they may carry nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::extract::connect_info::ConnectInfo;
use axum::middleware::map_response;
use axum::response::Response;
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
use tonic::transport::server::Connected;

use super::listen;

/// Serves until `shutdown`.
///
/// Not by `axum::serve`, which speaks HTTP/2 with whoever begins so: a connection would carry hundreds of requests at once, and answer
/// pings that keep it open for nothing. Nor gracefully: whoever asks keeps connections open. An answer takes microseconds, and
/// nobody depends on the last one.
pub async fn serve<L>(mut listener: L, router: Router, shutdown: &CancellationToken)
where
    L: Listener<Addr = SocketAddr>,
    L::Io: Connected<ConnectInfo = Usefulness>,
{
    while let Some((stream, from)) = shutdown.run_until_cancelled(listener.accept()).await {
        let usefulness = stream.connect_info();
        let noted = map_response(move |answer: Response| {
            usefulness.note(&answer);
            std::future::ready(answer)
        });
        let router = router.clone().layer(Extension(ConnectInfo(Remote(from)))).layer(noted);
        let service = TowerToHyperService::new(router);
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

/// Whether something was asked over a connection that was worth an answer.
#[derive(Clone, Debug, Default)]
pub struct Usefulness(Arc<AtomicBool>);

impl Usefulness {
    fn note(&self, answer: &Response) {
        if answer.status().is_success() {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn is_proven(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

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
/// opening many. Those over which nothing was asked yet that was worth it have half of the places: more of them give way to each other,
/// so whoever only opens connections, be it from many addresses or from that of others, does not end all that are of use.
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
        let (end, usefulness) = (CancellationToken::new(), Usefulness::default());
        let place = {
            let mut open = self.open.lock();
            if open.by_age.len() >= self.most {
                open.give_way(self.most / 2);
            }
            open.put(Place { from: peer.ip(), end: end.clone(), usefulness: usefulness.clone() })
        };
        let (ended, deadline) = (Box::pin(end.cancelled_owned()), Box::pin(sleep(self.timeout)));
        let open = self.open.clone();
        (BoundedStream { stream, deadline, timeout: self.timeout, ended, place, open, usefulness }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

/// The connections that are open, those that were answered last at the end.
#[derive(Debug, Default)]
struct Open {
    last: u64,
    by_age: BTreeMap<u64, Place>,
}

#[derive(Debug)]
struct Place {
    from: IpAddr,
    end: CancellationToken,
    usefulness: Usefulness,
}

impl Open {
    fn put(&mut self, place: Place) -> u64 {
        self.last += 1;
        self.by_age.insert(self.last, place);
        self.last
    }

    /// One gives way to a newcomer, who needs some time to ask: so `most` of which no use is known may be there beside it.
    fn give_way(&mut self, most: usize) {
        let is_unproven = |place: &Place| !place.usefulness.is_proven();
        let too_many = self.by_age.values().filter(|place| is_unproven(place)).count() > most;
        let candidates = self.by_age.iter().filter(|(_, place)| !too_many || is_unproven(place));
        let first = gives_way(candidates.map(|(at, place)| (*at, place.from)));
        if let Some(place) = first.and_then(|at| self.by_age.remove(&at)) {
            place.end.cancel();
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
    usefulness: Usefulness,
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
        if let Some(place) = open.by_age.remove(&self.place) {
            self.place = open.put(place);
        }
    }
}

impl Drop for BoundedStream {
    fn drop(&mut self) {
        self.open.lock().by_age.remove(&self.place);
    }
}

impl Connected for BoundedStream {
    type ConnectInfo = Usefulness;

    fn connect_info(&self) -> Usefulness {
        self.usefulness.clone()
    }
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
