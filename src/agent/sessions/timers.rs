//! Sessions that end at an instant that this agent wrote: it deletes them then, so that agents that know only of an earlier,
//! later end drop their copies too. Should this agent be gone by then, the controller does it a little later.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Sessions that are waited for, at most. The controller ends the others.
const MOST: usize = 65_536;
/// Sessions that are looked at at once.
const AT_ONCE: usize = 16;
/// What could not be seen to is tried again after so many milliseconds.
const AGAIN: u64 = 10_000;
/// The wall clock may be set: it is looked at again after so long.
const LOOK: Duration = Duration::from_secs(1);

/// When which session ends.
#[derive(Debug, Default)]
pub(super) struct Timers {
    state: Mutex<State>,
    earlier: Notify,
}

#[derive(Debug, Default)]
struct State {
    by_time: BTreeSet<(u64, Arc<str>)>,
    by_name: HashMap<Arc<str>, u64>,
}

impl State {
    fn insert(&mut self, name: Arc<str>, at: u64) {
        self.by_name.insert(name.clone(), at);
        self.by_time.insert((at, name));
    }

    fn clear(&mut self, name: &str) {
        if let Some((name, at)) = self.by_name.remove_entry(name) {
            self.by_time.remove(&(at, name));
        }
    }
}

impl Timers {
    /// The session `name` ends at this instant, and at no other; never, for `None`.
    pub fn set(&self, name: &str, at: Option<u64>) {
        let mut state = self.state.lock();
        state.clear(name);
        let Some(at) = at else { return };
        if state.by_name.len() == MOST {
            return;
        }
        let first = state.by_time.first().is_none_or(|(first, _)| at < *first);
        state.insert(name.into(), at);
        if first {
            self.earlier.notify_one();
        }
    }

    /// The session `name` has ended at `now`, and that could not be seen to. It is tried again, unless it has another end by now.
    pub fn again(&self, name: &str, now: u64) {
        let mut state = self.state.lock();
        if state.by_name.len() < MOST && !state.by_name.contains_key(name) {
            state.insert(name.into(), now.saturating_add(AGAIN));
            self.earlier.notify_one();
        }
    }

    /// Takes the sessions that have ended at `now`, and tells when the next one does.
    pub fn due(&self, now: u64) -> (Vec<Arc<str>>, Option<u64>) {
        let mut state = self.state.lock();
        let mut due = Vec::new();
        while let Some((at, name)) = state.by_time.first().filter(|(at, _)| *at <= now).cloned() {
            state.by_time.remove(&(at, name.clone()));
            state.by_name.remove(&name);
            due.push(name);
        }
        (due, state.by_time.first().map(|(at, _)| *at))
    }

    /// Calls `end` for each session that ends, until `ended`.
    pub async fn run<F: Future<Output = ()>>(
        &self,
        clock: impl Fn() -> u64,
        end: impl Fn(Arc<str>) -> F,
        ended: CancellationToken,
    ) {
        loop {
            let now = clock();
            let (due, next) = self.due(now);
            let over = futures::stream::iter(due).for_each_concurrent(AT_ONCE, &end);
            tokio::select! {
                () = over => {}
                () = ended.cancelled() => return,
            }
            let wait = async {
                match next {
                    Some(at) => tokio::time::sleep(Duration::from_millis(at.saturating_sub(clock())).min(LOOK)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = self.earlier.notified() => {}
                () = ended.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn the_last_word_on_a_session_counts() {
        let timers = Timers::default();
        timers.set("a", Some(10));
        timers.set("b", Some(5));
        timers.set("a", Some(20));
        timers.set("c", Some(7));
        timers.set("c", None);
        assert_eq!(timers.due(4), (vec![], Some(5)));
        assert_eq!(timers.due(15), (vec!["b".into()], Some(20)));
        assert_eq!(timers.due(20), (vec!["a".into()], None));
        let state = timers.state.lock();
        assert!(state.by_time.is_empty() && state.by_name.is_empty());
    }

    #[test]
    fn what_is_tried_again_has_no_end_of_its_own() {
        let timers = Timers::default();
        timers.again("a", 1);
        timers.set("b", Some(20_000));
        timers.again("b", 1);
        assert_eq!(timers.due(1), (vec![], Some(1 + AGAIN)));
        assert_eq!(timers.due(1 + AGAIN), (vec!["a".into()], Some(20_000)));
    }

    #[test]
    fn there_are_no_more_than_fit() {
        let timers = Timers::default();
        for n in 0..MOST + 10 {
            timers.set(&n.to_string(), Some(1));
        }
        timers.again("one more", 1);
        assert_eq!(timers.due(2 * AGAIN).0.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_end_when_their_time_comes_also_one_that_is_set_while_it_waits() {
        let (timers, ended) = (Timers::default(), CancellationToken::new());
        let start = tokio::time::Instant::now();
        let clock = || u64::try_from(start.elapsed().as_millis()).unwrap();
        let log = Mutex::new(Vec::new());
        let left = AtomicU64::new(2);
        timers.set("late", Some(5_000));
        let end = |name: Arc<str>| {
            log.lock().push((name.to_string(), clock()));
            if left.fetch_sub(1, Ordering::Relaxed) == 1 {
                ended.cancel();
            }
            async {}
        };
        let setting = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            timers.set("early", Some(200));
        };
        tokio::join!(timers.run(clock, end, ended.clone()), setting);
        let log = log.into_inner();
        assert_eq!(log.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["early", "late"]);
        assert!(log[0].1 >= 200 && log[0].1 < 1_000 && log[1].1 >= 5_000, "{log:?}");
    }
}
