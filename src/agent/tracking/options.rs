//! What clients ask for with `CLIENT TRACKING`.

use bytes::Bytes;

use crate::agent::server::ClientId;

/// Which reads and changes a client wants to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Of the keys that it reads.
    Default,
    /// Of the keys that it reads in the command after `CLIENT CACHING YES`.
    OptIn,
    /// Of the keys that it reads, but not in the command after `CLIENT CACHING NO`.
    OptOut,
    /// Of all keys that begin with one of these.
    Broadcast {
        /// The prefixes.
        prefixes: Vec<Bytes>,
    },
}

/// What a client asked for with `CLIENT TRACKING ON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Which keys it wants to know of.
    pub mode: Mode,
    /// It does not want to be told of its own changes.
    pub no_loop: bool,
    /// It wants another connection to be told.
    pub redirect: Option<ClientId>,
}

impl Options {
    /// Whether what the next command reads is to be registered. `caching` says whether `CLIENT CACHING` was sent before it.
    ///
    /// Reads of clients that track by prefix are registered too. They are told of every change anyhow, but also when a copy
    /// that they may have kept is no longer covered by a lease.
    pub fn registers(&self, caching: bool) -> bool {
        match self.mode {
            Mode::Default | Mode::Broadcast { .. } => true,
            Mode::OptIn => caching,
            Mode::OptOut => !caching,
        }
    }

    /// Whether it wants to know of this key, read or not.
    pub(super) fn broadcasts(&self, key: &[u8]) -> bool {
        match &self.mode {
            Mode::Broadcast { prefixes } => prefixes.iter().any(|p| key.starts_with(p)),
            _ => false,
        }
    }
}
