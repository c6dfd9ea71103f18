//! What is said, and in which order.

use super::*;

#[tokio::test]
async fn replies_come_in_the_order_of_requests() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("ECHO a\r\n*2\r\n$4\r\nECHO\r\n$1\r\nb\r\nSILENT\r\nMANY 3\r\nECHO c\r\n").await;
    visitor.hears("$1\r\na\r\n$1\r\nb\r\n$1\r\n0\r\n$1\r\n1\r\n$1\r\n2\r\n$1\r\nc\r\n").await;
}

#[tokio::test]
async fn requests_may_come_byte_by_byte() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    for byte in b"*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n*1\r\n$2\r\nID\r\n" {
        visitor.says([*byte]).await;
    }
    visitor.hears("$3\r\na\r\n\r\n:1\r\n").await;
}

#[tokio::test]
async fn large_requests_and_replies_pass() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    let large = "x".repeat(1_000_000);
    let request = format!("*2\r\n$4\r\nECHO\r\n$1000000\r\n{large}\r\n").repeat(3);
    let (mut reading, mut writing) = visitor.stream.split();
    let expected = format!("$1000000\r\n{large}\r\n").repeat(3);
    let mut heard = vec![0; expected.len()];
    let (wrote, read) =
        soon(async { tokio::join!(writing.write_all(request.as_bytes()), reading.read_exact(&mut heard)) }).await;
    wrote.unwrap();
    read.unwrap();
    assert!(heard == expected.as_bytes());
    // Nothing stays.
    let handle = place.clients.get(ClientId(1)).unwrap();
    assert_eq!(handle.output_bytes(), 0);
}

#[tokio::test]
async fn the_reply_before_a_slow_request_does_not_wait_for_it_and_the_one_after_it_does() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("ECHO a\r\nWAIT\r\nECHO b\r\n").await;
    visitor.hears("$1\r\na\r\n").await;
    place.until_waiting(1).await;
    assert_eq!(place.desk.executed.load(Ordering::SeqCst), 2);
    place.desk.permits.add_permits(1);
    visitor.hears("+waited\r\n$1\r\nb\r\n").await;
}

#[tokio::test]
async fn a_slow_request_holds_nobody_else_up() {
    let place = Place::open(unlimited());
    let mut slow = place.enter().await;
    slow.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    assert_eq!(place.enter().await.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn messages_come_to_those_who_wait() {
    let place = Place::open(unlimited());
    let (mut visitor, handle) = place.enter_known().await;
    assert!(handle.mailbox().push(Reply::Push(vec![bulk("a")])));
    visitor.hears("*1\r\n$1\r\na\r\n").await;
    assert_eq!(visitor.asks("HELLO\r\n").await, "_\r\n");
    assert!(handle.mailbox().push(Reply::Push(vec![bulk("b")])));
    assert!(handle.mailbox().invalidate(Reply::Push(vec![bulk("c")])));
    visitor.hears(">1\r\n$1\r\nb\r\n>1\r\n$1\r\nc\r\n").await;
    assert_eq!(handle.mailbox().bytes(), 0);
}

#[tokio::test]
async fn a_message_of_a_request_follows_its_reply() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("TELL\r\nECHO a\r\n").await;
    visitor.hears("+OK\r\n*1\r\n$4\r\ntold\r\n$1\r\na\r\n").await;
}

#[tokio::test]
async fn what_was_told_comes_before_the_answer_that_ends_it_and_as_it_was_understood_then() {
    let place = Place::open(unlimited());
    place.desk.listeners.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut visitor = place.enter().await;
    visitor.says("HELLO\r\nLEAVE\r\nECHO a\r\n").await;
    visitor.hears("_\r\n>1\r\n$4\r\ntold\r\n+OK\r\n$1\r\na\r\n").await;
}

#[tokio::test]
async fn an_invalidation_does_not_wait_for_a_slow_request_and_is_repeated_after_it() {
    let place = Place::open(unlimited());
    let (mut visitor, handle) = place.enter_known().await;
    assert_eq!(visitor.asks("HELLO\r\n").await, "_\r\n");
    visitor.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    // What the slow request has read by now may be what is invalidated here.
    handle.mailbox().push(Reply::Push(vec![bulk("event")]));
    handle.mailbox().invalidate(Reply::Push(vec![bulk("a")]));
    visitor.hears(">1\r\n$1\r\na\r\n").await;
    handle.mailbox().invalidate(Reply::Push(vec![bulk("b")]));
    visitor.hears(">1\r\n$1\r\nb\r\n").await;
    place.desk.permits.add_permits(1);
    visitor.hears("+waited\r\n>1\r\n$5\r\nevent\r\n>1\r\n$1\r\na\r\n>1\r\n$1\r\nb\r\n").await;
    assert_eq!(visitor.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn an_invalidation_that_comes_too_late_is_not_taken_for_an_answer() {
    let place = Place::open(unlimited());
    // It speaks RESP2, and listens to nothing: whoever sends this has seen it before that.
    let (mut visitor, handle) = place.enter_known().await;
    assert!(handle.mailbox().invalidate(Reply::Push(vec![bulk("late")])));
    assert_eq!(visitor.asks("ECHO a\r\n").await, "$1\r\n");
    visitor.hears("a\r\n").await;
    // Nor while a request is carried out.
    visitor.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    assert!(handle.mailbox().invalidate(Reply::Push(vec![bulk("late")])));
    place.desk.permits.add_permits(1);
    visitor.hears("+waited\r\n").await;
    assert_eq!(visitor.asks("ECHO b\r\n").await, "$1\r\n");
    assert_eq!(handle.mailbox().bytes(), 0);
}

#[tokio::test(flavor = "current_thread")]
async fn requests_that_come_together_let_others_go_first() {
    let place = Place::open(unlimited());
    let (mut many, mut one) = (place.enter().await, place.enter().await);
    many.says(&"WORK\r\n".repeat(100)).await;
    until(|| place.desk.executed.load(std::sync::atomic::Ordering::SeqCst) > 0).await;
    assert_eq!(one.asks("ECHO a\r\n").await, "$1\r\n");
    assert!(place.desk.executed.load(std::sync::atomic::Ordering::SeqCst) < 100, "it held the worker all the time");
}

#[tokio::test]
async fn what_is_known_of_a_connection_is_true() {
    let place = Place::open(unlimited());
    let (visitor, handle) = place.enter_known().await;
    assert_eq!(handle.address().to_string(), visitor.stream.local_addr().unwrap().to_string());
    assert_eq!(handle.local_address().to_string(), place.address.to_string());
    assert!(!handle.is_unix());
    assert_eq!(place.clients.len(), 1);
    let totals = place.clients.totals();
    assert_eq!((totals.accepted, totals.refused, totals.bytes_read), (1, 0, 4));
    until(|| place.clients.totals().bytes_written == 4).await;
    drop(visitor);
    place.until_empty().await;
    assert!(place.clients.get(handle.id()).is_none());
}
