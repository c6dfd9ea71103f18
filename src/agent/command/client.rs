//! What the agent knows of a connection.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::refusal::{NO_ROOM, Refusal};
use super::transaction::{Transaction, Watched};
use crate::agent::server::{Carried, ClientHandle, ClientId, Flow};
use crate::agent::tracking::{Mode, Options};
use crate::resp::Protocol;

/// What a request takes while it is carried out, in its own lengths: what came, the fields that it is taken apart into, and what
/// is sent to the API server.
const TIMES_CARRIED: usize = 3;

/// What a name that is kept for a client takes besides its bytes: here, and in the tables of who is to be told.
const BESIDE_NAME: usize = 128;

/// Which replies a client wants (`CLIENT REPLY`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Replies {
    /// All.
    #[default]
    On,
    /// None from now on.
    Off,
    /// Not that of the next command.
    SkipNext,
    /// Not that of this one.
    Skip,
}

/// The state of one connection. It belongs to the connection's task alone; what others may see of it is in its handle.
#[derive(Debug)]
pub struct Client {
    pub(super) handle: Arc<ClientHandle>,
    pub(super) protocol: Protocol,
    pub(super) authenticated: bool,
    pub(super) replies: Replies,
    /// What it is shown is only looked at (`CLIENT NO-TOUCH`): nobody writes what follows from it.
    pub(super) only_looks: bool,
    /// The commands since `MULTI`.
    pub(super) transaction: Option<Transaction>,
    /// What `WATCH` saw.
    pub(super) watched: Vec<Watched>,
    /// Client-side caching, if it is on.
    pub(super) tracking: Option<Options>,
    /// What `CLIENT CACHING` said of the next command.
    pub(super) caching: Option<bool>,
    pub(super) channels: BTreeSet<Bytes>,
    pub(super) patterns: BTreeSet<Bytes>,
}

impl Client {
    /// A client that has just connected; whether it must show a password, [`Server::needs_password`] says.
    ///
    /// [`Server::needs_password`]: super::Server::needs_password
    pub fn new(handle: Arc<ClientHandle>, needs_password: bool) -> Self {
        Self {
            handle,
            protocol: Protocol::Resp2,
            authenticated: !needs_password,
            replies: Replies::On,
            only_looks: false,
            transaction: None,
            watched: Vec::new(),
            tracking: None,
            caching: None,
            channels: BTreeSet::new(),
            patterns: BTreeSet::new(),
        }
    }

    /// Its number.
    pub fn id(&self) -> ClientId {
        self.handle.id()
    }

    /// The protocol that replies to it are written in from now on.
    #[inline]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What others may see of it.
    pub fn handle(&self) -> &Arc<ClientHandle> {
        &self.handle
    }

    /// Whether it has shown the password, or needs none.
    pub fn is_authenticated(&self) -> bool {
        self.authenticated
    }

    /// How many channels and patterns it has subscribed to.
    pub fn subscriptions(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    /// How many commands wait for `EXEC`.
    #[cfg(test)]
    pub fn transaction_len(&self) -> Option<usize> {
        self.transaction.as_ref().map(|transaction| transaction.size().0)
    }

    /// Whether it may send only what subscribers may.
    #[inline]
    pub(super) fn only_listens(&self) -> bool {
        self.protocol == Protocol::Resp2 && self.subscriptions() > 0
    }

    /// Whether the keys that it reads now are to be remembered for it.
    #[inline]
    pub(super) fn is_tracked(&self) -> bool {
        self.tracking.as_ref().is_some_and(|options| options.registers(self.caching.is_some()))
    }

    /// Enters requests of so many bytes, which are carried out until what is returned is dropped. Refused, in words that clients
    /// try again for, while those of all clients take as much memory as they may.
    pub(super) fn carry(&self, request_bytes: usize) -> Result<Carried, Refusal> {
        self.handle.carry(request_bytes.saturating_mul(TIMES_CARRIED)).ok_or(NO_ROOM)
    }

    /// Enters what is kept for it: to be called whenever that has changed.
    pub(super) fn keeps(&self) {
        let prefixes: &[Bytes] = match self.tracking.as_ref().map(|options| &options.mode) {
            Some(Mode::Broadcast { prefixes }) => prefixes,
            _ => &[],
        };
        let watched = self.watched.iter().map(|watched| &watched.key);
        let names = self.channels.iter().chain(&self.patterns).chain(prefixes).chain(watched);
        let bytes = names.map(|name| name.len() + BESIDE_NAME).sum::<usize>();
        self.handle.set_kept(bytes + self.handle.names_bytes());
    }

    /// A command of this name is done: what `CLIENT CACHING` said was about it, or is about the transaction that goes on.
    #[inline]
    pub(super) fn answered(&mut self, name: &str) {
        if self.caching.is_some() && self.transaction.is_none() && name != "client" {
            self.caching = None;
        }
    }

    /// A command was refused: if it was meant for a transaction, that is refused as well.
    pub(super) fn refuse(&mut self) {
        if let Some(transaction) = &mut self.transaction {
            transaction.break_off();
        }
    }

    /// A command begins. Which replies were wanted before it.
    pub(super) fn listens(&mut self) -> Replies {
        let before = self.replies;
        if before == Replies::SkipNext {
            self.replies = Replies::Skip;
        }
        before
    }

    /// A reply as the client wants it: perhaps not at all.
    pub(super) fn heard(&mut self, flow: Flow, before: Replies) -> Flow {
        match before {
            Replies::On => flow,
            // `CLIENT REPLY ON` is answered.
            _ if self.replies == Replies::On => flow,
            _ => {
                // Unless it was another `SKIP`.
                if self.replies == Replies::Skip {
                    self.replies = Replies::On;
                }
                silent(&flow)
            }
        }
    }
}

fn silent(flow: &Flow) -> Flow {
    match flow {
        Flow::Close(_) => Flow::Close(None),
        _ => Flow::None,
    }
}
