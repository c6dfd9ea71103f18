//! What is to be done for sessions that are being deleted, and what came of it.

use crate::core::session::SessionKey;
use crate::core::session_ref::SessionRef;
use crate::core::signal::Barrier;
use crate::core::time::Time;

/// Why a session may be let go of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Every registered replica has confirmed that no pod serves it.
    Confirmed,
    /// Every lease has ended that was granted before it was deleted.
    LeasesEnded,
}

/// What came of a call to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has let go of the session.
    LetGo,
    /// There was nothing to let go of, or somebody else has changed the object meanwhile.
    Nothing,
    /// It has not answered, or could not do it: it is away, or has too much to do.
    Unanswered,
    /// It has refused.
    Refused,
}

/// A request for a confirmation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// No other request has this number.
    pub number: u64,
    /// The session.
    pub key: SessionKey,
    /// What is to be confirmed.
    pub barrier: Barrier,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Tasks {
    /// Every replica is asked to confirm these.
    pub ask: Vec<Request>,
    /// These are let go of. Each has [ended](super::Finalizing::ended) some time.
    pub let_go: Vec<(SessionRef, Why)>,
    /// When there may be more to do, by the passing of time alone.
    pub wake: Option<Time>,
}

impl Tasks {
    /// There may be more to do then, at the latest.
    pub(super) fn wake_at(&mut self, at: Time) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}
