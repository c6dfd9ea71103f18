//! The agent as a sidecar: a process of its own in a pod of its own, and clients that speak Redis to it.

use std::time::Duration;

use testkit::{AgentOptions, AgentPod, ClusterOptions, Resp, RespClient, eventually};

use crate::world::{PATIENCE, World};

mod clients;
mod commands;
mod differential;
mod flood;
mod hashed;
mod hostile;
mod keyed;
mod life;
mod mcp;
pub mod redis;
mod redis_tools;
mod sessions;
mod settings;
mod snippets;
mod timeouts;
mod tracking;
mod wire;

/// Short enough for a test to see its end, long enough for a busy machine to keep it.
const LEASE: Duration = Duration::from_secs(4);

/// A control plane with two controllers, and no pod.
async fn world() -> World {
    World::start(ClusterOptions::default().size(2, 0).lease(LEASE)).await
}

/// An agent with a lease from each replica.
async fn agent(world: &World, name: &str, options: AgentOptions) -> AgentPod {
    let agent = world.agent(name, options).await.unwrap();
    agent.wait_leases(world.controllers.len()).await.unwrap();
    agent
}

/// Sends a command that must not fail, and returns its answer.
async fn ask(client: &mut RespClient, args: &[&str]) -> Resp {
    let answer = client.call(args).await.unwrap();
    assert_eq!(answer.error(), None, "{args:?}");
    answer
}

/// Asks again until the answer is right.
async fn until(client: &mut RespClient, args: &[&str], right: impl Fn(&Resp) -> bool) {
    let asked = async {
        while !right(&client.call(args).await.unwrap()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked)
        .await
        .unwrap_or_else(|_| panic!("{args:?} is never answered as it should be"));
}

/// Reads a key until it is served from the cache alone: what is read from then on is covered by a lease.
async fn held(agent: &AgentPod, client: &mut RespClient, key: &str) {
    let hits = async || agent.metric("vmcp_agent_reads_total{outcome=\"hit\"}").await.unwrap();
    let asked = async {
        loop {
            let before = hits().await;
            client.call(&["GET", key]).await.unwrap();
            if hits().await > before {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{key} is never served from the cache"));
}

fn ok() -> Resp {
    Resp::Simple("OK".into())
}
