//! Requests over loopback, with redis-benchmark and with go-redis.

use std::net::SocketAddr;
use std::time::Duration;

use clap::ValueEnum;
use serde_json::{Value, json};
use testkit::Process;

use super::PREFIX;
use super::servers::{SESSIONS, Servers, tool};

const CONNECTIONS: [usize; 3] = [1, 50, 500];
const PIPELINES: [usize; 2] = [1, 16];
/// Rounds of a read.
const ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_mins(10);

/// A kind of request.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Request {
    Get,
    Getex,
    Hgetall,
    SetXx,
}

impl Request {
    fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Getex => "GETEX",
            Self::Hgetall => "HGETALL",
            Self::SetXx => "SET XX",
        }
    }

    /// What keys begin with.
    fn keys(self) -> String {
        format!("{PREFIX}{}-", if self == Self::Hgetall { "h" } else { "s" })
    }

    /// How often each point is measured on each server, in turn; the median counts.
    fn rounds(self) -> usize {
        // It has no bar here, and differs by more than any noise.
        if self == Self::SetXx { 1 } else { ROUNDS }
    }

    /// How many are sent in a round: what takes about a second.
    fn count(self, connections: usize, pipeline: usize) -> usize {
        let under_way = connections * pipeline;
        match self {
            // A write goes to etcd.
            Self::SetXx => (300 * under_way.min(4)).max(under_way),
            _ if connections == 1 => 20_000 * pipeline.min(4),
            _ => 100_000 * pipeline.min(4),
        }
    }
}

/// What a round came to. Times in microseconds.
#[derive(Clone, Copy)]
struct Figures {
    throughput: f64,
    p50: f64,
    p99: f64,
}

/// Another value each time: what is equal need not be written. `mark` is replaced by a number.
fn changing(mark: &str) -> String {
    let mut value = super::value(0);
    value["backend-0"] = mark.into();
    value.to_string()
}

/// Runs a program; what it printed, or the last that it said.
async fn output(name: &str, program: &str, args: Vec<String>) -> Result<String, String> {
    let folder = std::env::temp_dir().join(format!("vmcp-bench-{}.out", std::process::id()));
    let run = Process::builder(name, tool(program)).args(args).stdout(&folder).spawn().unwrap();
    let status = run.wait(PATIENCE).await.unwrap();
    let printed = std::fs::read_to_string(&folder).unwrap();
    let said = run.log() + &printed;
    if status.success() { Ok(printed) } else { Err(said.lines().last().unwrap_or("nothing was said").to_owned()) }
}

async fn redis_benchmark(to: SocketAddr, of: Request, connections: usize, pipeline: usize) -> Result<Figures, String> {
    let mut args: Vec<String> = [
        ("-h", to.ip().to_string()),
        ("-p", to.port().to_string()),
        ("-c", connections.to_string()),
        ("-P", pipeline.to_string()),
        ("-n", of.count(connections, pipeline).to_string()),
        ("-r", SESSIONS.to_string()),
    ]
    .into_iter()
    .flat_map(|(flag, value)| [flag.to_owned(), value])
    .collect();
    let key = format!("{}__rand_int__", of.keys());
    args.push("--csv".into());
    args.extend(match of {
        Request::Get => vec!["GET".into(), key],
        Request::Getex => vec!["GETEX".into(), key, "EX".into(), "1800".into()],
        Request::Hgetall => vec!["HGETALL".into(), key],
        Request::SetXx => {
            vec!["SET".into(), key, changing("__rand_int__"), "XX".into(), "EX".into(), "1800".into()]
        }
    });
    let printed = output("redis-benchmark", "redis/bin/redis-benchmark", args).await?;
    let line = printed.lines().last().unwrap_or_default();
    // Test, throughput, mean, least, p50, p95, p99, most; all in milliseconds. The test's name may have commas in it.
    let mut fields = line.rsplit("\",\"").map(|field| field.trim_matches('"').parse::<f64>());
    let mut next =
        |skipped: usize| fields.nth(skipped).and_then(Result::ok).ok_or_else(|| format!("no figures: {line}"));
    let (p99, p50, throughput) = (next(1)?, next(1)?, next(2)?);
    Ok(Figures { throughput, p50: p50 * 1_000.0, p99: p99 * 1_000.0 })
}

