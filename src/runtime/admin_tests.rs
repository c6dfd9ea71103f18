//! Tests of the admin endpoints over real connections.

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

struct Running {
    address: SocketAddr,
    health: Health,
    shutdown: CancellationToken,
    server: JoinHandle<Result<(), AdminError>>,
}

async fn start(connections: usize, limit: Duration) -> Running {
    let admin = BoundAdmin::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = admin.local_addr();
    let mut registry = Registry::with_prefix("vmcp");
    let evictions: Counter = Counter::default();
    evictions.inc_by(7);
    registry.register("evictions", "Copies evicted", evictions);
    let (health, shutdown) = (Health::default(), CancellationToken::new());
    let server = tokio::spawn(admin.serve_bounded(
        health.clone(),
        Some(Arc::new(OnceLock::from(Arc::new(registry)))),
        shutdown.clone(),
        connections,
        limit,
    ));
    Running { address, health, shutdown, server }
}

async fn ask(address: SocketAddr, path: &str) -> String {
    let talk = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    timeout(PATIENCE, talk).await.unwrap()
}

#[tokio::test]
async fn readyz_names_each_check_and_fails_if_one_does() {
    let running = start(8, PATIENCE).await;
    let store = running.health.readiness("store");
    let text = ask(running.address, "/readyz").await;
    assert!(text.starts_with("HTTP/1.1 503 "), "{text}");
    assert!(text.contains("[-]store failed: starting\n"), "{text}");
    store.ready();
    let text = ask(running.address, "/readyz?verbose").await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    assert!(text.contains("[+]store ok\nreadyz check passed\n"), "{text}");
}

#[tokio::test]
async fn livez_fails_with_a_liveness_check() {
    let running = start(8, PATIENCE).await;
    assert!(ask(running.address, "/livez").await.starts_with("HTTP/1.1 200 "));
    running.health.liveness_fn("loop", || Err("stuck".into()));
    let text = ask(running.address, "/livez").await;
    assert!(text.starts_with("HTTP/1.1 503 ") && text.contains("[-]loop failed: stuck"), "{text}");
}

#[tokio::test]
async fn metrics_are_open_metrics() {
    let running = start(8, PATIENCE).await;
    let text = ask(running.address, "/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
    let content_type = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(text.contains(content_type), "{text}");
    let body = text.split("\r\n\r\n").nth(1).unwrap();
    let expected = "# HELP vmcp_evictions Copies evicted.\n# TYPE vmcp_evictions counter\n\
        vmcp_evictions_total 7\n# EOF\n";
    assert_eq!(body, expected);
}

#[tokio::test]
async fn other_paths_are_not_found() {
    let running = start(8, PATIENCE).await;
    assert!(ask(running.address, "/secrets").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn a_taken_address_is_an_error_at_once() {
    let running = start(8, PATIENCE).await;
    let error = BoundAdmin::bind(Listen::At(running.address)).await.unwrap_err();
    assert!(error.to_string().contains(&running.address.to_string()), "{error}");
}

#[tokio::test]
async fn a_connection_that_asks_slowly_ends() {
    let running = start(8, Duration::from_millis(200)).await;
    let mut slow = TcpStream::connect(running.address).await.unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nX: ").await.unwrap();
    let mut rest = Vec::new();
    let ended = timeout(PATIENCE, slow.read_to_end(&mut rest)).await.expect("the slow connection ends");
    assert!(ended.is_err() || rest.is_empty(), "{rest:?}");
}

/// A connection that has had an answer, and stays open.
async fn answered(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    answer_again(&mut stream).await.unwrap();
    stream
}

async fn answer_again(stream: &mut TcpStream) -> io::Result<usize> {
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?;
    let mut some = [0; 1024];
    match timeout(PATIENCE, stream.read(&mut some)).await.unwrap()? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => Ok(read),
    }
}

#[tokio::test]
async fn who_holds_connections_keeps_nobody_out() {
    let running = start(3, PATIENCE * 10).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(answered(running.address).await);
    }
    // The first one is not the oldest any more.
    answer_again(&mut open[0]).await.unwrap();
    open.push(answered(running.address).await);
    assert!(answer_again(&mut open[1]).await.is_err(), "it was answered longest ago");
    for still in [0, 2, 3] {
        answer_again(&mut open[still]).await.unwrap();
    }
    drop(open);
    // Connections that have ended need not give way. Nobody says when the server has noticed, so they are used up many times.
    for _ in 0..20 {
        assert!(ask(running.address, "/livez").await.starts_with("HTTP/1.1 200 "));
    }
}

#[tokio::test]
async fn who_opens_many_connections_takes_the_place_of_nobody_at_another_address() {
    let running = start(3, PATIENCE * 10).await;
    let other = TcpSocket::new_v4().unwrap();
    other.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut early = other.connect(running.address).await.unwrap();
    answer_again(&mut early).await.unwrap();
    let mut many = Vec::new();
    for _ in 0..10 {
        many.push(answered(running.address).await);
    }
    answer_again(&mut early).await.unwrap();
    assert!(answer_again(&mut many[7]).await.is_err(), "there is room for two beside it");
    answer_again(&mut many[8]).await.unwrap();
}

/// All may come from one address, as through a balancer.
#[tokio::test]
async fn who_only_opens_connections_ends_none_at_its_own_address_over_which_something_was_answered() {
    let running = start(3, PATIENCE * 10).await;
    let mut useful = answered(running.address).await;
    let mut useless = TcpStream::connect(running.address).await.unwrap();
    useless.write_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert!(timeout(PATIENCE, useless.read(&mut [0; 1024])).await.unwrap().unwrap() > 0);
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(running.address).await.unwrap());
    }
    // There is room for two beside it.
    for ended in silent[..8].iter_mut().chain([&mut useless]) {
        let read = timeout(PATIENCE, ended.read(&mut [0; 1024])).await.expect("it gives way");
        assert!(read.is_err() || read.is_ok_and(|read| read == 0));
    }
    answer_again(&mut useful).await.unwrap();
}

#[tokio::test]
async fn a_newcomer_has_time_to_ask_though_another_one_comes() {
    let running = start(3, PATIENCE * 10).await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(answered(running.address).await);
    }
    let mut newcomer = TcpStream::connect(running.address).await.unwrap();
    open.push(answered(running.address).await);
    answer_again(&mut newcomer).await.unwrap();
    assert!(answer_again(&mut open[1]).await.is_err(), "those that were answered longest ago give way to both");
}

#[tokio::test]
async fn serving_ends_on_shutdown_even_if_a_connection_is_open() {
    let running = start(8, PATIENCE).await;
    let _open = TcpStream::connect(running.address).await.unwrap();
    running.shutdown.cancel();
    timeout(PATIENCE, running.server).await.unwrap().unwrap().unwrap();
}

/// One connection would carry hundreds of requests at once.
#[tokio::test]
async fn whoever_begins_to_speak_http_2_is_refused() {
    let running = start(8, PATIENCE).await;
    let mut stream = TcpStream::connect(running.address).await.unwrap();
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    stream.write_all(&[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings].concat()).await.unwrap();
    let mut answer = Vec::new();
    let ended = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    assert!(ended.is_err() || answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{answer:?}");
}
