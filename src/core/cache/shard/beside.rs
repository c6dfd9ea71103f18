//! What stands beside a copy: values that are true only in this pod, renewals, and what clients last had.

use std::fmt;
use std::sync::Arc;

use super::{Entry, Habits, Shard};
use crate::core::cache::copy::{Copy, DropReason, LocalValues, NamesOnly};
use crate::core::cache::formers::Formers;
use crate::core::cache::renewed::Renewal;
use crate::core::cache::reports::Reporter;
use crate::core::digest::{Digest, Metadata};
use crate::core::fields::Fields;
use crate::core::time::Time;

/// What stands beside a copy.
#[derive(Clone, Copy)]
pub struct Beside<'a> {
    /// Values that are true only in this pod.
    pub local: Option<&'a Arc<LocalValues>>,
    /// When a client of this pod renewed the session last.
    pub renewal: Option<Renewal>,
}

impl fmt::Debug for Beside<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.local.map(|local| NamesOnly(local));
        f.debug_struct("Beside").field("local", &local).field("renewal", &self.renewal).finish()
    }
}

/// What became of a change of values that are true only in this pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LocalChange {
    /// It is made.
    Done,
    /// The copy is not held any more: the values went with it.
    NotHeld,
    /// It was to be exact, and somebody else has changed them.
    Changed,
}

impl fmt::Debug for Entry {
    /// What is looked for when a copy is served, or is not; without values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { copy, sequence, provisional, suspended, .. } = self;
        let entry = (copy, sequence, provisional, suspended, self.beside());
        f.debug_tuple("Entry").field(&entry).finish()
    }
}

impl Entry {
    fn beside(&self) -> Beside<'_> {
        Beside { local: self.carried.local.as_ref(), renewal: self.renewed.get() }
    }
}

/// Bytes of memory that pod-local values take, roughly.
pub(super) fn footprint_of(local: &LocalValues) -> usize {
    local.iter().map(|(key, value)| key.len() + value.len() + 96).sum()
}

/// The metadata of `copy`, with these fields as `of` has them.
fn with_fields(copy: &Copy, fields: &[&str], of: &Copy) -> Metadata {
    let mut metadata = copy.metadata.to_map();
    for field in fields {
        match of.metadata.get(field) {
            Some(value) => _ = metadata.insert((*field).to_owned(), value.to_owned()),
            None => _ = metadata.remove(*field),
        }
    }
    metadata
}

impl Shard {
    /// Sets what its clients are like, and where all shards of the cache keep what they last had, before anything is kept.
    pub fn set_habits(&mut self, habits: Habits, formers: Formers) {
        self.habits = habits;
        self.formers = formers;
    }

    /// [`Self::get_hashed`], with what stands beside the copy.
    #[inline]
    pub fn get_beside(&self, name: &str, hash: u64, now: impl FnOnce() -> Time) -> Option<(&Arc<Copy>, Beside<'_>)> {
        let entry = self.give(self.entries.get_hashed(name, hash)?, now)?;
        Some((&entry.copy, entry.beside()))
    }

    /// [`Self::get_beside`], if clients have this copy already.
    #[inline]
    pub fn get_given(&self, name: &str, hash: u64, now: impl FnOnce() -> Time) -> Option<(&Arc<Copy>, Beside<'_>)> {
        let entry = self.entries.get_hashed(name, hash).filter(|entry| entry.used.is_given())?;
        let entry = self.give(entry, now)?;
        Some((&entry.copy, entry.beside()))
    }

