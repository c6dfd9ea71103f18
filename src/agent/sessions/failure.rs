//! What can go wrong, and what a Redis client is told of it.

use std::borrow::Cow;
use std::sync::Arc;

use thiserror::Error;

use crate::cache::{Cause, GetError, WriteError};

/// Why a command on a session could not be done. Never holds a metadata value (I6).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// Nobody can say what the session is, or write it, right now. Clients that know Redis try again by themselves.
    #[error("TRYAGAIN {0}")]
    TryAgain(Arc<str>),
    /// The API server refuses it until somebody mends that. Nothing was written, and the same again would be refused again.
    #[error("NOPERM {0}")]
    Refused(Arc<str>),
    /// The request is wrong, and will be the next time too. Nothing was written.
    #[error("ERR {0}")]
    Invalid(Arc<str>),
    /// The session is no longer what a compare-and-set was made from. Nothing was written: read again.
    #[error("TRYAGAIN the session was changed by somebody else at the same time")]
    Conflict,
    /// Nobody can say whether it was written, and to write it again does no harm.
    #[error("TRYAGAIN {0}; it may have been, and can be written again")]
    Unknown(Arc<str>),
    /// Nobody can say whether it was written, and to write it again is something else. Clients must not try by themselves.
    #[error("ERR {0}; it may have been: read the session before you repeat the command")]
    UnknownOnce(Arc<str>),
}

impl Failure {
    /// What the failure of a command is, if it is such that doing it twice comes to the same as doing it once, or is not.
    #[must_use]
    pub fn of_command(self, repeatable: bool) -> Self {
        match self {
            Self::Unknown(reason) if !repeatable => Self::UnknownOnce(reason),
            other => other,
        }
    }

    /// The error as it stands in a reply, without the leading `-`: one line.
    pub fn text(&self) -> Cow<'static, str> {
        match self {
            Self::Conflict => "TRYAGAIN the session was changed by somebody else at the same time".into(),
            other => other.to_string().into(),
        }
    }

    /// The request is wrong for this reason.
    pub fn invalid(reason: impl AsRef<str>) -> Self {
        Self::Invalid(one_line(reason.as_ref()))
    }

    /// It may work the next time.
    pub fn try_again(reason: impl AsRef<str>) -> Self {
        Self::TryAgain(one_line(reason.as_ref()))
    }
}

impl From<GetError> for Failure {
    /// `NotFound` is an answer, not a failure: take it out first. What is left of it here means that the session went away
    /// in the middle of something.
    fn from(error: GetError) -> Self {
        match &error {
            GetError::Unavailable { cause: Cause::Refused, .. } => Self::Refused(one_line(&error.to_string())),
            _ => Self::try_again(error.to_string()),
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match &error {
            WriteError::Invalid { .. } => Self::invalid(error.to_string()),
            WriteError::Unavailable { cause: Cause::Refused, .. } => Self::Refused(one_line(&error.to_string())),
            WriteError::OutcomeUnknown { .. } => Self::Unknown(one_line(&error.to_string())),
            _ => Self::try_again(error.to_string()),
        }
    }
}

/// Longest reason: what is quoted of an API server's answer is bounded already.
const LONGEST: usize = 1_024;

/// A reply that is an error ends at the end of its line.
fn one_line(text: &str) -> Arc<str> {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_retry_what_may_pass_and_nothing_else() {
        let unavailable = GetError::Unavailable { cause: Cause::ApiServer, reason: "no\r\nanswer".into() };
        assert_eq!(
            Failure::from(unavailable).text(),
            "TRYAGAIN the session cannot be served now: no  answer",
            "one line, whatever the reason"
        );
        assert!(Failure::from(GetError::Overloaded).text().starts_with("TRYAGAIN "));
        let unavailable = WriteError::Unavailable { cause: Cause::ApiServer, reason: "no answer".into() };
        for passing in [WriteError::Overloaded, unavailable, WriteError::Changed] {
            assert!(Failure::from(passing).text().starts_with("TRYAGAIN "));
        }
        assert!(Failure::Conflict.text().starts_with("TRYAGAIN "));
        let refused = WriteError::Invalid { reason: "refused as invalid: spec.metadata".into() };
        assert_eq!(Failure::from(refused).text(), "ERR the session is refused as invalid: spec.metadata");
        let reason: Arc<str> = "forbidden".into();
        let read = GetError::Unavailable { cause: Cause::Refused, reason: reason.clone() };
        assert_eq!(Failure::from(read).text(), "NOPERM the session cannot be served now: forbidden");
        let written = WriteError::Unavailable { cause: Cause::Refused, reason };
        assert_eq!(Failure::from(written).text(), "NOPERM the session cannot be written now: forbidden");
        let unknown = WriteError::OutcomeUnknown { reason: "no answer".into() };
        let text = Failure::from(unknown.clone()).of_command(true).text();
        assert!(text.starts_with("TRYAGAIN ") && text.contains("; it may have been"), "{text}");
        let text = Failure::from(unknown).of_command(false).text();
        assert!(text.starts_with("ERR ") && text.contains("read the session before"), "{text}");
    }
}
