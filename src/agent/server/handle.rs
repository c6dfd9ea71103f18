//! What others may see of a connection.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::clock::CoarseClock;
use super::mailbox::Mailbox;
use crate::resp::Protocol;

/// Number of a connection. No two of one process have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// A Unix socket: both ends show the server's path, as in Redis.
    Unix(Arc<PathBuf>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{}:0", path.display()),
        }
    }
}

/// What a connection is doing, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It waits for a request.
    Idle,
    /// It waits for the rest of a request.
    HalfRequest,
    /// It carries out a request.
    Busy,
    /// It waits for the client to take its replies.
    Stalled,
}

#[derive(Debug, Default)]
struct Names {
    name: Bytes,
    library_name: Bytes,
    library_version: Bytes,
}

/// What others see of a client's own copies (`CLIENT TRACKING`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caching {
    /// It hears of all keys with its prefixes, whether it has read them or not.
    pub broadcast: bool,
    /// The client that hears in its stead.
    pub redirect: Option<ClientId>,
}

/// A connection as others see it: its facts, and a way to send it something. Cheap to read, and never waited for.
#[derive(Debug)]
pub struct ClientHandle {
    id: ClientId,
    address: Address,
    local_address: Address,
    clock: Arc<CoarseClock>,
    created: u64,
    mailbox: Mailbox,
    /// When the phase began, and in the lowest two bits which it is: so the two are never of different phases.
    phase: AtomicU64,
    names: Mutex<Names>,
    last_command: Mutex<&'static str>,
    resp3: AtomicBool,
    caching: Mutex<Option<Caching>>,
    channels: AtomicU32,
    patterns: AtomicU32,
    /// Requests since `MULTI`; -1 outside of it.
    queued: AtomicI64,
    /// Bytes of requests since `MULTI`.
    queued_bytes: AtomicUsize,
    /// Bytes of names that are kept for the client: what it listens to, watches, or is called.
    kept: AtomicUsize,
    /// Bytes of replies that the client does not take.
    unsent: AtomicUsize,
    /// Bytes of the connection's buffers.
    buffers: AtomicUsize,
    /// Bytes of the request that is being carried out, and of its answer as far as it is made.
    carried: AtomicUsize,
}

/// While this lives, what a request takes is entered in the account of all clients. A connection has one at a time.
#[derive(Debug)]
#[must_use = "it is entered as long as this lives"]
pub struct Carried {
    handle: Arc<ClientHandle>,
    bytes: AtomicUsize,
}

impl Carried {
    /// Enters so many bytes more. False: the requests that are being carried out for all clients take as much as they may, and
    /// this is not the only one.
    pub fn grow(&self, bytes: usize) -> bool {
        let own = self.bytes.load(Ordering::Relaxed);
        let entered = self.handle.mailbox.memory().carry(own, bytes);
        if entered {
            self.handle.carried.fetch_add(bytes, Ordering::Relaxed);
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        entered
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        self.handle.carried.fetch_sub(bytes, Ordering::Relaxed);
        self.handle.mailbox.memory().carried(bytes);
    }
}

impl ClientHandle {
    pub(super) fn new(
        id: ClientId,
        address: Address,
        local_address: Address,
        clock: Arc<CoarseClock>,
        mailbox: Mailbox,
    ) -> Self {
        let created = clock.millis();
        Self {
            id,
            address,
            local_address,
            clock,
            created,
            mailbox,
            phase: AtomicU64::new(packed(Phase::Idle, created)),
            names: Mutex::default(),
            last_command: Mutex::new("NULL"),
            resp3: AtomicBool::new(false),
            caching: Mutex::default(),
            channels: AtomicU32::new(0),
            patterns: AtomicU32::new(0),
            queued: AtomicI64::new(-1),
            queued_bytes: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            unsent: AtomicUsize::new(0),
            buffers: AtomicUsize::new(0),
            carried: AtomicUsize::new(0),
        }
    }

    /// Its number.
    pub fn id(&self) -> ClientId {
        self.id
    }

