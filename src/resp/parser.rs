//! Requests out of bytes, however these were cut.

use bytes::{Buf, BytesMut};

use super::error::ProtocolError;
use super::inline;
use super::request::Request;

/// A line that has not ended after so many bytes is none, as in Redis.
pub(super) const LONGEST_LINE: usize = 64 * 1024;
/// What Redis takes from one who has not given the password: so many arguments, of so many bytes.
const UNAUTHENTICATED_ARGS: usize = 10;
const UNAUTHENTICATED_BULK: usize = 16 * 1024;
/// Lengths of that many digits are read on the fast path. They cannot overflow.
const FEW_DIGITS: usize = 8;

/// What a request may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one request, all in all.
    pub frame: usize,
    /// Arguments of one request, the command's name among them.
    pub args: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frame: 1 << 20, args: 1_024 }
    }
}

/// Takes requests out of a buffer.
///
/// Each byte is looked at once, however often the parser is asked: it remembers where it is in the request that stands at
/// the beginning of the buffer. So the caller only ever appends to the buffer, and goes on with the same one.
#[derive(Debug)]
pub struct Parser {
    limits: Limits,
    /// A line that has not ended after so many bytes is none.
    longest_line: usize,
    /// Whether the peer has given the password, or needs none.
    trusted: bool,
    /// Up to here the request is understood.
    at: usize,
    /// Up to here there is no end of the line that begins at `at`.
    searched: usize,
    /// How many arguments the request has; 0 while that is not known.
    count: usize,
    /// The length of the argument that begins at `at`, when it is known.
    bulk: Option<usize>,
    /// Where the arguments stand. Kept from request to request.
    args: Vec<(usize, usize)>,
}

/// A line with a length.
enum Line {
    /// It has not ended yet.
    Partial,
    /// The number, and where the next line begins.
    Number(i64, usize),
    /// No number.
    Invalid,
    /// It does not end.
    Endless,
}

impl Parser {
    /// A parser of one connection's requests.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            longest_line: LONGEST_LINE.min(limits.frame),
            trusted: true,
            at: 0,
            searched: 0,
            count: 0,
            bulk: None,
            args: Vec::new(),
        }
    }

    /// Whether the peer has given the password, or needs none. Who has not gets tighter limits.
    pub fn set_trusted(&mut self, trusted: bool) {
        self.trusted = trusted;
    }

    /// The next request, if all of it is there. After an error there is none any more.
    ///
    /// Its bytes leave `buf`, and so do empty requests, which have no answer.
    #[inline]
    pub fn next(&mut self, buf: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        loop {
            if self.count == 0 {
                match buf.first() {
                    None => return Ok(None),
                    Some(b'*') => {
                        if !self.begin(buf)? {
                            return Ok(None);
                        }
                        if self.count == 0 {
                            continue;
                        }
                    }
                    Some(_) => match self.line(buf)? {
                        Some(request) if request.args.is_empty() => continue,
                        request => return Ok(request),
                    },
                }
            }
            if !self.arguments(buf)? {
                return Ok(None);
            }
            return Ok(Some(self.take(buf)));
        }
    }

    /// Reads how many arguments follow. False: the line has not ended yet.
    #[inline]
    fn begin(&mut self, buf: &mut BytesMut) -> Result<bool, ProtocolError> {
        let (count, end) = match length(buf, 1, &mut self.searched, self.longest_line) {
            Line::Partial => return Ok(false),
            Line::Number(count, end) => (count, end),
            Line::Invalid => return Err(ProtocolError::InvalidCount),
            Line::Endless => return Err(ProtocolError::CountTooBig),
        };
        self.searched = 0;
        // A request of no arguments, or fewer, is none.
        let Some(count) = usize::try_from(count).ok().filter(|count| *count > 0) else {
            buf.advance(end);
            return Ok(true);
        };
        if count > self.limits.args {
            return Err(ProtocolError::InvalidCount);
        }
        if !self.trusted && count > UNAUTHENTICATED_ARGS {
            return Err(ProtocolError::UnauthenticatedCount);
        }
        self.count = count;
        self.at = end;
        Ok(true)
    }

    /// Reads the arguments that are there. False: there are more to come.
    #[inline]
    fn arguments(&mut self, buf: &BytesMut) -> Result<bool, ProtocolError> {
        let bytes: &[u8] = buf;
        while self.args.len() < self.count {
            let length = match self.bulk {
                Some(length) => length,
                None => match self.bulk_length(bytes)? {
                    Some(length) => length,
                    None => return Ok(false),
                },
            };
            // What follows the bytes is taken for the end of a line without a look, as in Redis.
            let end = self.at + length;
            if bytes.len() < end + 2 {
                self.bulk = Some(length);
                return Ok(false);
            }
            self.bulk = None;
            self.args.push((self.at, end));
            self.at = end + 2;
        }
        Ok(true)
    }

    /// Reads the length of the next argument; `None`: its line has not ended yet.
    #[inline]
    fn bulk_length(&mut self, bytes: &[u8]) -> Result<Option<usize>, ProtocolError> {
        // As in Redis: first the line has to end, then it is looked at.
        let (number, end) = match length(bytes, self.at + 1, &mut self.searched, self.longest_line) {
            Line::Partial => return Ok(None),
            Line::Endless => return Err(ProtocolError::LengthTooBig),
            Line::Number(number, end) => (Some(number), end),
            Line::Invalid => (None, 0),
        };
        self.searched = 0;
        match bytes.get(self.at) {
            Some(b'$') => {}
            other => return Err(ProtocolError::ExpectedBulk(other.copied().unwrap_or_default())),
        }
        let length = number.and_then(|number| usize::try_from(number).ok()).ok_or(ProtocolError::InvalidLength)?;
        let left = self.limits.frame.saturating_sub(end + 2);
        if length > left {
            return Err(ProtocolError::InvalidLength);
        }
        if !self.trusted && length > UNAUTHENTICATED_BULK {
            return Err(ProtocolError::UnauthenticatedLength);
        }
        self.at = end;
        Ok(Some(length))
    }

    /// Takes the request that is complete.
    #[inline]
    fn take(&mut self, buf: &mut BytesMut) -> Request {
        let frame = buf.split_to(self.at).freeze();
        let args = self.args.iter().map(|(from, to)| frame.slice(*from..*to)).collect();
        self.args.clear();
        self.count = 0;
        self.at = 0;
        Request { args }
    }

    /// A request on a line of its own, as people type it.
    #[cold]
    fn line(&mut self, buf: &mut BytesMut) -> Result<Option<Request>, ProtocolError> {
        let Some(end) = buf[self.searched..].iter().position(|byte| *byte == b'\n').map(|at| self.searched + at) else {
            if buf.len() > self.longest_line {
                return Err(ProtocolError::InlineTooBig);
            }
            self.searched = buf.len();
            return Ok(None);
        };
        self.searched = 0;
        if end > self.longest_line {
            return Err(ProtocolError::InlineTooBig);
        }
        let line = buf.split_to(end + 1).freeze();
        inline::request(&line[..end], self.limits.args).map(Some)
    }
}

