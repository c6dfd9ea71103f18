//! What waits to be told to a replica, and in which order it goes out.
//!
//! Nothing here is a queue that a slow replica could make grow: reports wait keyed by session, requests for confirmations are
//! looked up when they are sent (and again, if they are refused), heartbeats and renewals are at most one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::confirm::Confirmer;
use super::store::{Store, now};
use crate::core::cache::{Holding, Report};
use crate::core::lease::StreamId;
use crate::core::session::Uid;
use crate::core::time::Time;
use crate::proto::MAX_SESSIONS_PER_MESSAGE;
use crate::proto::convert;
use crate::proto::v1;
use crate::proto::v1::agent_message::Message;

/// Signals that may wait to be acknowledged.
const MAX_DONE: usize = 64 * 1_024;
/// Heartbeats that are remembered until they are answered. A replica answers the latest.
const MAX_HEARTBEATS: usize = 64;
/// Requests that are asked again in one go, of those that were refused: whoever refuses them has too many already.
const MOST_AGAIN: usize = 64;
/// Uses are looked for again from so long before the last look: a request stores its time a little after it read the clock.
const OVERLAP: Duration = Duration::from_secs(2);

/// The copies that were held when the stream was opened, told shard by shard.
#[derive(Debug)]
struct Inventory {
    through: u64,
    part: usize,
    waiting: VecDeque<(Arc<str>, Holding)>,
}

/// What waits for one stream.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a message that waits, and any of them may")]
pub(super) struct Outbox {
    stream: StreamId,
    inventory: Option<Inventory>,
    done: VecDeque<v1::Acknowledgement>,
    lease_returned: bool,
    heartbeat_due: bool,
    heartbeats: VecDeque<(u64, Time)>,
    last_heartbeat: u64,
    requests: bool,
    last_request: u64,
    /// Requests that were refused, and those of them that are asked again now.
    refused: BTreeSet<u64>,
    again: VecDeque<u64>,
    reports: bool,
    renewals: Vec<(Arc<str>, Uid, Time)>,
    renewed: Time,
    /// Whether uses were looked for the last time.
    last_asked: bool,
}

impl Outbox {
    /// The outbox of a new stream, whose inventory tells the copies up to the number `through`.
    pub fn new(stream: StreamId, through: u64) -> Self {
        Self {
            stream,
            inventory: Some(Inventory { through, part: 0, waiting: VecDeque::new() }),
            done: VecDeque::new(),
            lease_returned: false,
            heartbeat_due: false,
            heartbeats: VecDeque::new(),
            last_heartbeat: 0,
            // There may be some that an older stream could not carry.
            requests: true,
            last_request: 0,
            refused: BTreeSet::new(),
            again: VecDeque::new(),
            reports: true,
            renewals: Vec::new(),
            renewed: Time::ZERO,
            last_asked: false,
        }
    }

    /// Whether more signals may come: not if too many wait to be acknowledged.
    pub fn may_answer(&self) -> bool {
        self.done.len() < MAX_DONE
    }

    /// A signal was carried out.
    pub fn done(&mut self, done: v1::Acknowledgement) {
        self.done.push_back(done);
    }

    /// The replica's lease has ended here.
    pub fn revoked(&mut self) {
        self.forget_heartbeats();
        self.lease_returned = true;
    }

    /// Answers to heartbeats that were sent until now do not count.
    pub fn forget_heartbeats(&mut self) {
        self.heartbeats.clear();
    }

    /// It is time to ask for a lease.
    pub fn heartbeat_due(&mut self) {
        self.heartbeat_due = true;
    }

    /// When the heartbeat that is answered was sent. An answer counts once; those to earlier ones do not count after it.
    pub fn heartbeat_answered(&mut self, number: u64) -> Option<Time> {
        let at = self.heartbeats.iter().position(|(known, _)| *known == number)?;
        self.heartbeats.drain(..=at).next_back().map(|(_, sent)| sent)
    }

    /// There may be new reports.
    pub fn reports_wait(&mut self) {
        self.reports = true;
    }

    /// There may be new requests for confirmation.
    pub fn requests_wait(&mut self) {
        self.requests = true;
    }

    /// The replica has refused request `number`. Returns whether it is to be asked again: somebody still waits for the answer.
    pub fn refused(&mut self, number: u64, confirmer: &Confirmer) -> bool {
        let was_asked = number <= self.last_request && confirmer.request(number).is_some();
        was_asked && self.refused.insert(number)
    }

    /// It is time to ask again for what was refused. Returns whether some is left for the next time.
    pub fn ask_again(&mut self, confirmer: &Confirmer) -> bool {
        self.refused.retain(|number| confirmer.request(*number).is_some());
        while self.again.len() < MOST_AGAIN
            && let Some(number) = self.refused.pop_first()
        {
            self.again.push_back(number);
        }
        !self.refused.is_empty()
    }

    /// It is time to tell which sessions were used. The first time, all are told: this replica may come to lead without
    /// having heard of them.
    pub fn renewals_due(&mut self, store: &Store) {
        if !self.renewals.is_empty() {
            return;
        }
        let since = Time::ZERO + self.renewed.saturating_since(Time::ZERO + OVERLAP);
        self.renewed = now();
        self.renewals = store.used_since(since);
    }

