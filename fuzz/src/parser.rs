//! Requests out of any bytes.

use bytes::BytesMut;
use vmcp_session::resp::{Limits, Parser, ProtocolError, Request};

/// Small, so that inputs reach the bounds.
const SMALL: Limits = Limits { frame: 256, args: 8 };
/// A line that has not ended may be as long as this before it is refused, or as a frame if that is shorter.
const LONGEST_LINE: usize = 64 * 1024;

type Outcome = (Vec<Request>, Option<ProtocolError>);

fn parse<'a>(pieces: impl Iterator<Item = &'a [u8]>, limits: Limits, trusted: bool) -> Outcome {
    let mut parser = Parser::new(limits);
    parser.set_trusted(trusted);
    let mut buf = BytesMut::new();
    let mut requests = Vec::new();
    let most = limits.frame + limits.frame.min(LONGEST_LINE);
    for piece in pieces {
        buf.extend_from_slice(piece);
        loop {
            match parser.next(&mut buf) {
                Ok(Some(request)) => requests.push(request),
                Ok(None) => break,
                Err(error) => return (requests, Some(error)),
            }
        }
        assert!(buf.len() <= most + piece.len(), "more waits than one request and a line");
    }
    (requests, None)
}

/// The parser does not panic, keeps its bounds, and finds the same in the same bytes however they are cut. What it found is
/// found again when it is sent as clients send it.
pub fn check(data: &[u8]) {
    // The first byte says how to cut.
    let Some((piece, data)) = data.split_first() else { return };
    let piece = usize::from(*piece).max(1);
    for limits in [SMALL, Limits::default()] {
        for trusted in [true, false] {
            let whole = parse(std::iter::once(data), limits, trusted);
            assert!(parse(data.chunks(piece), limits, trusted) == whole, "cuts changed what was found");
            assert!(parse(data.chunks(1), limits, trusted) == whole, "cuts changed what was found");
            for request in &whole.0 {
                assert!((1..=limits.args).contains(&request.args.len()));
                assert!(request.args.iter().map(bytes::Bytes::len).sum::<usize>() <= limits.frame);
            }
        }
    }
    let (requests, _) = parse(std::iter::once(data), SMALL, true);
    let mut bytes = BytesMut::new();
    for request in &requests {
        request.encode(&mut bytes);
    }
    let (again, error) = parse(std::iter::once(&bytes[..]), Limits::default(), true);
    assert!(error.is_none() && again == requests, "what was encoded was not found again");
}
