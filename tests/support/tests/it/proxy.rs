//! The proxy, in front of an echo server and of an API server.

use crate::{SILENCE, SOON, config_maps, control_plane, create_config_map};
use std::time::{Duration, Instant};
use testkit::{ProxyMode, TcpProxy, eventually};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

/// An echo server, with what it has received.
async fn echo() -> (TcpProxy, mpsc::UnboundedReceiver<u8>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).await.unwrap();
    let (received, seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let received = received.clone();
            tokio::spawn(async move {
                while let Ok(byte) = socket.read_u8().await {
                    let _ = received.send(byte);
                    if socket.write_u8(byte).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (proxy, seen)
}

async fn ask(socket: &mut TcpStream, byte: u8) -> Duration {
    let start = Instant::now();
    socket.write_u8(byte).await.unwrap();
    assert_eq!(timeout(SOON, socket.read_u8()).await.unwrap().unwrap(), byte);
    start.elapsed()
}

#[tokio::test]
async fn delays_add_up() {
    let (proxy, _seen) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    ask(&mut socket, 1).await;
    let (there, back) = (Duration::from_millis(150), Duration::from_millis(50));
    proxy.set(ProxyMode::Delay { to_server: there, to_client: back }).await.unwrap();
    let took = ask(&mut socket, 2).await;
    assert!(took >= there + back, "{took:?}");
    proxy.set(ProxyMode::Pass).await.unwrap();
    // One of them is not held up by whatever else this machine does.
    let end = Instant::now() + SOON;
    while ask(&mut socket, 3).await >= there {
        assert!(Instant::now() < end, "every answer is late");
    }
}

#[tokio::test]
async fn a_black_hole_holds_everything_until_it_passes() {
    let (proxy, mut seen) = echo().await;
    let mut old = TcpStream::connect(proxy.address()).await.unwrap();
    ask(&mut old, 1).await;
    assert_eq!(seen.recv().await, Some(1));
    proxy.set(ProxyMode::Blackhole).await.unwrap();
    let mut new = TcpStream::connect(proxy.address()).await.unwrap();
    old.write_u8(2).await.unwrap();
    new.write_u8(3).await.unwrap();
    assert!(timeout(SILENCE, seen.recv()).await.is_err());
    assert!(timeout(SILENCE, old.read_u8()).await.is_err(), "neither an answer nor an end");
    proxy.set(ProxyMode::Pass).await.unwrap();
    assert_eq!(timeout(SOON, old.read_u8()).await.unwrap().unwrap(), 2);
    assert_eq!(timeout(SOON, new.read_u8()).await.unwrap().unwrap(), 3);
}

#[tokio::test]
async fn a_black_hole_towards_the_client_lets_requests_through() {
    let (proxy, mut seen) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    proxy.set(ProxyMode::BlackholeToClient).await.unwrap();
    socket.write_u8(1).await.unwrap();
    assert_eq!(timeout(SOON, seen.recv()).await.unwrap(), Some(1));
    assert!(timeout(SILENCE, socket.read_u8()).await.is_err());
    proxy.set(ProxyMode::Pass).await.unwrap();
    assert_eq!(timeout(SOON, socket.read_u8()).await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_cut_ends_connections_and_refuses_new_ones() {
    let (proxy, _seen) = echo().await;
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    ask(&mut socket, 1).await;
    assert_eq!(proxy.connections(), 1);
    proxy.set(ProxyMode::Cut).await.unwrap();
    assert_eq!(proxy.connections(), 0);
    assert!(timeout(SOON, socket.read_u8()).await.unwrap().is_err());
    TcpStream::connect(proxy.address()).await.unwrap_err();
    proxy.set(ProxyMode::Pass).await.unwrap();
    let mut socket = TcpStream::connect(proxy.address()).await.unwrap();
    ask(&mut socket, 2).await;
}

#[tokio::test]
async fn an_end_in_one_direction_leaves_the_other_open() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = TcpProxy::start(listener.local_addr().unwrap()).await.unwrap();
    let mut client = TcpStream::connect(proxy.address()).await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = String::new();
    timeout(SOON, server.read_to_string(&mut heard)).await.unwrap().unwrap();
    assert_eq!(heard, "question");
    // More than fits into the buffers on the way.
    let answer = vec![7; 20 << 20];
    let length = answer.len();
    tokio::spawn(async move { server.write_all(&answer).await });
    let mut back = Vec::new();
    timeout(SOON, client.read_to_end(&mut back)).await.unwrap().unwrap();
    assert_eq!(back.len(), length);
    eventually(SOON, "the connection is forgotten", async || (proxy.connections() == 0).then_some(())).await.unwrap();
}

#[tokio::test]
async fn clients_reach_an_api_server_through_it() {
    let plane = control_plane().await;
    let proxy = TcpProxy::start(plane.apiserver().address()).await.unwrap();
    let maps = config_maps(plane.client_at(&proxy.https_url()).await.unwrap());
    create_config_map(&maps, "one").await.unwrap();

    proxy.set(ProxyMode::Blackhole).await.unwrap();
    assert!(timeout(SILENCE, create_config_map(&maps, "two")).await.is_err());
    config_maps(plane.client()).get("two").await.unwrap_err();

    // On an open connection; a new one would get no further than its TLS handshake.
    proxy.set(ProxyMode::Pass).await.unwrap();
    maps.get("one").await.unwrap();
    proxy.set(ProxyMode::BlackholeToClient).await.unwrap();
    let unanswered = tokio::spawn({
        let maps = maps.clone();
        async move { create_config_map(&maps, "three").await }
    });
    let direct = config_maps(plane.client());
    eventually(SOON, "the write arrives", async || direct.get("three").await.ok()).await.unwrap();
    assert!(!unanswered.is_finished());
    proxy.set(ProxyMode::Pass).await.unwrap();
    timeout(SOON, unanswered).await.unwrap().unwrap().unwrap();

    proxy.set(ProxyMode::Cut).await.unwrap();
    maps.get("one").await.unwrap_err();
    proxy.set(ProxyMode::Pass).await.unwrap();
    maps.get("one").await.unwrap();
}
