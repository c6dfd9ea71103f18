//! What can go wrong, without any metadata value in it (I6).

use std::sync::Arc;

use thiserror::Error;

/// A session could not be served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GetError {
    /// There is no such session. The API server said so after the request came.
    #[error("no such session")]
    NotFound,
    /// Too many sessions are waited for at once. Try again later.
    #[error("too many sessions are being restored at once")]
    Overloaded,
    /// Too many names have been asked for that this pod has no copy of: nobody was asked whether there is such a session. Try
    /// again later.
    #[error("too many names were asked for that this pod has no copy of")]
    TooManyUnknown,
    /// Nobody can say what the session is now: nothing is served rather than something old.
    #[error("the session cannot be served now: {reason}")]
    Unavailable {
        /// Why.
        reason: Arc<str>,
    },
}

/// A session could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WriteError {
    /// There is no such session, or it is being deleted. Nothing was written.
    #[error("no such session")]
    NotFound,
    /// The session that was meant is gone, and another one has its name. Nothing was written.
    #[error("the session is gone, another one has its name")]
    Replaced,
    /// A session of that name exists. Nothing was written.
    #[error("a session of that name exists")]
    AlreadyExists,
    /// The session is no longer what the write was made from. Nothing was written.
    #[error("the session has changed since it was read")]
    Changed,
    /// The API server refuses the session as it would be. Nothing was written.
    #[error("the session is {reason}")]
    Invalid {
        /// Which fields, and what kind of wrong. Never a value.
        reason: Arc<str>,
    },
    /// Too many writes are under way. Nothing was written; try again later.
    #[error("too many writes are under way")]
    Overloaded,
    /// The write could not be done. Nothing was written.
    #[error("the session cannot be written now: {reason}")]
    Unavailable {
        /// Why.
        reason: Arc<str>,
    },
    /// Nobody can say whether it was written.
    #[error("it is not known whether the session was written: {reason}")]
    OutcomeUnknown {
        /// What happened to the request.
        reason: Arc<str>,
    },
}

impl AsRef<Self> for WriteError {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl GetError {
    pub(super) fn unavailable(reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string().into();
        Self::Unavailable { reason }
    }
}

impl From<GetError> for WriteError {
    /// What became of a write whose session could not be read first.
    fn from(error: GetError) -> Self {
        match error {
            GetError::NotFound => Self::NotFound,
            GetError::Overloaded | GetError::TooManyUnknown => Self::Overloaded,
            GetError::Unavailable { reason } => Self::Unavailable { reason },
        }
    }
}
