//! Which deleted sessions may be let go of: those that no pod can serve any more (I4).
//!
//! That is so when every replica has confirmed it that is registered ([`Quorum`]), or when the last lease has ended that was
//! granted before the deletion. So none hangs for longer than a lease, whoever is dead.
//!
//! Whoever deletes a hundred thousand sessions at once causes as many events, and none of them may cost a walk through all. So
//! each session stands in one queue of its namespace, and a look takes from their heads. Namespaces take turns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;

use super::patience::Patience;
use super::quorum::Quorum;
use super::session::{ResourceVersion, SessionKey, Uid};
use super::session_ref::SessionRef;
use super::signal::{Barrier, Fate, Mark};
use super::tally::{Bounds, Tally};
use super::time::Time;

mod queues;
mod tasks;

use queues::Queues;
pub use tasks::{Outcome, Request, Tasks, Why};

/// Confirmations under way at once, and what a namespace may have of them. More wait, and are let go of after a lease.
const CONFIRMATIONS: Bounds = Bounds { all: 1_024, per_pod: usize::MAX };
/// How soon it is tried again; after twice as long each time.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest pause where it was not refused: the API server may be back at any time, and perhaps nothing else that could tell is
/// under way.
const AWAY: Duration = Duration::from_secs(8);

/// A session with our finalizer that is being deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminating {
    /// The object.
    pub uid: Uid,
    /// A resourceVersion at which it is being deleted.
    pub resource_version: ResourceVersion,
    /// When this replica saw that first.
    pub since: Time,
}

impl Terminating {
    /// What pods are told, and confirm.
    pub fn barrier(&self) -> Barrier {
        let Self { uid, resource_version, .. } = *self;
        Barrier { mark: Mark { uid, fate: Fate::Gone, resource_version }, digest: None }
    }
}

/// The replicas that matter for the sessions of a namespace, as this replica's watch shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Their names.
    pub replicas: BTreeSet<Arc<str>>,
    /// No lease of any of them is in force for longer, after it was granted.
    pub longest: Duration,
}

#[derive(Debug)]
enum Stage {
    /// There were too many to ask.
    Unasked,
    /// Replicas are asked.
    Asked { number: u64, quorum: Quorum },
    /// It may be let go of, not before then.
    Ready { at: Time, why: Why },
    /// The API server is asked to let go.
    LettingGo { why: Why },
}

#[derive(Debug)]
struct Work {
    terminating: Terminating,
    stage: Stage,
    /// For how long it is left alone after the next call.
    patience: Patience,
}

/// The sessions with our finalizer that are being deleted.
#[derive(Debug)]
pub struct Finalizing {
    /// Name of this replica.
    own: Arc<str>,
    works: HashMap<SessionKey, Work>,
    queues: BTreeMap<Arc<str>, Queues>,
    /// Those that replicas are asked about, by the number of the request.
    asked: BTreeMap<u64, SessionKey>,
    tally: Tally,
    last_number: u64,
    last_turn: u64,
    /// Some call has failed, and nobody was tried at once since.
    failing: bool,
    /// Nobody is tried at once before this.
    at_once_from: Time,
}

impl Finalizing {
    /// Nothing is being deleted yet, as the replica `own` knows.
    pub fn new(own: Arc<str>) -> Self {
        Self {
            own,
            works: HashMap::new(),
            queues: BTreeMap::new(),
            asked: BTreeMap::new(),
            tally: Tally::default(),
            last_number: 0,
            last_turn: 0,
            failing: false,
            at_once_from: Time::ZERO,
        }
    }

    /// Forgets all, but no number: an answer to an old request must not be taken for one to a new one.
    pub fn clear(&mut self) {
        *self = Self { last_number: self.last_number, last_turn: self.last_turn, ..Self::new(self.own.clone()) };
    }

