//! Writes.

use std::collections::BTreeMap;
use std::time::Duration;

use super::entry::{ANNOTATION_FORM, Entry, Form};
use super::failure::Failure;
use super::key::{ANNOTATION_SESSION_ID, KeyError, Name};
use super::plan::{Plan, begins};
use super::ttl::{ANNOTATION_EXPIRES_AT, TooLong, Ttl};
use super::value::check_limits;
use super::{Inner, Sessions, now_millis};
use crate::api::ANNOTATION_RENEWED_AT;
use crate::cache::{
    Change, CreateOptions, Known, LocalChange, LocalValues, Metadata, Session, WriteError, WriteOptions,
};

/// How often a write is tried, when others write at the same time.
const ATTEMPTS: u32 = 8;
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(5);

/// On what condition [`Sessions::set`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// In any case.
    Always,
    /// Only if there is no such session (`NX`).
    Absent,
    /// Only if there is such a session (`XX`).
    Present,
}

/// Whether a write is a compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exact {
    /// Only the difference counts: what others change meanwhile in other fields stays (I7).
    No,
    /// Only if the session's metadata is still what the base was, else [`Failure::Conflict`] and nothing is written.
    Yes,
    /// Only if nothing of the session is another than in the base, not its timeout either.
    Whole,
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        Self::invalid(error.to_string())
    }
}

impl From<TooLong> for Failure {
    fn from(error: TooLong) -> Self {
        Self::invalid(error.to_string())
    }
}

impl Sessions {
    /// `SET` in full: creates the session, or writes the difference from what clients of this pod last saw of it, also if that
    /// is outdated by now, so that two pods that change different fields both win (I7). Do not [`get`](Self::get) the
    /// session first: what was got counts as seen. `None`: the condition is not met.
    pub async fn set(
        &self,
        key: &[u8],
        map: Metadata,
        form: Form,
        ttl: Ttl,
        condition: Condition,
    ) -> Result<Option<Entry>, Failure> {
        let name = self.inner.keys.name(key)?;
        check_limits(&map)?;
        if condition == Condition::Absent {
            return self.create(key, map, form, ttl).await;
        }
        // What no client here knows may well be new. To create it is the question whether it is, and no look-up of an unknown name,
        // of which there may be a few only.
        if condition == Condition::Always
            && self.inner.cache.base(name.as_str()).is_none()
            && let Some(created) = self.create(key, map.clone(), form, ttl).await?
        {
            return Ok(Some(created));
        }
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS {
            let Some(base) = self.inner.base(name.as_str()).await? else {
                if condition == Condition::Present {
                    return Ok(None);
                }
                if let Some(created) = self.create(key, map.clone(), form, ttl).await? {
                    return Ok(Some(created));
                }
                // Somebody was faster.
                continue;
            };
            self.inner.used(key, &name);
            // What others have written beside it, no client has seen.
            let known = Some(Known::Only(Vec::new()));
            if let Some(written) = self.inner.write(&base, map.clone(), Some(form), ttl, Exact::No, known).await? {
                return Ok(Some(written));
            }
            // What was last seen is gone. There may be another session by now.
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Failure::try_again("the session is made and deleted faster than it can be written"))
    }

