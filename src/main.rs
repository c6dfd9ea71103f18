//! The `vmcp-session` command.
// Doc comments of the command line are shown to people as they are.
#![allow(clippy::doc_markdown)]

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use tokio_util::sync::CancellationToken;
use vmcp_session::agent;
use vmcp_session::agent::debug::{self, AgentCommand};
use vmcp_session::controller::uninstall::{self, UninstallArgs};
use vmcp_session::controller::{self, ControllerArgs};
use vmcp_session::runtime::environment;
use vmcp_session::runtime::fail_fast;
use vmcp_session::runtime::shutdown::Signals;
use vmcp_session::runtime::telemetry::{self, LogArgs};

// In images. Of the library's users, each chooses for itself.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps the session caches of vMCP pods coherent with VmcpSession objects in Kubernetes.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Watch sessions and tell the pods which of their copies to drop.
    Controller(Box<ControllerArgs>),
    /// Serve sessions to the other containers of a pod in the Redis protocol, or look into an agent that does.
    Agent(Box<AgentCommand>),
    /// Ask an admin endpoint how it is; exit with 0 if it answers 200. For probes in images without a shell.
    Probe {
        /// As in http://127.0.0.1:8081/readyz.
        #[arg(value_name = "URL")]
        url: String,
    },
    /// Take the finalizer vmcp.dev/confirm-eviction off all sessions. Helm runs it before it uninstalls: without a controller,
    /// sessions that have it could not be deleted.
    Release(Box<UninstallArgs>),
    /// Print the CustomResourceDefinition.
    Crds,
}

fn main() -> ExitCode {
    let cli = parsed();
    match cli.command {
        Command::Crds => match vmcp_session::api::crd::crd_yaml() {
            Ok(yaml) => {
                print!("{yaml}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("error: {error}");
                ExitCode::FAILURE
            }
        },
        Command::Probe { url } => probe(&url),
        Command::Agent(command) => match command.look {
            None => serve(&cli.log, |shutdown| agent::run(command.args, shutdown)),
            Some(look) => match debug::look(&command.args, &look, &mut std::io::stdout()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("error: {error}");
                    ExitCode::FAILURE
                }
            },
        },
        Command::Release(args) => serve(&cli.log, |shutdown| uninstall::run(*args, shutdown)),
        Command::Controller(args) => serve(&cli.log, |shutdown| controller::run(*args, shutdown)),
    }
}

/// The command line; clap has no word for it that an empty variable is an unset one.
fn parsed() -> Cli {
    let mut command = environment::without_empty(Cli::command());
    let matches = command.get_matches_mut();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
}

fn probe(url: &str) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(vmcp_session::runtime::probe::probe(url)) {
        Ok(text) => {
            println!("{}", text.trim_end());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve<E: std::error::Error, F: Future<Output = Result<(), E>>>(
    log: &LogArgs,
    work: impl FnOnce(CancellationToken) -> F,
) -> ExitCode {
    if let Err(error) = telemetry::init(log) {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    // The log tells of a panic before the process ends.
    fail_fast::install();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let shutdown = CancellationToken::new();
    let ended = runtime.block_on(async {
        let signals = Signals::install()?;
        Ok::<_, std::io::Error>(signals.run(&shutdown, work(shutdown.clone())).await)
    });
    runtime.shutdown_background();
    match ended {
        Ok(Ok(Ok(()))) => ExitCode::SUCCESS,
        Ok(Ok(Err(error))) => {
            telemetry::ended(&error);
            ExitCode::FAILURE
        }
        Ok(Err(aborted)) => ExitCode::from(aborted.exit_code()),
        Err(error) => {
            eprintln!("error: cannot catch signals: {error}");
            ExitCode::FAILURE
        }
    }
}
