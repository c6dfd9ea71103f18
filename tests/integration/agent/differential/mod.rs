//! The same random sequences of commands on a real redis-server and on what is compared with it: no difference in value, type
//! or error text that a client could see, nor in what is told of keys to those who listen.
//!
//! The same few are run each time, so that a failure is of what was changed. `DIFFERENTIAL_SEQUENCES=n` runs that many others,
//! `DIFFERENTIAL_SEED=n` begins with this seed (one sequence, unless it is said otherwise). A difference is reported with its seed and
//! the shortest sequence that was found to show it.

mod caching;
mod compare;
mod generate;
mod run;
mod step;

use std::time::SystemTime;

use generate::Generator;
use run::{Difference, Pair};
use step::Step;

use testkit::{AgentOptions, ClusterOptions};
use vmcp_session::agent::command::TABLE;

use super::keyed::{KEY_PREFIX, agent};
use super::redis::RedisServer;
use crate::world::World;

/// Steps of a sequence.
const STEPS: usize = 150;

/// Has Redis tell of keys, as an agent always does.
const TELLING: [&str; 2] = ["--notify-keyspace-events", "KEA"];

/// A number from the environment.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// The sequence of a seed.
fn sequence(seed: u64) -> Vec<Step> {
    // An hour's precision: a seed that has failed can be run again.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 3_600 * 3_600;
    Generator::new(seed, KEY_PREFIX, now).sequence(STEPS)
}

/// Compares so many sequences; the first difference, made short.
async fn compare(pair: &Pair, sequences: u64) -> Option<(u64, Vec<Step>, Difference)> {
    let chosen = setting("DIFFERENTIAL_SEED");
    let others = setting("DIFFERENTIAL_SEQUENCES");
    let sequences = others.unwrap_or(if chosen.is_some() { 1 } else { sequences });
    let first = chosen.unwrap_or_else(|| others.map_or(1, |_| rand::random::<u32>().into()));
    println!("seeds {first} to {}", first + sequences - 1);
    for seed in first..first + sequences {
        let steps = sequence(seed);
        if let Some(difference) = pair.run(&steps).await {
            let (steps, difference) = pair.shrink(steps, difference).await;
            return Some((seed, steps, difference));
        }
    }
    None
}

/// What a person needs to see.
fn report((seed, steps, difference): &(u64, Vec<Step>, Difference)) -> String {
    let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
    let cut = |text: &str| text.chars().take(1_000).collect::<String>();
    let (reference, subject) = (cut(&difference.reference), cut(&difference.subject));
    format!("seed {seed} (a> speaks RESP2, b> RESP3):\n{}\nRedis: {reference}\nhere:  {subject}", steps.join("\n"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_redis_servers_show_no_difference() {
    let (one, two) = (RedisServer::start(&TELLING).await, RedisServer::start(&TELLING).await);
    let pair = Pair::new(one.address, two.address);
    let found = compare(&pair, 40).await;
    assert!(found.is_none(), "{}", report(&found.unwrap()));
    assert!(pair.events() > 0, "nobody heard of any key");
}

/// The agent, beside Redis.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_answers_as_redis_does() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let agent = agent(&world, "agent", AgentOptions::default()).await;
    let redis = RedisServer::start(&TELLING).await;
    let pair = Pair::new(redis.address, agent.address);
    let found = compare(&pair, 12).await;
    assert!(found.is_none(), "{}", report(&found.unwrap()));
    assert!(pair.told() > 0, "no client was told anything");
    assert!(pair.events() > 0, "nobody heard of any key");
}

/// Sequences that have shown a difference once.
const FOUND: [&str; 2] = [
    "a> multi; a> exec x; a> get session:s-one; a> exec",
    "a> hello 3 auth nobody secret junk; a> hello 3 setname me junk; a> client getname",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_differed_once_does_not_again() {
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let agent = agent(&world, "agent", AgentOptions::default()).await;
    let redis = RedisServer::start(&TELLING).await;
    let pair = Pair::new(redis.address, agent.address);
    for line in FOUND {
        let steps: Vec<Step> = line.split("; ").map(Step::typed).collect();
        let found = pair.run(&steps).await;
        assert!(found.is_none(), "{}", report(&(0, steps, found.unwrap())));
    }
}

/// A server that lacks a command: seen, and the sequence is made short.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_difference_is_found_and_made_short() {
    let one = RedisServer::start(&[]).await;
    for missing in ["GETDEL", "HSETNX", "PERSIST", "EXEC"] {
        let two = RedisServer::start(&["--rename-command", missing, ""]).await;
        let found = compare(&Pair::new(one.address, two.address), 200).await;
        let found = found.unwrap_or_else(|| panic!("nobody missed {missing}"));
        println!("{}", report(&found));
        assert!(found.1.len() <= 4, "{}", report(&found));
        assert!(found.2.subject.contains(&missing.to_lowercase()) || found.2.subject.contains(missing));
    }
}

/// What is served, and does not come up: the answers cannot be compared.
const NOT_COMPARED: [&str; 6] = [
    // There are fewer subcommands, and commands.
    "client|help",
    "command|help",
    "config|help",
    "command|list",
    // Newer than the Redis that is compared with.
    "client|no-touch",
    "client|setinfo",
];

/// Among all sequences, everything that is served is tried. What is left out of each command's answers, `compare` says. What
/// is not tried in every way: AUTH with a password that is right (`life`), REDIRECT to a client that is there (`tracking`), and
/// COMMAND INFO of commands that there are (a unit test of the table compares these with Redis).
#[test]
fn sequences_try_every_command() {
    let mut seen = std::collections::BTreeSet::new();
    let mut inline = 0;
    for seed in 0..60 {
        for step in sequence(seed) {
            match step {
                Step::Command { command, inline: typed, .. } => {
                    inline += usize::from(typed);
                    seen.insert(format!("{}|{}", step::name(&command), step::word(&command, 1)));
                    seen.insert(step::name(&command))
                }
                Step::Scan { .. } => seen.insert("scan".into()),
            };
        }
    }
    // Those of the last group are known to be refused.
    let served = TABLE.iter().filter(|command| command.group != "scripting");
    for command in served.flat_map(|command| match command.subcommands {
        [] => std::slice::from_ref(command),
        subcommands => subcommands,
    }) {
        let (name, left_out) = (command.full_name, NOT_COMPARED.contains(&command.full_name));
        assert!(seen.contains(name) != left_out, "{name}: tried is {}", !left_out);
    }
    assert!(inline > 100, "hardly any command is a line: {inline}");
}
