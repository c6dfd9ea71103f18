//! A flood of unknown session ids: a bounded rate of GETs at the API server, and hits that notice nothing.

#![allow(clippy::cast_precision_loss, reason = "these are counts of thousands")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::{AgentOptions, ClusterOptions, Verb};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::keyed::agent;
use super::wire::{Connection, Value, encode};
use crate::world::World;

/// Ids that are asked for in a second, as far as this machine gets.
const RATE: u64 = 20_000;
/// More than may wait for a GET that brings nothing: with fewer, all would wait, and the flood would dry up by itself.
const CONNECTIONS: u64 = 1_000;
/// How often each connection sends its share.
const EVERY: Duration = Duration::from_millis(100);
const LASTS: Duration = Duration::from_secs(4);
/// What an agent may ask for ids that turn out to be unknown: so many per second, and so many at once.
const UNKNOWN: (f64, f64) = (100.0, 256.0);
/// How much longer a hit may take beside it than beside as many PINGs: so many times, and so much. Far less than it takes until as
/// many unknown ids as there are connections have been asked for.
const SLOWER: (u32, Duration) = (20, Duration::from_millis(250));

/// Sends `RATE` of what `command` makes of a number per second, and counts the answers. An answer must be a null, or an error
/// that clients retry; never anything else.
async fn flood(to: SocketAddr, counter: Arc<AtomicU64>, command: fn(u64) -> Vec<String>) -> u64 {
    let share = RATE * u64::try_from(EVERY.as_millis()).unwrap() / 1_000 / CONNECTIONS;
    let mut tasks = JoinSet::new();
    let end = Instant::now() + LASTS;
    for _ in 0..CONNECTIONS {
        let counter = counter.clone();
        tasks.spawn(async move {
            let mut connection = Connection::open(to).await.unwrap();
            let mut ticks = interval(EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            let mut answered = 0;
            while Instant::now() < end {
                ticks.tick().await;
                let mut batch = Vec::new();
                for _ in 0..share {
                    encode(&command(counter.fetch_add(1, Ordering::Relaxed)), &mut batch);
                }
                connection.send_bytes(&batch).await.unwrap();
                for _ in 0..share {
                    match connection.read().await.unwrap() {
                        Value::NullBulk | Value::Simple(_) => {}
                        Value::Error(text) if text.starts_with("TRYAGAIN ") => {}
                        other => panic!("{other}"),
                    }
                    answered += 1;
                }
            }
            answered
        });
    }
    tasks.join_all().await.into_iter().sum()
}

/// Reads a session that is held, again and again, until the flood is over: the median of the times.
async fn hits(of: SocketAddr, until: Instant) -> Duration {
    let mut connection = Connection::open(of).await.unwrap();
    let mut times = Vec::new();
    while Instant::now() < until {
        let before = Instant::now();
        let answer = connection.ask("GET session:held").await.unwrap();
        times.push(before.elapsed());
        assert_eq!(answer.text(), r#"{"a":"b"}"#);
        // It is one client among many, not a flood of its own.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_ids_reaches_the_api_server_as_a_trickle_and_slows_no_hit() {
    let world = World::start_alone(ClusterOptions::default().size(1, 0)).await;
    let agent = agent(&world, "agent", AgentOptions::default()).await;
    world.apply("held", &json!({"a": "b"})).await.unwrap();
    super::held(&agent, &mut agent.client().await.unwrap(), "session:held").await;

    let mark = world.plane.audit().mark().unwrap();
    let counter = Arc::new(AtomicU64::new(0));
    let (mut calm, mut flooded) = (Vec::new(), Vec::new());
    let (mut asked, mut lasted) = (0, 0.0);
    // In turn, so that whatever else this machine does slows both.
    for _ in 0..3 {
        let until = Instant::now() + LASTS;
        let pings = flood(agent.address, counter.clone(), |_| vec!["PING".into()]);
        calm.push(tokio::join!(pings, hits(agent.address, until)).1);
        let began = Instant::now();
        let until = began + LASTS;
        let unknown = flood(agent.address, counter.clone(), |n| vec!["GET".into(), format!("session:unknown-{n}")]);
        let (answered, median) = tokio::join!(unknown, hits(agent.address, until));
        flooded.push(median);
        asked += answered;
        lasted += began.elapsed().as_secs_f64();
    }
    let (calm, flooded) = (*calm.iter().min().unwrap(), *flooded.iter().min().unwrap());
    world.plane.apiserver().audit_flush().await.unwrap();
    let entries = world.plane.audit().entries_since(mark).unwrap();
    let by_agent = |e: &&testkit::AuditEntry| e.stage == "ResponseComplete" && e.is_by("vmcp", "vmcp-server");
    let gets: Vec<_> = entries.iter().filter(by_agent).filter(|e| e.verb == Verb::Get).collect();
    let unknown = gets.iter().filter(|e| e.name.starts_with("unknown-")).count();
    println!(
        "{asked} unknown ids in {lasted:.1} s: {unknown} GETs; median hit {flooded:?}, {calm:?} beside as many PINGs"
    );
    // Tokens also come while none is asked for.
    let allowed = UNKNOWN.0 * (lasted + 3.0 * LASTS.as_secs_f64()) + UNKNOWN.1;
    assert!((unknown as f64) <= allowed, "{unknown} GETs, {allowed} are allowed");
    assert!(asked as f64 > 4.0 * allowed, "{asked} is no flood");
    assert_eq!(gets.iter().filter(|e| e.name == "held").count(), 0, "hits ask nobody");
    // To refuse costs more of the processor than to say PONG, and on a machine that has no more to give, a hit waits for its
    // turn there. What it must not do is to wait for GETs, as unknown ids do: for so many of them that takes seconds.
    assert!(flooded <= calm * SLOWER.0 + SLOWER.1, "a hit takes {flooded:?}, {calm:?} beside as many PINGs");
}
