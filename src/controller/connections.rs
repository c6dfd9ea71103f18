//! Connections, before anything is known of who is at the other end.
//!
//! A connection is busy while a stream is open on it whose token was checked. Otherwise it is idle, and it may be that for
//! a short time only. If too many are idle, one gives way to the newest: of the address from which most have come, the one that
//! has been idle for longest. Who has a good token needs a few milliseconds to be busy, so connections that say nothing keep
//! nobody out, and however fast they come from one address, they take the places of each other. How many can be busy is bounded
//! by what each pod and each namespace may open (see [`super::stream_limits`]).

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{Stream, stream};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tracing::{debug, info, warn};

use crate::runtime::failing::Failing;
use crate::runtime::{bounded, listen};

/// Connections at once: more than a cluster has pods that use sessions, and each costs some ten kilobytes and a file.
const MOST: usize = 8_192;
/// Idle ones among them: more than connect in the time that it takes to check a token.
const MOST_IDLE: usize = 512;
/// How long a connection may be idle: longer than the check of a token may take, which is 5 s.
const IDLE_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is looked for those that have been idle for too long.
const SWEEP: Duration = Duration::from_secs(1);
/// The pause when no connection can be accepted, as when there are no more files: the listener would be ready at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All connections.
#[derive(Debug, Default)]
pub struct Connections {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    open: HashMap<u64, Open>,
    /// Since when they are idle, in this order.
    idle: BTreeMap<u64, (Instant, u64)>,
}

#[derive(Debug)]
struct Open {
    from: IpAddr,
    streams: usize,
    /// Its place among the idle ones.
    idle: Option<u64>,
    end: CancellationToken,
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn set_idle(&mut self, id: u64, now: Instant) {
        let place = self.next();
        if let Some(open) = self.open.get_mut(&id) {
            open.idle = Some(place);
            self.idle.insert(place, (now, id));
        }
    }

    fn set_busy(&mut self, id: u64) {
        if let Some(place) = self.open.get_mut(&id).and_then(|open| open.idle.take()) {
            self.idle.remove(&place);
        }
    }

    /// The place, among the idle ones, of the one that gives way to a newcomer.
    fn gives_way(&self) -> Option<u64> {
        let from = |id: &u64| self.open.get(id).map(|open| open.from);
        bounded::gives_way(self.idle.iter().filter_map(|(place, (_, id))| Some((*place, from(id)?))))
    }

    fn admit(&mut self, from: IpAddr, now: Instant) -> Option<(u64, CancellationToken)> {
        if self.open.len() >= MOST || self.idle.len() >= MOST_IDLE {
            // If none is idle, all belong to somebody: the newcomer must come again.
            let place = self.gives_way()?;
            let (_, id) = self.idle.remove(&place)?;
            self.end(id);
        }
        let (id, end) = (self.next(), CancellationToken::new());
        self.open.insert(id, Open { from, streams: 0, idle: None, end: end.clone() });
        self.set_idle(id, now);
        Some((id, end))
    }

    fn end(&mut self, id: u64) {
        if let Some(open) = self.open.remove(&id) {
            open.end.cancel();
        }
    }

    fn end_overdue(&mut self, now: Instant) {
        while let Some(first) = self.idle.first_entry() {
            let (since, id) = *first.get();
            if now.duration_since(since) < IDLE_DEADLINE {
                break;
            }
            first.remove();
            self.end(id);
        }
    }
}

/// One connection, as requests know it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Where it comes from.
    pub from: SocketAddr,
    id: u64,
    all: Arc<Connections>,
}

impl Connection {
    /// A stream was opened by somebody who is known. It counts until the guard is dropped.
    #[must_use]
    pub fn busy(&self) -> Busy {
        let mut state = self.all.state.lock();
        if let Some(open) = state.open.get_mut(&self.id) {
            open.streams += 1;
        }
        state.set_busy(self.id);
        Busy(self.clone())
    }
}

/// A stream that counts.
#[derive(Debug)]
pub struct Busy(Connection);

impl Drop for Busy {
    fn drop(&mut self) {
        let Connection { id, all, .. } = &self.0;
        let mut state = all.state.lock();
        let Some(open) = state.open.get_mut(id) else {
            return;
        };
        open.streams -= 1;
        if open.streams == 0 {
            state.set_idle(*id, Instant::now());
        }
    }
}

