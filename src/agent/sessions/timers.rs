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
/// Sessions that are looked at at once for the first time; as many more may be looked at again.
pub(super) const AT_ONCE: usize = 16;
/// What could not be seen to is tried again after so many milliseconds.
const AGAIN: u64 = 10_000;
/// The wall clock may be set: it is looked at again after so long.
const LOOK: Duration = Duration::from_secs(1);

/// Whether a session is looked at for the first time. While the API server is away, those that are looked at again become more and
/// more, and each takes long: no other session's end waits for them.
#[derive(Clone, Copy, Debug)]
enum Try {
    First,
    Again,
}

/// When which session ends.
#[derive(Debug, Default)]
pub(super) struct Timers {
    state: Mutex<State>,
    /// Told, for either try, when one comes before the others.
    earlier: [Notify; 2],
}

#[derive(Debug, Default)]
struct State {
    by_time: [BTreeSet<(u64, Arc<str>)>; 2],
    by_name: HashMap<Arc<str>, (Try, u64)>,
}

impl State {
    /// Whether it comes before the others of the same try.
    fn insert(&mut self, name: Arc<str>, of: Try, at: u64) -> bool {
        let by_time = &mut self.by_time[of as usize];
        let first = by_time.first().is_none_or(|(first, _)| at < *first);
        by_time.insert((at, name.clone()));
        self.by_name.insert(name, (of, at));
        first
    }

    fn clear(&mut self, name: &str) {
        if let Some((name, (of, at))) = self.by_name.remove_entry(name) {
            self.by_time[of as usize].remove(&(at, name));
        }
    }
}

impl Timers {
    /// The session `name` ends at this instant, and at no other; never, for `None`.
    pub fn set(&self, name: &str, at: Option<u64>) {
        let mut state = self.state.lock();
        state.clear(name);
        if let Some(at) = at {
            self.insert(&mut state, name, Try::First, at);
        }
    }

    /// The session `name` has ended at `now`, and that could not be seen to. It is tried again, unless it has another end by now.
    pub fn again(&self, name: &str, now: u64) {
        let mut state = self.state.lock();
        if !state.by_name.contains_key(name) {
            self.insert(&mut state, name, Try::Again, now.saturating_add(AGAIN));
        }
    }

    fn insert(&self, state: &mut State, name: &str, of: Try, at: u64) {
        if state.by_name.len() < MOST && state.insert(name.into(), of, at) {
            self.earlier[of as usize].notify_one();
        }
    }

    /// Takes a session that has ended at `now`; if there is none, tells when the next one does.
    fn take(&self, of: Try, now: u64) -> Result<Arc<str>, Option<u64>> {
        let mut state = self.state.lock();
        let (at, name) = state.by_time[of as usize].first().cloned().ok_or(None)?;
        if at > now {
            return Err(Some(at));
        }
        state.clear(&name);
        Ok(name)
    }

    /// The next session that has ended, when it has.
    async fn next(&self, of: Try, clock: impl Fn() -> u64) -> Arc<str> {
        loop {
            let now = clock();
            let wait = match self.take(of, now) {
                Ok(name) => return name,
                Err(next) => next.map_or(Duration::MAX, |at| Duration::from_millis(at - now).min(LOOK)),
            };
            // Either way it is time to look again.
            let _ = tokio::time::timeout(wait, self.earlier[of as usize].notified()).await;
        }
    }

    /// Calls `end` for each session that ends, until `ended`.
    pub async fn run<F: Future<Output = ()>>(
        &self,
        clock: impl Fn() -> u64,
        end: impl Fn(Arc<str>) -> F,
        ended: CancellationToken,
    ) {
        tokio::select! {
            () = self.run_of(Try::First, &clock, &end) => {}
            () = self.run_of(Try::Again, &clock, &end) => {}
            () = ended.cancelled() => {}
        }
    }

    async fn run_of<F: Future<Output = ()>>(&self, of: Try, clock: impl Fn() -> u64, end: impl Fn(Arc<str>) -> F) {
        let due = futures::stream::repeat(()).then(|()| self.next(of, &clock));
        due.for_each_concurrent(AT_ONCE, end).await;
    }

    /// When a session is to be looked at again; `None` if none is.
    #[cfg(test)]
    pub fn next_again(&self) -> Option<u64> {
        self.take(Try::Again, 0).err().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// All that have ended at `now`, and when the next one does.
    fn due(timers: &Timers, of: Try, now: u64) -> (Vec<Arc<str>>, Option<u64>) {
        let mut due = Vec::new();
        loop {
            match timers.take(of, now) {
                Ok(name) => due.push(name),
                Err(next) => return (due, next),
            }
        }
    }

    #[test]
    fn the_last_word_on_a_session_counts() {
        let timers = Timers::default();
        timers.set("a", Some(10));
        timers.set("b", Some(5));
        timers.set("a", Some(20));
        timers.set("c", Some(7));
        timers.set("c", None);
        timers.again("d", 1);
        timers.set("d", None);
        assert_eq!(due(&timers, Try::First, 4), (vec![], Some(5)));
        assert_eq!(due(&timers, Try::First, 15), (vec!["b".into()], Some(20)));
        assert_eq!(due(&timers, Try::First, 20), (vec!["a".into()], None));
        let state = timers.state.lock();
        assert!(state.by_time.iter().all(BTreeSet::is_empty) && state.by_name.is_empty());
    }

    #[test]
    fn what_is_tried_again_has_no_end_of_its_own() {
        let timers = Timers::default();
        timers.again("a", 1);
        timers.set("b", Some(20_000));
        timers.again("b", 1);
        assert_eq!(due(&timers, Try::Again, 1), (vec![], Some(1 + AGAIN)));
        assert_eq!(due(&timers, Try::Again, 1 + AGAIN), (vec!["a".into()], None));
        assert_eq!(due(&timers, Try::First, 1 + AGAIN), (vec![], Some(20_000)));
    }

    #[test]
    fn there_are_no_more_than_fit() {
        let timers = Timers::default();
        for n in 0..MOST + 10 {
            timers.set(&n.to_string(), Some(1));
        }
        timers.again("one more", 1);
        assert_eq!(due(&timers, Try::First, 1).0.len(), MOST);
        assert_eq!(timers.next_again(), None);
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
