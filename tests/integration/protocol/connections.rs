//! Connections and streams, before anything is known of who is at the other end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use testkit::{TcpProxy, eventually};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;
use vmcp_session::runtime::transport::CONTROLLER_NAME;

use super::client::{Agent, connect, endpoint, instance};
use super::setup::{PATIENCE, Shared, on_shared, soon, unnoticed};

/// How long a connection may be idle, and what it may take until that is noticed.
const IDLE: std::ops::Range<Duration> = Duration::from_secs(8)..PATIENCE;

/// Says this on a new connection, and returns how long it takes until the replica has ended it.
async fn until_hung_up(shared: &Shared, bytes: &[u8]) -> Duration {
    until_ended(TcpStream::connect(shared.address()).await.unwrap(), bytes).await
}

/// The same, encrypted.
async fn until_hung_up_on_tls(shared: &Shared, bytes: &[u8]) -> Duration {
    until_ended(tls(shared, &[&TLS13]).await.unwrap(), bytes).await
}

async fn until_ended(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &[u8]) -> Duration {
    let begun = Instant::now();
    // It may hang up before it has all.
    let _ = stream.write_all(bytes).await;
    let mut buffer = vec![0; 4_096];
    soon("the connection ends", async { while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} }).await;
    begun.elapsed()
}

