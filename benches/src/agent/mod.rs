//! The agent beside redis-server: requests over loopback, what one request costs a server that checks its copy, writes that
//! are visible everywhere, and memory per session. The two servers are measured in turn, round by round, since times on
//! loopback depend on what else this machine does.

mod cost;
mod load;
mod memory;
mod servers;
mod writes;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use testkit::Programs;

use servers::Servers;

/// Prefix of all keys.
const PREFIX: &str = "session:";

/// Eight keys of 70 characters, key and value together, as in the other benchmarks. A value of a string is such an object.
fn value(session: usize) -> Value {
    let entries = (0..8).map(|key| (format!("backend-{key}"), format!("{:060}", session * 8 + key)));
    Value::Object(entries.map(|(key, value)| (key, value.into())).collect())
}

/// Which of the measurements to make: all of them, unless some are named.
#[derive(Args, Default)]
pub struct Selection {
    /// Only these parts.
    #[arg(long, value_delimiter = ',')]
    parts: Vec<Part>,
    /// Of the requests only these.
    #[arg(long, value_delimiter = ',')]
    requests: Vec<load::Request>,
}

/// A part of the measurements.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Part {
    /// Requests over loopback.
    Requests,
    /// What a request costs a server that checks its copy.
    Cost,
    /// Writes that are visible everywhere.
    Writes,
    /// Memory per session.
    Memory,
}

impl Selection {
    /// Whether nothing is left out.
    pub fn is_everything(&self) -> bool {
        self.parts.is_empty() && self.requests.is_empty()
    }

    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }

    fn requests(&self) -> &[load::Request] {
        if self.requests.is_empty() { load::Request::value_variants() } else { &self.requests }
    }
}

/// Measures, and returns what is saved; null for what is left out.
pub async fn run(programs: &Programs, selection: &Selection) -> Value {
    let [mut requests, mut cost, mut writes, mut memory] = [const { Value::Null }; 4];
    if [Part::Requests, Part::Cost, Part::Writes].into_iter().any(|part| selection.has(part)) {
        let servers = Servers::start(programs).await;
        servers.fill().await;
        if selection.has(Part::Requests) {
            requests = load::run(&servers, selection.requests()).await;
        }
        if selection.has(Part::Cost) {
            cost = cost::run(&servers).await;
        }
        if selection.has(Part::Writes) {
            writes = writes::run(&servers).await;
        }
    }
    if selection.has(Part::Memory) {
        memory = memory::run(programs).await;
    }
    json!({"requests": requests, "cost": cost, "writes": writes, "memory": memory})
}
