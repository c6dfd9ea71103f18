//! Carries out plans: reads the state of a key, lets the plan decide, and makes the change.

use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::args::Clock;
use super::budget::Budget;
use super::op::{Change, Decision, Gather, Keys, Need, Op, Plan, Put, SetOptions};
use super::refusal::{NO_ROOM, Refusal};
use crate::agent::Agent;
use crate::agent::server::{Carried, ClientId};
use crate::agent::sessions::{Entry, Exact, Failure, Form, TimeoutOutcome, Ttl};
use crate::cache::{Known, Metadata};
use crate::resp::Reply;
use crate::runtime::backoff::Backoff;

/// How often a command is decided anew because somebody else was faster.
pub(super) const ATTEMPTS: u32 = 16;
/// Pause before the third attempt, and the longest one: all of them together are little beside what a request may wait for the API
/// server.
const PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// Keys of one command that are worked on at once.
const AT_ONCE: usize = 16;

/// Pauses between the attempts of a command, so that many that want the same do not keep each other from it.
#[derive(Debug)]
pub(super) struct Pauses(Backoff);

impl Pauses {
    pub fn new() -> Self {
        Self(Backoff::new(PAUSE, LONGEST_PAUSE))
    }

    /// Waits until it is time for this attempt. The second one comes at once: the first was made from a copy, which may just have
    /// been behind.
    pub async fn before(&mut self, attempt: u32) {
        if attempt > 1 {
            tokio::time::sleep(self.0.pause()).await;
        }
    }
}

/// Answers from memory, if that is possible without waiting for anybody.
#[inline]
pub(super) fn at_once(agent: &Agent, by: ClientId, plan: &Plan, now: &Clock) -> Option<Result<Reply, Refusal>> {
    match &plan.keys {
        Keys::One(key) => {
            let answer = key_at_once(agent, by, key, &plan.op, now)?;
            // One field may be asked for a thousand times.
            let weighed = Budget::new(agent.commands.output_limit).take(&answer);
            Some(weighed.map(|()| plan.alone(answer)))
        }
        Keys::Many(keys) => {
            let budget = Budget::new(agent.commands.output_limit);
            let mut answers = Vec::with_capacity(keys.len());
            for key in keys {
                let answer = key_at_once(agent, by, key, &plan.op, now)?;
                if let Err(refusal) = budget.take(&answer) {
                    return Some(Err(refusal));
                }
                answers.push(answer);
            }
            Some(Ok(plan.gather(answers)))
        }
    }
}

fn key_at_once(agent: &Agent, by: ClientId, key: &Bytes, op: &Op, now: &Clock) -> Option<Reply> {
    let entry = match op.need() {
        _ if op.blind(now).is_some() => return None,
        Need::Seen => agent.sessions.hit(key)?,
        Need::Partly => agent.sessions.hit_given(key)?,
        Need::Unseen | Need::FreshFacts => return None,
    };
    // A refusal is decided on again, when it is known that the state is right.
    let Decision { reply, change, events } = op.decide(Some(&entry), now).ok()?;
    match change {
        Change::Nothing => {}
        Change::Expire(ttl, _) => {
            agent.sessions.renew(&entry, ttl)?;
            agent.written(key, by, events, false);
        }
        Change::Put(_) | Change::Delete(_) => return None,
    }
    Some(reply)
}

/// How a request is carried out.
pub(super) struct Terms<'a> {
    /// When it came.
    pub now: &'a Clock,
    /// What it takes is entered here.
    pub carried: &'a Carried,
    /// What the client is shown is not what its next `SET` changes.
    pub only_looks: bool,
}

/// Answers, whatever it takes. An error: the answer is too large, or there is no room for it now.
pub(super) async fn run(agent: &Agent, by: ClientId, plan: &Plan, terms: &Terms<'_>) -> Result<Reply, Refusal> {
    let budget = Budget::new(agent.commands.output_limit);
    // What each answer takes is entered before the first key is changed: it must not turn out between two that there is no room.
    let entered = match (&plan.keys, plan.gather) {
        (Keys::Many(keys), Gather::Sum) => {
            let each = Reply::Int(0).weight();
            if !terms.carried.grow(each * keys.len()) {
                return Err(NO_ROOM);
            }
            each
        }
        _ => 0,
    };
    let on_key = async |key: &Bytes| {
        let answer = match on_key(agent, by, key, &plan.op, terms, entered).await {
            Ok(answer) => answer,
            // To wait for the other keys would keep what others want.
            Err(NO_ROOM) => return Err(NO_ROOM),
            Err(refusal) => refusal.reply(),
        };
        budget.take(&answer).map(|()| answer)
    };
    match &plan.keys {
        Keys::One(key) => Ok(plan.alone(on_key(key).await?)),
        Keys::Many(keys) => {
            let answers = futures::stream::iter(keys).map(on_key).buffered(AT_ONCE);
            let answers: Vec<_> = match plan.gather {
                // Nothing is changed, so there is no reason to read on.
                Gather::List => answers.try_collect().await?,
                // Whoever deletes several keys relies on all being gone through. Numbers are no large answer; errors may be.
                Gather::Sum | Gather::Single => {
                    answers.collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?
                }
            };
            Ok(plan.gather(answers))
        }
    }
}

