//! What a command is refused with: Redis's own words, since clients look at them.

use std::borrow::Cow;

use bytes::Bytes;
use thiserror::Error;

use crate::agent::sessions::Failure;
use crate::resp::Reply;

/// Longest channel, pattern or prefix, in bytes.
pub const LONGEST_NAME: usize = 1_024;

/// The requests that are being carried out for all clients take as much memory as they may.
pub const NO_ROOM: Refusal = Refusal::Text(
    "TRYAGAIN the requests that are being carried out take as much memory as they may (--clients-memory)",
);

/// Why a command was not carried out. Its `Display` is the text of the reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// An option that is unknown, repeated where it must not be, or without its value.
    #[error("ERR syntax error")]
    Syntax,
    /// What should be a number is none, or does not fit into 64 bits.
    #[error("ERR value is not an integer or out of range")]
    NotAnInteger,
    /// The number of arguments is wrong.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(&'static str),
    /// A timeout that is zero, negative, or too long.
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    /// `HINCRBY` of a field that holds something else.
    #[error("ERR hash value is not an integer")]
    FieldIsNotAnInteger,
    /// `HINCRBY` beyond 64 bits.
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    /// A cursor that is no number.
    #[error("ERR invalid cursor")]
    Cursor,
    /// A name with spaces or control characters.
    #[error("ERR {0} cannot contain spaces, newlines or special characters.")]
    Name(&'static str),
    /// A text of Redis's that needs nothing filled in, or one of ours.
    #[error("{0}")]
    Text(&'static str),
    /// A text of Redis's with something of the request in it.
    #[error("{0}")]
    Quoting(String),
    /// The answer is larger than all that may wait for a client: the connection ends, as it would if it had been sent.
    #[error("ERR the answer is larger than what may wait for a client")]
    TooLarge,
    /// Sessions could not be read or written, or not like this.
    #[error(transparent)]
    Session(#[from] Failure),
}

impl Refusal {
    /// A text that quotes the request. Whatever could end the line of the reply early becomes a space, as in Redis.
    pub fn quoting(text: String) -> Self {
        if text.bytes().any(|b| b == b'\r' || b == b'\n') {
            return Self::Quoting(text.replace(['\r', '\n'], " "));
        }
        Self::Quoting(text)
    }

    /// The reply.
    pub fn reply(&self) -> Reply {
        Reply::Error(match self {
            Self::Text(text) => Cow::Borrowed(text),
            other => Cow::Owned(other.to_string()),
        })
    }
}

/// Refuses a name or a pattern that is too long to be kept for a client, or to be compared with many keys. No key of a session
/// is that long.
pub fn bounded(name: &[u8]) -> Result<(), Refusal> {
    if name.len() > LONGEST_NAME {
        return Err(Refusal::Text("ERR a channel, pattern or prefix may have 1024 bytes at most"));
    }
    Ok(())
}

/// The command does not exist.
pub fn unknown_command(args: &[Bytes]) -> Refusal {
    /// So much of the request is repeated, as in Redis.
    const QUOTED: usize = 128;
    let name = args.first().map(|name| quoted(name, QUOTED)).unwrap_or_default();
    let mut rest = String::new();
    let mut length = 0;
    for arg in args.iter().skip(1) {
        if length >= QUOTED {
            break;
        }
        let arg = &arg[..arg.len().min(QUOTED - length)];
        let arg = &arg[..arg.iter().position(|b| *b == 0).unwrap_or(arg.len())];
        rest.push('\'');
        rest.push_str(&String::from_utf8_lossy(arg));
        rest.push_str("' ");
        length += arg.len() + 3;
    }
    Refusal::quoting(format!("ERR unknown command '{name}', with args beginning with: {rest}"))
}

/// The container `parent` has no such subcommand.
pub fn unknown_subcommand(parent: &str, name: &[u8]) -> Refusal {
    let parent = parent.to_ascii_uppercase();
    Refusal::quoting(format!("ERR unknown subcommand '{}'. Try {parent} HELP.", quoted(name, 128)))
}

/// An argument as it can stand in an error: its beginning, up to a NUL, as C prints it.
pub fn quoted(arg: &[u8], most: usize) -> Cow<'_, str> {
    let arg = &arg[..arg.len().min(most)];
    String::from_utf8_lossy(&arg[..arg.iter().position(|b| *b == 0).unwrap_or(arg.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(args: &[&str]) -> String {
        let args: Vec<Bytes> = args.iter().map(|a| Bytes::copy_from_slice(a.as_bytes())).collect();
        unknown_command(&args).to_string()
    }

    #[test]
    fn unknown_commands_are_quoted_as_redis_quotes_them() {
        assert_eq!(unknown(&["foo"]), "ERR unknown command 'foo', with args beginning with: ");
        assert_eq!(unknown(&["FoO", "a b", "c"]), "ERR unknown command 'FoO', with args beginning with: 'a b' 'c' ");
        let long = "a".repeat(145);
        let quoted = "a".repeat(128);
        let expected = format!("ERR unknown command 'foo', with args beginning with: '{quoted}' ");
        assert_eq!(unknown(&["foo", &long, "b", "c"]), expected);
        // 118 and three characters around it leave room for seven.
        let first = "a".repeat(118);
        let expected = format!("ERR unknown command 'foo', with args beginning with: '{first}' 'bbbbbbb' ");
        assert_eq!(unknown(&["foo", &first, "bbbbbbbbbbb", "c"]), expected);
    }

    #[test]
    fn a_reply_that_is_an_error_stays_on_its_line() {
        assert_eq!(unknown(&["a\r\nb", "c\nd"]), "ERR unknown command 'a  b', with args beginning with: 'c d' ");
        assert_eq!(unknown(&["a\0b", "c\0d"]), "ERR unknown command 'a', with args beginning with: 'c' ");
        let subcommand = unknown_subcommand("client", b"maint_notifications");
        assert_eq!(subcommand.to_string(), "ERR unknown subcommand 'maint_notifications'. Try CLIENT HELP.");
    }
}
