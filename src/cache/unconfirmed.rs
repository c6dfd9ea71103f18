//! Deletions that nobody has confirmed yet.
//!
//! A deletion whose answer was lost may have been done. Whoever repeats it finds nothing, and must not be told so before no
//! pod serves the session any more (I8): what to confirm is kept here until somebody has.

use std::collections::BTreeMap;
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

#[derive(Clone, Copy, Debug)]
struct Known {
    deletion: Deletion,
    since: Instant,
    /// When somebody first heard that the session is gone: by then it had been deleted.
    gone: Option<Instant>,
}

/// One for each name: two sessions of one name cannot live at once.
#[derive(Debug, Default)]
pub(super) struct Unconfirmed(Mutex<BTreeMap<Arc<str>, Known>>);

impl Unconfirmed {
    /// A deletion is about to be sent. One that is refused later stays all the same: an earlier one may have been done.
    pub fn insert(&self, name: &Arc<str>, deletion: Deletion) {
        let since = Instant::now();
        let mut known = self.0.lock();
        match known.get_mut(name) {
            Some(same) if same.deletion.uid == deletion.uid => {
                same.deletion.alive = same.deletion.alive.max(deletion.alive);
                same.since = since;
            }
            _ => _ = known.insert(name.clone(), Known { deletion, since, gone: None }),
        }
        if known.len() > MOST {
            let oldest = known.iter().min_by_key(|(_, known)| known.since).map(|(name, _)| name.clone());
            oldest.and_then(|name| known.remove(&name));
        }
    }

    /// It has been confirmed.
    pub fn remove(&self, name: &str, uid: Uid) {
        let mut known = self.0.lock();
        if known.get(name).is_some_and(|known| known.deletion.uid == uid) {
            known.remove(name);
        }
    }

    /// What is to be confirmed now that the session is known to be gone, and since when it is.
    pub fn gone(&self, name: &str, heard: Instant) -> Option<(Deletion, Instant)> {
        let mut known = self.0.lock();
        let known = known.get_mut(name)?;
        Some((known.deletion, *known.gone.get_or_insert(heard)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten_and_a_successor_is_not_confirmed_by_its_predecessor() {
        let unconfirmed = Unconfirmed::default();
        let of = |uid| Deletion { uid: Uid::from_u128(uid), alive: None };
        for n in 0..=MOST {
            tokio::time::advance(std::time::Duration::from_millis(1)).await;
            unconfirmed.insert(&format!("s-{n}").into(), of(1));
        }
        let get = |name| unconfirmed.gone(name, Instant::now()).map(|(deletion, _)| deletion);
        assert_eq!((get("s-0"), get("s-1")), (None, Some(of(1))));
        unconfirmed.insert(&"s-1".into(), of(2));
        unconfirmed.remove("s-1", Uid::from_u128(1));
        assert_eq!(get("s-1"), Some(of(2)));
        unconfirmed.remove("s-1", Uid::from_u128(2));
        assert_eq!(get("s-1"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_of_a_deletion_is_not_lost_by_its_repetition() {
        let unconfirmed = Unconfirmed::default();
        let (name, uid) = ("s".into(), Uid::from_u128(1));
        unconfirmed.insert(&name, Deletion { uid, alive: Some(ResourceVersion(7)) });
        let heard = Instant::now();
        assert!(unconfirmed.gone("s", heard).is_some());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        unconfirmed.insert(&name, Deletion { uid, alive: None });
        let known = unconfirmed.gone("s", Instant::now());
        assert_eq!(known, Some((Deletion { uid, alive: Some(ResourceVersion(7)) }, heard)));
    }
}
