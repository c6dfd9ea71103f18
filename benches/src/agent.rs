//! The agent beside redis-server: requests over loopback, what one request costs a server that checks its copy, writes that
//! are visible everywhere, and memory per session. The two servers are measured in turn, round by round, since times on
//! loopback depend on what else this machine does.

mod cost;
mod load;
mod memory;
mod servers;
mod writes;

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

/// Measures, and returns what is saved.
pub async fn run(programs: &Programs) -> Value {
    let servers = Servers::start(programs).await;
    servers.fill().await;
    let requests = load::run(&servers).await;
    let cost = cost::run(&servers).await;
    let writes = writes::run(&servers).await;
    drop(servers);
    let memory = memory::run(programs).await;
    json!({"requests": requests, "cost": cost, "writes": writes, "memory": memory})
}
