//! Deletions that nobody has confirmed yet.
//!
//! A deletion whose answer was lost may have been done. Whoever repeats it finds nothing, and must not be told so before no
//! pod serves the session any more (I8): what to confirm is kept here until somebody has. So is what replicas say is gone:
//! the deletion may have gone through another cache, whose user now asks this one.

use std::collections::{BTreeMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::core::session::{ResourceVersion, Uid};

/// Deletions that are remembered, and as many of which replicas have told: more than can be under way. Of more, the oldest
/// are forgotten.
const MOST: usize = 8_192;

/// A session that is being deleted, or may have been.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub uid: Uid,
    /// A resourceVersion at which the session lived, if any is known.
    pub alive: Option<ResourceVersion>,
}

/// Which deletions had been begun at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Begun(u64);

#[derive(Clone, Copy, Debug)]
struct Known {
    deletion: Deletion,
    /// When it was begun first: its session had been made before that.
    begun: Begun,
    since: Instant,
    /// When somebody first heard that the session is gone: by then it had been deleted.
    gone: Option<Instant>,
}

/// Two sessions of one name cannot live at once, but the deletions of two may both be on their way.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: BTreeMap<(Arc<str>, Uid), Known>,
    last: u64,
    told: Told,
}

/// Sessions that replicas say are gone, with a resourceVersion at which each lived, and when that was heard last.
#[derive(Debug, Default)]
struct Told {
    gone: BTreeMap<(Arc<str>, Uid), (ResourceVersion, Instant)>,
    /// In the order in which they were heard of. Some may have been confirmed, or told again, since.
    order: VecDeque<(Instant, Arc<str>, Uid)>,
}

impl Told {
    /// The latest word counts: an earlier one may have been said of a deletion that was never done.
    fn insert(&mut self, name: Arc<str>, uid: Uid, alive: ResourceVersion, heard: Instant) {
        self.gone.insert((name.clone(), uid), (alive, heard));
        self.order.push_back((heard, name, uid));
    }

    /// Forgets what was heard before this, and what is too much.
    fn forget(&mut self, before: Option<Instant>) {
        while let Some((heard, ..)) = self.order.front()
            && (self.order.len() > MOST || before.is_some_and(|before| *heard < before))
            && let Some((heard, name, uid)) = self.order.pop_front()
        {
            let key = (name, uid);
            // It may have been told again.
            if self.gone.get(&key).is_some_and(|(_, again)| *again == heard) {
                self.gone.remove(&key);
            }
        }
    }

    fn get(&self, name: &Arc<str>, uid: Uid) -> Option<(ResourceVersion, Instant)> {
        self.gone.get(&(name.clone(), uid)).copied()
    }
}

impl Unconfirmed {
    /// A replica says that a session is gone that lived at `alive`, and that others may serve for so `long` yet.
    pub fn told_gone(&self, name: &str, uid: Uid, alive: ResourceVersion, long: Duration) {
        let now = Instant::now();
        let mut state = self.0.lock();
        state.told.insert(name.into(), uid, alive, now);
        state.told.forget(now.checked_sub(long));
    }

    /// A deletion is about to be sent. One that is refused later stays all the same: an earlier one may have been done.
    pub fn insert(&self, name: &Arc<str>, deletion: Deletion) {
        let since = Instant::now();
        let mut state = self.0.lock();
        state.last += 1;
        let State { known, last, .. } = &mut *state;
        let new = Known { deletion, begun: Begun(*last), since, gone: None };
        let same = known.entry((name.clone(), deletion.uid)).or_insert(new);
        same.deletion.alive = same.deletion.alive.max(deletion.alive);
        same.since = since;
        if known.len() > MOST {
            let oldest = known.iter().min_by_key(|(_, known)| known.since).map(|(key, _)| key.clone());
            oldest.and_then(|key| known.remove(&key));
        }
    }

    /// It has been confirmed.
    pub fn remove(&self, name: &Arc<str>, uid: Uid) {
        let mut state = self.0.lock();
        let key = (name.clone(), uid);
        state.known.remove(&key);
        state.told.gone.remove(&key);
    }

    /// Which deletions have been begun by now.
    pub fn begun(&self) -> Begun {
        Begun(self.0.lock().last)
    }

    /// A GET that was sent when these had been `begun` has found no session of this name, as was `heard` by then. So the sessions
    /// of these deletions are gone. One that was begun later may mean a session that was made later, and still lives.
    pub fn absent(&self, name: &Arc<str>, begun: Begun, heard: Instant) {
        let mut state = self.0.lock();
        for (_, known) in state.known.range_mut(any(name)).filter(|(_, known)| known.begun <= begun) {
            known.gone.get_or_insert(heard);
        }
    }

    /// What is to be confirmed now that there is no session of this name, each with whether its session is known to be gone.
    pub fn all(&self, name: &Arc<str>) -> Vec<(Deletion, bool)> {
        let state = self.0.lock();
        let State { known, told, .. } = &*state;
        let own = known.range(any(name)).map(|(_, known)| (known.deletion, known.gone.is_some()));
        let others = told.gone.range(any(name)).filter(|(key, _)| !known.contains_key(key));
        let others = others.map(|((_, uid), (alive, _))| (Deletion { uid: *uid, alive: Some(*alive) }, true));
        own.chain(others).collect()
    }

