//! How connections end.

use super::*;

#[tokio::test]
async fn what_is_no_request_is_told_after_the_replies_before_it() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("ECHO a\r\n*1\r\n*1\r\nECHO b\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "$1\r\na\r\n-ERR Protocol error: expected '$', got '*'\r\n");
    place.until_empty().await;
    assert_eq!(place.clients.totals().protocol_errors, 1);
}

#[tokio::test]
async fn the_error_arrives_though_more_is_being_sent() {
    let place = Place::open(unlimited());
    for bytes in ["*1\r\n".repeat(200_000), format!("*1\r\n$9223372036854775808\r\n{}", "x".repeat(1_000_000))] {
        let mut visitor = place.enter().await;
        let (mut reading, mut writing) = visitor.stream.split();
        let mut heard = Vec::new();
        soon(async {
            let read = reading.read_to_end(&mut heard);
            let write = async {
                writing.write_all(bytes.as_bytes()).await.unwrap();
                writing.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(read, write);
            read.unwrap();
        })
        .await;
        let heard = String::from_utf8(heard).unwrap();
        assert!(heard.starts_with("-ERR Protocol error: ") && heard.ends_with("\r\n"), "{heard}");
    }
    place.until_empty().await;
}

#[tokio::test]
async fn browsers_get_no_answer() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("POST / HTTP/1.1\r\nHost: localhost\r\n\r\nECHO a\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "");
    assert_eq!(place.desk.executed.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn quit_is_answered_and_nothing_after_it() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("ECHO a\r\nQUIT\r\nECHO b\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "$1\r\na\r\n+OK\r\n");
    place.until_empty().await;
    assert_eq!(place.desk.executed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_panic_ends_one_connection_and_leaves_nothing_behind() {
    let place = Place::open(unlimited());
    let (mut other, _) = place.enter_known().await;
    let mut visitor = place.enter().await;
    visitor.says("PANIC\r\n").await;
    assert_eq!(visitor.hears_the_end().await, "");
    until(|| place.clients.len() == 1).await;
    until(|| place.desk.disconnected.load(Ordering::SeqCst) == 1).await;
    assert_eq!(other.asks("ECHO a\r\n").await, "$1\r\n");
}

#[tokio::test]
async fn what_runs_is_finished_though_the_client_has_gone() {
    let place = Place::open(unlimited());
    let mut visitor = place.enter().await;
    visitor.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    drop(visitor);
    place.desk.permits.add_permits(1);
    place.until_empty().await;
    assert_eq!(place.desk.permits.available_permits(), 0);
}

#[tokio::test]
async fn a_shutdown_finishes_what_runs_and_begins_nothing() {
    let place = Place::open(unlimited());
    let (mut idle, _) = place.enter_known().await;
    let mut half = place.enter().await;
    half.says("*1\r\n$4\r\nEC").await;
    let mut running = place.enter().await;
    running.says("WAIT\r\nECHO a\r\n").await;
    place.until_waiting(1).await;
    let executed = place.desk.executed.load(Ordering::SeqCst);
    place.shutdown.cancel();
    assert_eq!(idle.hears_the_end().await, "");
    assert_eq!(half.hears_the_end().await, "");
    assert!(!place.server.is_finished());
    until(|| place.clients.len() == 1).await;
    place.desk.permits.add_permits(1);
    assert_eq!(running.hears_the_end().await, "+waited\r\n");
    soon(place.server).await.unwrap();
    assert_eq!(place.desk.executed.load(Ordering::SeqCst), executed);
    assert!(place.clients.is_empty());
    assert!(TcpStream::connect(place.address).await.is_err());
}

#[tokio::test]
async fn what_does_not_finish_is_cut() {
    let place = Place::open(unlimited());
    let config =
        ServerConfig { tcp: Some(([127, 0, 0, 1], 0).into()), unix: None, unix_mode: 0o600, limits: unlimited() };
    let server = Server::bind(&config, Arc::clone(&place.clients)).unwrap();
    let address = server.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(server.run(Arc::clone(&place.desk), shutdown.clone(), Duration::from_millis(50)));
    let mut visitor = Visitor::new(TcpStream::connect(address).await.unwrap());
    visitor.says("WAIT\r\n").await;
    place.until_waiting(1).await;
    shutdown.cancel();
    soon(server).await.unwrap();
    assert_eq!(visitor.hears_the_end().await, "");
    place.until_empty().await;
}

#[tokio::test]
async fn a_million_random_bytes_do_nothing() {
    use rand::{RngCore as _, SeedableRng as _};
    let place = Place::open(unlimited());
    for seed in 0..20 {
        let mut bytes = vec![0; 1_000_000];
        rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
        let mut visitor = place.enter().await;
        // The server may have had enough before all of it is written.
        let (mut reading, mut writing) = visitor.stream.split();
        let mut heard = Vec::new();
        let write = async { (writing.write_all(&bytes).await, writing.shutdown().await) };
        let _ = soon(async { tokio::join!(write, reading.read_to_end(&mut heard)) }).await;
        place.until_empty().await;
    }
    assert_eq!(place.enter().await.asks("ECHO a\r\n").await, "$1\r\n");
}
