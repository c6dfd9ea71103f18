use super::*;

fn all(limits: Limits, bytes: &[u8]) -> Result<Vec<Vec<Vec<u8>>>, ProtocolError> {
    let mut parser = Parser::new(limits);
    let mut buf = BytesMut::from(bytes);
    let mut requests = Vec::new();
    while let Some(request) = parser.next(&mut buf)? {
        requests.push(request.args.iter().map(|arg| arg.to_vec()).collect());
    }
    Ok(requests)
}

fn error(bytes: &[u8]) -> ProtocolError {
    all(Limits::default(), bytes).unwrap_err()
}

#[test]
fn requests_follow_each_other() {
    let bytes = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nPING\r\n*1\r\n$4\r\nPING\r\n*2\r\n$3\r\nGET";
    let requests = all(Limits::default(), bytes).unwrap();
    let expected: [&[&[u8]]; 3] = [&[b"GET", b"a"], &[b"PING"], &[b"PING"]];
    assert_eq!(requests, expected);
}

#[test]
fn what_is_empty_is_skipped() {
    let bytes = b"*0\r\n\r\n*-1\r\n   \r\n\n*-100\r\nPING\r\n";
    assert_eq!(all(Limits::default(), bytes).unwrap(), [[b"PING"]]);
}

#[test]
fn arguments_may_hold_anything() {
    let bytes = b"*2\r\n$0\r\n\r\n$4\r\n\r\n*\0\r\n";
    let expected: [&[u8]; 2] = [b"", b"\r\n*\0"];
    assert_eq!(all(Limits::default(), bytes).unwrap(), [expected]);
}

#[test]
fn errors_are_those_of_redis() {
    assert_eq!(error(b"*x\r\n"), ProtocolError::InvalidCount);
    assert_eq!(error(b"*01\r\n"), ProtocolError::InvalidCount);
    assert_eq!(error(b"*+1\r\n"), ProtocolError::InvalidCount);
    assert_eq!(error(b"*9223372036854775808\r\n"), ProtocolError::InvalidCount);
    assert_eq!(error(b"*1025\r\n"), ProtocolError::InvalidCount);
    assert_eq!(error(b"*1\r\n$-1\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n$9223372036854775808\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n$9223372036854775807\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n$18446744073709551615\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n$1048577\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n$\r\n"), ProtocolError::InvalidLength);
    assert_eq!(error(b"*1\r\n*1\r\n"), ProtocolError::ExpectedBulk(b'*'));
    assert_eq!(error(b"*1\r\n\r\n"), ProtocolError::ExpectedBulk(b'\r'));
    assert_eq!(error(b"a \"\r\n"), ProtocolError::UnbalancedQuotes);
}

#[test]
fn lines_that_do_not_end_are_none() {
    let endless = |head: &[u8], fill: u8| [head, &vec![fill; LONGEST_LINE + 1]].concat();
    assert_eq!(error(&endless(b"", b'a')), ProtocolError::InlineTooBig);
    assert_eq!(error(&[&endless(b"", b'a')[..], b"\n"].concat()), ProtocolError::InlineTooBig);
    assert_eq!(error(&endless(b"*", b'1')), ProtocolError::CountTooBig);
    assert_eq!(error(&endless(b"*1\r\n$", b'1')), ProtocolError::LengthTooBig);
}

#[test]
fn a_request_is_bounded_as_a_whole() {
    let limits = Limits { frame: 64, args: 4 };
    let head = b"*2\r\n$20\r\n01234567890123456789\r\n$";
    let most = 64 - head.len() - 4 - 2;
    let request = |length: usize| [head, format!("{length}\r\n{}\r\n", "x".repeat(length)).as_bytes()].concat();
    assert_eq!(request(most).len(), 64);
    assert_eq!(all(limits, &request(most)).unwrap().len(), 1);
    // Refused when it is announced, not when it has come.
    let announced = &request(most + 1)[..head.len() + 4];
    assert_eq!(all(limits, announced), Err(ProtocolError::InvalidLength));
    assert_eq!(all(limits, b"*5\r\n"), Err(ProtocolError::InvalidCount));
    assert_eq!(all(limits, &[b'x'; 65]), Err(ProtocolError::InlineTooBig));
}

#[test]
fn who_has_not_given_the_password_gets_less() {
    let parse = |bytes: &[u8]| {
        let mut parser = Parser::new(Limits::default());
        parser.set_trusted(false);
        parser.next(&mut BytesMut::from(bytes)).map(|request| request.is_some())
    };
    assert_eq!(parse(b"*10\r\n"), Ok(false));
    assert_eq!(parse(b"*11\r\n"), Err(ProtocolError::UnauthenticatedCount));
    assert_eq!(parse(b"*1\r\n$16384\r\n"), Ok(false));
    assert_eq!(parse(b"*1\r\n$16385\r\n"), Err(ProtocolError::UnauthenticatedLength));
    assert_eq!(parse(b"*1\r\n$4\r\nPING\r\n"), Ok(true));
}

#[test]
fn texts_are_those_of_redis() {
    let shown = |error: ProtocolError| match error.reply() {
        Some(crate::resp::Reply::Error(text)) => text.into_owned(),
        other => panic!("{other:?}"),
    };
    assert_eq!(shown(ProtocolError::ExpectedBulk(b'*')), "ERR Protocol error: expected '$', got '*'");
    assert_eq!(shown(ProtocolError::ExpectedBulk(b'\r')), "ERR Protocol error: expected '$', got ' '");
    assert_eq!(shown(ProtocolError::ExpectedBulk(0xff)), "ERR Protocol error: expected '$', got '\\xff'");
    assert_eq!(shown(ProtocolError::InvalidLength), "ERR Protocol error: invalid bulk length");
}

#[test]
fn what_comes_byte_by_byte_is_looked_at_once() {
    // A line of the greatest length and a large argument. Looking at everything again for each byte, this would not end.
    let mut parser = Parser::new(Limits::default());
    let mut buf = BytesMut::new();
    let line = [&b"*1\r\n$"[..], &vec![b'0'; LONGEST_LINE - 1]].concat();
    for byte in &line {
        buf.extend_from_slice(&[*byte]);
        assert_eq!(parser.next(&mut buf), Ok(None));
    }
    assert!(parser.searched + 1 >= buf.len());
    let mut parser = Parser::new(Limits::default());
    let mut buf = BytesMut::from(&b"*1\r\n$1000000\r\n"[..]);
    for _ in 0..1_000_001 {
        buf.extend_from_slice(b"x");
        assert_eq!(parser.next(&mut buf), Ok(None));
    }
    buf.extend_from_slice(b"x");
    assert_eq!(parser.next(&mut buf).unwrap().unwrap().args[0].len(), 1_000_000);
}
