//! What holds for any requests, however their bytes are cut, and for bytes that are no requests.

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::{Limits, Parser, ProtocolError, Request};

/// A line that has not ended counts from where it begins.
const HEADER: usize = 32;

/// What came out, and the error that ended it.
type Outcome = (Vec<Request>, Option<ProtocolError>);

/// Feeds the pieces one after the other.
fn parse<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, limits: Limits) -> Outcome {
    let mut parser = Parser::new(limits);
    let mut buf = BytesMut::new();
    let mut requests = Vec::new();
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match parser.next(&mut buf) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        // What waits is part of one request.
        assert!(buf.len() <= limits.frame + piece.len() + HEADER);
    }
    (requests, None)
}

/// Cuts `bytes` at the given places, wherever these are.
fn cut<'a>(bytes: &'a [u8], places: &[prop::sample::Index]) -> Vec<&'a [u8]> {
    let mut at: Vec<usize> = places.iter().map(|place| place.index(bytes.len() + 1)).collect();
    at.extend([0, bytes.len()]);
    at.sort_unstable();
    at.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect()
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let arg = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..12),
        1 => prop::collection::vec(prop::sample::select(b"\r\n$*0123456789-".to_vec()), 0..12),
        1 => prop::collection::vec(any::<u8>(), 100..2_000),
    ];
    let request = prop::collection::vec(arg.prop_map(Bytes::from), 1..8).prop_map(|args| Request { args });
    prop::collection::vec(request, 0..8)
}

/// Bytes that get further into the parser than random ones do.
fn nearly_requests() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        prop::sample::select(vec![
            &b"*1\r\n"[..],
            b"*2\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*9999999999999999999\r\n",
            b"$0\r\n\r\n",
            b"$3\r\nGET\r\n",
            b"$-1\r\n",
            b"$1048576\r\n",
            b"$9223372036854775807\r\n",
            b"$007\r\n",
            b"PING\r\n",
            b"set 'a' \"b\\x00\"\n",
            b"\r\n",
            b"\r",
            b"\n",
            b"*",
            b"$",
            b"\"",
        ])
        .prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..40),
    ];
    prop::collection::vec(part, 0..40).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn what_was_encoded_is_parsed(requests in requests(), places in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut bytes = BytesMut::new();
        for request in &requests {
            request.encode(&mut bytes);
        }
        let (parsed, error) = parse(cut(&bytes, &places), Limits::default());
        prop_assert_eq!(error, None);
        prop_assert!(parsed == requests);
    }

    #[test]
    fn cuts_change_nothing(bytes in nearly_requests(), places in prop::collection::vec(any::<prop::sample::Index>(), 0..12)) {
        let whole = parse([&bytes[..]], Limits::default());
        prop_assert!(parse(cut(&bytes, &places), Limits::default()) == whole);
        prop_assert!(parse(bytes.chunks(1), Limits::default()) == whole);
    }

    #[test]
    fn what_waits_is_bounded(bytes in nearly_requests(), frame in 16_usize..200, piece in 1_usize..50) {
        let (requests, _) = parse(bytes.chunks(piece), Limits { frame, args: 4 });
        for request in requests {
            prop_assert!(request.args.len() <= 4);
            prop_assert!(request.args.iter().map(Bytes::len).sum::<usize>() <= frame);
        }
    }
}
