//! Messages to a client that it did not ask for just now: invalidations, keyspace events.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::task::Waker;

use bytes::BytesMut;
use futures::task::AtomicWaker;
use parking_lot::Mutex;

use super::memory::Memory;
use crate::resp::{Protocol, Reply};

/// Messages wait.
const MAIL: u8 = 1;
/// One among them is not to wait for a command's end.
const URGENT: u8 = 2;
/// The connection is to end at once.
const ENDED: u8 = 4;
/// The connection is to end when what runs has ended.
const LEAVING: u8 = 8;
/// The connection has been quiet for a while: its buffers can go.
const QUIET: u8 = 16;

/// Why a connection was ended from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// More waited for it than may: it has stopped reading.
    Output,
    /// It did not take its replies in time.
    Stalled,
    /// It began a request, and did not finish it in time.
    HalfRequest,
    /// It asked for nothing for a long time.
    Idle,
    /// All clients together took more than they may, and it took the most.
    Memory,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    ended: Option<Ended>,
}

#[derive(Debug)]
struct Message {
    reply: Reply,
    /// It says what a client must not keep.
    invalidates: bool,
    /// Not to wait for the end of a command. It is sent again then.
    urgent: bool,
}

/// What waits to be written to one connection beside its replies, bounded by bytes: whoever does not read is cut off, so
/// that the others do not notice.
#[derive(Debug)]
pub struct Mailbox {
    queue: Mutex<Queue>,
    flags: AtomicU8,
    bytes: AtomicUsize,
    limit: usize,
    memory: Arc<Memory>,
    waker: AtomicWaker,
}

impl Mailbox {
    /// An empty one, for so many bytes, which are entered in `memory`.
    pub(super) fn new(limit: usize, memory: Arc<Memory>) -> Self {
        Self {
            queue: Mutex::default(),
            flags: AtomicU8::new(0),
            bytes: AtomicUsize::new(0),
            limit,
            memory,
            waker: AtomicWaker::new(),
        }
    }

    /// Queues a message. It is written once, after the reply to the request that runs now, if one does.
    ///
    /// False: the connection ends, and hears nothing any more.
    pub fn push(&self, message: Reply) -> bool {
        self.put(message, false)
    }

    /// Queues a message that says what a client must not keep. It does not wait for the end of the request that runs now:
    /// that may take longer than a lease. As the reply to that request may hold what was just invalidated, the message is
    /// written once more after it.
    pub fn invalidate(&self, message: Reply) -> bool {
        self.put(message, true)
    }

    /// Bytes that wait, about.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The account of what all clients take.
    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// While the queue is locked.
    fn set_bytes(&self, bytes: usize) {
        self.memory.change(self.bytes.swap(bytes, Ordering::Relaxed), bytes);
    }

    fn put(&self, reply: Reply, urgent: bool) -> bool {
        let weight = reply.weight();
        {
            let mut queue = self.queue.lock();
            if queue.ended.is_some() {
                return false;
            }
            let bytes = self.bytes.load(Ordering::Relaxed) + weight;
            if bytes > self.limit {
                drop(queue);
                self.end(Ended::Output);
                return false;
            }
            self.set_bytes(bytes);
            queue.messages.push_back(Message { reply, invalidates: urgent, urgent });
            // While the lock is held: whoever takes the queue clears the flag.
            self.flags.fetch_or(if urgent { MAIL | URGENT } else { MAIL }, Ordering::AcqRel);
        }
        self.waker.wake();
        true
    }

    /// Ends the connection. What waits is dropped.
    pub(super) fn end(&self, why: Ended) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.ended.get_or_insert(why);
            self.set_bytes(0);
            std::mem::take(&mut queue.messages)
        };
        self.flags.fetch_or(ENDED, Ordering::AcqRel);
        self.waker.wake();
        drop(dropped);
    }

    /// Asks the connection to end when what runs has ended.
    pub(super) fn leave(&self) {
        self.flags.fetch_or(LEAVING, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Tells the connection that it has been quiet for a while.
    pub(super) fn quiet(&self) {
        self.flags.fetch_or(QUIET, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Has `waker` woken by whatever happens from now on.
    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether anything has happened since this was last dealt with.
    pub(super) fn stirs(&self) -> bool {
        self.flags.load(Ordering::Acquire) != 0
    }

    /// Whether messages wait.
    pub(super) fn has_mail(&self) -> bool {
        self.has(MAIL)
    }

    /// Whether messages wait that do not wait for a command's end.
    pub(super) fn is_urgent(&self) -> bool {
        self.has(URGENT)
    }

    /// Whether the connection is to end at once.
    pub(super) fn is_ended(&self) -> bool {
        self.has(ENDED)
    }

    /// Whether the connection is to end when what runs has ended.
    pub(super) fn is_leaving(&self) -> bool {
        self.has(LEAVING)
    }

    /// Why the connection ends at once, if it does.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.queue.lock().ended
    }

    /// Whether the connection has been quiet for a while; told once.
    pub(super) fn take_quiet(&self) -> bool {
        self.has(QUIET) && self.flags.fetch_and(!QUIET, Ordering::AcqRel) & QUIET != 0
    }

    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flag != 0
    }

    /// Moves what waits to `out`. An invalidation that has come just after the client had ended what it is part of (it speaks
    /// RESP2, and listens to nothing) would be taken for an answer: who does not `hear` is not told.
    pub(in crate::agent) fn take(&self, protocol: Protocol, hears: bool, out: &mut BytesMut) {
        let messages = {
            let mut queue = self.queue.lock();
            self.flags.fetch_and(!(MAIL | URGENT), Ordering::AcqRel);
            self.set_bytes(0);
            std::mem::take(&mut queue.messages)
        };
        for message in messages.into_iter().filter(|message| hears || !message.invalidates) {
            message.reply.encode(protocol, out);
        }
    }

    /// Copies to `out`, until it is `full`, what does not wait for the end of the command that runs. All of it stays for
    /// afterwards.
    pub(super) fn peek_urgent(&self, protocol: Protocol, full: usize, out: &mut BytesMut) {
        let mut queue = self.queue.lock();
        let mut urgent = queue.messages.iter_mut().filter(|message| message.urgent);
        while out.len() < full {
            let Some(message) = urgent.next() else {
                self.flags.fetch_and(!URGENT, Ordering::AcqRel);
                return;
            };
            message.reply.encode(protocol, out);
            message.urgent = false;
        }
    }
}

impl Drop for Mailbox {
    fn drop(&mut self) {
        self.set_bytes(0);
    }
}
