//! Between the protocol's messages and the core's types. Whatever comes from outside is checked here.

use std::sync::Arc;
use std::time::Duration;

use prost::bytes::Bytes;
use thiserror::Error;

use super::MAX_SESSIONS_PER_MESSAGE;
use super::v1;
use super::version::{Side, Versions};
use crate::core::cache::{Holding, Report};
use crate::core::digest::Digest;
use crate::core::names::{is_namespace, is_object_name};
use crate::core::replica::{InstanceId, Outgoing, SignalId};
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::signal::{Barrier, Fate, Mark};

/// A message that breaks the protocol. Ends the stream that it came on, and no other.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Malformed {
    /// The two sides have no version of the protocol in common.
    #[error(
        "no version of the protocol in common: the {} speaks {}, the {} {}: upgrade the {}",
        newer.0, newer.1, older.0, older.1, older.0
    )]
    NoVersion {
        /// The one that is to be upgraded.
        older: Side,
        /// The other one.
        newer: Side,
    },
    /// A message that is not allowed at this point, or none at all.
    #[error("unexpected message: expected {expected}")]
    Unexpected {
        /// What would be right.
        expected: &'static str,
    },
    /// A field has a wrong length or value.
    #[error("field {field} is wrong: expected {expected}")]
    Field {
        /// The field's name.
        field: &'static str,
        /// What would be right.
        expected: &'static str,
    },
    /// A message names too many sessions.
    #[error("a message names {got} sessions: at most {MAX_SESSIONS_PER_MESSAGE} are allowed")]
    TooMany {
        /// How many it names.
        got: usize,
    },
}

const fn field(field: &'static str, expected: &'static str) -> Malformed {
    Malformed::Field { field, expected }
}

/// The name of a session: what can be the name of an object.
pub fn session_name(name: &str) -> Result<&str, Malformed> {
    let expected =
        "the name of an object: at most 253 of a-z, 0-9, '-' and '.', and each part from letter or digit to the same";
    if is_object_name(name) { Ok(name) } else { Err(field("session", expected)) }
}

/// The name of a namespace.
pub fn namespace(name: &str) -> Result<&str, Malformed> {
    let expected = "the name of a namespace: at most 63 of a-z, 0-9 and '-', from letter or digit to the same";
    if is_namespace(name) { Ok(name) } else { Err(field("namespace", expected)) }
}

fn uid(bytes: &Bytes) -> Result<Uid, Malformed> {
    Uid::from_bytes(bytes).map_err(|_| field("uid", "16 bytes"))
}

fn bytes(uid: Uid) -> Bytes {
    Bytes::copy_from_slice(&uid.to_bytes())
}

fn digest(bytes: &Bytes) -> Result<Digest, Malformed> {
    Digest::from_bytes(bytes).ok_or(field("digest", "32 bytes"))
}

/// The process of an agent that says hello to this replica, and the version that is spoken with it.
pub fn hello(hello: &v1::Hello) -> Result<(InstanceId, u32), Malformed> {
    let theirs = Versions::told(hello.lowest_version, hello.highest_version);
    let version = Versions::agree(("agent", theirs), ("controller", Versions::OWN))?;
    if hello.software.len() > 64 {
        return Err(field("software", "at most 64 bytes"));
    }
    let instance: [u8; 16] = hello.instance[..].try_into().map_err(|_| field("instance", "16 bytes"))?;
    Ok((InstanceId(u128::from_be_bytes(instance)), version))
}

/// A message that names too many sessions is refused as a whole.
pub fn bounded(sessions: usize) -> Result<(), Malformed> {
    if sessions > MAX_SESSIONS_PER_MESSAGE {
        return Err(Malformed::TooMany { got: sessions });
    }
    Ok(())
}

