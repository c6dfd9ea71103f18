//! The commands: what each request of a client does, as Redis 7 does it, on sessions.
//!
//! [`table`] says what there is; [`op`] decides, without I/O, what a command on a key answers and changes; `engine` reads
//! and writes sessions for it, `execution` does so for a transaction. The rest is about connections and the server.

#![allow(clippy::unnecessary_wraps, reason = "the table asks for one signature, and some commands cannot fail")]

mod args;
mod budget;
mod client;
mod client_command;
mod config;
mod connection;
mod context;
mod engine;
mod execution;
mod glob;
mod info;
mod introspection;
mod op;
mod password;
mod refusal;
mod scan;
mod stats;
mod subscribe;
mod table;
mod tracking;
mod transaction;
mod workspace;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

pub use client::Client;
pub use config::{Server, ServerSettings};
pub use glob::matches;
pub use password::Password;
pub use stats::{BUCKETS, CommandStats, Stats};
pub use table::{Command, TABLE};

use super::Agent;
use super::server::{ClientId, Flow};
use crate::resp::{Reply, Request};
use args::Clock;
use context::Context;
use op::Plan;
use refusal::{Refusal, unknown_command, unknown_subcommand};
use table::{Flags, Run};

/// What clients are told. They look at it to see what they may use, and redis-py keeps no copies of what a server answers that
/// is older than this. What was compared is 7.0, of which 7.4 differs in nothing that is served here.
pub const REDIS_VERSION: &str = "7.4.0";

/// Requests that must wait for somebody.
enum Waiting {
    Plan { plan: Plan, now: Clock, tracked: bool, only_looks: bool },
    Watch,
    Exec,
}

/// How far a request came without waiting.
enum Begun {
    Done(Flow),
    Waits(Waiting),
}

/// Carries out one request. What the cache can answer is answered without waiting for anybody.
pub async fn execute(agent: &Arc<Agent>, client: &mut Client, request: Request) -> Flow {
    let started = Instant::now();
    let replies = client.listens();
    let args = &request.args;
    let Some(command) = args.first().and_then(|name| table::lookup(name)) else {
        client.refuse();
        client.answered("");
        agent.commands.stats.unknown();
        return client.heard(Flow::Reply(unknown_command(args).reply()), replies);
    };
    let begun = begin(agent, client, command, args).unwrap_or_else(|refusal| Begun::Done(refused(&refusal)));
    let flow = match begun {
        Begun::Done(flow) => flow,
        // What is rare must not make what is common larger.
        Begun::Waits(waiting) => Box::pin(finish(agent, client, args, waiting)).await,
    };
    client.answered(command.name);
    agent.commands.stats.done(command, started.elapsed(), is_error(&flow));
    client.heard(flow, replies)
}

/// A client has gone: ends what it has begun.
pub fn disconnected(agent: &Agent, client: &mut Client) {
    connection::forget(agent, client);
}

fn refused(refusal: &Refusal) -> Flow {
    match refusal {
        Refusal::TooLarge => Flow::TooLarge,
        refusal => Flow::Reply(refusal.reply()),
    }
}

fn is_error(flow: &Flow) -> bool {
    matches!(flow, Flow::Reply(Reply::Error(_)) | Flow::Close(Some(Reply::Error(_))) | Flow::TooLarge)
}