    /// How many sessions are being deleted.
    pub fn len(&self) -> usize {
        self.works.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// The session is being deleted.
    pub fn terminating(&mut self, key: &SessionKey, terminating: Terminating) {
        if self.works.get(key).is_some_and(|work| work.terminating.uid == terminating.uid) {
            return;
        }
        self.gone(key);
        self.works.insert(key.clone(), Work { terminating, stage: Stage::Unasked, patience: Patience::default() });
        // Who comes anew waits for those who wait already.
        let queues = self.queues.entry(key.namespace().clone());
        let queues = queues.or_insert_with(|| Queues { turn: self.last_turn, ..Queues::default() });
        let place = (terminating.since, key.clone());
        queues.waiting.insert(place.clone());
        queues.unasked.insert(place);
    }

    /// The session is gone, or does not have our finalizer any more.
    pub fn gone(&mut self, key: &SessionKey) {
        let Some(work) = self.works.remove(key) else {
            return;
        };
        self.leave(key, work.terminating.since, &work.stage);
        if self.queues.get(key.namespace()).is_some_and(Queues::is_empty) {
            self.queues.remove(key.namespace());
        }
    }

    /// A replica has confirmed the request `number`, and names those that were registered then.
    pub fn confirmed(&mut self, number: u64, replica: Arc<str>, registered: Vec<Arc<str>>) {
        let work = self.asked.get(&number).and_then(|key| self.works.get_mut(key));
        if let Some(Work { stage: Stage::Asked { quorum, .. }, .. }) = work {
            quorum.confirmed(replica, registered);
        }
    }

    /// A call has ended. If the session is still there, it is tried again, later each time.
    pub fn ended(&mut self, session: &SessionRef, outcome: Outcome, now: Time) {
        self.failing |= matches!(outcome, Outcome::Unanswered | Outcome::Refused);
        if outcome == Outcome::LetGo {
            self.try_all_at_once(now);
        }
        let work = self.works.get_mut(&session.key).filter(|work| work.terminating.uid == session.uid);
        if let Some(Work { stage: Stage::LettingGo { why }, patience, .. }) = work {
            let again = match outcome {
                // The watch shows what was let go of within milliseconds, unless it hangs.
                Outcome::LetGo | Outcome::Nothing | Outcome::Unanswered => patience.pause(AGAIN).min(AWAY),
                Outcome::Refused => patience.pause(AGAIN),
            };
            let why = *why;
            self.become_ready(&session.key, now + again, why);
        }
    }

    /// The API server has let go of one: those that failed need not wait for as long as they were to. Now and then only, since what
    /// fails for some may always work for others.
    fn try_all_at_once(&mut self, now: Time) {
        if self.failing && now >= self.at_once_from {
            self.failing = false;
            self.at_once_from = now + AGAIN * Patience::MOST;
            self.queues.values_mut().for_each(Queues::hurry);
        }
    }

    /// All requests that are under way: a replica that can be asked from now on must hear of them.
    pub fn requests(&self) -> impl Iterator<Item = Request> {
        self.asked.iter().filter_map(|(number, key)| {
            let barrier = self.works.get(key)?.terminating.barrier();
            Some(Request { number: *number, key: key.clone(), barrier })
        })
    }

    /// Namespaces in which sessions are being deleted.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.queues.keys()
    }