async fn on_key(
    agent: &Agent,
    by: ClientId,
    key: &Bytes,
    op: &Op,
    &Terms { now, carried, only_looks }: &Terms<'_>,
    mut entered: usize,
) -> Result<Reply, Refusal> {
    if let Some(options) = op.blind(now) {
        return set(agent, by, key, options).await.map_err(|failure| failure.of_command(op.is_repeatable(now)).into());
    }
    let is_local = agent.sessions.are_local(&op.named_fields());
    let mut pauses = Pauses::new();
    for attempt in 0..ATTEMPTS {
        pauses.before(attempt).await;
        let need = match op.need() {
            _ if attempt > 0 => Need::FreshFacts,
            Need::Seen if only_looks => Need::Unseen,
            need => need,
        };
        let entry = read(agent, key, need).await?;
        let Decision { reply, change, events } = op.decide(entry.as_ref(), now)?;
        // The answer is kept while the change, or another key of the command, waits for others. Nothing is written yet.
        let takes = reply.weight() + change.weight();
        if takes > entered {
            if !carried.grow(takes - entered) {
                return Err(NO_ROOM);
            }
            entered = takes;
        }
        let stays = matches!(change, Change::Nothing | Change::Expire(..));
        let known = entry.as_ref().filter(|_| !is_local).map(|entry| op.known(entry));
        match make(agent, key, entry.as_ref(), change, known).await {
            Ok(outcome @ (Outcome::Nothing | Outcome::Changed { .. })) => {
                // Who reads what is seen has counted it.
                if let Some(entry) = entry.filter(|_| stays && need != Need::Seen && op.shows() && !only_looks) {
                    given(agent, &entry, op);
                }
                if let Outcome::Changed { by_others } = outcome {
                    agent.written(key, by, events, by_others);
                }
                return Ok(reply);
            }
            Ok(Outcome::Ended) => {
                agent.written(key, by, ENDED, false);
                return Ok(reply);
            }
            Ok(Outcome::TooLate) | Err(Failure::Conflict) => {}
            Err(failure) => return Err(failure.of_command(op.is_repeatable(now)).into()),
        }
    }
    Err(Failure::Conflict.into())
}

/// The state of a key.
pub(super) async fn read(agent: &Agent, key: &Bytes, need: Need) -> Result<Option<Entry>, Failure> {
    match need {
        Need::Unseen | Need::Partly => agent.sessions.find(key).await,
        Need::Seen => agent.sessions.get(key).await,
        Need::FreshFacts => agent.sessions.fresh(key).await,
    }
}

/// The client is shown what this command shows of the entry.
fn given(agent: &Agent, entry: &Entry, op: &Op) {
    match op.shown_fields(entry) {
        Some(fields) => agent.sessions.shown(entry, &fields),
        None => agent.sessions.given(entry),
    }
}

async fn set(agent: &Agent, by: ClientId, key: &Bytes, options: &SetOptions) -> Result<Reply, Failure> {
    let SetOptions { map, ttl, condition, .. } = options;
    let entry = agent.sessions.set(key, map.clone(), Form::String, *ttl, *condition).await?;
    if let Some(entry) = &entry {
        agent.written(key, by, options.events(), !is(entry, map));
    }
    Ok(options.reply(entry.is_some()))
}

/// The keyspace events of a timeout that is over when it is given.
pub(super) const ENDED: &[&str] = &["del"];

/// What became of a change.
pub(super) enum Outcome {
    /// There was none to make.
    Nothing,
    /// It is made. Perhaps the session now has what somebody else changed in it, too.
    Changed { by_others: bool },
    /// The timeout that it gives was over by then: the session is deleted.
    Ended,
    /// The key came or went meanwhile: nothing was changed.
    TooLate,
}

/// Whether the session has just these fields.
pub(super) fn is(entry: &Entry, map: &Metadata) -> bool {
    entry.len() == map.len() && entry.fields().all(|(field, value)| map.get(field).is_some_and(|v| v == value))
}

/// Makes a change to what `entry` was, of which its client then knows what is `known`: nothing, if the change is about nothing but
/// fields that are true only in this pod.
pub(super) async fn make(
    agent: &Agent,
    key: &Bytes,
    entry: Option<&Entry>,
    change: Change,
    known: Option<Known>,
) -> Result<Outcome, Failure> {
    let sessions = &agent.sessions;
    let changed = |is_there: bool| if is_there { Outcome::Changed { by_others: false } } else { Outcome::TooLate };
    match (entry, change) {
        (_, Change::Nothing) | (None, Change::Expire(..)) => Ok(Outcome::Nothing),
        (None, Change::Delete(_)) => {
            sessions.confirm_gone(key).await;
            Ok(Outcome::Nothing)
        }
        (Some(base), Change::Delete(Exact::No)) => Ok(changed(sessions.delete(base).await?)),
        (Some(base), Change::Delete(exact)) => Ok(changed(sessions.delete_exact(base, exact).await?)),
        (Some(base), Change::Expire(ttl, exact)) => Ok(match sessions.expire(base, ttl, exact).await? {
            TimeoutOutcome::Begins(_) => changed(true),
            TimeoutOutcome::Over => Outcome::Ended,
            TimeoutOutcome::Gone => Outcome::TooLate,
        }),
        (None, Change::Put(Put { map, form, ttl, .. })) => {
            let ttl = if ttl == Ttl::Keep { Ttl::Clear } else { ttl };
            let created = sessions.create(key, map, form.unwrap_or(Form::Hash), ttl).await?;
            Ok(changed(created.is_some()))
        }
        (Some(base), Change::Put(Put { map, form, ttl, exact })) => {
            let written = match known {
                None => sessions.replace_local(base, map.clone(), exact).await?,
                Some(known) => sessions.replace(base, map.clone(), form, ttl, exact, known).await?,
            };
            Ok(written.map_or(Outcome::TooLate, |entry| Outcome::Changed { by_others: !is(&entry, &map) }))
        }
    }
}
