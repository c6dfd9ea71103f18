//! Bytes that are no requests, and requests that never end: a clear error or a closed connection, flat memory, and nobody
//! else who notices.

use std::io;

use kube::api::ListParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

/// What an agent may take more, at its peak, than before anybody was hostile. Most of it is what the system's allocator keeps.
const MORE: u64 = 48 << 20;

/// A figure of the kernel's about a process, in bytes: `VmRSS`, and `VmHWM`, which is the most it ever was.
fn memory(of: &AgentPod, figure: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", of.process.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

async fn connect(to: &AgentPod) -> TcpStream {
    TcpStream::connect(to.address).await.unwrap()
}

/// Sends all of it, as far as it is taken, and that there is no more; returns what is answered until the connection ends.
async fn answer_to(agent: &AgentPod, bytes: &[u8]) -> String {
    let (mut reading, mut writing) = connect(agent).await.into_split();
    let mut answer = Vec::new();
    let sent = async {
        // Whoever has closed the connection takes no more.
        let _ = writing.write_all(bytes).await;
        let _ = writing.shutdown().await;
    };
    let ((), read) = timeout(PATIENCE, async { tokio::join!(sent, reading.read_to_end(&mut answer)) }).await.unwrap();
    assert!(read.is_ok() || read.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Bytes without any order, the same ones in each run.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(&mut next).take(length).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_gets_an_error_or_the_end_and_takes_no_memory() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let committed = AgentOptions::default().args(&["--visibility=committed"]);
    let agent = world.agent("agent-1", committed).await.unwrap();
    let mut other = agent.client().await.unwrap();
    ask(&mut other, &["SET", "s1", r#"{"user":"alice"}"#]).await;
    let mut goes_on = async || {
        assert!(ask(&mut other, &["GET", "s1"]).await.is(r#"{"user":"alice"}"#));
    };
    goes_on().await;
    let before = memory(&agent, "VmHWM");

    for bytes in noise(1_000_000).chunks(20_000) {
        let answer = answer_to(&agent, bytes).await;
        assert!(answer.lines().all(|line| line.starts_with("-ERR ")), "{answer}");
    }
    goes_on().await;

    let nested = "*1\r\n".repeat(200_000);
    let answer = answer_to(&agent, nested.as_bytes()).await;
    assert!(answer.starts_with("-ERR Protocol error: "), "{answer}");
    let huge = ["*2\r\n$3\r\nGET\r\n$9223372036854775808\r\n", "*2\r\n$3\r\nGET\r\n$9223372036854775807\r\n"];
    for bulk in huge {
        assert_eq!(answer_to(&agent, bulk.as_bytes()).await, "-ERR Protocol error: invalid bulk length\r\n");
    }
    let answer = answer_to(&agent, b"*9223372036854775808\r\n").await;
    assert_eq!(answer, "-ERR Protocol error: invalid multibulk length\r\n");
    goes_on().await;

    // What is announced is not made room for.
    let mut halves = Vec::new();
    for _ in 0..1_000 {
        let mut half = connect(&agent).await;
        half.write_all(b"*2\r\n$3\r\nGET\r\n$1000000\r\nhalf").await.unwrap();
        halves.push(half);
    }
    eventually(PATIENCE, "all of them are connected", async || {
        (agent.metric("vmcp_agent_clients").await.ok()? >= 1_000.0).then_some(())
    })
    .await
    .unwrap();
    goes_on().await;
    let most = memory(&agent, "VmHWM");
    println!("{} KiB before, {} KiB at most", before / 1_024, most / 1_024);
    assert!(most <= before + MORE, "{most} bytes at most, {before} before");
    drop(halves);

    // A thousand times the same session is more than may wait for a client: it is not even made.
    let fields: Vec<String> = (0..10).flat_map(|n| [format!("f{n}"), "x".repeat(60_000)]).collect();
    let fields: Vec<&str> = ["HSET", "s2"].into_iter().chain(fields.iter().map(String::as_str)).collect();
    ask(&mut other, &fields).await;
    let before = memory(&agent, "VmHWM");
    let mut greedy = agent.client().await.unwrap();
    greedy.call(&[&["MGET"], &["s2"; 1_000][..]].concat()).await.unwrap_err();
    let most = memory(&agent, "VmHWM");
    println!("{} KiB before, {} KiB at most", before / 1_024, most / 1_024);
    assert!(most <= before + (96 << 20), "{most} bytes at most, {before} before");
    assert!(ask(&mut other, &["GET", "s1"]).await.is(r#"{"user":"alice"}"#));
}

/// The most that clients may take together, of which requests that are being carried out may have half.
const CLIENTS: usize = 16 << 20;

/// There is no controller, so each write waits for a lease that somebody may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_writes_that_wait_take_no_more_memory_than_clients_may() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let options = AgentOptions::default().args(&[&format!("--clients-memory={CLIENTS}")]);
    let agent = world.agent("agent-1", options).await.unwrap();
    let fields: Vec<String> = (0..10).flat_map(|n| [format!("f{n}"), "x".repeat(60_000)]).collect();
    let read = async || agent.metric("vmcp_agent_resp_bytes_total{direction=\"in\"}").await.unwrap();
    let before = memory(&agent, "VmHWM");
    let mut clients = Vec::new();
    for n in 0..200 {
        let mut client = agent.client().await.unwrap();
        let key = format!("s{n}");
        let write: Vec<&str> = ["HSET", &key].into_iter().chain(fields.iter().map(String::as_str)).collect();
        client.send(&write).await.unwrap();
        clients.push(client);
        // Requests that are half there have the other half of the memory, and would be too many.
        let sent = 600_000.0 * f64::from(n + 1);
        eventually(PATIENCE, "the request is read", async || (read().await >= sent).then_some(())).await.unwrap();
    }
    let (mut written, mut refused) = (0, 0);
    for client in &mut clients {
        match client.answer().await.unwrap() {
            Resp::Int(10) => written += 1,
            answer => {
                let text = answer.error().unwrap_or_else(|| panic!("{answer:?}"));
                assert!(text.starts_with("TRYAGAIN "), "{text}");
                refused += 1;
            }
        }
    }
    let most = memory(&agent, "VmHWM");
    println!("{written} written, {refused} refused; {} KiB before, {} KiB at most", before / 1_024, most / 1_024);
    assert!(written > 0 && refused > 0);
    assert!(most <= before + (96 << 20), "{most} bytes at most, {before} before");
    let sessions = world.sessions().list_metadata(&ListParams::default()).await.unwrap();
    assert_eq!(sessions.items.len(), written, "what was refused was not written");
}
