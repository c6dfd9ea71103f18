//! What is no request.

use std::borrow::Cow;
use std::fmt;

use thiserror::Error;

use super::Reply;

/// Bytes that are no request. The texts are Redis's own. A connection ends after one, since nobody can say where the next
/// request begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// A line that is no array, and does not end.
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    /// A quote that is not closed, or not followed by a space.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// The number of arguments does not end.
    #[error("Protocol error: too big mbulk count string")]
    CountTooBig,
    /// The number of arguments is none, or too many.
    #[error("Protocol error: invalid multibulk length")]
    InvalidCount,
    /// More arguments than one who has not given the password needs.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedCount,
    /// The length of an argument does not end.
    #[error("Protocol error: too big bulk count string")]
    LengthTooBig,
    /// Something else stands where an argument begins: arrays in arrays, for instance.
    #[error("Protocol error: expected '$', got '{}'", Shown(*.0))]
    ExpectedBulk(u8),
    /// The length of an argument is none, or more than a request may have.
    #[error("Protocol error: invalid bulk length")]
    InvalidLength,
    /// An argument longer than one who has not given the password needs.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedLength,
    /// The line of another protocol: somebody has a browser send requests to this address. Redis gives no answer to it.
    #[error("Protocol error: this is no HTTP server")]
    OtherProtocol,
}

impl ProtocolError {
    /// What the peer is told before the connection ends, if anything.
    pub fn reply(self) -> Option<Reply> {
        (self != Self::OtherProtocol).then(|| Reply::Error(Cow::Owned(format!("ERR {self}"))))
    }
}

/// A byte as it can stand in a line of text.
struct Shown(u8);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            b' '..=b'~' => write!(f, "{}", char::from(self.0)),
            // Redis ends its line early here.
            b'\r' | b'\n' => f.write_str(" "),
            other => write!(f, "\\x{other:02x}"),
        }
    }
}
