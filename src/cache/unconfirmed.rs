//! Deletions that nobody has confirmed yet.
//!
//! A deletion whose answer was lost may have been done. Whoever repeats it finds nothing, and must not be told so before no
//! pod serves the session any more (I8): what to confirm is kept here until somebody has. So is what replicas say is gone:
//! the deletion may have gone through another cache, whose user now asks this one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::core::session::{ResourceVersion, Uid};

/// Deletions that are remembered, and as many of which replicas have told: more than can be under way. Of more, the oldest
/// are forgotten.
const MOST: usize = 8_192;
/// Sessions of one name whose deletions are confirmed one by one.
const MOST_OF_A_NAME: usize = 8;

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

/// What is to be confirmed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    /// Each with whether its session is known to be gone.
    pub deletions: Vec<(Deletion, bool)>,
    /// There may be others, of which nothing is known but that their sessions were gone by then.
    pub others: Option<Instant>,
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
    by_time: BTreeSet<(Instant, Arc<str>, Uid)>,
    /// When the last one was heard of that had to be forgotten while somebody may still have served it.
    forgotten: Option<Instant>,
}

impl Told {
    /// The latest word counts: an earlier one may have been said of a deletion that was never done.
    fn insert(&mut self, name: Arc<str>, uid: Uid, alive: ResourceVersion, heard: Instant) {
        self.remove(&name, uid);
        self.gone.insert((name.clone(), uid), (alive, heard));
        self.by_time.insert((heard, name, uid));
    }

    fn remove(&mut self, name: &Arc<str>, uid: Uid) {
        if let Some((_, heard)) = self.gone.remove(&(name.clone(), uid)) {
            self.by_time.remove(&(heard, name.clone(), uid));
        }
    }

    /// Forgets what was heard before this, and what is too much. Of that, it stays known how long it counts: else whoever sees
    /// to it that much is deleted would have the repetition of any deletion answered too early.
    fn forget(&mut self, before: Option<Instant>) {
        while let Some((heard, ..)) = self.by_time.first() {
            let is_over = before.is_some_and(|before| *heard < before);
            if !is_over && self.by_time.len() <= MOST {
                break;
            }
            let Some((heard, name, uid)) = self.by_time.pop_first() else { break };
            self.gone.remove(&(name, uid));
            if !is_over {
                self.forgotten = Some(heard);
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
        state.known.remove(&(name.clone(), uid));
        state.told.remove(name, uid);
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

    /// What is to be confirmed now that there is no session of this name.
    pub fn all(&self, name: &Arc<str>) -> Open {
        let state = self.0.lock();
        let State { known, told, .. } = &*state;
        let own = known.range(any(name)).map(|(_, known)| (known.deletion, known.gone.is_some()));
        let told_only = || told.gone.range(any(name)).filter(|(key, _)| !known.contains_key(key));
        let mut open = Open { deletions: own.collect(), others: told.forgotten };
        if told_only().nth(MOST_OF_A_NAME).is_some() {
            // Somebody makes and deletes it again and again. Time does for all of them, however many they are.
            open.others = told_only().map(|(_, (_, heard))| *heard).max().max(open.others);
        } else {
            let each = told_only().map(|((_, uid), (alive, _))| (Deletion { uid: *uid, alive: Some(*alive) }, true));
            open.deletions.extend(each);
        }
        open
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

    /// What is to be confirmed where nothing was forgotten.
    fn all(unconfirmed: &Unconfirmed, name: &Arc<str>) -> Vec<(Deletion, bool)> {
        let open = unconfirmed.all(name);
        assert_eq!(open.others, None);
        open.deletions
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten() {
        let unconfirmed = Unconfirmed::default();
        let of = |uid| Deletion { uid: Uid::from_u128(uid), alive: None };
        for n in 0..=MOST {
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
            unconfirmed.insert(&format!("s-{n}").into(), of(1));
        }
        assert_eq!(all(&unconfirmed, &"s-0".into()), []);
        assert_eq!(all(&unconfirmed, &"s-1".into()), [(of(1), false)]);
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
        assert_eq!(all(&unconfirmed, &name), [(deletion, true)]);
        assert_eq!(unconfirmed.gone(&name, uid, Instant::now()), Some((deletion, Instant::now())));
        // The same deletion, if it is an own one too.
        unconfirmed.insert(&name, Deletion { uid, alive: None });
        assert_eq!(all(&unconfirmed, &name), [(Deletion { uid, alive: None }, false)]);
        unconfirmed.remove(&name, uid);
        assert_eq!(all(&unconfirmed, &name), []);
        told("s");
        tokio::time::advance(lease).await;
        told("s2");
        assert_eq!(all(&unconfirmed, &name), [(deletion, true)]);
        tokio::time::advance(Duration::from_millis(1)).await;
        told("s3");
        assert_eq!((all(&unconfirmed, &name), all(&unconfirmed, &"s2".into())), (vec![], vec![(deletion, true)]));
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_replicas_say_is_gone_and_is_too_much_it_is_known_how_long_it_counts() {
        let (unconfirmed, lease) = (Unconfirmed::default(), Duration::from_secs(15));
        let told = |name: &str, uid| {
            unconfirmed.told_gone(name, Uid::from_u128(uid), ResourceVersion(7), lease);
        };
        told("s1", 1);
        tokio::time::advance(lease + Duration::from_millis(1)).await;
        for _ in 0..2 * MOST {
            told("s2", 1);
        }
        let second = Instant::now();
        tokio::time::advance(Duration::from_secs(1)).await;
        for n in 0..MOST - 1 {
            told(&format!("other-{n}"), 1);
        }
        // The first one was over, and the second is one, however often it was told.
        assert_eq!(all(&unconfirmed, &"s1".into()), []);
        assert_eq!(all(&unconfirmed, &"s2".into()).len(), 1);
        told("one-more", 1);
        assert_eq!(unconfirmed.all(&"s2".into()), Open { deletions: vec![], others: Some(second) });
        assert_eq!(unconfirmed.all(&"other-0".into()).deletions.len(), 1);
        let State { told, .. } = &*unconfirmed.0.lock();
        assert_eq!((told.gone.len(), told.by_time.len()), (MOST, MOST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_many_sessions_had_is_confirmed_by_time() {
        let (unconfirmed, name) = (Unconfirmed::default(), "s".into());
        let told = |uid| {
            unconfirmed.told_gone("s", Uid::from_u128(uid), ResourceVersion(7), Duration::from_secs(15));
        };
        let own = Deletion { uid: Uid::from_u128(0), alive: None };
        unconfirmed.insert(&name, own);
        (0..=8).for_each(told);
        assert_eq!(all(&unconfirmed, &name).len(), 9, "eight besides the own one");
        tokio::time::advance(Duration::from_secs(1)).await;
        told(9);
        let others = Some(Instant::now());
        assert_eq!(unconfirmed.all(&name), Open { deletions: vec![(own, false)], others });
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
        assert_eq!(all(&unconfirmed, &name), [(first, true), (second, true)]);
        unconfirmed.remove(&name, first.uid);
        assert_eq!(all(&unconfirmed, &name), [(second, true)]);
        unconfirmed.remove(&name, second.uid);
        assert_eq!(all(&unconfirmed, &name), []);
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
        assert_eq!(all(&unconfirmed, &name), [(first, true), (second, false)]);
        assert_eq!(all(&unconfirmed, &"s2".into()), [(first, false)]);
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
