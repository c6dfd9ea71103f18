//! What can go wrong, without any metadata value in it (I6).

use std::sync::Arc;

use thiserror::Error;

use super::api_server::CallError;
use crate::runtime::api_error::ApiErrorKind;

/// Why a session can be neither served nor written now, for a program that decides by it. The text beside it is for people, and says
/// more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The API server does not answer as it should, and no lease covers the session. It may come back at any time.
    ApiServer,
    /// The API server cannot be reached, and no stream to a replica of the controller is open either: it may well be this pod that
    /// is cut off, so others may do better. (Where no controllers are set, nothing tells these two apart.)
    CutOff,
    /// The API server refuses what is asked: this pod's account may not, its credentials are not accepted, a `ResourceQuota` is used
    /// up, or no `VmcpSession` is defined. That lasts until somebody mends it. (An API server that has just started does not know
    /// all roles and accounts yet: their lack is [`ApiServer`](Self::ApiServer) until it has lasted for a while.)
    Refused,
    /// Too much is asked at once, of this cache or of the API server. Try again later.
    Busy,
    /// The cache has ended, or the request was given up with its runtime.
    Ended,
}

impl Cause {
    /// The cause in one or two lower-case words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ApiServer => "api server",
            Self::CutOff => "cut off",
            Self::Refused => "refused",
            Self::Busy => "busy",
            Self::Ended => "ended",
        }
    }

    /// Why a call brought no answer that counts; `connected`: to a replica of the controller.
    pub(super) fn of(error: &CallError, connected: bool) -> Self {
        use ApiErrorKind as K;
        match error {
            CallError::NotServed => Self::Refused,
            CallError::NotFound | CallError::NotASession(_) | CallError::NotYet(_) => Self::ApiServer,
            CallError::Api(error) => match error.kind() {
                K::Forbidden | K::OverQuota | K::Unauthorized | K::Invalid | K::TooLarge => Self::Refused,
                K::TooManyRequests | K::Conflict => Self::Busy,
                K::Unreachable | K::Timeout if !connected => Self::CutOff,
                _ => Self::ApiServer,
            },
        }
    }
}

/// A session could not be served.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
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
        /// Why, for a program.
        cause: Cause,
        /// Why, for people.
        reason: Arc<str>,
    },
}

/// A session could not be written.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
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
        /// Why, for a program.
        cause: Cause,
        /// Why, for people.
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
    pub(super) fn unavailable(cause: Cause, reason: impl std::fmt::Display) -> Self {
        let reason = reason.to_string().into();
        Self::Unavailable { cause, reason }
    }
}

impl From<GetError> for WriteError {
    /// What became of a write whose session could not be read first.
    fn from(error: GetError) -> Self {
        match error {
            GetError::NotFound => Self::NotFound,
            GetError::Overloaded | GetError::TooManyUnknown => Self::Overloaded,
            GetError::Unavailable { cause, reason } => Self::Unavailable { cause, reason },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kube::core::Status;

    use super::*;
    use crate::runtime::api_error::ApiError;

    #[test]
    fn a_program_can_tell_what_passes_from_what_must_be_mended_and_from_a_pod_that_is_cut_off() {
        let answered = |code| CallError::Api(ApiError::from_status(&Status { code, ..Status::default() }));
        let silent = CallError::Api(ApiError::timeout(Duration::from_secs(5)));
        for (error, connected, cut_off) in [
            (silent, Cause::ApiServer, Cause::CutOff),
            (answered(500), Cause::ApiServer, Cause::ApiServer),
            (CallError::NotASession("it has no uid".into()), Cause::ApiServer, Cause::ApiServer),
            (answered(429), Cause::Busy, Cause::Busy),
            (answered(409), Cause::Busy, Cause::Busy),
            (answered(401), Cause::Refused, Cause::Refused),
            (answered(403), Cause::Refused, Cause::Refused),
            (CallError::NotServed, Cause::Refused, Cause::Refused),
        ] {
            assert_eq!((Cause::of(&error, true), Cause::of(&error, false)), (connected, cut_off), "{error}");
        }
    }

    #[test]
    fn a_write_whose_session_cannot_be_read_tells_the_same_cause() {
        let read = GetError::unavailable(Cause::CutOff, "no answer");
        let written = WriteError::Unavailable { cause: Cause::CutOff, reason: "no answer".into() };
        assert_eq!(WriteError::from(read), written);
    }
}
