//! How `EXEC` is carried out.
//!
//! The commands run one after the other against a workspace, which holds what each key has become so far. Only then is
//! each key written, once, and only if it is still what it was read as. If somebody else was faster, that key is read again
//! and all is decided anew; keys that are written by then stay as they were read, so nothing changes for them, since no
//! command looks at more than one key at a time.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};

use super::args::Clock;
use super::budget::Budget;
use super::engine::{ATTEMPTS, ENDED, Outcome, Pauses, is, make, read};
use super::op::{Change, Need, Plan};
use super::refusal::{NO_ROOM, Refusal};
use super::transaction::Watched;
use super::workspace::Slot;
use crate::agent::Agent;
use crate::agent::server::{Carried, ClientId};
use crate::agent::sessions::{Entry, Failure};
use crate::cache::Known;
use crate::resp::Reply;
use crate::runtime::turn::Turn;

/// Keys that are read at once.
const AT_ONCE: usize = 16;
/// The sessions that one transaction speaks of may have so many times the bytes that may wait for a client.
const MOST_READ: usize = 2;
/// They have more. Nothing is written.
const TOO_MUCH: Refusal = Refusal::Text(
    "ERR the transaction is too large: the sessions that it reads and writes are more than can be kept at once",
);
/// Other sessions were written already when a watched one turned out to have changed.
const CHANGED: &str = "a watched session changed while it was carried out";

/// A command of a transaction.
pub(super) enum Step {
    /// It has its answer.
    Done(Reply),
    /// It is about keys.
    Keys {
        /// What to do.
        plan: Plan,
        /// The client keeps what it reads.
        tracked: bool,
    },
}

/// A transaction that is being carried out.
pub(super) struct Execution<'a> {
    agent: &'a Agent,
    by: ClientId,
    now: Clock,
    watched: Vec<Watched>,
    steps: Vec<Step>,
    /// What must be known of each key.
    needs: BTreeMap<Bytes, Need>,
    /// What the keys were read as.
    bases: BTreeMap<Bytes, Option<Entry>>,
    /// Keys that are written.
    written: BTreeSet<Bytes>,
    /// Keys whose fields are not, and what the client is shown of them: no write tells that.
    shown: BTreeMap<Bytes, Known>,
    /// Keys that could not be written.
    failed: BTreeMap<Bytes, Failure>,
    /// What it takes. What is read or answered anew takes the place of what was there before, and is not entered again.
    carried: Carried,
}

/// An error without the word that tells clients whether to try again.
fn without_code(text: &str) -> &str {
    ["TRYAGAIN ", "NOPERM ", "ERR "].iter().find_map(|code| text.strip_prefix(code)).unwrap_or(text)
}

/// The client has read what these commands read, and keeps it.
pub(super) fn settle(agent: &Agent, by: ClientId, steps: &[Step]) {
    for step in steps {
        if let Step::Keys { plan, tracked } = step {
            super::settled(agent, by, plan, *tracked);
        }
    }
}

impl<'a> Execution<'a> {
    pub fn new(
        agent: &'a Agent,
        by: ClientId,
        now: Clock,
        watched: Vec<Watched>,
        steps: Vec<Step>,
        carried: Carried,
    ) -> Self {
        let mut needs = BTreeMap::new();
        for step in &steps {
            if let Step::Keys { plan, .. } = step {
                for key in plan.keys.as_slice() {
                    let need = needs.entry(key.clone()).or_insert(Need::Unseen);
                    *need = plan.op.need().max(*need);
                }
            }
        }
        let (bases, written, shown, failed) = Default::default();
        Self { agent, by, now, watched, steps, needs, bases, written, shown, failed, carried }
    }

    /// The answers; `None` if a watched key has changed.
    pub async fn run(mut self) -> Result<Option<Vec<Reply>>, Refusal> {
        let keys: BTreeSet<Bytes> = self.needs.keys().cloned().collect();
        let writing = self.agent.tracking.writing(self.by, &keys);
        let outcome = self.carry_out().await.map_err(|refusal| self.of_part(refusal));
        drop(writing);
        // In any case: what was registered before must be settled.
        settle(self.agent, self.by, &self.steps);
        outcome
    }

