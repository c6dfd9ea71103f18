//! Reads.

use tracing::debug;

use super::entry::Entry;
use super::failure::Failure;
use super::key::Name;
use super::{Inner, Sessions, now_millis};
use crate::cache::{Beside, Cache, GetError, Origin, Session, WriteError, WriteOptions};

/// How often a session that has ended is looked at again, because it was changed before it could be deleted.
const ATTEMPTS: u32 = 8;
/// Copies of which an average is taken.
const SAMPLE: usize = 1_000;

impl Sessions {
    /// The session, if it may be served without asking anyone. Never waits: the fast path of reads.
    #[inline]
    pub fn hit(&self, key: &[u8]) -> Option<Entry> {
        self.hit_by(key, Cache::hit_beside)
    }

    /// [`Self::hit`], if clients have just this state already: then a part of it shows them nothing new.
    pub fn hit_given(&self, key: &[u8]) -> Option<Entry> {
        self.hit_by(key, Cache::hit_given)
    }

    #[inline]
    fn hit_by(&self, key: &[u8], hit: impl FnOnce(&Cache, &str) -> Option<(Session, Beside)>) -> Option<Entry> {
        let name = self.inner.keys.name(key).ok()?;
        let (session, beside) = hit(&self.inner.cache, name.as_str())?;
        self.inner.used(key, &name);
        let entry = Entry::new(session, beside);
        let passed = entry.ends().is_some_and(|deadline| deadline.has_passed(now_millis()));
        // Somebody may have renewed it elsewhere, or given it another timeout: the API server knows.
        (!passed).then_some(entry)
    }

    /// The session as a client reads it.
    pub async fn get(&self, key: &[u8]) -> Result<Option<Entry>, Failure> {
        if let Some(entry) = self.hit(key) {
            return Ok(Some(entry));
        }
        let entry = self.find(key).await?;
        if let Some(entry) = &entry {
            self.given(entry);
        }
        Ok(entry)
    }

    /// A client is shown what this entry has, which was not read by [`Self::get`].
    pub fn given(&self, entry: &Entry) {
        self.inner.cache.given(entry.session());
    }

    /// A client is shown these fields of this entry, and no others.
    pub fn shown(&self, entry: &Entry, fields: &[impl AsRef<str>]) {
        self.inner.cache.shown(entry.session(), fields);
    }

    /// The session for a command that shows nothing of its fields to the client (`EXISTS`, `DEL`, `TOUCH`, `EXPIRE`). What
    /// clients last saw stays what the next [`set`](Self::set) takes its difference from.
    pub async fn find(&self, key: &[u8]) -> Result<Option<Entry>, Failure> {
        let Ok(name) = self.inner.keys.name(key) else {
            return Ok(None);
        };
        let entry = self.inner.alive(name.as_str()).await?;
        if entry.is_some() {
            self.inner.used(key, &name);
        }
        Ok(entry)
    }

    /// The session with its timeout and form as the API server has them now. A copy in the cache knows those only as of its
    /// last GET, since no change of them evicts it; so `TTL`, `PTTL`, `EXPIRETIME`, `TYPE` and the conditions of `EXPIRE`
    /// ask here. It does not count as seen by a client (see [`Self::set`]). What they may have had from a change of the timeout
    /// whose answer was lost, other agents are told of first.
    pub async fn fresh(&self, key: &[u8]) -> Result<Option<Entry>, Failure> {
        let Ok(name) = self.inner.keys.name(key) else {
            return Ok(None);
        };
        let entry = self.inner.fresh(name.as_str()).await?;
        if let Some(entry) = &entry {
            self.inner.used(key, &name);
            self.inner.cache.settle(entry.session(), self.inner.options()).await?;
        }
        Ok(entry)
    }

    /// The copy that this agent holds of the session, for figures about it: no client is shown a field, and it counts as no
    /// use.
    pub fn held(&self, key: &[u8]) -> Option<Entry> {
        let Inner { cache, keys, .. } = &*self.inner;
        let session = cache.peek(keys.name(key).ok()?.as_str())?;
        let beside = cache.beside(&session);
        Some(Entry::new(session, beside))
    }

    /// How many copies this agent holds, and how many of them have a timeout: for `DBSIZE` and `INFO`.
    pub fn counts(&self) -> (usize, usize) {
        self.inner.cache.counts()
    }

    /// For how many milliseconds sessions that have a timeout still live, on average: of some, if there are many, since no other client
    /// is served meanwhile.
    pub fn average_ttl(&self) -> u128 {
        let (cache, now) = (&self.inner.cache, now_millis());
        let left = cache.sample(SAMPLE).into_iter().filter_map(|session| {
            let beside = cache.beside(&session);
            Entry::new(session, beside).remaining(now)
        });
        let (timed, total) = left.fold((0, 0), |(timed, total), left| (timed + 1, total + left.as_millis()));
        total.checked_div(timed).unwrap_or(0)
    }

