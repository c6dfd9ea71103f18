//! Benchmarks on a real control plane. Every figure stands beside that of something plain, measured in the same run.

mod agent;
mod hits;
mod memory;
mod percentile;
mod propagation;
mod streams;

use clap::{Parser, Subcommand};
use serde_json::Value;
use testkit::Programs;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Measures the operator beside plain Kubernetes clients.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// From a patch until all pods have dropped their copies, beside a bare watcher.
    Propagation,
    /// Cached hits in process, beside a plain map and moka.
    Hits,
    /// Memory per session in the controller, beside a plain reflector.
    Memory,
    /// The agent beside redis-server.
    Agent(agent::Selection),
    /// (a process of the benchmark) Prints what a bare watcher sees.
    #[command(hide = true)]
    Watcher,
    /// (a process of the benchmark) Keeps a plain reflector store.
    #[command(hide = true)]
    Reflector,
}

#[tokio::main(flavor = "multi_thread")]
async fn main() {
    let command = Cli::parse().command;
    match &command {
        Some(Command::Watcher) => return propagation::watch().await,
        Some(Command::Reflector) => return memory::reflector().await,
        _ => {}
    }
    let programs = Programs::beside_this_one(ROOT).unwrap();
    let all = command.is_none();
    if all || matches!(command, Some(Command::Hits)) {
        save("hits", &hits::run(&programs).await);
    }
    if all || matches!(command, Some(Command::Propagation)) {
        save("propagation", &propagation::run(&programs).await);
    }
    if all || matches!(command, Some(Command::Memory)) {
        save("memory", &memory::run(&programs).await);
    }
    match command {
        None => save("agent", &agent::run(&programs, &agent::Selection::default()).await),
        // What is only a part of it takes the place of no whole.
        Some(Command::Agent(selection)) => {
            let name = if selection.is_everything() { "agent" } else { "agent-part" };
            save(name, &agent::run(&programs, &selection).await);
        }
        Some(_) => {}
    }
}

fn save(name: &str, row: &Value) {
    let folder = format!("{ROOT}/target/bench");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(format!("{folder}/{name}.json"), format!("{row:#}\n")).unwrap();
}
