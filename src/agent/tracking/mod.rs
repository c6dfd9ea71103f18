//! Client-side caching (`CLIENT TRACKING`): clients keep what they have read, and are told when that is over.
//!
//! A client is told when a key changes, wherever that happens, and when no lease covers any longer what it has read. Each
//! read is registered before the value is taken, and what is sent to a connection comes after the answer to the command
//! that it carries out at that moment: so there is no gap in which a change goes unnoticed.

mod cover;
mod deliver;
mod options;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub use cover::run as watch_cover;
pub use options::{Mode, Options};

use super::server::{ClientHandle, ClientId, Clients};
use crate::core::time::Time;
use crate::runtime::clock::boottime_nanos;
use table::{Recipient, Table};

/// What clients keep of their own, and how they are told that it is over.
#[derive(Debug)]
pub struct Tracking {
    table: Mutex<Table>,
    /// How many clients track. Without any, nothing costs more than a look at this.
    active: AtomicUsize,
    /// Prefixes that clients track by, likewise.
    by_prefix: AtomicUsize,
    /// When the cover of some key must be looked at, in nanoseconds of [`Time`].
    due: AtomicU64,
    sooner: Notify,
    clients: Arc<Clients>,
    told: Told,
}

/// A command that may write keys, while it is carried out.
#[derive(Debug)]
pub struct Writing<'a> {
    tracking: &'a Tracking,
    client: ClientId,
    keys: Vec<&'a [u8]>,
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        for key in &self.keys {
            let recipient = self.tracking.table.lock().done(self.client, key);
            self.tracking.tell(key, recipient);
        }
    }
}

/// How often clients were told what.
#[derive(Debug, Default)]
pub struct Told {
    /// Messages that a key changed.
    pub invalidations: AtomicU64,
    /// Messages that all keys changed.
    pub flushes: AtomicU64,
    /// Keys that were forgotten because there were too many.
    pub forgotten: AtomicU64,
}

/// The table's size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Clients that track.
    pub clients: usize,
    /// Keys that are registered.
    pub keys: usize,
    /// Readers of all keys together.
    pub items: usize,
    /// Prefixes that clients track by.
    pub prefixes: usize,
}

impl Tracking {
    /// Nobody tracks; there is room for so many keys.
    pub fn new(max_keys: usize, clients: Arc<Clients>) -> Self {
        Self {
            table: Mutex::new(Table::new(max_keys)),
            active: AtomicUsize::new(0),
            by_prefix: AtomicUsize::new(0),
            due: AtomicU64::new(u64::MAX),
            sooner: Notify::new(),
            clients,
            told: Told::default(),
        }
    }

    /// The client tracks from now on, like this.
    pub fn enable(&self, client: &ClientHandle, options: &Options) {
        let mut table = self.table.lock();
        table.enable(client.id(), options.clone());
        self.count(&table);
    }

    /// The client does not track any more, or its connection has ended.
    pub fn disable(&self, client: ClientId) {
        if self.is_idle() {
            return;
        }
        let mut table = self.table.lock();
        table.disable(client);
        self.count(&table);
    }

    fn count(&self, table: &Table) {
        self.active.store(table.clients(), Ordering::SeqCst);
        self.by_prefix.store(table.prefixes(), Ordering::SeqCst);
    }

    /// The client is about to read the key: call it before the value is taken, and [`Self::read`] afterwards.
    pub fn reading(&self, client: ClientId, key: &[u8]) {
        let forgotten = self.table.lock().reading(client, key);
        for (key, recipients) in forgotten {
            self.told.forgotten.fetch_add(1, Ordering::Relaxed);
            self.tell(&key, recipients);
        }
    }

    /// The client has read the key, and the copy that it was given is covered by leases until then. If it is not, or there
    /// is no such session, nobody would notice a change: the client is told not to keep what it has read.
    pub fn read(&self, client: ClientId, key: &[u8], covered: Option<Time>) {
        let Some(until) = covered else {
            let recipient = self.table.lock().uncovered(client, key);
            return self.tell(key, recipient);
        };
        self.table.lock().read(key, until);
        self.look_by(until);
    }

    /// Whether anybody tracks by prefix.
    #[inline]
    pub fn has_prefixes(&self) -> bool {
        self.by_prefix.load(Ordering::SeqCst) > 0
    }

    /// Somebody has read the key who does not track. If nobody would notice a change, or not in time to say so, whoever tracks the key
    /// by prefix is told not to keep it.
    pub fn read_by_others(&self, key: &[u8], covered: Option<Time>) {
        if covered.is_some_and(|until| until > Time::from_nanos(boottime_nanos()) + cover::AHEAD) {
            return;
        }
        let recipients = self.table.lock().broadcasting(key);
        self.tell(key, recipients);
    }

    /// The client has written the key, and what is there now is what it wrote: whoever else has read the key is told. If it
    /// does not want to be told itself, it may keep what it wrote: then [`Self::read`] must follow, as after a read.
    pub fn wrote(&self, client: ClientId, key: &[u8]) -> bool {
        if self.is_idle() {
            return false;
        }
        let (recipients, keeps) = self.table.lock().wrote(client, key);
        self.tell(key, recipients);
        if keeps {
            self.reading(client, key);
        }
        keeps
    }

    /// The client begins a command that may write these keys. What becomes of them is told at once, not only when the write
    /// is visible everywhere.
    pub fn writing<'a>(&'a self, client: ClientId, keys: impl IntoIterator<Item = &'a Bytes>) -> Option<Writing<'a>> {
        if self.is_idle() {
            return None;
        }
        let keys: Vec<&[u8]> = keys.into_iter().map(AsRef::as_ref).collect();
        let mut table = self.table.lock();
        for key in &keys {
            table.writing(client, key);
        }
        drop(table);
        Some(Writing { tracking: self, client, keys })
    }

    /// What is served of the key is not what it was, since some client writes it.
    pub fn disturbed(&self, key: &[u8]) {
        let recipients = self.table.lock().disturbed(key);
        self.tell(key, recipients);
    }

    /// Whether no client tracks.
    pub fn is_idle(&self) -> bool {
        self.active.load(Ordering::SeqCst) == 0
    }

    /// Nobody vouches any longer for what was read of the key.
    pub fn stale(&self, key: &[u8]) {
        if self.is_idle() {
            return;
        }
        let recipients = self.table.lock().stale(key);
        self.tell(key, recipients);
    }

    /// Nobody vouches for anything any longer.
    pub fn flush(&self) {
        if self.is_idle() {
            return;
        }
        let recipients = self.table.lock().flush();
        for recipient in recipients {
            self.told.flushes.fetch_add(1, Ordering::Relaxed);
            self.send(recipient, None);
        }
    }

    /// The table's size.
    pub fn counts(&self) -> Counts {
        let table = self.table.lock();
        Counts { clients: table.clients(), keys: table.keys(), items: table.readers(), prefixes: table.prefixes() }
    }

    /// How often clients were told what.
    pub fn told(&self) -> &Told {
        &self.told
    }

    fn tell(&self, key: &[u8], recipients: impl IntoIterator<Item = Recipient>) {
        for recipient in recipients {
            self.told.invalidations.fetch_add(1, Ordering::Relaxed);
            self.send(recipient, Some(key));
        }
    }
}
