//! redis-cli and redis-benchmark.

use std::fs;
use std::net::SocketAddr;

use testkit::{AgentOptions, ClusterOptions, Process, eventually};

use super::keyed::agent;
use super::redis::{RedisServer, tool};
use crate::world::{PATIENCE, World};

/// Runs one of Redis's tools, with these lines as its input; what it says, and whether it ended well.
async fn run(program: &str, server: SocketAddr, args: &[&str], input: &str) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let (typed, said) = (folder.path().join("input"), folder.path().join("output"));
    fs::write(&typed, input).unwrap();
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let tool = Process::builder(program, tool(&format!("redis/bin/{program}")))
        .args(["-h", &host, "-p", &port])
        .args(args)
        .stdin(typed)
        .stdout(&said)
        .spawn()
        .unwrap();
    let status = tool.wait(PATIENCE * 4).await.unwrap();
    (fs::read_to_string(said).unwrap() + &tool.log(), status.success())
}

/// What a person types into redis-cli, and what it shows.
const SESSION: [(&str, &str); 17] = [
    (r#"SET session:cli "{\"a\":\"1\",\"b\":\"2\"}" EX 1800 NX"#, "OK"),
    (r#"SET session:cli "{}" NX"#, "(nil)"),
    ("TYPE session:cli", "string"),
    ("TTL session:cli", "(integer) 1800"),
    (r#"SET session:cli "{\"a\":\"1\"}" XX KEEPTTL GET"#, r#""{\"a\":\"1\",\"b\":\"2\"}""#),
    ("GETEX session:cli PERSIST", r#""{\"a\":\"1\"}""#),
    ("TTL session:cli", "(integer) -1"),
    ("EXISTS session:cli session:none", "(integer) 1"),
    ("DEL session:cli", "(integer) 1"),
    ("GET session:cli", "(nil)"),
    ("HSET session:cli a 1 b 2", "(integer) 2"),
    ("HGET session:cli b", r#""2""#),
    ("HINCRBY session:cli b 5", "(integer) 7"),
    ("HDEL session:cli a b", "(integer) 2"),
    ("EXISTS session:cli", "(integer) 0"),
    ("NOSUCH x", "(error) ERR unknown command 'NOSUCH', with args beginning with: 'x' "),
    ("GET", "(error) ERR wrong number of arguments for 'get' command"),
];

/// Types the session into redis-cli, with RESP2 and with RESP3.
async fn session(server: SocketAddr) {
    let lines: Vec<&str> = SESSION.iter().map(|(line, _)| *line).collect();
    for protocol in ["-2", "-3"] {
        let (output, well) = run("redis-cli", server, &["--no-raw", protocol], &(lines.join("\n") + "\n")).await;
        assert!(well, "{output}");
        // A client that is told of an error shows an empty line after it.
        let shown: Vec<&str> = output.lines().filter(|line| !line.is_empty()).collect();
        for ((line, expected), shown) in SESSION.iter().zip(&shown) {
            // A second may have gone by.
            let late = line.starts_with("TTL") && shown.starts_with("(integer) 17");
            assert!(late || expected == shown, "{line}: {shown} instead of {expected}\n{output}");
        }
        assert_eq!(shown.len(), SESSION.len(), "{output}");
    }
}

/// Measures as people do first: with redis-benchmark. Not for the figures, but it sends much at once, and complains loudly.
async fn benchmark(server: SocketAddr, writes: &str) {
    let value = r#"{"backend":"one","user":"someone"}"#;
    let commands: [&[&str]; 6] = [
        &["-n", writes, "-c", "10", "-P", "4", "SET", "session:bench:__rand_int__", value, "EX", "1800"],
        &["-n", "5000", "-c", "50", "-P", "16", "GET", "session:bench:__rand_int__"],
        &["-n", "5000", "-c", "50", "GETEX", "session:bench:__rand_int__", "EX", "1800"],
        &["-n", "5000", "-c", "500", "-P", "16", "HGETALL", "session:hash"],
        &["-n", writes, "-c", "10", "SET", "session:bench:__rand_int__", value, "XX", "EX", "1800"],
        &["-n", "5000", "-c", "50", "-3", "-P", "16", "-t", "ping"],
    ];
    let (output, well) = run("redis-cli", server, &["HSET", "session:hash", "a", "1", "b", "2"], "").await;
    assert!(well, "{output}");
    for command in commands {
        let (output, well) = run("redis-benchmark", server, &[&["-r", "20", "--csv"], command].concat(), "").await;
        assert!(well && !output.contains("rror"), "{command:?}: {output}");
        println!("{}: {}", command.join(" "), output.lines().last().unwrap_or_default());
    }
    let (output, well) = run("redis-cli", server, &["--scan", "--pattern", "session:bench:*"], "").await;
    assert!(well && output.lines().count() == 20, "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_itself_is_driven_by_its_own_tools() {
    let redis = RedisServer::start(&["--maxclients", "1000"]).await;
    session(redis.address).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_is_driven_by_redis_cli_and_redis_benchmark() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let mut agent = agent(&world, "agent", AgentOptions::default()).await;
    session(agent.address).await;
    benchmark(agent.address, "200").await;
    // Killed and started again: redis-cli connects anew, and what was written is there.
    agent.process.kill9().await.unwrap();
    agent.restart().await.unwrap();
    let shown = eventually(PATIENCE, "the session is answered", async || {
        let (output, _) = run("redis-cli", agent.address, &["HGETALL", "session:hash"], "").await;
        (!output.contains("TRYAGAIN")).then_some(output)
    });
    assert_eq!(shown.await.unwrap(), "a\n1\nb\n2\n");
}
