//! What one request costs a server that checks its copy of the session first.

use std::hint::black_box;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{LoopbackAddr, eventually};
use vmcp_session::cache::{Cache, CacheConfig};

use super::PREFIX;
use super::load::go;
use super::servers::{SESSIONS, Servers};
use crate::percentile::Percentiles;

const ROUNDS: usize = 5;
const REQUESTS: usize = 20_000;
const HITS: usize = 1_000_000;
const BATCH: usize = 100;
const PATIENCE: Duration = Duration::from_mins(2);

/// The library, in this process, with the sessions in its cache.
async fn library(servers: &Servers) -> Cache {
    let (plane, namespace) = (&servers.cluster.plane, &servers.cluster.options.namespace);
    let ip = LoopbackAddr::claim().unwrap();
    let pod = plane.create_pod(namespace, "in-process", "vmcp-server", ip.ip()).await.unwrap();
    let hour = Duration::from_hours(1);
    let token = plane.token_for_pod(namespace, "vmcp-server", &pod, &["vmcp.dev"], hour).await.unwrap();
    let access = plane.kubeconfig_for_token("in-process", plane.url(), &token).unwrap();
    let config = CacheConfig {
        controllers: servers.cluster.controllers.iter().map(|c| c.address.to_string()).collect(),
        token_file: Some(access.token_file),
        ca_file: Some(servers.cluster.streams.ca.clone()),
        ..CacheConfig::new(namespace.clone(), "in-process")
    };
    let cache = Cache::connect(plane.client(), config).unwrap();
    eventually(PATIENCE, "the library has all sessions", async || {
        for n in 0..SESSIONS {
            cache.get(&name(n)).await.ok()?;
        }
        (0..SESSIONS).all(|n| cache.hit(&name(n)).is_some()).then_some(())
    })
    .await
    .unwrap();
    cache
}

fn name(n: usize) -> String {
    format!("s-{n:012}")
}

/// Microseconds per hit, in batches.
fn hits(cache: &Cache) -> Percentiles {
    let names: Vec<String> = (0..SESSIONS).map(name).collect();
    let mut times = Vec::new();
    for batch in 0..HITS / BATCH {
        let began = Instant::now();
        for n in 0..BATCH {
            black_box(cache.hit(&names[(batch * BATCH + n) % SESSIONS]));
        }
        times.push(began.elapsed().as_secs_f64() * 1e6 / BATCH as f64);
    }
    Percentiles::of(times)
}

/// Measures, and returns the figures.
pub async fn run(servers: &Servers) -> Value {
    // One after the other in each round, so that all have the same neighbours.
    let (redis, agent) = (servers.redis.address, servers.agent().address);
    let cache = library(servers).await;
    let ways = [
        ("Redis, GETEX per request", redis, "getex", REQUESTS),
        ("the agent, GETEX per request", agent, "getex", REQUESTS),
        ("the agent, kept by the client (rueidis)", agent, "cached", HITS),
    ];
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for ((_, address, command, requests), times) in ways.iter().zip(&mut times) {
            let figures = go(*address, command, &format!("{PREFIX}s-"), [1, 1, *requests]).await.unwrap();
            times.push(figures["p50_us"].as_f64().unwrap());
        }
        times[3].push(hits(&cache).p50);
    }
    let medians = times.map(|times| Percentiles::of(times).p50);
    println!(
        "\none request of a server that checks its copy, microseconds (median of {ROUNDS} rounds, one connection)"
    );
    let names = ways.map(|(name, ..)| name).into_iter().chain(["the library, in process"]);
    for (name, median) in names.zip(medians) {
        println!("{name:<44}{median:>10.3}{:>10.0}x", medians[0] / median);
    }
    println!("bar: kept by the client at least 100 times cheaper than Redis GETEX");
    json!({"redis_getex_us": medians[0], "agent_getex_us": medians[1], "client_cached_us": medians[2],
        "library_us": medians[3], "bar": {"client_cached_ratio": 100}})
}