/// Shakes hands in one of these versions.
async fn tls(shared: &Shared, versions: &[&'static SupportedProtocolVersion]) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(testkit::stream_authority().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(versions).unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(shared.address()).await.unwrap();
    let name = ServerName::try_from(CONTROLLER_NAME).unwrap();
    soon("the handshake ends", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// The HTTP/2 preface, and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// How a handshake begins.
const HALF_A_HELLO: &[u8] = b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn who_says_nothing_is_disconnected_in_time() {
    on_shared(async |shared| {
        let silent = until_hung_up(shared, b"");
        let half_a_hello = until_hung_up(shared, HALF_A_HELLO);
        let no_preface = until_hung_up_on_tls(shared, b"");
        let half_a_preface = until_hung_up_on_tls(shared, &PREFACE[..10]);
        let no_stream = until_hung_up_on_tls(shared, PREFACE);
        let half_a_stream = [PREFACE, b"\0\x40\0\x01\0\0\0\0\x01\x82"].concat();
        let half_a_stream = until_hung_up_on_tls(shared, &half_a_stream);
        let no_hello = async {
            let pod = shared.pod(shared.namespace()).await;
            let mut agent = Agent::open_with(shared.address(), &pod.token).await.unwrap();
            let status = agent.ended().await;
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            assert!(status.message().contains("no hello within 10 s"), "{status:?}");
        };
        let plain = async { tokio::join!(silent, half_a_hello) };
        let encrypted = async { tokio::join!(no_preface, half_a_preface, no_stream, half_a_stream) };
        let ((nothing, hello), inside, ()) = tokio::join!(plain, encrypted, no_hello);
        let (empty, preface, settings, headers) = inside;
        let names = ["nothing", "half a handshake", "no preface", "half a preface", "no stream", "half a stream"];
        for (what, took) in names.into_iter().zip([nothing, hello, empty, preface, settings, headers]) {
            assert!(IDLE.contains(&took), "{what}: {took:?}");
        }
    });
}

#[test]
fn who_speaks_another_protocol_is_hung_up_on() {
    on_shared(async |shared| {
        let garbage: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let oversized_frame = [PREFACE, b"\xff\xff\xff\0\0\0\0\0\x01"].concat();
        let http1: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
        for (what, bytes) in [("HTTP/1", http1), ("garbage", &garbage), ("HTTP/2 in the clear", PREFACE)] {
            let took = until_hung_up(shared, bytes).await;
            assert!(took < IDLE.start, "{what}: {took:?}");
        }
        for (what, bytes) in [("HTTP/1", http1), ("garbage", &garbage), ("an oversized frame", &oversized_frame)] {
            let took = until_hung_up_on_tls(shared, bytes).await;
            assert!(took < IDLE.start, "{what} in TLS: {took:?}");
        }
    });
}

#[test]
fn an_older_tls_is_not_spoken() {
    on_shared(async |shared| {
        let refused = tls(shared, &[&TLS12]).await.unwrap_err();
        assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
        tls(shared, &[&TLS12, &TLS13]).await.unwrap();
    });
}

#[test]
fn a_flood_of_connections_keeps_nobody_out_and_is_bounded() {
    on_shared(async |shared| {
        let files = shared.open_files();
        let pod = shared.pod(shared.namespace()).await;
        let mut connections = Vec::new();
        for n in 1..=1_000 {
            connections.push(soon("a connection", TcpStream::connect(shared.address())).await.unwrap());
            if n % 100 == 0 {
                let mut agent = Agent::connect(shared.address(), &pod.token).await;
                agent.leased().await;
            }
        }
        let now = shared.open_files();
        println!("1,000 silent connections: {now} files are open instead of {files}");
        assert!(now < files + 560, "{now} files are open instead of {files}");
        unnoticed("beside a flood of connections", shared.evictions_take(3).await);
        drop(connections);
        let all_gone = async {
            while shared.open_files() > files + 10 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        soon("their files are closed", all_gone).await;
    });
}

#[test]
fn five_hundred_streams_on_one_connection_are_a_few_at_once() {
    on_shared(async |shared| {
        // Several pods, so that it is the connection that has too many.
        let mut pods = Vec::new();
        for _ in 0..20 {
            pods.push(shared.pod(shared.namespace()).await);
        }
        let channel = connect(shared.address()).await;
        let mut opening: FuturesUnordered<_> = (0..500)
            .map(|n| {
                let authorization = format!("Bearer {}", pods[n % pods.len()].token);
                let channel = channel.clone();
                async move { Agent::open(channel, Some(&authorization)).await }
            })
            .collect();
        let first = async {
            loop {
                if let Some(Ok(agent)) = opening.next().await {
                    return agent;
                }
            }
        };
        // However long the check of the first tokens takes.
        let mut open = vec![soon("the first stream", first).await];
        let mut refused = 0;
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(3) {
            match tokio::time::timeout(Duration::from_millis(500), opening.next()).await {
                Ok(Some(Ok(agent))) => open.push(agent),
                Ok(Some(Err(_))) => refused += 1,
                Ok(None) | Err(_) => break,
            }
        }
        println!("500 streams on one connection: {} open, {refused} refused, {} wait", open.len(), opening.len());
        assert!((1..=8).contains(&open.len()), "{} streams are open", open.len());
        unnoticed("beside 500 streams", shared.evictions_take(3).await);
        shared.agent(shared.namespace()).await.leased().await;
        // One that ends makes room for one that waits.
        drop(open);
        let next = async {
            loop {
                if let Some(Ok(agent)) = opening.next().await {
                    return agent;
                }
            }
        };
        soon("the next stream", next).await.greeted(instance()).await.leased().await;
    });
}

#[test]
fn a_process_that_opens_another_stream_has_only_that_one() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        let process = instance();
        let mut first = Agent::connect_as(shared.address(), &pod.token, process).await;
        first.leased().await;
        let mut second = Agent::connect_as(shared.address(), &pod.token, process).await;
        let status = first.ended().await;
        assert_eq!(status.code(), Code::Aborted, "{status:?}");
        assert!(status.message().contains("opened another stream"), "{status:?}");
        second.leased().await;
    });
}

#[test]
fn a_connection_whose_streams_have_ended_is_not_kept() {
    on_shared(async |shared| {
        let pod = shared.pod(shared.namespace()).await;
        // What passes is this connection only: the replica has others, to the API server, that come and go.
        let proxy = TcpProxy::start(shared.address()).await.unwrap();
        let channel = endpoint(proxy.address()).connect().await.unwrap();
        // It stays, and with it the connection, as far as the client is concerned.
        let _kept = channel.clone();
        let agent = Agent::open(channel, Some(&format!("Bearer {}", pod.token))).await.unwrap();
        let mut agent = agent.greeted(instance()).await;
        agent.leased().await;
        assert_eq!(proxy.connections(), 1);
        drop(agent);
        eventually(PATIENCE, "a connection without streams ends", async || (proxy.connections() == 0).then_some(()))
            .await
            .unwrap();
    });
}
