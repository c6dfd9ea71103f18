//! A write that is visible everywhere while three agents hold the session, beside a bare patch.

use std::time::{Duration, Instant};

use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use testkit::{AgentPod, RespClient};
use vmcp_session::api::VmcpSession;

use super::servers::{Servers, string_key};
use crate::percentile::Percentiles;

const WRITES: usize = 300;
/// The first ones warm connections up.
const WARM: usize = 20;
const PATIENCE: Duration = Duration::from_mins(1);

/// Reads a session until the agent answers from its cache.
async fn held(agent: &AgentPod, client: &mut RespClient, key: &str) {
    let hits = async || agent.metric("vmcp_agent_reads_total{outcome=\"hit\"}").await.unwrap();
    let read = async {
        loop {
            let before = hits().await;
            client.call(&["GET", key]).await.unwrap();
            if hits().await > before {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, read).await.expect("the agent holds the session");
}

/// Measures, and returns the figures.
pub async fn run(servers: &Servers) -> Value {
    let api: Api<VmcpSession> = Api::namespaced(servers.cluster.plane.client(), &servers.cluster.options.namespace);
    let key = string_key(0);
    let mut clients = Vec::new();
    for agent in &servers.agents {
        clients.push(agent.client().await.unwrap());
    }
    let (mut bare, mut everywhere) = (Vec::new(), Vec::new());
    for n in 0..WRITES + WARM {
        // A session that nobody reads: in turn with the other, so that both have the same neighbours.
        let patch = json!({"spec": {"metadata": {"backend-0": n.to_string()}}});
        let began = Instant::now();
        api.patch("s-000000000001", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        let patched = began.elapsed();
        for (agent, client) in servers.agents.iter().zip(&mut clients) {
            held(agent, client, &key).await;
        }
        let mut value = super::value(0);
        value["backend-0"] = n.to_string().into();
        let began = Instant::now();
        let answer = clients[0].call(&["SET", &key, &value.to_string(), "XX", "EX", "1800"]).await.unwrap();
        let written = began.elapsed();
        assert!(answer.is("OK"), "{answer:?}");
        if n >= WARM {
            bare.push(patched.as_secs_f64() * 1e3);
            everywhere.push(written.as_secs_f64() * 1e3);
        }
    }
    let (bare, everywhere) = (Percentiles::of(bare), Percentiles::of(everywhere));
    println!("\na write that is visible everywhere, {} holders, milliseconds, {WRITES} of each", servers.agents.len());
    println!("{:<44}{:>9}{:>9}", "", "p50", "p99");
    println!("{:<44}{:>9.2}{:>9.2}", "a bare patch", bare.p50, bare.p99);
    println!("{:<44}{:>9.2}{:>9.2}", "SET XX through an agent", everywhere.p50, everywhere.p99);
    println!("p50 later by {:.2}; bar: at most 1.50", everywhere.p50 - bare.p50);
    json!({"bare": bare.json(), "set_xx": everywhere.json(), "p50_later_ms": everywhere.p50 - bare.p50,
        "bar": {"p50_later_ms": 1.5}})
}
