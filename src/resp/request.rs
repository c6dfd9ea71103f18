//! Requests.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::reply::put_line;

/// One request: a command and its arguments.
///
/// The arguments are slices of what was read. Who keeps one for long copies it, or keeps all of that in memory.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The command's name, then the arguments: at least one.
    pub args: Vec<Bytes>,
}

impl Request {
    /// Appends the request as clients send it.
    pub fn encode(&self, out: &mut BytesMut) {
        put_line(out, b'*', self.args.len());
        for arg in &self.args {
            put_line(out, b'$', arg.len());
            out.put_slice(arg);
            out.put_slice(b"\r\n");
        }
    }
}

/// Without the arguments: they hold values of sessions.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Request({} arguments)", self.args.len())
    }
}
