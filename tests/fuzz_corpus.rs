//! What the fuzz targets check (fuzz/), for their corpus: that needs no fuzzer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

use std::fs;
use std::path::Path;

#[path = "../fuzz/src/api.rs"]
mod api;
#[path = "../fuzz/src/dispatcher.rs"]
mod dispatcher;
#[path = "../fuzz/src/parser.rs"]
mod parser;
#[path = "../fuzz/src/well_formed.rs"]
mod well_formed;

/// Calls `check` with each file of a corpus. A failure shows the file's name.
fn replay(corpus: &str, check: impl Fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(corpus);
    let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} has no corpus", folder.display());
    for file in files {
        println!("{}", file.display());
        check(&fs::read(&file).unwrap());
    }
}

#[test]
fn the_parser_stands_its_corpus() {
    replay("parser", parser::check);
}

#[test]
fn the_dispatcher_stands_its_corpus() {
    replay("dispatcher", dispatcher::check);
}

/// An input finds what there is, and not what the one before it has made of that.
#[test]
fn the_dispatcher_has_sessions() {
    let answers = |lines: &[&str]| dispatcher::answers(lines.join("\r\n").as_bytes());
    let read = "HGET s:1 n\r\nEXISTS s:1 s:2 s:3\r\nTTL s:2\r\nHSET s:failing a 2\r\n";
    let before = String::from_utf8(answers(&[read]).to_vec()).unwrap();
    assert!(before.starts_with("$1\r\n7\r\n:2\r\n:-1\r\n-TRYAGAIN "), "{before}");
    let changed = answers(&["HINCRBY s:1 n 1", "HDEL s:1 a text n", "SETNX s:3 {}", "EXPIRE s:2 60", ""]);
    assert_eq!(*changed, *b":8\r\n:3\r\n:1\r\n:1\r\n");
    assert_eq!(answers(&[read]), before);
}

#[test]
fn what_is_no_reply_is_seen() {
    use vmcp_session::resp::Protocol::{Resp2, Resp3};
    let is_reply =
        |bytes: &'static [u8], protocol| std::panic::catch_unwind(|| well_formed::replies(bytes, protocol)).ok();
    assert_eq!(is_reply(b"+OK\r\n:1\r\n$1\r\na\r\n*2\r\n$-1\r\n*-1\r\n", Resp2), Some(4));
    assert_eq!(is_reply(b"%1\r\n+a\r\n_\r\n#t\r\n,1.5\r\n=5\r\ntxt:a\r\n>1\r\n~0\r\n", Resp3), Some(5));
    for bad in
        [&b"+a\nb\r\n"[..], b"OK\r\n", b"$2\r\na\r\n", b":01\r\n", b"*2\r\n:1\r\n", b"%0\r\n", b"$-2\r\n", b"+OK"]
    {
        assert_eq!(is_reply(bad, Resp2), None, "{bad:?}");
    }
    assert_eq!(is_reply(b"$-1\r\n", Resp3), None);
}