/// Reports on sessions of `namespace`, and the sequence number up to which everything is told once they are processed.
#[allow(clippy::type_complexity)]
pub fn reports(
    message: &v1::Reports,
    namespace: &Arc<str>,
) -> Result<(Vec<(SessionKey, Report)>, Option<u64>), Malformed> {
    bounded(message.held.len() + message.released.len())?;
    let key = |name: &str| Ok(SessionKey::new(namespace.clone(), session_name(name)?));
    let held = message.held.iter().map(|h| {
        let holding = Holding {
            uid: uid(&h.uid)?,
            generation: h.generation,
            digest: digest(&h.digest)?,
            resource_version: ResourceVersion(h.resource_version),
            since: if h.since == 0 { h.generation } else { h.since },
        };
        Ok((key(&h.session)?, Report::Held(holding)))
    });
    let released = message.released.iter().map(|name| Ok((key(name)?, Report::Released)));
    // What goes makes room for what comes.
    let reports = released.chain(held).collect::<Result<_, Malformed>>()?;
    Ok((reports, message.complete.then_some(message.through)))
}

/// The message that carries these reports; `through` as for [`reports`].
pub fn reports_message(reports: impl IntoIterator<Item = (Arc<str>, Report)>, through: Option<u64>) -> v1::Reports {
    let mut message = v1::Reports { complete: through.is_some(), through: through.unwrap_or(0), ..Default::default() };
    for (name, report) in reports {
        match report {
            Report::Held(h) => message.held.push(v1::Holding {
                session: name.to_string(),
                uid: bytes(h.uid),
                generation: h.generation,
                digest: Bytes::copy_from_slice(h.digest.as_bytes()),
                resource_version: h.resource_version.0,
                since: h.since,
            }),
            Report::Released => message.released.push(name.to_string()),
        }
    }
    message
}

/// The name of a session and a state of it.
pub fn barrier(state: Option<&v1::State>) -> Result<(&str, Barrier), Malformed> {
    let state = state.ok_or(field("state", "a state"))?;
    let fate = if state.gone { Fate::Gone } else { Fate::Stale { below: state.generation } };
    let barrier = Barrier {
        mark: Mark { uid: uid(&state.uid)?, fate, resource_version: ResourceVersion(state.resource_version) },
        digest: if state.digest.is_empty() { None } else { Some(digest(&state.digest)?) },
    };
    Ok((session_name(&state.session)?, barrier))
}

/// The message that carries a state of a session.
pub fn state_message(session: &str, barrier: &Barrier) -> v1::State {
    let (gone, generation) = match barrier.mark.fate {
        Fate::Gone => (true, 0),
        Fate::Stale { below } => (false, below),
    };
    v1::State {
        session: session.to_owned(),
        uid: bytes(barrier.mark.uid),
        gone,
        generation,
        digest: barrier.digest.map_or_else(Bytes::new, |d| Bytes::copy_from_slice(d.as_bytes())),
        resource_version: barrier.mark.resource_version.0,
    }
}

/// The name of a session and what to evict of it.
pub fn eviction(eviction: &v1::Eviction) -> Result<(&str, Barrier), Malformed> {
    let fate = if eviction.gone { Fate::Gone } else { Fate::Stale { below: eviction.below } };
    let mark = Mark { uid: uid(&eviction.uid)?, fate, resource_version: ResourceVersion(eviction.resource_version) };
    let digest = if eviction.digest.is_empty() { None } else { Some(digest(&eviction.digest)?) };
    Ok((session_name(&eviction.session)?, Barrier { mark, digest }))
}

fn eviction_message(key: &SessionKey, signal: SignalId, state: &Barrier) -> v1::Eviction {
    let Barrier { mark, digest } = state;
    let (gone, below) = match mark.fate {
        Fate::Gone => (true, 0),
        Fate::Stale { below } => (false, below),
    };
    v1::Eviction {
        session: key.name().to_owned(),
        signal: signal.0,
        uid: bytes(mark.uid),
        gone,
        below,
        resource_version: mark.resource_version.0,
        digest: digest.map_or_else(Bytes::new, |d| Bytes::copy_from_slice(d.as_bytes())),
    }
}