/// With go-redis, or with whatever else `command` stands for in the Go program.
pub async fn go(to: SocketAddr, command: &str, keys: &str, sizes: [usize; 3]) -> Result<Value, String> {
    let [connections, pipeline, requests] = sizes;
    let args = vec![
        "load".into(),
        format!("--address={to}"),
        format!("--command={command}"),
        format!("--key={keys}"),
        format!("--keys={SESSIONS}"),
        format!("--value={}", changing("#")),
        format!("--connections={connections}"),
        format!("--pipeline={pipeline}"),
        format!("--requests={requests}"),
    ];
    let printed = output("go", "clients/go/vmcp-clients", args).await?;
    serde_json::from_str(&printed).map_err(|e| e.to_string())
}

async fn go_redis(to: SocketAddr, of: Request, connections: usize, pipeline: usize) -> Result<Figures, String> {
    let command = of.name().to_lowercase().replace(' ', "-");
    let sizes = [connections, pipeline, of.count(connections, pipeline)];
    let figures = go(to, &command, &of.keys(), sizes).await?;
    let figure = |name: &str| figures[name].as_f64().ok_or_else(|| format!("no {name}"));
    Ok(Figures { throughput: figure("rps")?, p50: figure("p50_us")?, p99: figure("p99_us")? })
}

/// The median of each figure. A point that failed once has failed.
fn median(rounds: Vec<Result<Figures, String>>) -> Result<Figures, String> {
    let rounds: Vec<Figures> = rounds.into_iter().collect::<Result<_, _>>()?;
    let middle = |figure: fn(&Figures) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    Ok(Figures { throughput: middle(|f| f.throughput), p50: middle(|f| f.p50), p99: middle(|f| f.p99) })
}

fn json_of(figures: &Result<Figures, String>) -> Value {
    match figures {
        Ok(Figures { throughput, p50, p99 }) => json!({"rps": throughput, "p50_us": p50, "p99_us": p99}),
        Err(why) => json!({"failed": why}),
    }
}

/// Measures these, and returns a row for each point.
pub async fn run(servers: &Servers, requests: &[Request]) -> Value {
    println!(
        "\nrequests over loopback: redis-server and the agent in turn, median of {ROUNDS} rounds; times in microseconds"
    );
    println!(
        "{:<16}{:<9}{:>6}{:>5}{:>12}{:>12}{:>7}{:>10}{:>10}{:>10}{:>10}{:>7}",
        "with",
        "request",
        "conns",
        "pipe",
        "redis rps",
        "agent rps",
        "ratio",
        "redis p50",
        "agent p50",
        "redis p99",
        "agent p99",
        "ratio"
    );
    let mut rows = Vec::new();
    for &request in requests {
        for (connections, pipeline) in CONNECTIONS.into_iter().flat_map(|c| PIPELINES.map(|p| (c, p))) {
            for with in ["redis-benchmark", "go-redis"] {
                let measure = async |to: SocketAddr| {
                    if with == "go-redis" {
                        go_redis(to, request, connections, pipeline).await
                    } else {
                        redis_benchmark(to, request, connections, pipeline).await
                    }
                };
                let (mut redis, mut agent) = (Vec::new(), Vec::new());
                for _ in 0..request.rounds() {
                    redis.push(measure(servers.redis.address).await);
                    agent.push(measure(servers.agent().address).await);
                }
                let (redis, agent) = (median(redis), median(agent));
                print!("{with:<16}{:<9}{connections:>6}{pipeline:>5}", request.name());
                match (&redis, &agent) {
                    (Ok(r), Ok(a)) => println!(
                        "{:>12.0}{:>12.0}{:>7.2}{:>10.0}{:>10.0}{:>10.0}{:>10.0}{:>7.2}",
                        r.throughput,
                        a.throughput,
                        a.throughput / r.throughput,
                        r.p50,
                        a.p50,
                        r.p99,
                        a.p99,
                        a.p99 / r.p99
                    ),
                    (Err(why), _) => println!("   redis: {why}"),
                    (_, Err(why)) => println!("   agent: {why}"),
                }
                rows.push(json!({"with": with, "request": request.name(), "connections": connections,
                    "pipeline": pipeline, "redis": json_of(&redis), "agent": json_of(&agent)}));
            }
        }
    }
    println!("bars, for reads: throughput at least Redis's and p99 at most Redis's, at every point");
    json!({"rounds": ROUNDS, "rows": rows, "bars": {"reads": "rps >= redis, p99 <= redis"}})
}
