//! What a connection may take, and that nobody else notices when one takes more.

use super::*;
use crate::agent::server::Ended;
use crate::agent::server::handle::Phase;

/// What waits for a client at most when it does not read: one batch, the reply that made it full, and a little.
const WAITS: usize = 512 * 1024;

#[tokio::test]
async fn who_does_not_read_is_not_served_on_and_is_cut_off() {
    let place = Place::open(Limits { stalled: Duration::from_millis(500), ..unlimited() });
    let (mut visitor, handle) = place.enter_known().await;
    // More than the system takes for somebody who does not read. The server stops to read long before it is written.
    let request = "BIG 100000\r\n".repeat(10_000);
    let mut most = 0;
    let (_, mut writing) = visitor.stream.split();
    tokio::select! {
        _ = writing.write_all(request.as_bytes()) => {}
        () = until(|| place.clients.is_empty()) => {}
        () = until(|| { most = most.max(handle.output_bytes()); false }) => {}
    }
    place.until_empty().await;
    assert!(most <= WAITS, "{most} bytes waited");
    assert!(place.desk.executed.load(Ordering::SeqCst) < 1_000);
    assert_eq!(place.clients.totals().ended_stalled, 1);
    assert_eq!(place.enter().await.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn who_reads_slowly_gets_everything() {
    let place = Place::open(unlimited());
    let (mut visitor, _) = place.enter_known().await;
    visitor.says("BIG 1000000\r\n".repeat(40)).await;
    place.until_nobody_moves().await;
    let expected = format!("$1000000\r\n{}\r\n", "x".repeat(1_000_000));
    for _ in 0..40 {
        visitor.hears(&expected).await;
    }
}

#[tokio::test]
async fn messages_that_nobody_reads_end_the_connection_and_their_memory_goes_with_it() {
    let place = Place::open(Limits { output: 1 << 20, ..unlimited() });
    let (_deaf, handle) = place.enter_known().await;
    let (mut other, other_handle) = place.enter_known().await;
    let mut told = 0;
    while handle.mailbox().push(Reply::Push(vec![bulk([b'x'; 1_000])])) {
        assert!(other_handle.mailbox().push(Reply::Push(vec![bulk(told.to_string())])));
        let length = told.to_string().len();
        other.hears(&format!("*1\r\n${length}\r\n{told}\r\n")).await;
        told += 1;
    }
    until(|| place.clients.get(handle.id()).is_none()).await;
    assert_eq!(handle.mailbox().bytes(), 0);
    assert_eq!(place.clients.totals().ended_output, 1);
    assert!(!handle.mailbox().push(Reply::OK));
    assert_eq!(other.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn invalidations_that_nobody_reads_while_something_runs_take_no_more_than_replies_and_come_in_full() {
    let place = Place::open(unlimited());
    let (mut visitor, handle) = place.enter_known().await;
    assert_eq!(visitor.asks("HELLO\r\n").await, "_\r\n");
    visitor.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    // More than the system takes for somebody who does not read.
    for _ in 0..1_000 {
        assert!(handle.mailbox().invalidate(Reply::Push(vec![bulk([b'x'; 20_000])])));
    }
    let batch = 64 * 1024;
    let mut most = 0;
    until(|| {
        most = most.max(handle.buffers());
        most >= batch
    })
    .await;
    // It is in the account, and there is no more of it.
    let message = format!(">1\r\n$20000\r\n{}\r\n", "x".repeat(20_000));
    for _ in 0..1_000 {
        visitor.hears(&message).await;
        most = most.max(handle.buffers());
    }
    assert!(most <= 4 * batch, "{most} bytes");
    place.desk.permits.add_permits(1);
    visitor.hears("+waited\r\n").await;
    for _ in 0..1_000 {
        visitor.hears(&message).await;
    }
}

#[tokio::test]
async fn a_reply_larger_than_all_that_may_wait_ends_the_connection() {
    let place = Place::open(Limits { output: 100_000, ..unlimited() });
    let mut visitor = place.enter().await;
    visitor.says("BIG 90000\r\n").await;
    visitor.hears(&format!("$90000\r\n{}\r\n", "x".repeat(90_000))).await;
    visitor.says("BIG 100001\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "");
    place.until_empty().await;
    assert_eq!(place.clients.totals().ended_output, 1);
}

#[tokio::test]
async fn half_a_request_is_cut_off_however_slowly_it_goes_on() {
    let place = Place::open(Limits { half_request: Duration::from_millis(300), ..unlimited() });
    let (mut whole, _) = place.enter_known().await;
    let mut visitor = place.enter().await;
    visitor.says("*2\r\n$4\r\nECHO\r\n$1000000\r\n").await;
    let (mut reading, mut writing) = visitor.stream.split();
    let trickle = async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        loop {
            tick.tick().await;
            if writing.write_all(b"x").await.is_err() {
                return std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        () = trickle => {}
        read = soon(reading.read_u8()) => assert!(read.is_err()),
    }
    until(|| place.clients.totals().ended_half_request == 1).await;
    // It is about the request, not about the connection.
    assert_eq!(whole.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn the_idle_are_cut_off_but_not_those_who_listen_or_wait() {
    let place = Place::open(Limits { idle: Duration::from_millis(300), ..unlimited() });
    place.desk.listeners.store(true, Ordering::SeqCst);
    let (mut listener, _) = place.enter_known().await;
    let (mut waiting, handle) = place.enter_known().await;
    waiting.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    until(|| handle.phase().0 == Phase::Busy).await;
    handle.set_subscriptions(0, 0);
    place.desk.listeners.store(false, Ordering::SeqCst);
    let mut idle = place.enter().await;
    assert_eq!(idle.hears_the_end().await, "");
    assert_eq!(place.clients.totals().ended_idle, 1);
    // The others came before it.
    assert_eq!(listener.asks("ECHO a\r\n").await, "$1\r\n");
    place.desk.permits.add_permits(1);
    waiting.hears("+waited\r\n").await;
}

#[tokio::test]
async fn one_too_many_is_told_so_and_takes_nobody_elses_place() {
    let place = Place::open_for(unlimited(), 2, false);
    let (mut first, _) = place.enter_known().await;
    let (second, _) = place.enter_known().await;
    let mut third = place.enter().await;
    assert_eq!(third.hears_the_end().await, "-ERR max number of clients reached\r\n");
    assert_eq!(place.clients.totals().refused, 1);
    assert_eq!(first.asks("ECHO a\r\n").await, "$1\r\n");
    drop(second);
    until(|| place.clients.len() == 1).await;
    assert_eq!(place.enter().await.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn who_has_not_given_the_password_may_send_less() {
    let place = Place::open_for(unlimited(), 10, true);
    let mut visitor = place.enter().await;
    visitor.says("*11\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "-ERR Protocol error: unauthenticated multibulk length\r\n");
    // In one piece: the second request is read after the first was carried out.
    let mut visitor = place.enter().await;
    let long = "x".repeat(20_000);
    visitor.says(format!("AUTH\r\n*2\r\n$4\r\nECHO\r\n$20000\r\n{long}\r\n")).await;
    visitor.hears(&format!("+OK\r\n$20000\r\n{long}\r\n")).await;
}

/// Some have large requests half sent, and one has answers that it does not read. Who has little is not among those who go.
#[tokio::test]
async fn who_takes_the_most_goes_when_all_take_too_much() {
    const MEMORY: usize = 4 << 20;
    let room = Room { clients: 100, output: 32 << 20, memory: MEMORY };
    let place = Place::open_in(room, unlimited(), false);
    let (mut small, _) = place.enter_known().await;
    let mut large = Vec::new();
    for n in 1..=20 {
        let mut visitor = place.enter().await;
        let half = format!("*2\r\n$4\r\nECHO\r\n$1000000\r\n{}", "x".repeat(900_000));
        // It may be cut off while it says that.
        let _ = soon(visitor.stream.write_all(half.as_bytes())).await;
        large.push(visitor);
        let read = || place.clients.totals().bytes_read >= n * 900_000 || place.clients.totals().ended_memory > 0;
        until(read).await;
        small.says("ECHO a\r\n").await;
        small.hears("$1\r\na\r\n").await;
    }
    until(|| place.clients.memory_bytes() <= MEMORY && place.clients.len() <= 5).await;
    assert!(place.clients.len() > 1, "no more go than must");
    let ended = place.clients.totals().ended_memory;
    assert_eq!(usize::try_from(ended).unwrap() + place.clients.len(), 21);

    let (_deaf, handle) = place.enter_known().await;
    while handle.mailbox().push(Reply::Push(vec![bulk([b'x'; 10_000])])) {
        tokio::task::yield_now().await;
    }
    until(|| place.clients.get(handle.id()).is_none()).await;
    assert_eq!(place.clients.totals().ended_output, 0);
    drop(large);
    until(|| place.clients.len() == 1).await;
    assert_eq!(small.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn who_is_cut_off_while_something_runs_takes_nothing_meanwhile_and_hears_nothing_more() {
    let place = Place::open(unlimited());
    let (mut visitor, handle) = place.enter_known().await;
    visitor.says("BIG 50000\r\nWAIT\r\nECHO a\r\n").await;
    visitor.hears(&format!("$50000\r\n{}\r\n", "x".repeat(50_000))).await;
    place.until_waiting(1).await;
    until(|| handle.memory_bytes() >= 50_000).await;
    handle.mailbox().end(Ended::Memory);
    until(|| place.clients.memory_bytes() == 0).await;
    assert_eq!(place.clients.len(), 1, "what runs is finished");
    place.desk.permits.add_permits(1);
    assert_eq!(visitor.hears_the_end().await, "");
    assert_eq!(place.clients.totals().ended_memory, 1);
}

#[tokio::test]
async fn the_quiet_give_their_buffers_back() {
    let place = Place::open(unlimited());
    let (mut visitor, handle) = place.enter_known().await;
    assert!(handle.buffers() > 0);
    until(|| handle.buffers() == 0).await;
    assert_eq!(place.clients.memory_bytes(), 0);
    assert_eq!(visitor.asks("ECHO a\r\n").await, "$1\r\n");
    visitor.hears("a\r\n").await;
    // Half a request is kept.
    visitor.says("ECH").await;
    until(|| !handle.idle().is_zero()).await;
    visitor.says("O b\r\n").await;
    visitor.hears("$1\r\nb\r\n").await;
}

impl Place {
    /// Waits until no request is carried out any more.
    async fn until_nobody_moves(&self) {
        let mut before = usize::MAX;
        let mut same = 0;
        until(|| {
            let now = self.desk.executed.load(Ordering::SeqCst);
            same = if now == before { same + 1 } else { 0 };
            before = now;
            same == 50
        })
        .await;
    }
}