impl Connections {
    /// Connections that are open, and those of them that are idle.
    pub fn count(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.open.len(), state.idle.len())
    }

    /// Accepts connections for ever. An error is no reason to stop.
    pub fn accept(self: Arc<Self>, listener: TcpListener) -> impl Stream<Item = io::Result<Accepted>> {
        let mut sweep = interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        stream::unfold(
            (self, listener, sweep, Failing::default()),
            |(all, listener, mut sweep, mut failing)| async move {
                loop {
                    tokio::select! {
                        _ = sweep.tick() => all.state.lock().end_overdue(Instant::now()),
                        accepted = listener.accept() => match accepted {
                            Ok((io, from)) => {
                                let from = listen::from(from);
                                if failing.over() {
                                    info!("connections are accepted again");
                                }
                                if let Some(accepted) = all.admit(io, from) {
                                    return Some((Ok(accepted), (all, listener, sweep, failing)));
                                }
                                debug!(%from, "too many connections: one was not taken");
                            }
                            Err(error) => {
                                if failing.failed(&error.to_string(), Instant::now()) {
                                    warn!(%error, "cannot accept connections; trying again");
                                } else {
                                    debug!(%error, "cannot accept connections");
                                }
                                sleep(ACCEPT_PAUSE).await;
                            }
                        },
                    }
                }
            },
        )
    }

    fn admit(self: &Arc<Self>, io: TcpStream, from: SocketAddr) -> Option<Accepted> {
        let (id, end) = self.state.lock().admit(from.ip(), Instant::now())?;
        // Answers are small and must not wait for the other side's delayed acknowledgement. The server's own setting counts only
        // where it binds the address itself.
        if let Err(error) = io.set_nodelay(true) {
            debug!(%from, %error, "cannot send small messages at once");
        }
        let connection = Connection { from, id, all: self.clone() };
        Some(Accepted { io, ended: Box::pin(end.cancelled_owned()), connection })
    }
}

/// An accepted connection. Reading and writing fail once it was ended.
#[derive(Debug)]
pub struct Accepted {
    io: TcpStream,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    connection: Connection,
}

impl Accepted {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.ended.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        let mut state = self.connection.all.state.lock();
        state.set_busy(self.connection.id);
        state.end(self.connection.id);
    }
}

impl Connected for Accepted {
    type ConnectInfo = Connection;

    fn connect_info(&self) -> Connection {
        self.connection.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn connection(all: &Arc<Connections>, now: Instant) -> (Connection, CancellationToken) {
        connection_from(HERE, all, now)
    }

    fn connection_from(from: IpAddr, all: &Arc<Connections>, now: Instant) -> (Connection, CancellationToken) {
        let (id, end) = all.state.lock().admit(from, now).unwrap();
        (Connection { from: (from, 1).into(), id, all: all.clone() }, end)
    }

    #[test]
    fn who_says_nothing_is_ended_in_time_and_who_is_busy_is_not() {
        let (all, now) = (Arc::new(Connections::default()), Instant::now());
        let ((silent, silent_end), (served, served_end)) = (connection(&all, now), connection(&all, now));
        let stream = served.busy();
        let second = served.busy();
        all.state.lock().end_overdue(now + IDLE_DEADLINE.mul_f64(0.9));
        assert!(!silent_end.is_cancelled());
        all.state.lock().end_overdue(now + IDLE_DEADLINE);
        assert!(silent_end.is_cancelled() && !served_end.is_cancelled());
        assert_eq!(all.count(), (1, 0));
        // Its guard comes too late.
        drop(silent.busy());
        drop(second);
        assert_eq!(all.count(), (1, 0));
        drop(stream);
        assert_eq!(all.count(), (1, 1));
        all.state.lock().end_overdue(Instant::now() + IDLE_DEADLINE);
        assert!(served_end.is_cancelled());
        assert_eq!(all.count(), (0, 0));
    }

    #[test]
    fn the_oldest_idle_one_gives_way_and_busy_ones_never_do() {
        let (all, now) = (Arc::new(Connections::default()), Instant::now());
        let (served, served_end) = connection(&all, now);
        let _stream = served.busy();
        let idle: Vec<_> = (0..MOST_IDLE).map(|_| connection(&all, now)).collect();
        assert!(idle.iter().all(|(_, end)| !end.is_cancelled()));
        let (_newest, newest_end) = connection(&all, now);
        assert!(idle[0].1.is_cancelled() && !idle[1].1.is_cancelled());
        assert!(!served_end.is_cancelled() && !newest_end.is_cancelled());
        assert_eq!(all.count(), (MOST_IDLE + 1, MOST_IDLE));
    }

    #[test]
    fn many_connections_from_one_address_give_way_to_each_other() {
        let (all, now) = (Arc::new(Connections::default()), Instant::now());
        let (_early, early_end) = connection_from(Ipv4Addr::new(10, 0, 0, 1).into(), &all, now);
        let flood: Vec<_> = (0..3 * MOST_IDLE).map(|_| connection(&all, now).1).collect();
        assert!(!early_end.is_cancelled(), "who is alone at his address");
        assert_eq!(flood.iter().filter(|end| !end.is_cancelled()).count(), MOST_IDLE - 1);
        let (_late, late_end) = connection_from(Ipv4Addr::new(10, 0, 0, 2).into(), &all, now);
        connection(&all, now);
        assert!(!early_end.is_cancelled() && !late_end.is_cancelled());
    }

    #[test]
    fn when_all_are_busy_a_newcomer_is_not_taken() {
        let (all, now) = (Arc::new(Connections::default()), Instant::now());
        let busy: Vec<_> = (0..MOST).map(|_| connection(&all, now).0.busy()).collect();
        assert!(all.state.lock().admit(HERE, now).is_none());
        drop(busy);
        assert_eq!(all.count(), (MOST, MOST));
        assert!(all.state.lock().admit(HERE, now).is_some());
    }
}
