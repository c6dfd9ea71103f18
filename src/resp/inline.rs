//! Requests that people type: words on a line, in quotes where they have spaces.

use bytes::Bytes;

use super::error::ProtocolError;
use super::request::Request;

/// The words that browsers begin lines with, when a web page has them send requests to this address.
const OTHER_PROTOCOLS: [&[u8]; 2] = [b"post", b"host:"];

/// The request of a line, without its end. It may have no words.
pub(super) fn request(line: &[u8], most: usize) -> Result<Request, ProtocolError> {
    // Redis takes the line for a string of C.
    let line = &line[..line.iter().position(|byte| *byte == 0).unwrap_or(line.len())];
    let mut args = Vec::new();
    let mut rest = skip_spaces(line);
    while !rest.is_empty() {
        if args.len() == most {
            return Err(ProtocolError::InlineTooBig);
        }
        let (word, after) = word(rest)?;
        args.push(Bytes::from(word));
        rest = skip_spaces(after);
    }
    if args.first().is_some_and(|name| OTHER_PROTOCOLS.iter().any(|other| name.eq_ignore_ascii_case(other))) {
        return Err(ProtocolError::OtherProtocol);
    }
    Ok(Request { args })
}

/// What C takes for a space.
fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == 0x0b
}

fn skip_spaces(text: &[u8]) -> &[u8] {
    &text[text.iter().position(|byte| !is_space(*byte)).unwrap_or(text.len())..]
}

/// The first word of `text`, and what follows it.
fn word(text: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut word = Vec::new();
    let mut rest = text;
    loop {
        rest = match rest {
            [] | [b' ' | b'\n' | b'\r' | b'\t', ..] => return Ok((word, rest)),
            [b'"', inside @ ..] => return quoted(word, inside),
            [b'\'', inside @ ..] => return single_quoted(word, inside),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
        };
    }
}

/// The rest of a word, from behind its opening quote. The closing one ends the word.
fn quoted(mut word: Vec<u8>, text: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut rest = text;
    loop {
        rest = match rest {
            [b'\\', b'x', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                word.push(hex(*high) << 4 | hex(*low));
                rest
            }
            [b'\\', byte, rest @ ..] => {
                word.push(match byte {
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'b' => 0x08,
                    b'a' => 0x07,
                    other => *other,
                });
                rest
            }
            [b'"', rest @ ..] => return closed(word, rest),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
            [] => return Err(ProtocolError::UnbalancedQuotes),
        };
    }
}

fn single_quoted(mut word: Vec<u8>, text: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    let mut rest = text;
    loop {
        rest = match rest {
            [b'\\', b'\'', rest @ ..] => {
                word.push(b'\'');
                rest
            }
            [b'\'', rest @ ..] => return closed(word, rest),
            [byte, rest @ ..] => {
                word.push(*byte);
                rest
            }
            [] => return Err(ProtocolError::UnbalancedQuotes),
        };
    }
}

/// A closing quote ends the line or is followed by a space.
fn closed(word: Vec<u8>, rest: &[u8]) -> Result<(Vec<u8>, &[u8]), ProtocolError> {
    match rest.first() {
        Some(byte) if !is_space(*byte) => Err(ProtocolError::UnbalancedQuotes),
        _ => Ok((word, rest)),
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit.wrapping_sub(b'A').wrapping_add(10),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Result<Vec<Vec<u8>>, ProtocolError> {
        request(line.as_bytes(), 8).map(|request| request.args.iter().map(|arg| arg.to_vec()).collect())
    }

    fn ok(line: &str, expected: &[&[u8]]) {
        assert_eq!(words(line).unwrap(), expected, "{line}");
    }

    #[test]
    fn words_are_cut_as_redis_cuts_them() {
        ok("PING", &[b"PING"]);
        ok("  set  a\tb \r", &[b"set", b"a", b"b"]);
        ok("", &[]);
        ok(" \t\r", &[]);
        ok(r#"set "a b" 'c d'"#, &[b"set", b"a b", b"c d"]);
        ok(r#"echo "\x41\xfF\n\r\t\b\a\q\"\\""#, &[b"echo", b"A\xff\n\r\t\x08\x07q\"\\"]);
        ok(r#"echo "\xzz""#, &[b"echo", b"xzz"]);
        ok(r"echo 'a\'b\n'", &[b"echo", br"a'b\n"]);
        ok(r#"echo ab"cd""#, &[b"echo", b"abcd"]);
        ok("echo \"\"", &[b"echo", b""]);
        ok("echo a\0b c", &[b"echo", b"a"]);
    }

    #[test]
    fn quotes_are_closed_and_followed_by_a_space() {
        for line in ["echo \"a", "echo 'a", "echo \"a\"b", "echo 'a'b", "echo \"a\\", "echo \"a\0\""] {
            assert_eq!(words(line), Err(ProtocolError::UnbalancedQuotes), "{line}");
        }
    }

    #[test]
    fn the_number_of_words_is_bounded() {
        ok("1 2 3 4 5 6 7 8 ", &[b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8"]);
        assert_eq!(words("1 2 3 4 5 6 7 8 9"), Err(ProtocolError::InlineTooBig));
    }

    #[test]
    fn browsers_get_no_answer() {
        for line in ["POST / HTTP/1.1", "post x", "Host: localhost:6379\r"] {
            let error = words(line).unwrap_err();
            assert_eq!(error, ProtocolError::OtherProtocol);
            assert_eq!(error.reply(), None);
        }
    }
}