    /// The keys of all copies that this agent holds, for `SCAN`. It may not list sessions at the API server, so
    /// what no client of this pod has asked for is not among them.
    pub fn known(&self) -> Vec<Vec<u8>> {
        let Inner { cache, keys, ids, .. } = &*self.inner;
        let now = now_millis();
        let held = cache.held().into_iter().filter_map(|(session, _)| {
            let entry = Entry::new(session.clone(), cache.beside(&session));
            if entry.ends().is_some_and(|end| end.is_over(now) && cache.may_be_past(end.at)) {
                return None;
            }
            let annotation = session.facts().annotations.get(super::key::ANNOTATION_SESSION_ID);
            keys.key(session.name(), annotation).or_else(|| ids.key(session.name()))
        });
        held.collect()
    }
}

impl Inner {
    /// The session `name`, from the cache or read anew; not counted as given to a client.
    pub(super) async fn alive(&self, name: &str) -> Result<Option<Entry>, Failure> {
        self.living(name, false).await
    }

    /// The session `name`, read anew.
    pub(super) async fn fresh(&self, name: &str) -> Result<Option<Entry>, Failure> {
        self.living(name, true).await
    }

    async fn living(&self, name: &str, mut anew: bool) -> Result<Option<Entry>, Failure> {
        for _ in 0..ATTEMPTS {
            let found = if anew { self.cache.fresh(name).await } else { self.cache.find(name).await };
            let session = match found {
                Ok(session) => session,
                Err(GetError::NotFound) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let entry = Entry::new(session.clone(), self.cache.beside(&session));
            let now = now_millis();
            let Some(deadline) = entry.ends().filter(|deadline| deadline.has_passed(now)) else {
                return Ok(Some(entry));
            };
            if session.origin() == Origin::Cache {
                anew = true;
                continue;
            }
            if !deadline.is_over(now) || !self.cache.may_be_past(deadline.at) {
                // It may have been renewed elsewhere, or the clock of this machine is ahead of all others: the controller decides, and
                // as long as it has not, the session is there.
                return Ok(Some(entry));
            }
            match self.cache.delete_unchanged(&session, WriteOptions::default()).await {
                Ok(()) | Err(WriteError::NotFound) => return Ok(None),
                // Perhaps it was given more time.
                Err(WriteError::Changed | WriteError::Replaced) => anew = true,
                Err(error) => {
                    // It has ended all the same.
                    debug!(session = %name, %error, "cannot delete a session that has ended");
                    self.timers.again(name, now_millis());
                    return Ok(None);
                }
            }
        }
        Err(Failure::try_again("the session changes faster than it can be read"))
    }

    /// A client used this key, and there is such a session.
    #[inline]
    pub(super) fn used(&self, key: &[u8], name: &Name<'_>) {
        if let Name::Hash(_) = name {
            self.ids.remember(name.as_str(), key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Method;
    use serde_json::json;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::agent::sessions::timers::AT_ONCE;
    use crate::agent::testing::Bench;

    #[tokio::test]
    async fn an_end_that_could_not_be_seen_to_is_tried_again() {
        for refused in [Method::GET, Method::DELETE] {
            let bench = Bench::new();
            let (api, now) = (bench.api.clone(), now_millis());
            bench.api.put("k", &json!({}));
            let ended = json!({"vmcp.dev/expires-at": now.to_string()});
            bench.api.merge("k", &json!({"metadata": {"annotations": ended}, "spec": {"idleTimeoutSeconds": 100}}));
            bench.api.before_each(move |method, _| api.is_down(*method == refused));
            let timers = &bench.agent.sessions.inner.timers;
            timers.set("k", Some(now));
            let again = async {
                while timers.next_again().is_none() {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            timeout(Duration::from_secs(10), again).await.expect("another time is noted");
            assert!(bench.api.object("k").is_some());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_does_not_wait_for_others_that_are_tried_again() {
        let bench = Bench::new();
        let timers = &bench.agent.sessions.inner.timers;
        let away = bench.api.close().await;
        // They were not seen to before, and the API server still does not answer.
        (0..2 * AT_ONCE).for_each(|n| timers.again(&n.to_string(), 0));
        let waiting = bench.api.await_waiting(&away, AT_ONCE);
        timeout(Duration::from_mins(1), waiting).await.expect("they are tried again");
        timers.set("new", Some(now_millis()));
        let waiting = bench.api.await_waiting(&away, AT_ONCE + 1);
        timeout(Duration::from_secs(1), waiting).await.expect("the new one is tried at once");
    }
}