/// The subcommand, if there is one, with the right number of arguments.
fn resolve(command: &'static Command, args: &[Bytes]) -> Result<&'static Command, Refusal> {
    let command = match (command.run, args.get(1)) {
        (Run::Container(_), Some(name)) => {
            command.subcommand(name).ok_or_else(|| unknown_subcommand(command.name, name))?
        }
        _ => command,
    };
    if command.takes_arguments(args.len()) { Ok(command) } else { Err(Refusal::Arity(command.full_name)) }
}

/// Whether the client may send this now.
#[inline]
fn check(client: &Client, command: &Command) -> Result<(), Refusal> {
    if !client.authenticated && !command.flags.has(Flags::NO_AUTH) {
        return Err(Refusal::Text("NOAUTH Authentication required."));
    }
    if client.transaction.is_some() && command.flags.has(Flags::NO_MULTI) {
        return Err(Refusal::Text("ERR Command not allowed inside a transaction"));
    }
    if client.only_listens() && !command.flags.has(Flags::LISTENER) {
        return Err(Refusal::Quoting(format!(
            "ERR Can't execute '{}': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context",
            command.full_name
        )));
    }
    match command.run {
        Run::Refused(reason) => Err(Refusal::Text(reason)),
        _ => Ok(()),
    }
}

fn begin(agent: &Agent, client: &mut Client, command: &'static Command, args: &[Bytes]) -> Result<Begun, Refusal> {
    let resolved = resolve(command, args).and_then(|command| check(client, command).map(|()| command));
    // What is refused before it is queued makes the transaction fail.
    let command = match resolved {
        Ok(command) => command,
        Err(refusal) if matches!(command.run, Run::Exec) => return Err(transaction::abort(client, &refusal)),
        Err(refusal) => {
            client.refuse();
            return Err(refusal);
        }
    };
    client.handle.set_last_command(command.full_name);
    if let Some(transaction) = &mut client.transaction
        && !command.flags.has(Flags::NOT_QUEUED)
    {
        let flow = transaction.queue(command, args);
        let (commands, bytes) = transaction.size();
        client.handle.set_queued(Some(commands), bytes);
        return flow.map(Begun::Done);
    }
    match command.run {
        Run::Keys(parse) => {
            let now = Clock::default();
            let plan = parse(args, &now)?;
            let tracked = client.is_tracked() && command.flags.has(Flags::READONLY);
            // Before the value is taken: what changes in between must be told.
            if tracked {
                reading(agent, client.id(), plan.keys.as_slice());
            }
            let only_looks = client.only_looks && plan.op.shows();
            let answer = if only_looks { None } else { engine::at_once(agent, client.id(), &plan, &now) };
            Ok(match answer {
                Some(reply) => {
                    settled(agent, client.id(), &plan, tracked);
                    Begun::Done(Flow::Reply(reply?))
                }
                None => Begun::Waits(Waiting::Plan { plan, now, tracked, only_looks }),
            })
        }
        Run::Exec => Ok(Begun::Waits(Waiting::Exec)),
        Run::Watch => Ok(Begun::Waits(Waiting::Watch)),
        Run::Now(_) | Run::Container(_) | Run::Refused(_) => Ok(Begun::Done(run_now(agent, client, command, args))),
    }
}

async fn finish(agent: &Agent, client: &mut Client, args: &[Bytes], waiting: Waiting) -> Flow {
    let finished = match waiting {
        Waiting::Plan { plan, now, tracked, only_looks } => {
            let reply = match client.carry(args.iter().map(Bytes::len).sum()) {
                // The answer is in the output, which has its own account, before anybody else has a turn.
                Ok(carried) => {
                    let _writing = agent.tracking.writing(client.id(), plan.keys.as_slice());
                    let terms = engine::Terms { now: &now, carried: &carried, only_looks };
                    engine::run(agent, client.id(), &plan, &terms).await
                }
                Err(refusal) => Err(refusal),
            };
            settled(agent, client.id(), &plan, tracked);
            reply.map(Flow::Reply)
        }
        Waiting::Watch => transaction::watch(agent, client, args.get(1..).unwrap_or_default()).await,
        Waiting::Exec => transaction::exec(agent, client).await,
    };
    finished.unwrap_or_else(|refusal| refused(&refusal))
}

/// Carries out what never waits.
fn run_now(agent: &Agent, client: &mut Client, command: &'static Command, args: &[Bytes]) -> Flow {
    let (Run::Now(run) | Run::Container(Some(run))) = command.run else {
        return refused(&Refusal::Syntax);
    };
    let mut context = Context { agent, client };
    run(&mut context, args).unwrap_or_else(|refusal| refused(&refusal))
}

/// The client is about to read these keys, and keeps what it reads.
fn reading(agent: &Agent, client: ClientId, keys: &[Bytes]) {
    for key in keys {
        agent.tracking.reading(client, key);
    }
}

/// What a command was to read is read: by a client that keeps it, or by one whose application may have another connection that is
/// told of changes.
pub(super) fn settled(agent: &Agent, client: ClientId, plan: &Plan, tracked: bool) {
    if tracked {
        plan.keys.as_slice().iter().for_each(|key| agent.has_read(client, key));
    } else if agent.tracking.has_prefixes() && plan.op.shows() {
        plan.keys.as_slice().iter().for_each(|key| agent.others_may_keep(key));
    }
}

/// A reply of several lines, as `HELP` has.
fn lines(lines: &[&'static str]) -> Flow {
    Flow::Reply(Reply::Array(lines.iter().map(|line| Reply::Simple((*line).into())).collect()))
}
