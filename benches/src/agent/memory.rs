//! Resident memory per session: the agent with all sessions in its cache, beside Redis with the same values.

use std::time::Duration;

use futures::{StreamExt, stream};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testkit::{AgentOptions, Cluster, ClusterOptions, Programs, RespClient, eventually};
use vmcp_session::api::VmcpSession;

use super::PREFIX;
use super::servers::{Redis, send_all, string_key};
use super::value;
use crate::memory::resident;

const SESSIONS: usize = 20_000;
const PATIENCE: Duration = Duration::from_mins(5);

/// Measures, and returns the figures.
pub async fn run(programs: &Programs) -> Value {
    let quiet = ClusterOptions { log_level: "warn".into(), ..ClusterOptions::default().size(1, 0) };
    let cluster = Cluster::start(programs.clone(), quiet).await.unwrap();
    let api: Api<VmcpSession> = Api::namespaced(cluster.plane.client(), &cluster.options.namespace);
    let create = async |n: usize| {
        let name = string_key(n).trim_start_matches(PREFIX).to_owned();
        let object = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": {"name": name},
            "spec": {"metadata": value(n)}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    };
    stream::iter(0..SESSIONS).for_each_concurrent(32, create).await;
    let options = AgentOptions::default().args(&[&format!("--key-prefix={PREFIX}")]);
    let agent = cluster.agent("agent", options).await.unwrap();
    agent.wait_leases(1).await.unwrap();
    let redis = Redis::start().await;
    let before = (resident(agent.process.pid()), resident(redis.process.pid()));
    let mut client = RespClient::connect(redis.address).await.unwrap();
    send_all(&mut client, (0..SESSIONS).map(|n| vec!["SET".into(), string_key(n), value(n).to_string()])).await;
    let mut client = agent.client().await.unwrap();
    send_all(&mut client, (0..SESSIONS).map(|n| vec!["GET".into(), string_key(n)])).await;
    eventually(PATIENCE, "the agent holds all", async || {
        let answer = agent.client().await.ok()?.call(&["DBSIZE"]).await.ok()?;
        (format!("{answer:?}") == format!("Int({SESSIONS})")).then_some(())
    })
    .await
    .unwrap();
    let after = (resident(agent.process.pid()), resident(redis.process.pid()));
    let per_session = |bytes: u64| bytes as f64 / SESSIONS as f64;
    let (ours, theirs) = (per_session(after.0 - before.0), per_session(after.1 - before.1));
    println!("\nresident memory per session, {SESSIONS} sessions of 8 keys (70 characters each, key and value)");
    println!(
        "{:<20}{ours:>8.0} B\n{:<20}{theirs:>8.0} B\nratio {:.2}; bar: at most 1.00",
        "agent",
        "Redis",
        ours / theirs
    );
    json!({"sessions": SESSIONS, "agent": ours, "redis": theirs, "ratio": ours / theirs, "bar": 1.0})
}