    /// Whether something may wait.
    pub fn has_some(&self) -> bool {
        !self.done.is_empty()
            || self.lease_returned
            || self.requests
            || !self.again.is_empty()
            || self.inventory.is_some()
            || self.heartbeat_due
            || self.reports
            || !self.renewals.is_empty()
    }

    /// The next message. What somebody waits for comes first.
    pub fn next(&mut self, store: &Store, confirmer: &Confirmer) -> Option<Message> {
        if !self.done.is_empty() {
            return Some(self.acknowledgements());
        }
        if std::mem::take(&mut self.lease_returned) {
            return Some(Message::LeaseReturned(v1::LeaseReturned {}));
        }
        if let Some(inventory) = self.inventory.take() {
            return Some(self.inventory(inventory, store));
        }
        // Only now: before the inventory is told, a lease would cover nothing.
        if std::mem::take(&mut self.heartbeat_due) {
            return Some(self.heartbeat());
        }
        if self.requests {
            if let Some(request) = confirmer.next_after(self.last_request) {
                self.last_request = request.number;
                return Some(Message::Confirm(request));
            }
            self.requests = false;
        }
        while let Some(number) = self.again.pop_front() {
            if let Some(request) = confirmer.request(number) {
                return Some(Message::Confirm(request));
            }
        }
        if self.reports {
            let (reports, through) = store.take_reports(self.stream, MAX_SESSIONS_PER_MESSAGE);
            self.reports = store.has_reports(self.stream);
            if !reports.is_empty() {
                return Some(Message::Reports(convert::reports_message(reports, Some(through))));
            }
        }
        (!self.renewals.is_empty()).then(|| self.renewals())
    }

    /// What is left to be told of uses when the stream is about to end.
    pub fn last_renewals(&mut self, store: &Store) -> Option<Message> {
        if self.renewals.is_empty() && !std::mem::replace(&mut self.last_asked, true) {
            self.renewals_due(store);
        }
        (!self.renewals.is_empty()).then(|| self.renewals())
    }

    fn acknowledgements(&mut self) -> Message {
        let some = self.done.len().min(MAX_SESSIONS_PER_MESSAGE);
        Message::Acknowledgements(v1::Acknowledgements { done: self.done.drain(..some).collect() })
    }

    fn inventory(&mut self, mut inventory: Inventory, store: &Store) -> Message {
        let Inventory { through, part, waiting } = &mut inventory;
        while waiting.len() < MAX_SESSIONS_PER_MESSAGE && *part < store.parts() {
            waiting.extend(store.inventory(*part, *through));
            *part += 1;
        }
        let some = waiting.len().min(MAX_SESSIONS_PER_MESSAGE);
        let reports = waiting.drain(..some);
        let reports: Vec<_> = reports.map(|(name, holding)| (name, Report::Held(holding))).collect();
        let complete = waiting.is_empty() && *part >= store.parts();
        let message = convert::reports_message(reports, complete.then_some(*through));
        if !complete {
            self.inventory = Some(inventory);
        }
        Message::Reports(message)
    }

    fn heartbeat(&mut self) -> Message {
        self.last_heartbeat += 1;
        let number = self.last_heartbeat;
        if self.heartbeats.len() == MAX_HEARTBEATS {
            self.heartbeats.pop_front();
        }
        // The lease runs from here, before the message leaves.
        self.heartbeats.push_back((number, now()));
        Message::Heartbeat(v1::Heartbeat { number })
    }

    fn renewals(&mut self) -> Message {
        let rest = self.renewals.len().saturating_sub(MAX_SESSIONS_PER_MESSAGE);
        let now = now();
        let used = self.renewals.drain(rest..);
        let used = used.map(|(name, uid, used)| convert::renewal_message(&name, uid, now.saturating_since(used)));
        Message::Renewals(v1::Renewals { used: used.collect() })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::Instant;

    use super::*;
    use crate::core::session::ResourceVersion;
    use crate::core::signal::{Barrier, Fate, Mark};

    #[tokio::test(start_paused = true)]
    async fn what_was_refused_is_asked_again_in_parts_while_somebody_waits_for_it() {
        let confirmer = Confirmer::new(Duration::from_secs(15));
        let mark = Mark { uid: Uid::from_u128(1), fate: Fate::Gone, resource_version: ResourceVersion(7) };
        let barrier = Barrier { mark, digest: None };
        let mut outbox = Outbox::new(StreamId(1), 0);
        let wait = || Box::pin(confirmer.confirm("s", &barrier, Instant::now()));
        let mut waiting: Vec<_> = (0..MOST_AGAIN + 3).map(|_| wait()).collect();
        assert!(waiting.iter_mut().all(|one| one.now_or_never().is_none()));
        outbox.last_request = MOST_AGAIN as u64 + 2;
        assert!((1..=outbox.last_request).all(|number| outbox.refused(number, &confirmer)));
        assert!(!outbox.refused(1, &confirmer), "that is known");
        assert!(!outbox.refused(MOST_AGAIN as u64 + 3, &confirmer), "it was not asked yet");
        drop(waiting.remove(1));
        assert!(outbox.ask_again(&confirmer), "one is left");
        assert_eq!((outbox.again.len(), outbox.refused.len()), (MOST_AGAIN, 1));
        assert!(!outbox.again.contains(&2), "nobody waits for it");
        drop(waiting);
        assert!(!outbox.refused(1, &confirmer));
        outbox.again.clear();
        assert!(!outbox.ask_again(&confirmer) && outbox.again.is_empty());
    }
}
