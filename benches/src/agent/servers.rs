//! A redis-server as it comes, nothing on disk, and a cluster with agents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use testkit::{
    AgentOptions, AgentPod, Cluster, ClusterOptions, LoopbackAddr, Process, Programs, RespClient, eventually,
};

use super::{PREFIX, value};
use crate::ROOT;

/// Sessions that the load is spread over.
pub const SESSIONS: usize = 1_000;
/// Agents that hold them: the one that is measured, and two more.
const AGENTS: usize = 3;
const PATIENCE: Duration = Duration::from_mins(2);
/// Requests that are sent together when there is much to write.
const BATCH: usize = 50;

/// What `make clients` has put under target/tools.
pub fn tool(path: &str) -> PathBuf {
    let path = Path::new(ROOT).join("target/tools").join(path);
    assert!(path.exists(), "{} is missing: run `make clients`", path.display());
    path
}

/// A Redis server.
pub struct Redis {
    pub process: Process,
    pub address: SocketAddr,
    _ip: LoopbackAddr,
}

impl Redis {
    /// Starts one.
    pub async fn start() -> Self {
        let ip = LoopbackAddr::claim().unwrap();
        let address = ip.free_socket().unwrap();
        let process = Process::builder("redis-server", tool("redis/bin/redis-server"))
            .args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
            .spawn()
            .unwrap();
        eventually(PATIENCE, "redis-server listens", async || RespClient::connect(address).await.ok()).await.unwrap();
        Self { process, address, _ip: ip }
    }
}

/// Both.
pub struct Servers {
    pub redis: Redis,
    pub agents: Vec<AgentPod>,
    pub cluster: Cluster,
}

impl Servers {
    /// Starts them.
    pub async fn start(programs: &Programs) -> Self {
        // Nobody reads the logs, and a benchmark is not to be one of the terminal.
        let quiet = ClusterOptions { log_level: "warn".into(), ..ClusterOptions::default().size(2, 0) };
        let cluster = Cluster::start(programs.clone(), quiet).await.unwrap();
        let mut agents = Vec::new();
        for n in 0..AGENTS {
            let options = AgentOptions::default().args(&[&format!("--key-prefix={PREFIX}")]);
            let agent = cluster.agent(&format!("agent-{n}"), options).await.unwrap();
            agent.wait_leases(2).await.unwrap();
            agents.push(agent);
        }
        Self { redis: Redis::start().await, agents, cluster }
    }

    /// The agent that is measured.
    pub fn agent(&self) -> &AgentPod {
        &self.agents[0]
    }

    /// Writes the sessions to both, as strings and as hashes, and lets every agent hold them.
    pub async fn fill(&self) {
        for address in [self.redis.address, self.agent().address] {
            let mut client = RespClient::connect(address).await.unwrap();
            let strings = (0..SESSIONS).map(|n| vec!["SET".into(), string_key(n), value(n).to_string()]);
            let hashes = (0..SESSIONS).map(|n| {
                let fields = value(n);
                let fields = fields.as_object().unwrap().iter();
                let words = fields.flat_map(|(key, value)| [key.clone(), text(value)]);
                ["HSET".into(), hash_key(n)].into_iter().chain(words).collect::<Vec<String>>()
            });
            send_all(&mut client, strings.chain(hashes)).await;
        }
        self.hold().await;
    }

    /// Lets every agent hold all sessions.
    pub async fn hold(&self) {
        for agent in &self.agents {
            let mut client = agent.client().await.unwrap();
            let gets =
                (0..SESSIONS).flat_map(|n| [vec!["GET".into(), string_key(n)], vec!["HLEN".into(), hash_key(n)]]);
            send_all(&mut client, gets).await;
        }
    }
}

/// Sends all these, some at once. None may fail.
pub async fn send_all(client: &mut RespClient, commands: impl Iterator<Item = Vec<String>>) {
    let commands: Vec<Vec<String>> = commands.collect();
    for batch in commands.chunks(BATCH) {
        for command in batch {
            let words: Vec<&str> = command.iter().map(String::as_str).collect();
            client.send(&words).await.unwrap();
        }
        for command in batch {
            let answer = client.answer().await.unwrap();
            assert_eq!(answer.error(), None, "{} {}", command[0], command[1]);
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Keys end with twelve digits: so does redis-benchmark write its random numbers.
pub fn string_key(n: usize) -> String {
    format!("{PREFIX}s-{n:012}")
}

/// Those of the hashes.
pub fn hash_key(n: usize) -> String {
    format!("{PREFIX}h-{n:012}")
}
