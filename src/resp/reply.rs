//! Replies, and what they look like on the wire.

use std::borrow::Cow;

use bytes::{BufMut, Bytes, BytesMut};

/// Which of the two protocols a connection speaks. All begin with RESP2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// The older one: strings, numbers, errors and arrays.
    #[default]
    Resp2,
    /// The newer one, after `HELLO 3`: maps, sets, and messages that nobody asked for.
    Resp3,
}

/// A reply, or a message that nobody asked for.
///
/// RESP2 lacks some of these; then it is sent what Redis sends it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// A short text: `OK`.
    Simple(Cow<'static, str>),
    /// An error, beginning with its code: `ERR ...`.
    Error(Cow<'static, str>),
    /// A number.
    Int(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Nothing, where there would be bytes.
    Null,
    /// Nothing, where there would be an array.
    NullArray,
    /// A list.
    Array(Vec<Reply>),
    /// Keys and values. RESP2: a list of twice the length.
    Map(Vec<(Reply, Reply)>),
    /// A list without order. RESP2: a list.
    Set(Vec<Reply>),
    /// A message that nobody asked for. RESP2: a list.
    Push(Vec<Reply>),
    /// A number with a fraction. RESP2: its text.
    Double(f64),
    /// Yes or no. RESP2: 1 or 0.
    Bool(bool),
    /// A text for people, with three letters that say how it is written. RESP2: its bytes.
    Verbatim(&'static str, String),
}

impl Reply {
    /// `OK`.
    pub const OK: Self = Self::Simple(Cow::Borrowed("OK"));

    /// Appends the reply to `out`.
    #[inline]
    pub fn encode(&self, protocol: Protocol, out: &mut BytesMut) {
        match self {
            Self::Bulk(bytes) => put_bulk(out, bytes),
            other => other.encode_rarer(protocol, out),
        }
    }

    fn encode_rarer(&self, protocol: Protocol, out: &mut BytesMut) {
        let resp3 = protocol == Protocol::Resp3;
        match self {
            Self::Bulk(bytes) => put_bulk(out, bytes),
            Self::Simple(text) => put_text(out, b'+', text),
            Self::Error(text) => put_text(out, b'-', text),
            Self::Int(number) => put_int(out, *number),
            Self::Null | Self::NullArray if resp3 => out.put_slice(b"_\r\n"),
            Self::Null => out.put_slice(b"$-1\r\n"),
            Self::NullArray => out.put_slice(b"*-1\r\n"),
            Self::Array(items) => put_items(out, b'*', items, protocol),
            Self::Set(items) => put_items(out, if resp3 { b'~' } else { b'*' }, items, protocol),
            Self::Push(items) => put_items(out, if resp3 { b'>' } else { b'*' }, items, protocol),
            Self::Map(pairs) => {
                if resp3 {
                    put_line(out, b'%', pairs.len());
                } else {
                    put_line(out, b'*', pairs.len() * 2);
                }
                for (key, value) in pairs {
                    key.encode(protocol, out);
                    value.encode(protocol, out);
                }
            }
            Self::Double(number) => {
                let text = double(*number);
                if resp3 {
                    put_text(out, b',', &text);
                } else {
                    put_bulk(out, text.as_bytes());
                }
            }
            Self::Bool(yes) => out.put_slice(match (resp3, yes) {
                (true, true) => b"#t\r\n",
                (true, false) => b"#f\r\n",
                (false, true) => b":1\r\n",
                (false, false) => b":0\r\n",
            }),
            Self::Verbatim(format, text) if resp3 => {
                put_line(out, b'=', text.len() + format.len() + 1);
                out.put_slice(format.as_bytes());
                out.put_u8(b':');
                out.put_slice(text.as_bytes());
                out.put_slice(b"\r\n");
            }
            Self::Verbatim(_, text) => put_bulk(out, text.as_bytes()),
        }
    }

    /// About how many bytes of memory it takes, for bounds on what waits.
    pub fn weight(&self) -> usize {
        let inner = match self {
            Self::Simple(Cow::Owned(text)) | Self::Error(Cow::Owned(text)) | Self::Verbatim(_, text) => text.len(),
            Self::Bulk(bytes) => bytes.len(),
            Self::Array(items) | Self::Set(items) | Self::Push(items) => items.iter().map(Self::weight).sum(),
            Self::Map(pairs) => pairs.iter().map(|(key, value)| key.weight() + value.weight()).sum(),
            _ => 0,
        };
        inner + size_of::<Self>()
    }
}

fn put_items(out: &mut BytesMut, kind: u8, items: &[Reply], protocol: Protocol) {
    put_line(out, kind, items.len());
    for item in items {
        item.encode(protocol, out);
    }
}

#[inline]
fn put_bulk(out: &mut BytesMut, bytes: &[u8]) {
    // The length has at most twenty digits.
    out.reserve(bytes.len() + 25);
    put_line(out, b'$', bytes.len());
    out.put_slice(bytes);
    out.put_slice(b"\r\n");
}

/// A text on its line. What could end the line early becomes a space, as in Redis.
fn put_text(out: &mut BytesMut, kind: u8, text: &str) {
    out.reserve(text.len() + 3);
    out.put_u8(kind);
    if text.bytes().any(|byte| byte == b'\r' || byte == b'\n') {
        out.extend(text.bytes().map(|byte| if byte == b'\r' || byte == b'\n' { b' ' } else { byte }));
    } else {
        out.put_slice(text.as_bytes());
    }
    out.put_slice(b"\r\n");
}

fn put_int(out: &mut BytesMut, number: i64) {
    let magnitude = usize::try_from(number.unsigned_abs()).unwrap_or(usize::MAX);
    if number < 0 {
        out.put_u8(b':');
        put_line(out, b'-', magnitude);
    } else {
        put_line(out, b':', magnitude);
    }
}

/// A line with a number: the header of whatever follows.
#[inline]
pub(super) fn put_line(out: &mut BytesMut, kind: u8, number: usize) {
    // From the back: kind, at most twenty digits, the end of the line.
    let mut line = [b'\n'; 23];
    line[21] = b'\r';
    let mut at = 21;
    let mut rest = number;
    loop {
        at -= 1;
        line[at] = digit(rest % 10);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    at -= 1;
    line[at] = kind;
    out.put_slice(&line[at..]);
}

#[inline]
fn digit(number: usize) -> u8 {
    u8::try_from(number).map_or(b'?', |digit| b'0' + digit)
}

/// A number with a fraction as Redis writes it.
fn double(number: f64) -> String {
    if number.is_nan() {
        "nan".to_owned()
    } else if number.is_infinite() {
        if number > 0.0 { "inf".to_owned() } else { "-inf".to_owned() }
    } else if number != 0.0 && !(1e-5..1e17).contains(&number.abs()) {
        let text = format!("{number:e}");
        // Two digits at least, and always a sign.
        let Some((mantissa, exponent)) = text.split_once('e') else { return text };
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        format!("{mantissa}e{sign}{exponent:0>2}")
    } else {
        format!("{number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(reply: &Reply, protocol: Protocol) -> String {
        let mut out = BytesMut::new();
        reply.encode(protocol, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn text(text: &'static str) -> Reply {
        Reply::Bulk(Bytes::from_static(text.as_bytes()))
    }

    #[test]
    fn each_kind_has_its_form_in_both_protocols() {
        let cases = [
            (Reply::OK, "+OK\r\n", "+OK\r\n"),
            (Reply::Error("ERR no".into()), "-ERR no\r\n", "-ERR no\r\n"),
            (Reply::Int(0), ":0\r\n", ":0\r\n"),
            (Reply::Int(-12), ":-12\r\n", ":-12\r\n"),
            (Reply::Int(i64::MIN), ":-9223372036854775808\r\n", ":-9223372036854775808\r\n"),
            (Reply::Int(i64::MAX), ":9223372036854775807\r\n", ":9223372036854775807\r\n"),
            (text(""), "$0\r\n\r\n", "$0\r\n\r\n"),
            (text("0123456789"), "$10\r\n0123456789\r\n", "$10\r\n0123456789\r\n"),
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Array(vec![]), "*0\r\n", "*0\r\n"),
            (Reply::Array(vec![Reply::Int(1), Reply::Null]), "*2\r\n:1\r\n$-1\r\n", "*2\r\n:1\r\n_\r\n"),
            (Reply::Map(vec![(text("a"), Reply::Int(1))]), "*2\r\n$1\r\na\r\n:1\r\n", "%1\r\n$1\r\na\r\n:1\r\n"),
            (Reply::Set(vec![Reply::Int(1)]), "*1\r\n:1\r\n", "~1\r\n:1\r\n"),
            (Reply::Push(vec![Reply::Int(1)]), "*1\r\n:1\r\n", ">1\r\n:1\r\n"),
            (Reply::Double(1.5), "$3\r\n1.5\r\n", ",1.5\r\n"),
            (Reply::Double(3.0), "$1\r\n3\r\n", ",3\r\n"),
            (Reply::Double(f64::NEG_INFINITY), "$4\r\n-inf\r\n", ",-inf\r\n"),
            (Reply::Double(1e300), "$6\r\n1e+300\r\n", ",1e+300\r\n"),
            (Reply::Double(1e-7), "$5\r\n1e-07\r\n", ",1e-07\r\n"),
            (Reply::Bool(true), ":1\r\n", "#t\r\n"),
            (Reply::Bool(false), ":0\r\n", "#f\r\n"),
            (Reply::Verbatim("txt", "a\r\nb".to_owned()), "$4\r\na\r\nb\r\n", "=8\r\ntxt:a\r\nb\r\n"),
        ];
        for (reply, resp2, resp3) in cases {
            assert_eq!(encoded(&reply, Protocol::Resp2), resp2, "{reply:?}");
            assert_eq!(encoded(&reply, Protocol::Resp3), resp3, "{reply:?}");
        }
    }

    #[test]
    fn a_text_stays_on_its_line() {
        let error = Reply::Error("ERR a\r\n+OK\nb".into());
        assert_eq!(encoded(&error, Protocol::Resp2), "-ERR a  +OK b\r\n");
    }

    #[test]
    fn the_longest_number_fits_its_line() {
        let mut out = BytesMut::new();
        put_line(&mut out, b'*', usize::MAX);
        assert_eq!(&out[..], b"*18446744073709551615\r\n");
    }
}
