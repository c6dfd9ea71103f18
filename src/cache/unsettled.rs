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

/// A write that has been begun. Unless it is [settled](Self::settled) or [refused](Self::refused), nobody knows what became of it.
#[derive(Debug)]
pub(super) struct Begun {
    unsettled: Arc<Unsettled>,
    base: Session,
    number: u64,
    /// It makes what is in the object what it is taken to be already.
    repeats: bool,
    is_over: bool,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    uid: Uid,
    /// What was begun before this is not counted here.
    since: u64,
    /// Changes that are being made, or told.
    under_way: u32,
    /// Since when nobody knows what became of one.
    unknown: Option<u64>,
    /// Of what is below this, all others have been told: the generation that the first one was made from, or a later one.
    told: u64,
}

/// What there is of them for each session.
#[derive(Debug, Default)]
pub(super) struct Unsettled(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    by_name: HashMap<Arc<str>, Known>,
    last: u64,
}

impl State {
    fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// What is known of the session that `base` is, from now on.
    fn known(&mut self, base: &Session, number: u64) -> &mut Known {
        let anew = || Known { uid: base.uid(), since: number, under_way: 0, unknown: None, told: base.generation() };
        if self.by_name.len() >= MOST && !self.by_name.contains_key(base.name()) {
            let oldest = self.by_name.iter().min_by_key(|(_, known)| known.since).map(|(name, _)| name.clone());
            oldest.and_then(|name| self.by_name.remove(&name));
        }
        let known = self.by_name.entry_ref(base.name()).or_insert_with(anew);
        if known.uid != base.uid() {
            *known = anew();
        }
        known
    }
}

impl Begun {
    /// It was done, and all others were told: also of all that was given up before it was begun.
    pub fn settled(mut self) {
        self.ends(|known, number| known.unknown = known.unknown.filter(|unknown| *unknown > number));
    }

    /// It was not done.
    pub fn refused(mut self) {
        self.ends(|_, _| {});
    }

    fn ends(&mut self, change: impl FnOnce(&mut Known, u64)) {
        self.is_over = true;
        let mut state = self.unsettled.0.lock();
        let Some(known) = state.by_name.get_mut(self.base.name()).filter(|known| known.uid == self.base.uid()) else {
            return;
        };
        if !self.repeats && self.number >= known.since {
            known.under_way -= 1;
        }
        change(known, self.number);
        if known.under_way == 0 && known.unknown.is_none() {
            state.by_name.remove(self.base.name());
        }
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        // It may be done later still, also after others that were begun later.
        let mut state = self.unsettled.0.lock();
        let number = state.next();
        state.known(&self.base, number).unknown = Some(number);
        drop(state);
        self.ends(|_, _| {});
    }
}

impl Unsettled {
    /// Such a write to the session that `base` is, is about to be sent. One that `repeats` what the object is taken to have is
    /// nothing that yet another one must repeat, as long as it is under way: else two clients would keep each other writing.
    pub fn begin(self: &Arc<Self>, base: &Session, repeats: bool) -> Begun {
        let mut state = self.0.lock();
        let number = state.next();
        if !repeats {
            state.known(base, number).under_way += 1;
        }
        Begun { unsettled: self.clone(), base: base.clone(), number, repeats, is_over: false }
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
    fn each_change_is_unsettled_until_it_is_told_or_refused() {
        let (unsettled, base) = (Arc::new(Unsettled::default()), session("s", 1, 1));
        let [first, second] = [(); 2].map(|()| unsettled.begin(&base, false));
        assert!(unsettled.has(&base) && !unsettled.has(&session("s", 2, 1)) && !unsettled.has(&session("s2", 1, 1)));
        second.settled();
        assert!(unsettled.has(&base), "the first one may have been done after it, and be told yet");
        first.refused();
        assert!(!unsettled.has(&base));
    }

    #[test]
    fn what_was_given_up_is_settled_by_one_that_was_begun_later() {
        let (unsettled, base) = (Arc::new(Unsettled::default()), session("s", 1, 1));
        let [given_up, before] = [(); 2].map(|()| unsettled.begin(&base, false));
        drop(given_up);
        before.settled();
        assert!(unsettled.has(&base), "it may be done later still");
        unsettled.begin(&base, true).refused();
        assert!(unsettled.has(&base), "nothing was done");
        unsettled.begin(&base, true).settled();
        assert!(!unsettled.has(&base));
    }

    #[test]
    fn what_repeats_a_change_is_not_repeated_in_its_turn() {
        let (unsettled, base) = (Arc::new(Unsettled::default()), session("s", 1, 1));
        let change = unsettled.begin(&base, false);
        let repeated = unsettled.begin(&base, true);
        change.settled();
        assert!(!unsettled.has(&base));
        drop(repeated);
        assert!(unsettled.has(&base), "but it may have been done after yet another change, and told to nobody");
    }

    #[test]
    fn what_it_may_have_made_is_told_once() {
        let unsettled = Arc::new(Unsettled::default());
        drop(unsettled.begin(&session("s", 1, 3), false));
        let made = |generation| unsettled.may_have_made(&session("s", 1, generation));
        assert!(!made(3) && made(4));
        unsettled.told(&session("s", 1, 4));
        drop(unsettled.begin(&session("s", 1, 3), false));
        assert!(!made(4) && made(5));
        assert!(!unsettled.may_have_made(&session("s", 2, 9)));
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let unsettled = Arc::new(Unsettled::default());
        let of = |n: usize| session(&format!("s-{n}"), 1, 1);
        for n in 0..=MOST {
            drop(unsettled.begin(&of(n), false));
        }
        assert!(!unsettled.has(&of(0)) && unsettled.has(&of(1)) && unsettled.has(&of(MOST)));
    }
}