    /// Where it comes from.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Where it has connected to.
    pub fn local_address(&self) -> &Address {
        &self.local_address
    }

    /// Whether it has come through the Unix socket.
    pub fn is_unix(&self) -> bool {
        matches!(self.local_address, Address::Unix(_))
    }

    /// How long it has been connected; to a second or so.
    pub fn age(&self) -> Duration {
        Duration::from_millis(self.clock.millis().saturating_sub(self.created))
    }

    /// How long it has asked for nothing; to a second or so.
    pub fn idle(&self) -> Duration {
        match self.phase() {
            (Phase::Idle | Phase::HalfRequest, since) => {
                Duration::from_millis(self.clock.millis().saturating_sub(since))
            }
            _ => Duration::ZERO,
        }
    }

    /// Messages to it.
    pub fn mailbox(&self) -> &Mailbox {
        &self.mailbox
    }

    /// Bytes that wait to be sent to it, about.
    pub fn output_bytes(&self) -> usize {
        self.mailbox.bytes() + self.unsent.load(Ordering::Relaxed)
    }

    /// Bytes that it takes, about: buffers, messages that wait for it, commands that wait for `EXEC`, names, and the request that is
    /// being carried out.
    pub fn memory_bytes(&self) -> usize {
        self.droppable_bytes() + self.carried.load(Ordering::Relaxed)
    }

    /// What of that it would give back at once if its connection ended: all but the request that is being carried out.
    pub(super) fn droppable_bytes(&self) -> usize {
        let parts = [&self.buffers, &self.queued_bytes, &self.kept].map(|part| part.load(Ordering::Relaxed));
        parts.into_iter().sum::<usize>() + self.mailbox.bytes()
    }

    /// Enters a request that takes so many bytes until what is returned is dropped. None: the requests that are being carried
    /// out for all clients take as much as they may.
    pub fn carry(self: &Arc<Self>, bytes: usize) -> Option<Carried> {
        let carried = Carried { handle: Arc::clone(self), bytes: AtomicUsize::new(0) };
        carried.grow(bytes).then_some(carried)
    }

    /// The protocol that replies and messages to it are written in.
    #[inline]
    pub fn protocol(&self) -> Protocol {
        if self.resp3.load(Ordering::Relaxed) { Protocol::Resp3 } else { Protocol::Resp2 }
    }

    /// Whether it can tell invalidations from answers.
    pub(super) fn hears(&self) -> bool {
        self.protocol() == Protocol::Resp3 || self.subscriptions() != (0, 0)
    }

    /// Changes the protocol, from the reply to the request that runs now on.
    pub fn set_protocol(&self, protocol: Protocol) {
        self.resp3.store(protocol == Protocol::Resp3, Ordering::Relaxed);
    }

    /// The name it has given itself, perhaps empty.
    pub fn name(&self) -> Bytes {
        self.names.lock().name.clone()
    }

    /// Changes the name. It is copied: arguments are slices of larger buffers. So with the other two.
    pub fn set_name(&self, name: impl AsRef<[u8]>) {
        self.names.lock().name = Bytes::copy_from_slice(name.as_ref());
    }

    /// The name of its library (`CLIENT SETINFO`).
    pub fn library_name(&self) -> Bytes {
        self.names.lock().library_name.clone()
    }

    /// Changes the library's name.
    pub fn set_library_name(&self, name: impl AsRef<[u8]>) {
        self.names.lock().library_name = Bytes::copy_from_slice(name.as_ref());
    }

    /// The version of its library.
    pub fn library_version(&self) -> Bytes {
        self.names.lock().library_version.clone()
    }

    /// Changes the library's version.
    pub fn set_library_version(&self, version: impl AsRef<[u8]>) {
        self.names.lock().library_version = Bytes::copy_from_slice(version.as_ref());
    }

    /// Bytes of its names.
    pub fn names_bytes(&self) -> usize {
        let Names { name, library_name, library_version } = &*self.names.lock();
        name.len() + library_name.len() + library_version.len()
    }

