//! Waiting until nobody can serve anything older than a committed state (I4, I8).
//!
//! Every open stream carries the request. It is done when one replica has answered and every replica that it names as
//! registered has answered too; else when every lease that could cover an older state has ended. Whatever goes wrong
//! (a replica that is gone, a stream that was never open) only means waiting. A replica that refuses, since it has too many, is asked
//! again now and then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use crate::core::lease::with_drift;
use crate::core::quorum::Quorum;
use crate::core::signal::Barrier;
use crate::proto::convert;
use crate::proto::v1;

/// Requests under way at once. Further ones wait for the leases to end without asking anybody.
const MOST: usize = 4_096;

/// Asks, and counts the answers.
#[derive(Debug)]
pub(super) struct Confirmer {
    state: Mutex<State>,
    /// The number of the latest request: streams wait for it to change.
    latest: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    /// No lease is longer: what was set, or what a replica has told if that is more.
    longest: Duration,
    pending: BTreeMap<u64, Pending>,
}

#[derive(Debug)]
struct Pending {
    state: v1::State,
    quorum: Quorum,
    done: Option<oneshot::Sender<()>>,
}

impl Pending {
    fn request(&self, number: u64) -> v1::ConfirmRequest {
        v1::ConfirmRequest { number, state: Some(self.state.clone()) }
    }
}

/// How a confirmation came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Confirmed {
    /// Every registered replica has answered.
    Answered,
    /// Every lease has ended.
    Waited,
}

/// Forgets a request when nobody waits for it any more.
struct Request<'a> {
    confirmer: &'a Confirmer,
    number: u64,
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        self.confirmer.state.lock().pending.remove(&self.number);
    }
}

impl Confirmer {
    /// No lease is longer than `upper_bound`. What replicas tell cannot take its place: while an upgrade changes the length, one that
    /// this cache never reaches may grant longer ones than all that it does reach.
    pub fn new(upper_bound: Duration) -> Self {
        let state = State { longest: upper_bound, pending: BTreeMap::new() };
        Self { state: Mutex::new(state), latest: watch::Sender::new(0) }
    }

    /// A replica told how long its leases are. Returns whether that is longer than what was set, or told before.
    pub fn told_lease(&self, length: Duration) -> bool {
        let mut state = self.state.lock();
        let is_longer = length > state.longest;
        state.longest = state.longest.max(length);
        is_longer
    }

    /// How long a lease that somebody granted can be, at most.
    pub fn longest_lease(&self) -> Duration {
        self.state.lock().longest
    }

    /// Requests under way.
    pub fn pending(&self) -> usize {
        self.state.lock().pending.len()
    }

    /// Waits until nobody serves anything older than `barrier`, a state that was committed before `answered`.
    pub async fn confirm(&self, session: &str, barrier: &Barrier, answered: Instant) -> Confirmed {
        let over = answered + with_drift(self.longest_lease());
        let (done, told) = oneshot::channel();
        let request = self.ask(convert::state_message(session, barrier), done);
        let answer = timeout_at(over, told).await;
        if let (Ok(Ok(())), Some(_)) = (answer, &request) {
            return Confirmed::Answered;
        }
        // Where nothing was asked, there was nothing to wait for but time.
        tokio::time::sleep_until(over).await;
        Confirmed::Waited
    }

    /// Waits until every lease has ended that was granted before `answered`.
    pub async fn leases_over(&self, answered: Instant) {
        tokio::time::sleep_until(answered + with_drift(self.longest_lease())).await;
    }

