//! Real clients: go-redis, rueidis, redis-py, redis-rs, redis-cli and redis-benchmark. The programs are in tests/clients;
//! each prints a line for each check. They run against Redis itself too: what Redis fails is a mistake of the program.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use testkit::{AgentOptions, AgentPod, ClusterOptions, Process, eventually};

use super::keyed::{KEY_PREFIX, agent};
use super::redis::{RedisServer, tool};
use crate::world::World;

/// Longer than all checks of a client take, on a busy machine.
const ALL: Duration = Duration::from_mins(8);
/// The programs in tests/clients.
const CLIENTS: [&str; 4] = ["go-redis", "rueidis", "redis-py", "redis-rs"];
/// What a client prints when it wants its server killed and started again.
const KILL_ME: &str = "kill the server";
/// A server that can be killed and comes back on the same address.
trait Killable {
    fn address(&self) -> SocketAddr;
    async fn kill9_and_restart(&mut self);
}

impl Killable for RedisServer {
    fn address(&self) -> SocketAddr {
        self.address
    }

    async fn kill9_and_restart(&mut self) {
        RedisServer::kill9_and_restart(self).await;
    }
}

impl Killable for AgentPod {
    fn address(&self) -> SocketAddr {
        self.address
    }

    /// Clients must cope with an agent that has no lease yet.
    async fn kill9_and_restart(&mut self) {
        self.process.kill9().await.unwrap();
        self.restart().await.unwrap();
    }
}

/// A client program, and its arguments so far.
fn program(name: &str) -> (std::path::PathBuf, Vec<String>) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    match name {
        "go-redis" | "rueidis" => (tool("clients/go/vmcp-clients"), vec![name.into()]),
        "redis-py" => {
            let script = root.join("tests/clients/python/redis_py.py");
            (tool("clients/python/venv/bin/python3"), vec![script.display().to_string()])
        }
        "redis-rs" => {
            let program = crate::programs().session.with_file_name("vmcp-client-redis-rs");
            assert!(program.exists(), "{} is not built: run `cargo build --workspace --bins`", program.display());
            (program, vec![])
        }
        other => panic!("no client is called {other}"),
    }
}

/// Runs a client's checks; kills and restarts the server when the client says so.
async fn checks(name: &str, server: &mut impl Killable, more: &[&str]) {
    let (program, mut args) = program(name);
    args.extend(["--address".to_owned(), server.address().to_string(), format!("--prefix={KEY_PREFIX}")]);
    let client = Process::builder(name, program).args(args).args(more).spawn().unwrap();
    let said = |line: &str| client.log().lines().any(|l| l == line);
    let what = format!("{name} has made its checks");
    let ended = async || (said(KILL_ME) || !client.is_running()).then(|| client.is_running());
    if eventually(ALL, &what, ended).await.unwrap() {
        server.kill9_and_restart().await;
    }
    let status = client.wait(ALL).await.unwrap();
    let log = client.log();
    print!("{log}");
    assert!(status.success(), "{name}: {status}");
    assert!(log.lines().filter(|l| l.starts_with("ok ")).count() >= 5, "{name} has hardly checked anything");
    assert!(said("ok reconnect"), "{name} has not reconnected");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_itself_passes_the_checks_of_every_client() {
    let mut redis = RedisServer::start(&["--notify-keyspace-events", "KEA"]).await;
    for client in CLIENTS {
        checks(client, &mut redis, &["--plain"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_itself_passes_with_a_password() {
    let mut redis = RedisServer::start(&["--notify-keyspace-events", "KEA", "--requirepass", "a-password"]).await;
    for client in CLIENTS {
        checks(client, &mut redis, &["--plain", "--password=a-password"]).await;
    }
}

/// Two agents, of two pods. What a client writes through one it reads through the other (I8); it keeps copies that are
/// invalidated whoever writes; it goes on after its agent was killed, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_works_with_agents() {
    // A write waits as long for an agent that was killed.
    let world = World::start(ClusterOptions::default().size(2, 0).lease(super::LEASE)).await;
    let mut here = agent(&world, "here", AgentOptions::default()).await;
    let there = agent(&world, "there", AgentOptions::default()).await;
    for client in CLIENTS {
        checks(client, &mut here, &[&format!("--other={}", there.address)]).await;
        here.wait_leases(2).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_client_works_with_a_password() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let file = world.plane.dir().join("password");
    std::fs::write(&file, "a-password\n").unwrap();
    let options = AgentOptions::default().args(&[&format!("--password-file={}", file.display())]);
    let mut agent = agent(&world, "agent", options).await;
    for client in CLIENTS {
        checks(client, &mut agent, &["--password=a-password"]).await;
    }
}
