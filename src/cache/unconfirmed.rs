//! Deletions that nobody has confirmed yet.
//!
//! A deletion whose answer was lost may have been done. Whoever repeats it finds nothing, and must not be told so before no
//! pod serves the session any more (I8): what to confirm is kept here until somebody has.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::core::session::{ResourceVersion, Uid};

/// Deletions that are remembered: more than can be under way. Of more, the oldest are forgotten.
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
}

impl Unconfirmed {
    /// A deletion is about to be sent. One that is refused later stays all the same: an earlier one may have been done.
    pub fn insert(&self, name: &Arc<str>, deletion: Deletion) {
        let since = Instant::now();
        let mut state = self.0.lock();
        state.last += 1;
        let State { known, last } = &mut *state;
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
        self.0.lock().known.remove(&(name.clone(), uid));
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
        self.0.lock().known.range(any(name)).map(|(_, known)| (known.deletion, known.gone.is_some())).collect()
    }

    /// What is to be confirmed now that this session is known to be gone, and since when it is.
    pub fn gone(&self, name: &Arc<str>, uid: Uid, heard: Instant) -> Option<(Deletion, Instant)> {
        let mut state = self.0.lock();
        let known = state.known.get_mut(&(name.clone(), uid))?;
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
