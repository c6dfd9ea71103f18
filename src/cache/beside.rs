//! For clients that share a cache and keep nothing of it themselves, as those of the agent do: what stands beside a copy,
//! writes of more than the metadata, and what was last given.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Cache;
use super::error::{GetError, WriteError};
use super::options::{Change, WriteOptions};
use super::session::{Origin, Session};
use super::store::{Store, now};
use crate::core::cache::copy::NamesOnly;
use crate::core::cache::{LocalChange, LocalValues, Renewal};
use crate::core::time::Time;

/// What stands beside a copy. Cheap to clone.
#[derive(Clone, Default)]
pub struct Beside {
    /// The values that are true only in this pod.
    pub local: Option<Arc<LocalValues>>,
    /// When a client of this pod renewed the session last.
    pub renewal: Option<Renewal>,
}

impl fmt::Debug for Beside {
    /// Shows the names of values only (I6).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let local = self.local.as_deref().map(NamesOnly);
        f.debug_struct("Beside").field("local", &local).field("renewal", &self.renewal).finish()
    }
}

/// A deletion on behalf of the user. See [`Cache::deleting`].
#[must_use]
pub struct Deleting<'a> {
    store: &'a Store,
    name: Arc<str>,
}

impl fmt::Debug for Deleting<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deleting").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Drop for Deleting<'_> {
    fn drop(&mut self) {
        self.store.events.deleted(&self.name);
    }
}

impl Cache {
    /// [`Self::hit`], with what stands beside the copy.
    #[inline]
    pub fn hit_beside(&self, name: &str) -> Option<(Session, Beside)> {
        let (session, local, renewal) = self.shared.store.hit_beside(name)?;
        Some((session, Beside { local, renewal }))
    }

    /// [`Self::hit_beside`], if clients were given just this state already: for whoever shows a client a part of it.
    pub fn hit_given(&self, name: &str) -> Option<(Session, Beside)> {
        let (session, local, renewal) = self.shared.store.hit_given(name)?;
        Some((session, Beside { local, renewal }))
    }

    /// The copy that is held, whether or not it may be served: for lists and figures. It counts neither as a hit nor as a
    /// use, and nobody must be given its fields.
    pub fn peek(&self, name: &str) -> Option<Session> {
        self.shared.store.look(name, |shard| Some(Session::new(shard.peek(name)?.clone(), Origin::Cache)))
    }

    /// How many copies are held, and how many of them have an idle timeout, whether or not they may be served. They are not looked at
    /// for that.
    pub fn counts(&self) -> (usize, usize) {
        self.shared.store.counts()
    }

    /// [`Self::held`], but so many copies at most: any of them.
    pub fn sample(&self, most: usize) -> Vec<Session> {
        self.shared.store.held(most).into_iter().map(|(session, _)| session).collect()
    }

    /// Whether this is just the state that may be served now: then it has the timeout that is in force, if all who change one
    /// tell of it ([`Change::outdates_equal`](super::Change::outdates_equal)).
    pub fn is_current(&self, session: &Session) -> bool {
        let name = session.name();
        let is_held = self.shared.store.look(name, |shard| {
            shard.peek(name).is_some_and(|held| held.uid == session.uid() && held.generation == session.generation())
        });
        is_held && self.covered_until(name).is_some()
    }

    /// What stands beside the copy that `session` is; nothing if it is not held any more.
    pub fn beside(&self, session: &Session) -> Beside {
        self.shared.store.look(session.name(), |shard| {
            let beside = shard.beside(session.name(), session.copy());
            let renewal = shard.renewal(session.name(), session.copy());
            Beside { local: beside.and_then(|beside| beside.local.cloned()), renewal }
        })
    }

    /// [`Self::get`] for whoever gives the session to no client: see [`Self::base`].
    pub async fn find(&self, name: &str) -> Result<Session, GetError> {
        self.shared.restore(name).await
    }

