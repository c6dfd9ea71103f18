//! A small vMCP server: one MCP endpoint in front of several MCP backends, run as any number of pods.
//!
//! | command | what it runs |
//! |---|---|
//! | `serve` | one pod of the server: streamable HTTP at `/mcp`, with the official SDK |
//! | `backend` | a trivial MCP server to stand behind it |
//! | `proxy` | a plain round-robin proxy in front of the pods: no affinity, no sessions |
//!
//! A session is a `VmcpSession`: the `Mcp-Session-Id` that the client has is the object's name. What the pod keeps of it
//! in memory (connections to backends, the stream to the client) belongs to one state of the object, and goes when that
//! state does. Where the state comes from is one flag: the cache library in this process, or the session agent beside it,
//! through the Redis client (`--agent`).
//!
//! | module | what it does |
//! |---|---|
//! | `store` | the sessions, from the library or from the agent |
//! | `gate` | one look at the session for each HTTP request, before anything else |
//! | `sessions` | what rmcp asks for: makes a session, carries it to another pod |
//! | `gateway` | tools of all backends that a session may use |
//! | `live` | connections to these backends, for one state of the session |
//! | `server` | puts them together, and follows what changes |

mod backend;
mod gate;
mod gateway;
mod live;
mod proxy;
mod server;
mod sessions;
mod store;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use vmcp_session::runtime::shutdown::Signals;
use vmcp_session::runtime::telemetry::{self, LogArgs};

/// Anything that ends a command.
type Failed = Box<dyn Error>;

/// A small vMCP server, what stands behind it, and what stands before it.
#[derive(Parser)]
#[command(max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run a pod of the vMCP server.
    Serve(Box<server::Args>),
    /// Run a trivial MCP server.
    Backend(backend::Args),
    /// Run a round-robin proxy without affinity.
    Proxy(proxy::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { command, mut log }: Cli) -> Result<ExitCode, Failed> {
    // rmcp logs session ids, and messages with all that clients said: neither is for the log.
    log.log_level.push_str(",rmcp=error");
    telemetry::init(&log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let signals = Signals::install()?;
        let end = shutdown.clone();
        let work = async move {
            match command {
                Command::Serve(args) => server::run(*args, end).await,
                Command::Backend(args) => backend::run(args, end).await,
                Command::Proxy(args) => proxy::run(args, end).await,
            }
        };
        Ok::<_, std::io::Error>(signals.run(&shutdown, work).await)
    })?;
    runtime.shutdown_background();
    match ended {
        Ok(served) => served.map(|()| ExitCode::SUCCESS),
        Err(aborted) => Ok(ExitCode::from(aborted.exit_code())),
    }
}
