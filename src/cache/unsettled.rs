//! Writes that outdate equal copies, of a new timeout for instance, and of which nobody knows whether they were done, or whether
//! all others were told.
//!
//! Whoever repeats such a write finds it done, and would take it for no change: the others would never be told. So it is kept
//! here until one has been done and told.

use std::sync::Arc;

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::error::WriteError;
use super::options::Visibility;
use super::session::Session;
use super::shared::Shared;
use crate::core::session::Uid;

/// Writes that are remembered: more than can be under way. Of more, the oldest are forgotten.
const MOST: usize = 8_192;

/// A write that has been begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Begun {
    number: u64,
    /// No earlier one was unsettled.
    is_first: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    uid: Uid,
    /// Of the latest one.
    number: u64,
    /// Of what is below this, all others have been told: the generation that the first one was made from, or a later one.
    told: u64,
}

/// The latest of them for each session.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_name: HashMap<Arc<str>, Known>,
    last: u64,
}

impl Unsettled {
    /// Such a write to the session that `base` is, is about to be sent.
    pub fn begin(&self, base: &Session) -> Begun {
        let mut state = self.0.lock();
        state.last += 1;
        let (name, number) = (&base.copy().name, state.last);
        let before = state.by_name.get(name).filter(|known| known.uid == base.uid()).copied();
        let told = before.map_or(base.generation(), |known| known.told);
        state.by_name.insert(name.clone(), Known { uid: base.uid(), number, told });
        if state.by_name.len() > MOST {
            let oldest = state.by_name.iter().min_by_key(|(_, known)| known.number).map(|(name, _)| name.clone());
            oldest.and_then(|name| state.by_name.remove(&name));
        }
        Begun { number, is_first: before.is_none() }
    }

    /// It was done, and all others were told. One that was begun later is still to be settled.
    pub fn settled(&self, base: &Session, begun: Begun) {
        let mut state = self.0.lock();
        if state.by_name.get(base.name()).is_some_and(|known| known.number == begun.number) {
            state.by_name.remove(base.name());
        }
    }

    /// It was not done, or nobody knows. What is then known of an earlier one is no more than before.
    pub fn failed(&self, base: &Session, begun: Begun, is_unknown: bool) {
        if is_unknown {
            // One that was begun later may have been settled meanwhile, and this one may be done yet.
            self.begin(base);
        } else if begun.is_first {
            self.settled(base, begun);
        }
    }

    /// Whether there is one for this session.
    #[inline]
    pub fn has(&self, session: &Session) -> bool {
        self.0.lock().by_name.get(session.name()).is_some_and(|known| known.uid == session.uid())
    }

    /// Whether this state, which was just read, may be such that one has made, and of which others have not been told.
    pub fn may_have_made(&self, state: &Session) -> bool {
        let known = self.0.lock().by_name.get(state.name()).copied();
        known.is_some_and(|known| known.uid == state.uid() && known.told < state.generation())
    }

    /// All others were told of this state. The write may be done later still.
    pub fn told(&self, state: &Session) {
        if let Some(known) = self.0.lock().by_name.get_mut(state.name())
            && known.uid == state.uid()
        {
            known.told = known.told.max(state.generation());
        }
    }
}

impl Shared {
    /// Tells all others of this state, which was just read, if a write of which nobody knows may have made it.
    pub async fn settle(&self, session: &Session, visibility: Visibility) -> Result<(), WriteError> {
        if self.unsettled.may_have_made(session) {
            self.visible(session.clone(), Instant::now(), visibility, true).await?;
            self.unsettled.told(session);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Facts, Metadata, Origin, ResourceVersion};
    use crate::core::cache::Copy;
    use crate::core::digest::Digest;
    use crate::core::fields::Fields;

    fn session(name: &str, uid: u128, generation: u64) -> Session {
        let metadata = Metadata::new();
        let copy = Copy {
            name: name.into(),
            uid: Uid::from_u128(uid),
            generation,
            resource_version: ResourceVersion(generation),
            digest: Digest::of(&metadata),
            metadata: Fields::of(&metadata),
            facts: Facts::default(),
        };
        Session::new(Arc::new(copy), Origin::Restored)
    }

    #[test]
    fn one_that_is_settled_or_refused_says_nothing_of_another() {
        let (unsettled, base) = (Unsettled::default(), session("s", 1, 1));
        let first = unsettled.begin(&base);
        assert!(unsettled.has(&base) && !unsettled.has(&session("s", 2, 1)) && !unsettled.has(&session("s2", 1, 1)));
        let second = unsettled.begin(&base);
        unsettled.settled(&base, first);
        unsettled.failed(&base, second, false);
        assert!(unsettled.has(&base), "the second one was begun later, and the first one may have been done");
        unsettled.settled(&base, second);
        assert!(!unsettled.has(&base));
        let third = unsettled.begin(&base);
        unsettled.failed(&base, third, false);
        assert!(!unsettled.has(&base), "nothing was done");
        let [fourth, fifth] = [(); 2].map(|()| unsettled.begin(&base));
        unsettled.settled(&base, fifth);
        unsettled.failed(&base, fourth, true);
        assert!(unsettled.has(&base), "it may be done later still");
    }

    #[test]
    fn what_it_may_have_made_is_told_once() {
        let unsettled = Unsettled::default();
        unsettled.begin(&session("s", 1, 3));
        let made = |generation| unsettled.may_have_made(&session("s", 1, generation));
        assert!(!made(3) && made(4));
        unsettled.told(&session("s", 1, 4));
        unsettled.begin(&session("s", 1, 3));
        assert!(!made(4) && made(5));
        assert!(!unsettled.may_have_made(&session("s", 2, 9)));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let unsettled = Unsettled::default();
        let of = |n: usize| session(&format!("s-{n}"), 1, 1);
        for n in 0..=MOST {
            unsettled.begin(&of(n));
        }
        assert!(!unsettled.has(&of(0)) && unsettled.has(&of(1)) && unsettled.has(&of(MOST)));
    }
}