    /// The session as it is now, with what no signal tells of (timeouts, annotations): always asks the API server. It does
    /// not count as given.
    pub async fn fresh(&self, name: &str) -> Result<Session, GetError> {
        self.shared.fresh(name).await
    }

    /// For how long no controller has heard of uses and renewals, as no stream to one has been open.
    pub fn unheard_for(&self) -> Duration {
        self.shared.streams.unheard_for()
    }

    /// Until when [`Self::hit`] would give the session, if nothing more is heard; `None` if it would not now.
    pub fn covered_until(&self, name: &str) -> Option<Time> {
        self.shared.store.look(name, |shard| shard.covered_until(name, now()))
    }

    /// Has `observer` called at once whenever a copy is replaced by an own write, or waits for the outcome of one because it
    /// was outdated meanwhile: for whoever keeps what clients were given, beside the evictions that [`Self::subscribe`]
    /// brings. It must be quick, and must not use the cache. There can be one: false if there is.
    pub fn observe(&self, observer: impl Fn(&str) + Send + Sync + 'static) -> bool {
        self.shared.store.events.observe(observer)
    }

    /// Whether the API server answers, asked right now. It is no read: it waits for no other, takes nobody's turn, and is in no
    /// count of outcomes.
    pub async fn reaches_api_server(&self, name_of_none: &str) -> Result<(), GetError> {
        self.shared.api.get(name_of_none).await.map(drop).map_err(|error| self.shared.unavailable(&error))
    }

    /// Whether the instant `at`, in milliseconds since 1970, is past by the API server's clock, as far as that can be told from its
    /// last answer: the clock of this machine may be ahead.
    pub fn may_be_past(&self, at: u64) -> bool {
        self.shared.api.clock().may_be_past(now(), Duration::from_millis(at))
    }

    /// When the last lease ends; `None` if none is in force.
    pub fn leased_until(&self) -> Option<Time> {
        self.shared.store.leased_until()
    }

    /// How long leases are, as the controller told last; zero before it did.
    pub fn lease_length(&self) -> Duration {
        self.shared.store.lease_length()
    }

    /// A client is given this session, other than by [`Self::hit`] and [`Self::get`].
    pub fn given(&self, session: &Session) {
        self.shared.store.given(session);
    }

    /// A client is shown these fields of the session, and no others.
    pub fn shown(&self, session: &Session, fields: &[impl AsRef<str>]) {
        self.shared.store.shown(session, fields);
    }

    /// What clients were last given of the session, or wrote: what to take a difference from when one of them overwrites all
    /// of it. Not to be served: it may be out of date. Needs [`remember_given`](super::CacheConfig::remember_given) to be
    /// more than the copy that is held.
    pub fn base(&self, name: &str) -> Option<Session> {
        let store = &self.shared.store;
        store.look(name, |shard| Some(Session::new(shard.base(name, now())?, Origin::Cache)))
    }

    /// Whether nobody knows what became of a change of this session that [outdates equal copies](super::Change::outdates_equal), or
    /// whether all others were told: what the session has may then be no news to this cache, and is to others. So whoever makes
    /// such a change again must not take it for none.
    #[inline]
    pub fn is_unsettled(&self, session: &Session) -> bool {
        self.shared.unsettled.has(session)
    }

    /// This state was just read ([`Self::fresh`]), by somebody who may go by it instead of changing it again. If a change of which
    /// nobody knows may have made it, all others are told first.
    pub async fn settle(&self, session: &Session, options: WriteOptions) -> Result<(), WriteError> {
        self.shared.settle(session, options.visibility).await
    }

    /// Changes the session that `base` is: its metadata by the difference, its idle timeout and annotations, all in one
    /// write. Returns the session as it is then.
    ///
    /// A change without metadata is answered when it is committed, whatever `options` ask for, unless it
    /// [outdates equal copies](Change::outdates_equal): timeouts and annotations are not compared, so no pod drops a
    /// copy for them.
    pub async fn patch(&self, base: &Session, change: Change, options: WriteOptions) -> Result<Session, WriteError> {
        self.shared.patch(base, change, options.visibility).await
    }