    async fn carry_out(&mut self) -> Result<Option<Vec<Reply>>, Refusal> {
        let mut pauses = Pauses::new();
        for attempt in 0..ATTEMPTS {
            pauses.before(attempt).await;
            self.read(attempt > 0).await?;
            let (answers, slots) = self.decide(attempt > 0).await?;
            if !self.is_unchanged(&slots).await? {
                return if self.written.is_empty() { Ok(None) } else { Err(Refusal::Text(CHANGED)) };
            }
            match self.write(slots).await {
                Ok(true) => {
                    self.give();
                    return Ok(Some(self.with_failures(answers)));
                }
                Ok(false) => {}
                Err(failure) => return Err(failure.of_command(false).into()),
            }
        }
        Err(Failure::Conflict.into())
    }

    /// What the client is told if it cannot go on. All of it may be tried again as long as nothing is written; afterwards clients must
    /// not do so by themselves, whatever the reason is.
    fn of_part(&self, refusal: Refusal) -> Refusal {
        if self.written.is_empty() {
            return refusal;
        }
        let why = refusal.to_string();
        let why = without_code(&why);
        Refusal::quoting(format!("ERR the transaction was done in part, after a session had been written: {why}"))
    }

    /// Reads the keys that are not read yet.
    async fn read(&mut self, again: bool) -> Result<(), Refusal> {
        let missing = self.needs.iter().filter(|(key, _)| !self.bases.contains_key(*key));
        let missing: Vec<_> = missing.map(|(key, need)| (key.clone(), *need)).collect();
        let agent = self.agent;
        let read = async |(key, need): (Bytes, Need)| {
            // What is shown is known at the end.
            let need = match need {
                _ if again => Need::FreshFacts,
                Need::Seen | Need::Partly => Need::Unseen,
                need => need,
            };
            let entry = read(agent, &key, need).await?;
            Ok::<_, Failure>((key, entry))
        };
        let most = agent.commands.output_limit.saturating_mul(MOST_READ);
        let mut bytes = 0;
        let mut read = std::pin::pin!(futures::stream::iter(missing).map(read).buffered(AT_ONCE));
        while let Some((key, entry)) = read.try_next().await? {
            // They are kept until the end, whatever becomes of the cache's own copies meanwhile.
            let length = entry.as_ref().map_or(0, Entry::json_len);
            bytes += length;
            if bytes > most && !again {
                return Err(TOO_MUCH);
            }
            if !again && !self.carried.grow(length) {
                return Err(NO_ROOM);
            }
            self.bases.insert(key, entry);
        }
        Ok(())
    }

    /// Runs the commands in the workspace. Nothing is written yet, so it may well end in the middle.
    async fn decide(&self, again: bool) -> Result<(Vec<Reply>, BTreeMap<Bytes, Slot>), Refusal> {
        let budget = Budget::new(self.agent.commands.output_limit);
        let mut slots: BTreeMap<Bytes, Slot> = BTreeMap::new();
        let mut answers = Vec::with_capacity(self.steps.len());
        let mut turn = Turn::begin();
        for step in &self.steps {
            let plan = match step {
                Step::Done(reply) => {
                    budget.take(reply)?;
                    answers.push(reply.clone());
                    continue;
                }
                Step::Keys { plan, .. } => plan,
            };
            let mut parts = Vec::with_capacity(plan.keys.as_slice().len());
            for key in plan.keys.as_slice() {
                let base = self.bases.get(key).and_then(Option::as_ref);
                let slot = slots.entry(key.clone()).or_default();
                let part = slot.run(base, &plan.op, &self.now).unwrap_or_else(|refusal| refusal.reply());
                budget.take(&part)?;
                if !again && !self.carried.grow(part.weight()) {
                    return Err(NO_ROOM);
                }
                parts.push(part);
                turn.give_way().await;
            }
            answers.push(plan.gather(parts));
        }
        let made = slots.values().map(Slot::weight);
        if !again && !self.carried.grow(made.sum()) {
            return Err(NO_ROOM);
        }
        Ok((answers, slots))
    }