    /// Takes up what is to be done, with at most `calls` more to the API server. A namespace of which it is not known who is
    /// `registered` waits.
    pub fn look<'a>(&mut self, now: Time, calls: usize, registered: impl Fn(&str) -> Option<&'a Registered>) -> Tasks {
        let registered = &registered;
        let mut tasks = Tasks::default();
        self.see_leases_end(now, registered, &mut tasks);
        self.see_quorums(now, registered);
        self.ask(registered, &mut tasks);
        self.let_go(now, calls, &mut tasks);
        tasks
    }

    fn see_leases_end<'a>(
        &mut self,
        now: Time,
        registered: impl Fn(&str) -> Option<&'a Registered>,
        tasks: &mut Tasks,
    ) {
        let mut over = Vec::new();
        for (namespace, queues) in &self.queues {
            let Some(registered) = registered(namespace) else {
                if !queues.waiting.is_empty() {
                    tasks.wake_at(now + AGAIN);
                }
                continue;
            };
            for (since, key) in &queues.waiting {
                let ends = *since + registered.longest;
                if ends > now {
                    tasks.wake_at(ends);
                    break;
                }
                over.push(key.clone());
            }
        }
        for key in over {
            self.become_ready(&key, now, Why::LeasesEnded);
        }
    }

    fn see_quorums<'a>(&mut self, now: Time, registered: impl Fn(&str) -> Option<&'a Registered>) {
        let is_complete = |key: &&SessionKey| {
            let (Some(work), Some(registered)) = (self.works.get(*key), registered(key.namespace())) else {
                return false;
            };
            matches!(&work.stage, Stage::Asked { quorum, .. } if self.is_enough(quorum, &registered.replicas))
        };
        let complete: Vec<SessionKey> = self.asked.values().filter(is_complete).cloned().collect();
        for key in complete {
            self.become_ready(&key, now, Why::Confirmed);
        }
    }

    /// Whether enough have confirmed, this replica among them in any case.
    ///
    /// Those that are not registered any more need not: a marker goes when the last lease of its replica has ended, and
    /// whoever registers after that knows of the deletion. This replica's own watch says so, which shows the deletion once this
    /// replica has confirmed. One that does not even see itself there has seen nothing.
    fn is_enough(&self, quorum: &Quorum, registered: &BTreeSet<Arc<str>>) -> bool {
        let sees_itself = registered.contains(&self.own);
        quorum.has(&self.own) && quorum.is_complete(|replica| sees_itself && !registered.contains(replica))
    }

    fn ask<'a>(&mut self, registered: impl Fn(&str) -> Option<&'a Registered>, tasks: &mut Tasks) {
        for (namespace, queues) in self.queues.iter_mut().filter(|(namespace, _)| registered(namespace).is_some()) {
            while self.tally.admits(namespace, "", CONFIRMATIONS).is_ok() {
                let Some((_, key)) = queues.unasked.pop_first() else {
                    break;
                };
                let Some(work) = self.works.get_mut(&key) else {
                    continue;
                };
                self.tally.add(namespace, "");
                self.last_number += 1;
                let number = self.last_number;
                work.stage = Stage::Asked { number, quorum: Quorum::default() };
                self.asked.insert(number, key.clone());
                tasks.ask.push(Request { number, key, barrier: work.terminating.barrier() });
            }
        }
    }

    /// Those of namespaces that have the fewest calls under way come first, and of these whose last turn was longest ago: so one
    /// with thousands does not keep the others waiting, nor do some of which each call fails.
    fn let_go(&mut self, now: Time, calls: usize, tasks: &mut Tasks) {
        let is_ready = |queues: &Queues| queues.due(now).is_some();
        let place = |queues: &Queues, namespace: Arc<str>| (queues.letting_go, queues.turn, namespace);
        let ready = self.queues.iter().filter(|(_, queues)| is_ready(queues));
        let mut turns: BTreeSet<_> = ready.map(|(namespace, queues)| place(queues, namespace.clone())).collect();
        while tasks.let_go.len() < calls
            && let Some((.., namespace)) = turns.pop_first()
        {
            let Some(queues) = self.queues.get_mut(&namespace) else {
                continue;
            };
            let Some(key) = queues.pop_due(now) else {
                continue;
            };
            let Some(work) = self.works.get_mut(&key) else {
                continue;
            };
            let Stage::Ready { why, .. } = work.stage else {
                continue;
            };
            work.stage = Stage::LettingGo { why };
            queues.letting_go += 1;
            self.last_turn += 1;
            queues.turn = self.last_turn;
            let uid = work.terminating.uid;
            tasks.let_go.push((SessionRef { key, uid }, why));
            if is_ready(queues) {
                turns.insert(place(queues, namespace));
            }
        }
        // What is ready already waits for the end of a call.
        let later = self.queues.values().filter_map(|queues| queues.ready.first()).map(|(at, _)| *at);
        for at in later.filter(|at| *at > now) {
            tasks.wake_at(at);
        }
    }

    fn become_ready(&mut self, key: &SessionKey, at: Time, why: Why) {
        let Some(work) = self.works.get_mut(key) else {
            return;
        };
        let (since, left) = (work.terminating.since, std::mem::replace(&mut work.stage, Stage::Ready { at, why }));
        self.leave(key, since, &left);
        self.queues.entry(key.namespace().clone()).or_default().ready.insert((at, key.clone()));
    }

    /// Takes it, which was deleted at `since`, out of the queues of its stage.
    fn leave(&mut self, key: &SessionKey, since: Time, stage: &Stage) {
        let Some(queues) = self.queues.get_mut(key.namespace()) else {
            return;
        };
        let place = (since, key.clone());
        match stage {
            Stage::Unasked => {
                queues.waiting.remove(&place);
                queues.unasked.remove(&place);
            }
            Stage::Asked { number, .. } => {
                queues.waiting.remove(&place);
                self.asked.remove(number);
                self.tally.remove(key.namespace(), "");
            }
            Stage::Ready { at, .. } => {
                let place = (*at, key.clone());
                let _ = queues.ready.remove(&place) || queues.at_once.remove(&place);
            }
            Stage::LettingGo { .. } => {
                queues.letting_go -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