    fn ask(&self, state: v1::State, done: oneshot::Sender<()>) -> Option<Request<'_>> {
        let number = {
            let mut known = self.state.lock();
            if known.pending.len() >= MOST {
                return None;
            }
            // Under the lock, so that whoever sees a number finds every request up to it.
            let number = *self.latest.borrow() + 1;
            let pending = Pending { state, quorum: Quorum::default(), done: Some(done) };
            known.pending.insert(number, pending);
            self.latest.send_replace(number);
            number
        };
        Some(Request { confirmer: self, number })
    }

    /// Changes when there is a new request.
    pub fn requests(&self) -> watch::Receiver<u64> {
        self.latest.subscribe()
    }

    /// The first request after number `sent` that somebody still waits for. A new stream starts at 0, so that it carries
    /// what an older one could not.
    pub fn next_after(&self, sent: u64) -> Option<v1::ConfirmRequest> {
        let state = self.state.lock();
        let after = (std::ops::Bound::Excluded(sent), std::ops::Bound::Unbounded);
        let (number, pending) = state.pending.range(after).next()?;
        Some(pending.request(*number))
    }

    /// Request `number`, if somebody still waits for it.
    pub fn request(&self, number: u64) -> Option<v1::ConfirmRequest> {
        self.state.lock().pending.get(&number).map(|pending| pending.request(number))
    }

    /// The replica `replica` has answered request `number`, naming those that were registered.
    pub fn answered(&self, replica: &Arc<str>, number: u64, registered: &[String]) {
        let registered = registered.iter().map(|name| name.as_str().into()).collect();
        let mut state = self.state.lock();
        let Some(pending) = state.pending.get_mut(&number) else {
            return;
        };
        pending.quorum.confirmed(replica.clone(), registered);
        if pending.quorum.is_complete(|_| false)
            && let Some(done) = pending.done.take()
        {
            // Whoever waited may have left.
            let _ = done.send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::{ResourceVersion, Uid};
    use crate::core::signal::{Fate, Mark};

    const LEASE: Duration = Duration::from_secs(10);

    fn barrier() -> Barrier {
        let mark = Mark { uid: Uid::from_u128(1), fate: Fate::Gone, resource_version: ResourceVersion(7) };
        Barrier { mark, digest: None }
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    /// Confirms while `answers` are given, and tells how, and after how long.
    async fn confirm(confirmer: &Confirmer, answers: impl FnOnce(u64)) -> (Confirmed, Duration) {
        let start = Instant::now();
        let barrier = barrier();
        let asked = confirmer.confirm("s", &barrier, start);
        let answering = async {
            let mut requests = confirmer.requests();
            requests.wait_for(|n| *n > 0).await.unwrap();
            let number = confirmer.next_after(0).unwrap().number;
            assert!(confirmer.next_after(number).is_none());
            answers(number);
        };
        let (how, ()) = tokio::join!(asked, answering);
        assert_eq!(confirmer.pending(), 0, "nothing is left behind");
        (how, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn every_replica_on_one_list_must_have_answered() {
        let confirmer = Confirmer::new(LEASE);
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let (how, took) = confirm(&confirmer, |n| {
            confirmer.answered(&a, n, &names(&["a", "b"]));
            confirmer.answered(&b, n, &names(&["a", "b", "c"]));
        })
        .await;
        assert_eq!((how, took), (Confirmed::Answered, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_of_one_means_waiting_for_the_longest_lease() {
        let confirmer = Confirmer::new(LEASE);
        let a: Arc<str> = "a".into();
        let (how, took) = confirm(&confirmer, |n| confirmer.answered(&a, n, &names(&["a", "b"]))).await;
        assert_eq!(how, Confirmed::Waited);
        assert!(took >= with_drift(LEASE) && took < LEASE * 2, "{took:?}");
        // Another one may grant longer leases than those that were heard of,
        assert!(!confirmer.told_lease(Duration::from_secs(3)));
        let (_, took) = confirm(&confirmer, |_| {}).await;
        assert!(took >= with_drift(LEASE), "{took:?}");
        // and it may have been set up too short.
        assert!(confirmer.told_lease(LEASE * 3), "that is worth saying,");
        assert!(!confirmer.told_lease(LEASE * 3) && !confirmer.told_lease(LEASE * 2), "once");
        let (_, took) = confirm(&confirmer, |_| {}).await;
        assert!(took >= with_drift(LEASE * 3) && took < LEASE * 4, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_nobody_waits_for_is_forgotten() {
        let confirmer = Confirmer::new(LEASE);
        let barrier = barrier();
        let asked = tokio::time::timeout(LEASE / 2, confirmer.confirm("s", &barrier, Instant::now()));
        assert!(asked.await.is_err());
        assert_eq!(confirmer.pending(), 0);
    }
}