    /// Whether all that is watched is as it was. A key that will be written must be what it was read as to be written;
    /// others are looked up, since a copy may be behind.
    async fn is_unchanged(&self, slots: &BTreeMap<Bytes, Slot>) -> Result<bool, Failure> {
        // What it has written itself was looked at then.
        for watched in self.watched.iter().filter(|watched| !self.written.contains(&watched.key)) {
            let base = self.bases.get(&watched.key);
            if base.is_some_and(|base| !watched.is_same(base.as_ref())) {
                return Ok(false);
            }
            let is_written = slots.get(&watched.key).zip(base).is_some_and(|(slot, base)| {
                match slot.change(base.as_ref()) {
                    // What makes no difference may never be sent.
                    Change::Put(put) => base.as_ref().is_none_or(|base| !is(base, &put.map)),
                    Change::Delete(_) => base.is_some(),
                    Change::Nothing | Change::Expire(..) => false,
                }
            });
            if !is_written && !watched.is_same(self.agent.sessions.fresh(&watched.key).await?.as_ref()) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Writes what has changed, watched keys first. False: a key was not what it was read as any more; it will be read
    /// again. An error: nothing is written.
    async fn write(&mut self, mut slots: BTreeMap<Bytes, Slot>) -> Result<bool, Failure> {
        let watched = self.watched.iter().map(|watched| watched.key.clone());
        let keys: Vec<Bytes> = watched.chain(slots.keys().cloned()).collect();
        for key in keys {
            // A key comes again behind the watched ones, and stays written in the next attempt.
            let Some(slot) = slots.remove(&key).filter(|_| !self.written.contains(&key)) else {
                continue;
            };
            let base = self.bases.get(&key).and_then(Option::as_ref);
            let (change, known) = (slot.change(base), slot.known());
            let stays = matches!(change, Change::Nothing | Change::Expire(..));
            let made = make(self.agent, &key, base, change, Some(known.clone())).await;
            if stays && matches!(made, Ok(Outcome::Nothing | Outcome::Changed { .. })) {
                self.shown.insert(key.clone(), known);
            }
            match made {
                Ok(Outcome::Nothing) => {}
                Ok(Outcome::Changed { by_others }) => {
                    self.agent.written(&key, self.by, slot.events(), by_others);
                    self.written.insert(key);
                }
                Ok(Outcome::Ended) => {
                    self.agent.written(&key, self.by, ENDED, false);
                    self.written.insert(key);
                }
                Ok(Outcome::TooLate) | Err(Failure::Conflict) => {
                    self.bases.remove(&key);
                    return Ok(false);
                }
                Err(failure) if self.written.is_empty() => return Err(failure),
                Err(failure) => {
                    self.written.insert(key.clone());
                    self.failed.insert(key, failure);
                }
            }
        }
        Ok(true)
    }

    /// The client is shown what it has read, also of a key of which only the timeout was written.
    fn give(&self) {
        for (key, known) in &self.shown {
            let Some(Some(entry)) = self.bases.get(key) else { continue };
            match known {
                Known::All => self.agent.sessions.given(entry),
                Known::Only(fields) if fields.is_empty() => {}
                Known::Only(fields) => self.agent.sessions.shown(entry, fields),
            }
        }
    }

    /// The answers, without those for keys that could not be written.
    fn with_failures(&self, mut answers: Vec<Reply>) -> Vec<Reply> {
        for (step, answer) in self.steps.iter().zip(&mut answers) {
            if let Step::Keys { plan, .. } = step
                && let Some(failure) = plan.keys.as_slice().iter().find_map(|key| self.failed.get(key))
            {
                // Others are done, so it must not be one of the errors after which clients repeat the transaction.
                let text = failure.clone().of_command(false).to_string();
                *answer = Reply::Error(format!("ERR {}", without_code(&text)).into());
            }
        }
        answers
    }
}
