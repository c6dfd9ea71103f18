//! Who is connected.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::clock::CoarseClock;
use super::handle::{Address, ClientHandle, ClientId};
use super::mailbox::{Ended, Mailbox};
use super::memory::{Memory, too_large};

/// How many clients there may be, and what they may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Connections at once.
    pub clients: usize,
    /// Bytes of messages that may wait for each.
    pub output: usize,
    /// Bytes that all may take together. With more, the largest are ended.
    pub memory: usize,
}

/// The connections, and figures about all there have been.
#[derive(Debug)]
pub struct Clients {
    connected: RwLock<BTreeMap<ClientId, Arc<ClientHandle>>>,
    /// The number of the last one.
    last: AtomicU64,
    room: Room,
    memory: Arc<Memory>,
    clock: Arc<CoarseClock>,
    pub(super) counters: Counters,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) bytes_read: AtomicU64,
    pub(super) bytes_written: AtomicU64,
    pub(super) protocol_errors: AtomicU64,
    pub(super) output: AtomicU64,
    pub(super) stalled: AtomicU64,
    pub(super) half_request: AtomicU64,
    pub(super) idle: AtomicU64,
    pub(super) memory: AtomicU64,
}

/// Figures about all connections there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Connections that were taken.
    pub accepted: u64,
    /// Connections that were one too many.
    pub refused: u64,
    /// Bytes that came.
    pub bytes_read: u64,
    /// Bytes that were sent.
    pub bytes_written: u64,
    /// Connections that ended by something that is no request.
    pub protocol_errors: u64,
    /// Connections that ended because more waited for them than may.
    pub ended_output: u64,
    /// Connections that ended because they did not take their replies in time.
    pub ended_stalled: u64,
    /// Connections that ended because they did not finish a request in time.
    pub ended_half_request: u64,
    /// Connections that ended because they asked for nothing for too long.
    pub ended_idle: u64,
    /// Connections that ended because all together took too much, and they the most.
    pub ended_memory: u64,
}

impl Clients {
    /// Nobody yet.
    pub fn new(room: Room) -> Self {
        Self {
            connected: RwLock::default(),
            last: AtomicU64::new(0),
            room,
            memory: Arc::new(Memory::new(room.memory)),
            clock: Arc::new(CoarseClock::start()),
            counters: Counters::default(),
        }
    }

    /// The client of that number, if it is connected.
    pub fn get(&self, id: ClientId) -> Option<Arc<ClientHandle>> {
        self.connected.read().get(&id).cloned()
    }

    /// Calls `f` with each, in the order of their numbers. It must be quick, and must not connect anybody.
    pub fn each(&self, mut f: impl FnMut(&Arc<ClientHandle>)) {
        self.connected.read().values().for_each(&mut f);
    }

    /// How many are connected.
    pub fn len(&self) -> usize {
        self.connected.read().len()
    }

    /// Whether nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many may be connected.
    pub fn most(&self) -> usize {
        self.room.clients
    }

    /// Bytes that all clients take together, about.
    pub fn memory_bytes(&self) -> usize {
        self.memory.total()
    }

    /// Figures about all connections there have been.
    pub fn totals(&self) -> Totals {
        let Counters {
            accepted,
            refused,
            bytes_read,
            bytes_written,
            protocol_errors,
            output,
            stalled,
            half_request,
            idle,
            memory,
        } = &self.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            accepted: read(accepted),
            refused: read(refused),
            bytes_read: read(bytes_read),
            bytes_written: read(bytes_written),
            protocol_errors: read(protocol_errors),
            ended_output: read(output),
            ended_stalled: read(stalled),
            ended_half_request: read(half_request),
            ended_idle: read(idle),
            ended_memory: read(memory),
        }
    }

    /// A new connection, unless there are too many.
    pub fn register(&self, address: Address, local_address: Address) -> Option<Arc<ClientHandle>> {
        let mut connected = self.connected.write();
        if connected.len() >= self.room.clients {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        let id = ClientId(self.last.fetch_add(1, Ordering::Relaxed) + 1);
        let mailbox = Mailbox::new(self.room.output, Arc::clone(&self.memory));
        let handle = ClientHandle::new(id, address, local_address, Arc::clone(&self.clock), mailbox);
        let handle = Arc::new(handle);
        connected.insert(id, Arc::clone(&handle));
        Some(handle)
    }

    /// A connection has ended.
    pub fn unregister(&self, id: ClientId) {
        let ended = self.connected.write().remove(&id);
        if let Some(handle) = ended {
            handle.release();
        }
    }

    /// Counts a connection that was ended from outside.
    pub(super) fn count(&self, ended: Ended) {
        let counter = match ended {
            Ended::Output => &self.counters.output,
            Ended::Stalled => &self.counters.stalled,
            Ended::HalfRequest => &self.counters.half_request,
            Ended::Idle => &self.counters.idle,
            Ended::Memory => &self.counters.memory,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns when clients have taken more than they may together.
    pub(super) async fn exceeded(&self) {
        self.memory.exceeded().await;
    }

    /// Ends as many clients, the largest first, as it takes for the others to take no more than they may. What those who are
    /// ended have comes back when they have noticed.
    pub(super) fn relieve(&self) {
        if !self.memory.is_exceeded() {
            return;
        }
        let connected = self.connected.read();
        let staying = connected.values().filter(|handle| !handle.mailbox().is_ended());
        let sizes = staying.map(|handle| (handle.id(), handle.droppable_bytes()));
        for id in too_large(sizes, self.memory.room()) {
            if let Some(handle) = connected.get(&id) {
                handle.mailbox().end(Ended::Memory);
            }
        }
    }

    pub(super) fn clock(&self) -> &CoarseClock {
        &self.clock
    }
}