    /// Creates the session; `None`: it exists.
    pub async fn create(&self, key: &[u8], map: Metadata, form: Form, ttl: Ttl) -> Result<Option<Entry>, Failure> {
        let name = self.inner.keys.name(key)?;
        check_limits(&map)?;
        let mut pause = PAUSE;
        for _ in 0..ATTEMPTS {
            if let Some(created) = self.inner.create(key, &name, map.clone(), form, ttl).await? {
                return Ok(Some(created));
            }
            // Unless it has ended, or is just being deleted.
            if self.find(key).await?.is_some() {
                return Ok(None);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(Failure::try_again("a session of that name is being deleted"))
    }

    /// Writes the difference between `base` and `map`; `None`: the session is gone. For commands that change what they read:
    /// hash commands, `EXEC`, `SET` with `GET`. What clients last saw then has what is `known`, and no more of what was read.
    pub async fn replace(
        &self,
        base: &Entry,
        map: Metadata,
        form: Option<Form>,
        ttl: Ttl,
        exact: Exact,
        known: Known,
    ) -> Result<Option<Entry>, Failure> {
        check_limits(&map)?;
        self.inner.write(base, map, form, ttl, exact, Some(known)).await
    }

    /// The same for a command that names only fields that are true only in this pod: it waits for no other one.
    pub async fn replace_local(&self, base: &Entry, map: Metadata, exact: Exact) -> Result<Option<Entry>, Failure> {
        check_limits(&map)?;
        self.inner.write(base, map, None, Ttl::Keep, exact, None).await
    }

    /// Deletes the session that `base` is, in whatever state. False: it was gone already.
    pub async fn delete(&self, base: &Entry) -> Result<bool, Failure> {
        let Inner { cache, timers, .. } = &*self.inner;
        let _own = cache.deleting(base.session());
        let deleted = cache.delete(base.session(), self.inner.options()).await;
        timers.set(base.session().name(), None);
        existed(deleted)
    }

    /// Deletes the session only if it is still what `base` was, else [`Failure::Conflict`] (`HDEL` of the last field, `GETDEL`,
    /// `EXEC`, `EXPIRE` on a condition).
    pub async fn delete_exact(&self, base: &Entry, exact: Exact) -> Result<bool, Failure> {
        let mut session = base.session().clone();
        let _own = self.inner.cache.deleting(&session);
        for _ in 0..ATTEMPTS {
            match self.inner.cache.delete_unchanged(&session, self.inner.options()).await {
                Err(WriteError::Changed) if exact == Exact::Whole => return Err(Failure::Conflict),
                Err(WriteError::Changed) => {}
                deleted => {
                    self.inner.timers.set(session.name(), None);
                    return existed(deleted);
                }
            }
            let Some(again) = self.inner.unless_changed(&session).await? else {
                return Ok(false);
            };
            session = again;
        }
        Err(Failure::Conflict)
    }

    /// There is no such session, and somebody wants it deleted: waits for what an earlier deletion through this agent has done,
    /// if its answer was lost.
    pub async fn confirm_gone(&self, key: &[u8]) {
        if let Ok(name) = self.inner.keys.name(key) {
            self.inner.cache.confirm_gone(name.as_str(), self.inner.options()).await;
        }
    }
}

/// Whether what was to be deleted was there.
fn existed(deleted: Result<(), WriteError>) -> Result<bool, Failure> {
    match deleted {
        Ok(()) => Ok(true),
        Err(WriteError::NotFound | WriteError::Replaced) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl Inner {
    pub(super) fn options(&self) -> WriteOptions {
        WriteOptions { visibility: self.visibility }
    }

    /// What to take the difference from when a session is overwritten: what clients last saw of it.
    async fn base(&self, name: &str) -> Result<Option<Entry>, Failure> {
        let Some(session) = self.cache.base(name) else {
            return self.alive(name).await;
        };
        let beside = self.cache.beside(&session);
        let base = Entry::new(session, beside);
        let passed = base.ends().is_some_and(|deadline| deadline.has_passed(now_millis()));
        // One that has ended is not to be written to, but to be made anew.
        if passed && self.fresh(name).await?.is_none() { Ok(None) } else { Ok(Some(base)) }
    }

    /// One create; `None`: the name is taken.
    async fn create(
        &self,
        key: &[u8],
        name: &Name<'_>,
        map: Metadata,
        form: Form,
        ttl: Ttl,
    ) -> Result<Option<Entry>, Failure> {
        let now = now_millis();
        let timeout = begins(ttl.at(now)?, now);
        let (shared, local) = self.local.split(map);
        let mut annotations = BTreeMap::from([(ANNOTATION_FORM.to_owned(), form.as_str().to_owned())]);
        let ends_at = timeout.and_then(|timeout| timeout.expires_at);
        let more = [
            (ANNOTATION_EXPIRES_AT, ends_at.map(|at| at.to_string())),
            // So that all agents say the same: when it was created is known in whole seconds, and by another clock.
            (ANNOTATION_RENEWED_AT, timeout.filter(|timeout| timeout.expires_at.is_none()).map(|_| now.to_string())),
            (ANNOTATION_SESSION_ID, self.keys.annotation(key)),
        ];
        annotations.extend(more.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        let options = CreateOptions {
            idle_timeout: timeout.map(|timeout| Duration::from_secs(timeout.idle_seconds.into())),
            annotations,
            visibility: self.visibility,
            ..CreateOptions::default()
        };
        match self.cache.create(name.as_str(), shared, options).await {
            Ok(session) => {
                self.used(key, name);
                let plan = Plan { sets_timeout: true, begins: timeout.is_some(), ends_at, ..Plan::default() };
                if !local.is_empty() {
                    self.cache.change_local(&session, &LocalValues::new(), &local, false);
                }
                Ok(Some(self.begun(session, &plan, now).with_local(local)))
            }
            Err(WriteError::AlreadyExists) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// One write of the difference between `base` and `map`; `None`: the session is gone. Without anything `known`, it is one of
    /// fields that are true only in this pod.
    async fn write(
        &self,
        base: &Entry,
        map: Metadata,
        form: Option<Form>,
        ttl: Ttl,
        exact: Exact,
        known: Option<Known>,
    ) -> Result<Option<Entry>, Failure> {
        let now = now_millis();
        let wanted = ttl.at(now)?;
        let unheard = self.is_unheard(base, now);
        let mut plan = Plan::of(base, form, wanted, now).heard_unless(unheard);
        let (mut shared, mut local) = self.local.split(map);
        let mut session = base.session().clone();
        // What the object has under a key of this pod was written by others: it stays there, and is not this pod's because it
        // was seen.
        for (key, value) in session.metadata().iter().filter(|(key, _)| self.local.has(key)) {
            let is_same = local.get(key).is_some_and(|local| local == value);
            if is_same && base.local().is_none_or(|had| !had.contains_key(key)) {
                local.remove(key);
            }
            shared.insert(key.to_owned(), value.to_owned());
        }
        if !self.cache.is_current(&session) {
            // What clients last had may be long gone, and its timeout with it.
            if *session.metadata() == shared {
                let Some(known) = self.alive(session.name()).await? else { return Ok(None) };
                plan = Plan::of(&known, form, wanted, now).heard_unless(unheard);
            }
            plan.outdates |= plan.sets_timeout;
        }
        plan = plan.again_if(self.cache.is_unsettled(&session));
        for _ in 0..ATTEMPTS {
            // Who says nothing of what is shared does not rely on what that is.
            let metadata = known.is_some().then(|| shared.clone());
            let mut change = Change { metadata, ..Change::default() };
            // What is sent anyway says all: the base may not know how the timeout is by now.
            if plan.needed || *session.metadata() != shared {
                change = plan.change(Some(shared.clone()));
            }
            change.only_if_unchanged = exact != Exact::No;
            change.known = known.clone().unwrap_or(Known::Only(Vec::new()));
            match self.cache.patch(&session, change, self.options()).await {
                Ok(session) => {
                    let mut had = base.local().cloned().unwrap_or_default();
                    // With somebody else's change, a copy comes without any: then all that was written is set, not what differs.
                    if form.is_some() && *session.metadata() != shared {
                        had.retain(|key, _| !local.contains_key(key));
                    }
                    // Where more was written than this, it is too late to refuse.
                    let exact = exact != Exact::No && session.digest() == base.session().digest();
                    return self.written(&had, session, local, &plan, exact, now).map(Some);
                }
                Err(WriteError::NotFound | WriteError::Replaced) => return Ok(None),
                Err(WriteError::Changed) if exact == Exact::Whole => return Err(Failure::Conflict),
                Err(WriteError::Changed) => {}
                Err(error) => return Err(error.into()),
            }
            let Some(again) = self.unless_changed(&session).await? else {
                return Ok(None);
            };
            session = again;
        }
        Err(Failure::Conflict)
    }

    /// The session as it is now, if its metadata is what it was; `None`: it is gone. Objects change in other ways too, for
    /// instance when the controller writes their status.
    async fn unless_changed(&self, session: &Session) -> Result<Option<Session>, Failure> {
        match self.fresh(session.name()).await? {
            Some(again) if again.session().uid() != session.uid() => Ok(None),
            Some(again) if again.session().digest() != session.digest() => Err(Failure::Conflict),
            again => Ok(again.map(|again| again.session().clone())),
        }
    }

    /// A session was written: what is true only in this pod changes beside it, and its timeout begins.
    fn written(
        &self,
        had: &LocalValues,
        session: Session,
        local: LocalValues,
        plan: &Plan,
        exact: bool,
        now: u64,
    ) -> Result<Entry, Failure> {
        if self.local.is_empty() {
            return Ok(self.begun(session, plan, now));
        }
        match self.cache.change_local(&session, had, &local, exact) {
            LocalChange::Done => Ok(self.begun(session, plan, now)),
            LocalChange::Changed => Err(Failure::Conflict),
            // Should the copy be gone already, they go with it. Whoever wrote nothing else is told so.
            LocalChange::NotHeld if exact && *had != local => Err(Failure::Conflict),
            LocalChange::NotHeld => Ok(self.begun(session, plan, now).with_local(local)),
        }
    }

    pub(super) fn begun(&self, session: Session, plan: &Plan, now: u64) -> Entry {
        if plan.sets_timeout {
            self.timers.set(session.name(), plan.ends_at);
        }
        if plan.begins {
            self.cache.renew(&session, now);
        }
        let beside = self.cache.beside(&session);
        let entry = Entry::new(session, beside);
        if plan.begins { entry.renewed(now) } else { entry }
    }
}