/// The renewal of a session: name, uid, and how long ago it was used.
pub fn renewal(renewal: &v1::Renewal) -> Result<(&str, Uid, Duration), Malformed> {
    Ok((session_name(&renewal.session)?, uid(&renewal.uid)?, Duration::from_millis(renewal.idle_millis)))
}

/// The message that carries a renewal.
pub fn renewal_message(session: &str, of: Uid, idle: Duration) -> v1::Renewal {
    v1::Renewal {
        session: session.to_owned(),
        uid: bytes(of),
        idle_millis: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
    }
}

/// The message for what a replica has to say to an agent.
pub fn outgoing(outgoing: Outgoing) -> v1::ReplicaMessage {
    use v1::replica_message::Message;
    let message = match outgoing {
        Outgoing::Signals { evictions, barriers } => Message::Signals(v1::Signals {
            evictions: evictions.iter().map(|(key, id, state)| eviction_message(key, *id, state)).collect(),
            barriers: barriers
                .iter()
                .map(|(key, id, barrier)| v1::Barrier { signal: id.0, state: Some(state_message(key.name(), barrier)) })
                .collect(),
        }),
        Outgoing::Lease { heartbeat, age, covers } => Message::Lease(v1::Lease {
            heartbeat,
            refused: age.err().map_or_else(String::new, |refusal| refusal.to_string()),
            // Rounded up: an agent must never think that knowledge is fresher than it is.
            age_micros: age.map_or(0, |age| u64::try_from(age.as_micros()).unwrap_or(u64::MAX).saturating_add(1)),
            covers,
        }),
        Outgoing::Revoke => Message::Revoke(v1::Revoke {}),
        Outgoing::Reset => Message::Reset(v1::Reset {}),
        Outgoing::Confirmed(confirmed) => Message::Confirmed(v1::Confirmed {
            number: confirmed.request,
            registered: confirmed.registered.iter().map(ToString::to_string).collect(),
        }),
    };
    v1::ReplicaMessage { message: Some(message) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::digest::Metadata;

    #[test]
    fn reports_round_trip() {
        let holding = Holding {
            uid: Uid::from_u128(7),
            generation: 3,
            digest: Digest::of(&Metadata::new()),
            resource_version: ResourceVersion(9),
            since: 2,
        };
        let sent = [(Arc::from("b"), Report::Released), (Arc::from("a"), Report::Held(holding))];
        let (got, through) = reports(&reports_message(sent.clone(), Some(5)), &"ns".into()).unwrap();
        assert_eq!(through, Some(5));
        let sent: Vec<_> = sent.into_iter().map(|(n, r)| (SessionKey::new("ns", &*n), r)).collect();
        assert_eq!(got, sent);
        assert_eq!(reports(&reports_message([], None), &"ns".into()).unwrap().1, None, "the inventory goes on");
    }

    #[test]
    fn states_round_trip() {
        for (fate, digest) in [(Fate::Gone, None), (Fate::Stale { below: 4 }, Some(Digest::of(&Metadata::new())))] {
            let mark = Mark { uid: Uid::from_u128(7), fate, resource_version: ResourceVersion(9) };
            let sent = Barrier { mark, digest };
            assert_eq!(barrier(Some(&state_message("s", &sent))), Ok(("s", sent)));
        }
    }

    #[test]
    fn what_is_malformed_is_refused_with_the_reason() {
        let mut message = v1::Hello { lowest_version: 2, ..Default::default() };
        assert!(matches!(hello(&message), Err(Malformed::NoVersion { .. })));
        message.lowest_version = 1;
        assert_eq!(hello(&message), Err(field("instance", "16 bytes")));
        let released = vec![String::from("a"); MAX_SESSIONS_PER_MESSAGE + 1];
        let message = v1::Reports { released, ..Default::default() };
        let refused = reports(&message, &"ns".into());
        assert_eq!(refused, Err(Malformed::TooMany { got: MAX_SESSIONS_PER_MESSAGE + 1 }));
        for name in ["", "UPPER", "a/b", &"x".repeat(254)] {
            assert!(session_name(name).is_err(), "{name}");
        }
        assert!(barrier(None).is_err());
    }
}
