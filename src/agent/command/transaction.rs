//! `MULTI`, `EXEC`, `DISCARD`, `WATCH`.

use bytes::Bytes;

use super::args::Clock;
use super::budget::Budget;
use super::client::Client;
use super::connection::ok;
use super::context::Context;
use super::execution::{Execution, Step};
use super::refusal::{NO_ROOM, Refusal};
use super::table::{Command, Flags, Run};
use super::{Flow, run_now};
use crate::agent::Agent;
use crate::agent::sessions::Entry;
use crate::cache::{Digest, Uid};
use crate::resp::Reply;
use crate::runtime::turn::Turn;

/// Bytes of requests that may wait for `EXEC`, at most.
const MOST_BYTES: usize = 4 << 20;
/// Requests that may wait for `EXEC`, at most.
const MOST_REQUESTS: usize = 4_096;
/// Keys that one client watches, at most.
const MOST_WATCHED: usize = 1_024;

/// Commands since `MULTI`.
#[derive(Debug, Default)]
pub(super) struct Transaction {
    queue: Vec<Queued>,
    bytes: usize,
    /// A command was refused: `EXEC` will be, too.
    broken: bool,
}

#[derive(Debug)]
struct Queued {
    command: &'static Command,
    args: Vec<Bytes>,
}

/// What `WATCH` saw of a key.
#[derive(Debug)]
pub(super) struct Watched {
    /// The key.
    pub key: Bytes,
    /// Its state: another session has another uid, and each change of the spec another generation. What is true only in this
    /// pod is no part of that.
    seen: Option<(Uid, u64, Option<Digest>)>,
}

impl Watched {
    /// What is seen of `key` now.
    fn new(key: Bytes, entry: Option<&Entry>) -> Self {
        Self { key, seen: Self::state(entry) }
    }

    /// Whether the key is as it was.
    pub fn is_same(&self, entry: Option<&Entry>) -> bool {
        self.seen == Self::state(entry)
    }

    fn state(entry: Option<&Entry>) -> Option<(Uid, u64, Option<Digest>)> {
        entry.map(|entry| (entry.session().uid(), entry.session().generation(), entry.local_digest()))
    }
}

impl Transaction {
    /// Marks that a command was refused.
    pub fn break_off(&mut self) {
        self.broken = true;
    }

    /// Queues a command whose number of arguments is right.
    pub fn queue(&mut self, command: &'static Command, args: &[Bytes]) -> Result<Flow, Refusal> {
        let bytes = args.iter().map(|arg| arg.len() + size_of::<Bytes>()).sum::<usize>();
        if self.queue.len() == MOST_REQUESTS || self.bytes + bytes > MOST_BYTES {
            self.broken = true;
            return Err(Refusal::Text("ERR the transaction is too large: at most 4096 commands and 4 MiB"));
        }
        self.bytes += bytes;
        // What waits must not keep the whole buffers alive that it came in.
        let args = args.iter().map(|arg| Bytes::copy_from_slice(arg)).collect();
        self.queue.push(Queued { command, args });
        Ok(Flow::Reply(Reply::Simple("QUEUED".into())))
    }

    /// How many commands wait, and how many bytes they have.
    pub fn size(&self) -> (usize, usize) {
        (self.queue.len(), self.bytes)
    }
}

/// Ends the transaction, and forgets what was watched.
pub(super) fn end(client: &mut Client) -> Option<Transaction> {
    client.watched.clear();
    client.keeps();
    client.handle.set_queued(None, 0);
    client.transaction.take()
}

/// What an `EXEC` that is refused is answered: whoever sent it must not wait for a transaction that is still open.
pub(super) fn abort(client: &mut Client, refusal: &Refusal) -> Refusal {
    end(client);
    let why = refusal.to_string();
    let why = why.strip_prefix("ERR ").unwrap_or(&why);
    Refusal::quoting(format!("EXECABORT Transaction discarded because of: {why}"))
}

/// `MULTI`
pub fn multi(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let client = &mut *context.client;
    if client.transaction.is_some() {
        return Err(Refusal::Text("ERR MULTI calls can not be nested"));
    }
    client.transaction = Some(Transaction::default());
    client.handle.set_queued(Some(0), 0);
    Ok(ok())
}