    /// Deletes the session only if its object has not changed at all since `session` was read (its resourceVersion), and
    /// fails with [`WriteError::Changed`] else.
    pub async fn delete_unchanged(&self, session: &Session, options: WriteOptions) -> Result<(), WriteError> {
        let at = Some(session.resource_version());
        self.shared.delete(session.name(), session.uid(), at, at, options.visibility).await
    }

    /// Begins the session's idle timeout anew, in memory: the controller is told with the next batch. `wall` is the instant in
    /// milliseconds since 1970, for whoever asks. Never waits.
    pub fn renew(&self, session: &Session, wall: u64) {
        let store = &self.shared.store;
        let renewal = Renewal { at: now(), wall };
        if !store.look(session.name(), |shard| shard.renew(session.name(), session.copy(), renewal)) {
            store.events.departed(session.name().into(), session.uid(), renewal.at);
        }
    }

    /// While what is returned lives, the end of a copy because its session is gone counts as the user's own doing
    /// ([`Eviction::own`](super::Eviction::own)): it is told of by the replicas sometimes before the deletion is answered.
    pub fn deleting(&self, session: &Session) -> Deleting<'_> {
        let name = session.copy().name.clone();
        self.shared.store.events.deleting(name.clone());
        Deleting { store: &self.shared.store, name }
    }

    /// Changes the values that are true only in this pod, beside the copy that `session` is: by what leads from `base` to
    /// `new`. If it is to be `exact`, they must be just what `base` says.
    pub fn change_local(&self, session: &Session, base: &LocalValues, new: &LocalValues, exact: bool) -> LocalChange {
        let name = session.name();
        self.shared.store.change(name, |state, tell, _| {
            (state.shard.change_local(name, session.copy(), (base, new), exact, tell), None)
        })
    }
}

impl Store {
    /// A client is given this session.
    pub(super) fn given(&self, session: &Session) {
        self.change(session.name(), |state, _, now| {
            state.shard.given(session.name(), session.copy(), now);
            ((), None)
        });
    }

    /// A client is shown these fields of the session, and no others.
    pub(super) fn shown(&self, session: &Session, fields: &[impl AsRef<str>]) {
        let fields: Vec<&str> = fields.iter().map(AsRef::as_ref).collect();
        if self.look(session.name(), |shard| shard.has_shown(session.name(), session.copy(), &fields)) {
            return;
        }
        self.change(session.name(), |state, _, now| {
            state.shard.shown(session.name(), session.copy(), &fields, now);
            ((), None)
        });
    }

    /// The session that `of` is, is gone: nothing is to be written to it any more.
    pub(super) fn forget_base(&self, of: &Session) {
        self.change(of.name(), |state, _, _| {
            state.shard.forget_base(of.name(), of.copy());
            ((), None)
        });
    }
}

#[cfg(test)]
impl Cache {
    /// As if no stream had ever been open, and the cache had begun with the machine.
    pub(crate) fn unheard_for_tests(&self) {
        self.shared.streams.unheard_for_tests();
    }

    /// A lease that covers everything, as a replica would grant it.
    pub(crate) fn lease_for_tests(&self, length: Duration) {
        use crate::core::lease::{Grant, StreamId};
        let store = &self.shared.store;
        store.set_lease_length(length);
        let grant = Grant { sent: now(), age: Duration::ZERO, covers: u64::MAX };
        store.grant(StreamId(0), length, grant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_has_no_values() {
        let local = LocalValues::from([("connection".into(), "canary".into())]);
        let shown = format!("{:?}", Beside { local: Some(Arc::new(local)), renewal: None });
        assert!(shown.contains("connection") && !shown.contains("canary"), "{shown}");
    }
}