    /// What is to be confirmed now that this session is known to be gone, and since when it is.
    pub fn gone(&self, name: &Arc<str>, uid: Uid, heard: Instant) -> Option<(Deletion, Instant)> {
        let mut state = self.0.lock();
        let told = state.told.get(name, uid);
        let Some(known) = state.known.get_mut(&(name.clone(), uid)) else {
            return told.map(|(alive, first)| (Deletion { uid, alive: Some(alive) }, first));
        };
        Some((known.deletion, *known.gone.get_or_insert(heard)))
    }
}

/// All deletions of this name.
fn any(name: &Arc<str>) -> RangeInclusive<(Arc<str>, Uid)> {
    (name.clone(), Uid::from_u128(0))..=(name.clone(), Uid::from_u128(u128::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten() {
        let unconfirmed = Unconfirmed::default();
        let of = |uid| Deletion { uid: Uid::from_u128(uid), alive: None };
        for n in 0..=MOST {
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
            unconfirmed.insert(&format!("s-{n}").into(), of(1));
        }
        assert_eq!(unconfirmed.all(&"s-0".into()), []);
        assert_eq!(unconfirmed.all(&"s-1".into()), [(of(1), false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_replicas_say_is_gone_is_known_until_it_is_confirmed_or_no_lease_can_cover_it() {
        let (unconfirmed, lease) = (Unconfirmed::default(), Duration::from_secs(15));
        let (name, uid): (Arc<str>, _) = ("s".into(), Uid::from_u128(1));
        let told = |name: &str| unconfirmed.told_gone(name, uid, ResourceVersion(7), lease);
        let deletion = Deletion { uid, alive: Some(ResourceVersion(7)) };
        told("s");
        tokio::time::advance(Duration::from_secs(1)).await;
        // By another replica, or of another attempt.
        told("s");
        assert_eq!(unconfirmed.all(&name), [(deletion, true)]);
        assert_eq!(unconfirmed.gone(&name, uid, Instant::now()), Some((deletion, Instant::now())));
        // The same deletion, if it is an own one too.
        unconfirmed.insert(&name, Deletion { uid, alive: None });
        assert_eq!(unconfirmed.all(&name), [(Deletion { uid, alive: None }, false)]);
        unconfirmed.remove(&name, uid);
        assert_eq!(unconfirmed.all(&name), []);
        told("s");
        tokio::time::advance(lease).await;
        told("s2");
        assert_eq!(unconfirmed.all(&name), [(deletion, true)]);
        tokio::time::advance(Duration::from_millis(1)).await;
        told("s3");
        assert_eq!((unconfirmed.all(&name), unconfirmed.all(&"s2".into())), (vec![], vec![(deletion, true)]));
        for n in 0..MOST - 1 {
            told(&format!("other-{n}"));
        }
        assert_eq!(unconfirmed.all(&"s2".into()), []);
        assert_eq!(unconfirmed.all(&"s3".into()), [(deletion, true)]);
        assert_eq!(unconfirmed.0.lock().told.order.len(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn two_sessions_of_one_name_have_nothing_to_do_with_each_other() {
        let unconfirmed = Unconfirmed::default();
        let [first, second] = [1, 2].map(|uid| Deletion { uid: Uid::from_u128(uid), alive: None });
        let (name, early) = ("s".into(), Instant::now());
        unconfirmed.insert(&name, first);
        unconfirmed.insert(&name, second);
        unconfirmed.insert(&"s2".into(), first);
        // The second one lives on when the first one is known to be gone.
        assert_eq!(unconfirmed.gone(&name, first.uid, early), Some((first, early)));
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let late = Instant::now();
        assert_eq!(unconfirmed.gone(&name, second.uid, late), Some((second, late)));
        assert_eq!(unconfirmed.all(&name), [(first, true), (second, true)]);
        unconfirmed.remove(&name, first.uid);
        assert_eq!(unconfirmed.all(&name), [(second, true)]);
        unconfirmed.remove(&name, second.uid);
        assert_eq!(unconfirmed.all(&name), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_says_nothing_of_a_deletion_that_was_begun_after_it() {
        let unconfirmed = Unconfirmed::default();
        let [first, second] = [1, 2].map(|uid| Deletion { uid: Uid::from_u128(uid), alive: None });
        let name: Arc<str> = "s".into();
        unconfirmed.insert(&name, first);
        let begun = unconfirmed.begun();
        // Meanwhile, there is another session of the name, and it is about to be deleted; and the first deletion is repeated.
        unconfirmed.insert(&name, second);
        unconfirmed.insert(&name, first);
        unconfirmed.insert(&"s2".into(), first);
        let early = Instant::now();
        unconfirmed.absent(&name, begun, early);
        assert_eq!(unconfirmed.all(&name), [(first, true), (second, false)]);
        assert_eq!(unconfirmed.all(&"s2".into()), [(first, false)]);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        let late = Instant::now();
        assert_eq!(unconfirmed.gone(&name, first.uid, late), Some((first, early)));
        assert_eq!(unconfirmed.gone(&name, second.uid, late), Some((second, late)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_deletion_is_not_lost_by_its_repetition() {
        let unconfirmed = Unconfirmed::default();
        let (name, uid) = ("s".into(), Uid::from_u128(1));
        unconfirmed.insert(&name, Deletion { uid, alive: Some(ResourceVersion(7)) });
        let heard = Instant::now();
        assert!(unconfirmed.gone(&name, uid, heard).is_some());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        unconfirmed.insert(&name, Deletion { uid, alive: None });
        let known = unconfirmed.gone(&name, uid, Instant::now());
        assert_eq!(known, Some((Deletion { uid, alive: Some(ResourceVersion(7)) }, heard)));
    }
}