/// `DISCARD`
pub fn discard(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    if context.client.transaction.is_none() {
        return Err(Refusal::Text("ERR DISCARD without MULTI"));
    }
    end(context.client);
    Ok(ok())
}

/// `UNWATCH`
pub fn unwatch(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    context.client.watched.clear();
    context.client.keeps();
    Ok(ok())
}

/// `WATCH key ...`
pub(super) async fn watch(agent: &Agent, client: &mut Client, keys: &[Bytes]) -> Result<Flow, Refusal> {
    if client.transaction.is_some() {
        return Err(Refusal::Text("ERR WATCH inside MULTI is not allowed"));
    }
    if client.watched.len() + keys.len() > MOST_WATCHED {
        return Err(Refusal::Text("ERR too many keys are watched"));
    }
    let before = client.watched.len();
    for key in keys {
        // A key that no session can have never changes, and may be of any length.
        if client.watched.iter().all(|watched| watched.key != key) && agent.sessions.is_possible(key) {
            // The client is shown nothing of it.
            let entry = match agent.sessions.find(key).await {
                Ok(entry) => entry,
                Err(failure) => {
                    // Who was told that it failed does not know that some keys are watched.
                    client.watched.truncate(before);
                    return Err(failure.into());
                }
            };
            // The key must not keep the whole buffer alive that the request came in.
            let key = Bytes::copy_from_slice(key);
            client.watched.push(Watched::new(key, entry.as_ref()));
        }
    }
    client.keeps();
    Ok(ok())
}

/// `EXEC`
pub(super) async fn exec(agent: &Agent, client: &mut Client) -> Result<Flow, Refusal> {
    if client.transaction.is_none() {
        return Err(Refusal::Text("ERR EXEC without MULTI"));
    }
    let watched = std::mem::take(&mut client.watched);
    let transaction = end(client).unwrap_or_default();
    if transaction.broken {
        return Err(Refusal::Text("EXECABORT Transaction discarded because of previous errors."));
    }
    let carried = client.carry(transaction.bytes)?;
    let now = Clock::default();
    let budget = Budget::new(agent.commands.output_limit);
    let mut turn = Turn::begin();
    let mut steps = Vec::with_capacity(transaction.queue.len());
    for queued in transaction.queue {
        let step = step(agent, client, &queued, &now);
        let refused = match &step {
            Step::Done(reply) => {
                budget.take(reply).err().or_else(|| (!carried.grow(reply.weight())).then_some(NO_ROOM))
            }
            Step::Keys { .. } => None,
        };
        if let Some(refusal) = refused {
            // What was registered before must be settled.
            super::execution::settle(agent, client.id(), &steps);
            return Err(refusal);
        }
        steps.push(step);
        turn.give_way().await;
    }
    let by = client.id();
    let answers = Execution::new(agent, by, now, watched, steps, carried).run().await?;
    Ok(Flow::Reply(answers.map_or(Reply::NullArray, Reply::Array)))
}

/// What is to do for one command. What needs no key is done right away: nothing else depends on it.
fn step(agent: &Agent, client: &mut Client, queued: &Queued, now: &Clock) -> Step {
    let Queued { command, args } = queued;
    let Run::Keys(parse) = command.run else {
        return Step::Done(match run_now(agent, client, command, args) {
            Flow::Reply(reply) | Flow::Close(Some(reply)) => reply,
            Flow::Replies(replies) => Reply::Array(replies),
            Flow::None | Flow::TooLarge | Flow::Close(None) => Reply::Null,
        });
    };
    match parse(args, now) {
        Ok(plan) => {
            // Before the values are taken: what changes in between must be told.
            if client.is_tracked() && command.flags.has(Flags::READONLY) {
                super::reading(agent, client.id(), plan.keys.as_slice());
                return Step::Keys { plan, tracked: true };
            }
            Step::Keys { plan, tracked: false }
        }
        Err(refusal) => Step::Done(refusal.reply()),
    }
}
