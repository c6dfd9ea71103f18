//! Connections and streams, before anything is known of who is at the other end.

use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use super::client::{Agent, connect, endpoint, instance};
use super::setup::{PATIENCE, Shared, on_shared, soon, unnoticed};

/// How long a connection may be idle, and what it may take until that is noticed.
const IDLE: std::ops::Range<Duration> = Duration::from_secs(8)..PATIENCE;

/// Says this on a new connection, and returns how long it takes until the replica has ended it.
async fn until_hung_up(shared: &Shared, bytes: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(shared.address()).await.unwrap();
    let begun = Instant::now();
    // It may hang up before it has all.
    let _ = stream.write_all(bytes).await;
    let mut buffer = vec![0; 4_096];
    soon("the connection ends", async { while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {} }).await;
    begun.elapsed()
}

/// The HTTP/2 preface, and empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn who_says_nothing_is_disconnected_in_time() {
    on_shared(async |shared| {
        let silent = until_hung_up(shared, b"");
        let half_a_preface = until_hung_up(shared, &PREFACE[..10]);
        let no_stream = until_hung_up(shared, PREFACE);
        let half_a_stream = [PREFACE, b"\0\x40\0\x01\0\0\0\0\x01\x82"].concat();
        let half_a_stream = until_hung_up(shared, &half_a_stream);
        let no_hello = async {
            let pod = shared.pod(shared.namespace()).await;
            let mut agent = Agent::open_with(shared.address(), &pod.token).await.unwrap();
            let status = agent.ended().await;
            assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
            assert!(status.message().contains("no hello within 10 s"), "{status:?}");
        };
        let (a, b, c, d, ()) = tokio::join!(silent, half_a_preface, no_stream, half_a_stream, no_hello);
        for (what, took) in [("nothing", a), ("half a preface", b), ("no stream", c), ("half a stream", d)] {
            assert!(IDLE.contains(&took), "{what}: {took:?}");
        }
    });
}

#[test]
fn who_speaks_another_protocol_is_hung_up_on() {
    on_shared(async |shared| {
        let garbage: Vec<u8> = (0..100_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        let oversized_frame = [PREFACE, b"\xff\xff\xff\0\0\0\0\0\x01"].concat();
        let others: [(&str, &[u8]); 4] = [
            ("HTTP/1", b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("TLS", b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
            ("garbage", &garbage),
            ("an oversized frame", &oversized_frame),
        ];
        for (what, bytes) in others {
            let took = until_hung_up(shared, bytes).await;
            assert!(took < IDLE.start, "{what}: {took:?}");
        }
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
        let files = shared.open_files();
        // Not a channel: that would connect again.
        let (_keep, channel) = {
            let channel = endpoint(shared.address()).connect().await.unwrap();
            (channel.clone(), channel)
        };
        let agent = Agent::open(channel, Some(&format!("Bearer {}", pod.token))).await.unwrap();
        let mut agent = agent.greeted(instance()).await;
        agent.leased().await;
        assert!(shared.open_files() > files);
        drop(agent);
        let begun = Instant::now();
        while shared.open_files() > files {
            assert!(begun.elapsed() < PATIENCE, "a connection without streams stays");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
}