    /// What stands beside the copy `of`, if it is held.
    pub fn beside(&self, name: &str, of: &Copy) -> Option<Beside<'_>> {
        self.entry_of(name, of).map(Entry::beside)
    }

    /// The values that are true only inside this pod, beside the copy `of`.
    pub fn local(&self, name: &str, of: &Copy) -> Option<&Arc<LocalValues>> {
        self.entry_of(name, of)?.carried.local.as_ref()
    }

    /// Keeps a value that is true only inside this pod beside the copy `of`. False if that copy is not held any more.
    pub fn set_local(&mut self, name: &str, of: &Copy, key: &str, value: &str, reporter: &mut impl Reporter) -> bool {
        let Some(entry) = self.entry_of(name, of) else {
            return false;
        };
        let mut local = entry.carried.local.as_deref().cloned().unwrap_or_default();
        local.insert(key.to_owned(), value.to_owned());
        self.put_local(name, local, reporter)
    }

    /// Makes of the values beside the copy `of` what leads from `base` to `new`: what others changed meanwhile stays. If it is
    /// to be `exact`, they must be just what `base` says.
    pub fn change_local(
        &mut self,
        name: &str,
        of: &Copy,
        (base, new): (&LocalValues, &LocalValues),
        exact: bool,
        reporter: &mut impl Reporter,
    ) -> LocalChange {
        let Some(entry) = self.entry_of(name, of) else {
            return LocalChange::NotHeld;
        };
        let mut local = entry.carried.local.as_deref().cloned().unwrap_or_default();
        if exact && local != *base {
            return LocalChange::Changed;
        }
        let set = new.iter().filter(|(key, value)| base.get(*key) != Some(value));
        local.extend(set.map(|(key, value)| (key.clone(), value.clone())));
        local.retain(|key, _| new.contains_key(key) || !base.contains_key(key));
        if self.put_local(name, local, reporter) { LocalChange::Done } else { LocalChange::NotHeld }
    }

    /// Keeps just these values beside the copy that is held. False if it must make room for what it would take.
    fn put_local(&mut self, name: &str, local: LocalValues, reporter: &mut impl Reporter) -> bool {
        let Some(entry) = self.entries.get_mut(name) else {
            return false;
        };
        let before = entry.footprint();
        entry.carried.local = (!local.is_empty()).then(|| Arc::new(local));
        self.bytes = self.bytes - before + entry.footprint();
        self.make_room(reporter);
        self.entries.contains(name)
    }

    /// Begins the idle timeout of the session that `of` is anew. False if no copy of it is held any more.
    pub fn renew(&self, name: &str, of: &Copy, renewal: Renewal) -> bool {
        let entry = self.entries.get(name).filter(|entry| entry.copy.uid == of.uid);
        entry.inspect(|entry| entry.renewed.set(renewal)).is_some()
    }

    /// When the session that `of` is was renewed last by a client of this pod.
    pub fn renewal(&self, name: &str, of: &Copy) -> Option<Renewal> {
        self.entries.get(name).filter(|entry| entry.copy.uid == of.uid)?.renewed.get()
    }

    /// A client is given the copy `of`, other than by [`Self::get`]. The copy may have been dropped or replaced meanwhile: the
    /// client has it all the same.
    pub fn given(&mut self, name: &str, of: &Arc<Copy>, now: Time) {
        if let Some(entry) = self.entry_of(name, of) {
            entry.used.given(now);
            return;
        }
        let entry = self.entries.get(name).filter(|entry| entry.copy.uid == of.uid);
        // What came since was given to another client: there is one base for all of them, the latest.
        if entry.is_some_and(|entry| entry.used.is_given()) {
            return;
        }
        let renewal = entry.map_or_else(|| self.formers.renewal(name, of), |entry| entry.renewed.get());
        self.formers.remember(of.clone(), renewal);
    }

    /// Whether [`Self::shown`] would tell nothing new: most ask for the same fields again and again.
    pub fn has_shown(&self, name: &str, of: &Copy, fields: &[&str]) -> bool {
        if self.entry_of(name, of).is_some_and(|entry| entry.used.is_given()) {
            return true;
        }
        self.former(name, of).is_some_and(|former| {
            let is_known = |field: &&str| former.metadata.get(field) == of.metadata.get(field);
            former.digest != of.digest && fields.iter().all(is_known)
        })
    }

    /// What clients last had of the session that `of` is, if its copy is gone or they do not have that.
    fn former(&self, name: &str, of: &Copy) -> Option<Arc<Copy>> {
        self.formers.get(name).filter(|former| former.uid == of.uid)
    }

    /// A client is shown these fields of the copy `of`, and no others: of the rest it has what it had before. Without anything
    /// before, the copy is what its next write changes.
    pub fn shown(&mut self, name: &str, of: &Arc<Copy>, fields: &[&str], now: Time) {
        if self.has_shown(name, of, fields) {
            return;
        }
        let Some(former) = self.former(name, of) else {
            return self.given(name, of, now);
        };
        let metadata = with_fields(&former, fields, of);
        let digest = Digest::of(&metadata);
        if digest == of.digest {
            self.given(name, of, now);
        } else if digest != former.digest {
            let renewal = self.formers.renewal(name, of);
            self.formers.remember(Arc::new(former.with(Fields::of(&metadata), digest)), renewal);
        }
    }

    /// A client wrote this, whatever the session is by now: the next difference is taken from what it had before with these fields
    /// as it wrote them. It may never have seen the others. Without anything before, or if it `knows_all`, it is what it wrote.
    pub fn wrote(&mut self, name: &str, wrote: &Arc<Copy>, fields: &[&str], knows_all: bool) {
        if !self.habits.remember_given {
            return;
        }
        let entry = self.entries.get(name).filter(|entry| entry.copy.uid == wrote.uid);
        let had = match entry.filter(|entry| entry.used.is_given()) {
            Some(entry) => Some(entry.copy.clone()),
            None => self.formers.get(name).filter(|former| former.uid == wrote.uid),
        };
        // Answers may come in another order than writes were done in. Clients that had something newer have it still; of what is
        // held and newer, they know no more than the fields that they had the same.
        let is_newer = |known: &Arc<Copy>| known.generation > wrote.generation;
        let held = entry.map(|entry| &entry.copy).filter(|held| is_newer(held));
        let knows_all = knows_all && held.is_none() && !had.as_ref().is_some_and(is_newer);
        let known = had.filter(|_| !knows_all).map(|had| {
            let is_older = |field: &str| held.is_none_or(|held| had.metadata.get(field) != held.metadata.get(field));
            let fields = fields.iter().copied().filter(|field| !is_newer(&had) && is_older(field));
            with_fields(&had, &fields.collect::<Vec<_>>(), wrote)
        });
        let known = known.filter(|known| wrote.metadata != *known);
        let known = known.map(|known| Arc::new(wrote.with(Fields::of(&known), Digest::of(&known))));
        let wrote = known.as_ref().unwrap_or(wrote);
        if let Some(entry) = entry.filter(|entry| entry.copy.digest == wrote.digest) {
            entry.used.given(entry.used.last());
            self.formers.forget(name);
            return;
        }
        entry.inspect(|entry| entry.used.not_given());
        let renewal = entry.map_or_else(|| self.formers.renewal(name, wrote), |entry| entry.renewed.get());
        self.formers.remember(wrote.clone(), renewal);
    }

    /// What clients of this pod last had of the session, or else the copy that is held if it may be served: what a write that
    /// replaces the whole session takes its difference from. Of a copy that nobody had and that may be behind, a write of just that
    /// would be no difference to what the session is.
    pub fn base(&self, name: &str, now: Time) -> Option<Arc<Copy>> {
        let former = || self.formers.get(name);
        let held = |entry: &Entry| self.servable(entry, now).then(|| entry.copy.clone());
        match self.entries.get(name) {
            Some(entry) if entry.used.is_given() => Some(entry.copy.clone()),
            // Another session's map is nothing to take a difference from.
            Some(entry) => former().filter(|former| former.uid == entry.copy.uid).or_else(|| held(entry)),
            None => former(),
        }
    }

    /// Whether a copy is held, or clients had one, of which nobody has said since that it is gone.
    pub fn has_met(&self, name: &str) -> bool {
        self.entries.contains(name) || self.formers.has(name)
    }

    /// The session with this uid is gone: nothing is to be written to it any more.
    pub fn forget_base(&mut self, name: &str, of: &Copy) {
        if self.formers.get(name).is_some_and(|former| former.uid == of.uid) {
            self.formers.forget(name);
        }
    }

    /// The copy with just this metadata, if it is the one that is held.
    fn entry_of(&self, name: &str, of: &Copy) -> Option<&Entry> {
        let same = |digest: Digest| digest == of.digest;
        self.entries.get(name).filter(|entry| entry.copy.uid == of.uid && same(entry.copy.digest))
    }

    /// When the copy's session was used last, as far as its idle timeout goes.
    pub(super) fn last_use(&self, entry: &Entry) -> Option<Time> {
        if self.habits.uses_renew { Some(entry.used.last()) } else { entry.renewed.get().map(|renewal| renewal.at) }
    }

    /// When a session whose copy was replaced at `now` was used: by that, unless its clients say so themselves.
    pub(super) fn use_by_replacement(&self, now: Time) -> Time {
        if self.habits.uses_renew { now } else { Time::ZERO }
    }

    /// What is known of renewals when `copy` takes the place of `old`, or of nothing.
    pub(super) fn renewal_for(&self, name: &str, copy: &Copy, old: Option<&Entry>) -> Option<Renewal> {
        match old {
            Some(old) if old.copy.uid == copy.uid => old.renewed.get(),
            Some(_) => None,
            None => self.formers.renewal(name, copy),
        }
    }

    /// A copy is dropped.
    pub(super) fn departed(&mut self, entry: &Entry, reason: DropReason) {
        match reason {
            DropReason::Gone | DropReason::Reset => self.formers.forget(&entry.copy.name),
            DropReason::Stale | DropReason::Foreign | DropReason::Capacity => {
                if entry.used.is_given() {
                    self.formers.remember(entry.copy.clone(), entry.renewed.get());
                }
            }
        }
    }

    /// Another copy takes a copy's place. Returns whether clients have it already.
    pub(super) fn replaced(&mut self, name: &str, old: &Entry, new: &Copy) -> bool {
        if old.copy.uid != new.uid {
            self.formers.forget(name);
            return false;
        }
        let given = old.used.is_given();
        if given && old.copy.digest != new.digest {
            self.formers.remember(old.copy.clone(), old.renewed.get());
            return false;
        }
        given
    }
}
