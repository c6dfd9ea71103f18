//! What happened in a replica, for logs, events and status; no promise rests on it.

use std::sync::Arc;
use std::time::Duration;

use super::AgentName;
use crate::core::session::{ResourceVersion, SessionKey, Uid};

/// Something that logs, events or status may tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A session appeared, or its spec changed.
    Changed {
        /// Which one.
        key: SessionKey,
        /// Its uid.
        uid: Uid,
        /// Its new generation.
        generation: u64,
        /// The resourceVersion that brought it.
        resource_version: ResourceVersion,
        /// Metadata keys that changed; empty if the object is new to this replica.
        changed_keys: Vec<Arc<str>>,
        /// Whether it is new: it was not there, or was another object.
        new: bool,
    },
    /// A session is gone.
    Removed {
        /// Which one.
        key: SessionKey,
    },
    /// Pods that were signalled have not acknowledged it for longer than that takes.
    Late(Late),
    /// Everybody who was signalled has acknowledged, or can be waited for no longer.
    Settled(Settled),
}

/// Who is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct Late {
    /// The session.
    pub key: SessionKey,
    /// The uid of the object as it is now, else of the copies.
    pub uid: Uid,
    /// The pods, by name, sorted.
    pub pods: Vec<AgentName>,
    /// For how long they have been waited for.
    pub waited: Duration,
    /// When the last of their leases ends, from now.
    pub lease_left: Duration,
}

/// How a round ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Settled {
    /// The session.
    pub key: SessionKey,
    /// The uid of the copies that were evicted last.
    pub uid: Uid,
    /// The uid of the object as it is now, if it is there and not being deleted.
    pub object: Option<Uid>,
    /// The generation that the pods were brought to; `None` if the object is gone.
    pub generation: Option<u64>,
    /// Metadata keys that changed.
    pub changed_keys: Vec<Arc<str>>,
    /// Pods that dropped a copy, or are silent, by name, sorted.
    pub pods: Vec<AgentName>,
    /// Those of them that did not acknowledge before their leases ended.
    pub silent: Vec<AgentName>,
    /// From the first signal to the last acknowledgement.
    pub took: Duration,
}
