//! Cached hits per second per core in process: the cache with its lease check, beside a plain locked map and moka.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{Cluster, ClusterOptions, Programs, eventually};
use vmcp_session::cache::{Cache, CreateOptions, Metadata};

use crate::percentile::Percentiles;
use crate::streams;

const SESSIONS: usize = 10_000;
const HITS: usize = 1_000_000;
const ROUNDS: usize = 15;
const PATIENCE: Duration = Duration::from_secs(120);

fn metadata(session: usize) -> Metadata {
    (0..8).map(|key| (format!("backend-{key}"), format!("{:060}", session * 8 + key))).collect()
}

/// A pod in this process, connected to a real controller, with all sessions in its cache.
async fn connected(cluster: &Cluster) -> Cache {
    let cache = streams::connect(cluster, "bench").await;
    for n in 0..SESSIONS {
        cache.create(&name(n), metadata(n), CreateOptions::default()).await.unwrap();
    }
    eventually(PATIENCE, "all sessions are covered", async || {
        (0..SESSIONS).all(|n| cache.hit(&name(n)).is_some()).then_some(())
    })
    .await
    .unwrap();
    cache
}

fn name(n: usize) -> String {
    format!("session-{n:06}")
}

/// Nanoseconds per call of `hit` over `names`.
fn timed(names: &[String], mut hit: impl FnMut(&str)) -> f64 {
    let begun = Instant::now();
    for name in names {
        hit(name);
    }
    begun.elapsed().as_nanos() as f64 / names.len() as f64
}

/// Measures, and returns a row.
pub async fn run(programs: &Programs) -> Value {
    let cluster = Cluster::start(programs.clone(), ClusterOptions::default().size(1, 0)).await.unwrap();
    let cache = connected(&cluster).await;
    let values: Vec<(String, Arc<Metadata>)> = (0..SESSIONS).map(|n| (name(n), Arc::new(metadata(n)))).collect();
    let plain: RwLock<HashMap<String, Arc<Metadata>>> = RwLock::new(values.iter().cloned().collect());
    let moka = moka::sync::Cache::builder().max_capacity(SESSIONS as u64 * 2).build();
    for (name, value) in values {
        moka.insert(name, value);
    }
    moka.run_pending_tasks();
    // A fixed sequence that jumps about (a full-period generator), the same for all.
    let mut state = 1usize;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        name((state >> 33) % SESSIONS)
    };
    let names: Vec<String> = (0..HITS).map(|_| next()).collect();
    let (mut ours, mut map, mut theirs, mut missed) = (Vec::new(), Vec::new(), Vec::new(), 0usize);
    tokio::task::block_in_place(|| {
        for _ in 0..ROUNDS {
            ours.push(timed(&names, |name| match black_box(cache.hit(name)) {
                Some(_) => {}
                None => missed += 1,
            }));
            map.push(timed(&names, |name| drop(black_box(plain.read().unwrap().get(name).cloned()))));
            theirs.push(timed(&names, |name| drop(black_box(moka.get(name)))));
        }
    });
    assert_eq!(missed, 0, "a lease ran out: the machine is too busy to measure");
    let (ours, map, theirs) = (Percentiles::of(ours), Percentiles::of(map), Percentiles::of(theirs));
    println!("\ncached hits in process, one thread, {SESSIONS} sessions, median of {ROUNDS} rounds");
    println!("{:<28}{:>10}{:>18}", "", "ns a hit", "hits a second");
    for (what, ns) in [("this cache, lease checked", ours.p50), ("RwLock<HashMap>", map.p50), ("moka", theirs.p50)] {
        println!("{what:<28}{ns:>10.0}{:>18.0}", 1e9 / ns);
    }
    println!("bars: under 150 ns, and faster than moka");
    json!({"unit": "nanoseconds per hit", "sessions": SESSIONS, "cache": ours.p50, "rwlock_hashmap": map.p50,
        "moka": theirs.p50, "bars": {"cache": 150, "faster_than": "moka"}})
}
