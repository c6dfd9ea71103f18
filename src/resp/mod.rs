//! The Redis protocol, as Redis 7 speaks it: requests in either of their two forms, replies in RESP2 and RESP3.
//!
//! Nothing here does I/O. [`Parser`] takes requests out of the bytes that have come so far, however they were cut;
//! [`Reply::encode`] appends a reply to what is to be sent. Both are bounded: what a peer *says* about sizes makes
//! nothing grow, only what it has sent.

mod error;
mod inline;
mod parser;
mod reply;
mod request;

pub use error::ProtocolError;
pub use parser::{Limits, Parser};
pub use reply::{Protocol, Reply};
pub use request::Request;

#[cfg(test)]
mod properties;