    /// Names that are kept for it take so many bytes.
    pub fn set_kept(&self, bytes: usize) {
        self.account(&self.kept, bytes);
    }

    /// The command it sent last: `get`, `client|list`. `NULL` before the first one, as in Redis.
    pub fn last_command(&self) -> &'static str {
        *self.last_command.lock()
    }

    /// Remembers the command that it has sent.
    #[inline]
    pub fn set_last_command(&self, name: &'static str) {
        *self.last_command.lock() = name;
    }

    /// How many channels and patterns it has subscribed to.
    pub fn subscriptions(&self) -> (usize, usize) {
        (self.channels.load(Ordering::Relaxed) as usize, self.patterns.load(Ordering::Relaxed) as usize)
    }

    /// Changes these numbers. Subscribers are never idle.
    pub fn set_subscriptions(&self, channels: usize, patterns: usize) {
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        self.channels.store(number(channels), Ordering::Relaxed);
        self.patterns.store(number(patterns), Ordering::Relaxed);
    }

    /// How it is told of the end of copies of its own; `None`: it keeps none.
    pub fn caching(&self) -> Option<Caching> {
        *self.caching.lock()
    }

    /// Changes that.
    pub fn set_caching(&self, caching: Option<Caching>) {
        *self.caching.lock() = caching;
    }

    /// How many requests wait for `EXEC`; `None` without `MULTI`.
    pub fn queued(&self) -> Option<usize> {
        usize::try_from(self.queued.load(Ordering::Relaxed)).ok()
    }

    /// Changes that number, and how many bytes they have.
    pub fn set_queued(&self, queued: Option<usize>, bytes: usize) {
        self.account(&self.queued_bytes, bytes);
        let number = queued.map_or(-1, |count| i64::try_from(count).unwrap_or(i64::MAX));
        self.queued.store(number, Ordering::Relaxed);
    }

    /// Another phase begins.
    #[inline]
    pub(super) fn enter(&self, phase: Phase) {
        self.enter_since(phase, self.clock.millis());
    }

    /// Another phase begins, or goes on: it counts from `since`.
    #[inline]
    pub(super) fn enter_since(&self, phase: Phase, since: u64) {
        self.phase.store(packed(phase, since), Ordering::Relaxed);
    }

    /// What it is doing, and since when on the server's clock.
    pub(super) fn phase(&self) -> (Phase, u64) {
        let packed = self.phase.load(Ordering::Relaxed);
        let phase = match packed & 3 {
            0 => Phase::Idle,
            1 => Phase::HalfRequest,
            2 => Phase::Busy,
            _ => Phase::Stalled,
        };
        (phase, packed >> 2)
    }

    pub(super) fn set_unsent(&self, bytes: usize) {
        self.unsent.store(bytes, Ordering::Relaxed);
    }

    /// The connection's buffers have so many bytes.
    #[inline]
    pub(super) fn set_buffers(&self, bytes: usize) {
        self.account(&self.buffers, bytes);
    }

    /// What was said of that last; none: it holds no buffers.
    #[inline]
    pub(super) fn buffers(&self) -> usize {
        self.buffers.load(Ordering::Relaxed)
    }

    /// The connection has ended: it takes nothing any more, whoever still has its handle.
    pub(super) fn release(&self) {
        self.set_buffers(0);
        self.set_queued(None, 0);
        *self.names.lock() = Names::default();
        self.set_kept(0);
    }

    /// Only the connection's own task changes `part`.
    #[inline]
    fn account(&self, part: &AtomicUsize, bytes: usize) {
        let before = part.load(Ordering::Relaxed);
        if bytes != before {
            part.store(bytes, Ordering::Relaxed);
            self.mailbox.memory().change(before, bytes);
        }
    }

    pub(super) fn clock(&self) -> &CoarseClock {
        &self.clock
    }
}

fn packed(phase: Phase, since: u64) -> u64 {
    let phase = match phase {
        Phase::Idle => 0,
        Phase::HalfRequest => 1,
        Phase::Busy => 2,
        Phase::Stalled => 3,
    };
    since << 2 | phase
}