/// Reads the number from `from` to the end of its line. `searched` remembers where there is no end of it.
#[inline]
fn length(bytes: &[u8], from: usize, searched: &mut usize, longest: usize) -> Line {
    let rest = bytes.get(from..).unwrap_or_default();
    let mut number = 0_i64;
    let mut digits = 0;
    while digits < FEW_DIGITS {
        match rest.get(digits) {
            Some(byte @ b'0'..=b'9') => number = number * 10 + i64::from(byte - b'0'),
            _ => break,
        }
        digits += 1;
    }
    let plain = digits == 1 || (digits > 1 && rest[0] != b'0');
    if plain && matches!(rest.get(digits..digits + 2), Some([b'\r', _])) {
        return Line::Number(number, from + digits + 2);
    }
    unusual_length(bytes, from, searched, longest)
}

/// The same for everything else: what has not come yet, what is negative, long, or no number at all.
#[cold]
fn unusual_length(bytes: &[u8], from: usize, searched: &mut usize, longest: usize) -> Line {
    // From the byte before the number: there may not even be the sign that a length follows.
    let start = (from - 1).max(*searched);
    let found = bytes.get(start..).unwrap_or_default().iter().position(|byte| *byte == b'\r');
    let Some(end) = found.map(|at| start + at) else {
        if bytes.len() > from + longest {
            return Line::Endless;
        }
        *searched = bytes.len();
        return Line::Partial;
    };
    if end > from + longest {
        return Line::Endless;
    }
    if bytes.len() < end + 2 {
        *searched = end;
        return Line::Partial;
    }
    bytes.get(from..end).and_then(number).map_or(Line::Invalid, |number| Line::Number(number, end + 2))
}

/// A number as Redis writes it, and no other spelling of it.
fn number(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] if !negative => return Some(0),
        [b'1'..=b'9', ..] => {}
        _ => return None,
    }
    let value = digits.iter().try_fold(0_i64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| i64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_sub(digit)
    })?;
    if negative { Some(value) } else { value.checked_neg() }
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
