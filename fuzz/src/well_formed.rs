//! Whether bytes are replies, read as strictly as they can be.

use vmcp_session::resp::Protocol;

/// Deepest nesting of a reply.
const DEEPEST: usize = 32;

/// How many replies `bytes` are, without and with those that nobody asked for. Panics if they are none.
pub fn replies(mut bytes: &[u8], protocol: Protocol) -> usize {
    let mut count = 0;
    while !bytes.is_empty() {
        bytes = reply(bytes, protocol, 0);
        count += 1;
    }
    count
}

fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\r' || *byte == b'\n').expect("a line ends");
    assert_eq!(bytes.get(end..end + 2), Some(&b"\r\n"[..]), "a line ends with both");
    (&bytes[..end], &bytes[end + 2..])
}

fn number(text: &[u8]) -> i64 {
    let text = std::str::from_utf8(text).expect("a number is text");
    let number: i64 = text.parse().expect("a number");
    assert_eq!(number.to_string(), text, "a number has one spelling");
    number
}

/// What follows the reply at the beginning of `bytes`.
fn reply(bytes: &[u8], protocol: Protocol, depth: usize) -> &[u8] {
    assert!(depth <= DEEPEST, "nested too deeply");
    let resp3 = protocol == Protocol::Resp3;
    let (head, mut rest) = line(bytes);
    let (kind, text) = head.split_first().expect("a reply has a kind");
    match kind {
        b'+' | b'-' => {}
        b':' => drop(number(text)),
        b'_' => assert!(resp3 && text.is_empty()),
        b'#' => assert!(resp3 && matches!(text, b"t" | b"f")),
        b',' => assert!(resp3 && std::str::from_utf8(text).is_ok_and(|text| text.parse::<f64>().is_ok())),
        b'$' | b'=' => {
            let length = number(text);
            assert!(*kind == b'$' || resp3);
            if length < 0 {
                assert!(length == -1 && !resp3);
                return rest;
            }
            let length = usize::try_from(length).expect("a length");
            assert_eq!(rest.get(length..length + 2), Some(&b"\r\n"[..]), "a text has the length it says");
            rest = &rest[length + 2..];
        }
        b'*' | b'~' | b'>' | b'%' => {
            let length = number(text);
            assert!(*kind == b'*' || resp3);
            if length < 0 {
                assert!(length == -1 && !resp3);
                return rest;
            }
            for _ in 0..if *kind == b'%' { length * 2 } else { length } {
                rest = reply(rest, protocol, depth + 1);
            }
        }
        other => panic!("no reply begins with {other}"),
    }
    rest
}
