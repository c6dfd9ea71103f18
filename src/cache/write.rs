//! Creates, updates and deletes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::api_server::CallError;
use super::difference::difference;
use super::error::{Cause, WriteError};
use super::events::{Counters, count};
use super::options::{Change, CreateOptions, IdleTimeout, Known, Visibility};
use super::session::{Origin, Session};
use super::shared::Shared;
use super::store::now;
use crate::api::VmcpSessionSpec;
use crate::core::cache::{FlightId, Observed, Shard};
use crate::core::digest::{Digest, Metadata};
use crate::core::fields::Fields;
use crate::core::names::is_object_name;
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::{Barrier, Fate, Mark};
use crate::runtime::api_error::ApiErrorKind;

/// How often a write is sent, at most, when the API server answers that it lost a race or failed before it began.
const ATTEMPTS: u32 = 8;
/// Pause before the second attempt; it doubles.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Bounds of all writes together.
pub(super) struct Writes {
    permits: Semaphore,
    waiting: AtomicUsize,
    most: usize,
    patience: Duration,
}

impl Writes {
    pub fn new(config: &super::CacheConfig) -> Self {
        Self {
            permits: Semaphore::new(config.concurrent_writes),
            waiting: AtomicUsize::new(0),
            most: config.waiting_writes,
            patience: config.call_deadline,
        }
    }
}

/// Counts a write while it waits or is in flight.
struct Waiting(Arc<Shared>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.writes.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A write in flight that may bring a copy. However it ends, the copy that waits for its outcome is decided on.
struct Flight<'a> {
    shared: &'a Shared,
    name: &'a str,
    id: Option<FlightId>,
}

impl<'a> Flight<'a> {
    fn sent(shared: &'a Shared, name: &'a str) -> Self {
        let id = shared.store.change(name, |state, _, now| (state.shard.write_sent(name, now), None));
        Self { shared, name, id: Some(id) }
    }

    /// The write was answered with the object.
    fn answered(mut self, observed: Observed, wrote: Wrote) -> Result<Session, WriteError> {
        let Self { shared, name, .. } = self;
        let Some(id) = self.id.take() else {
            return Err(WriteError::NotFound);
        };
        let state_of = |shard: &Shard| (shard.peek(name).map(|c| (c.uid, c.digest)), shard.is_suspended(name));
        let mut disturbed = false;
        let written = shared.store.change(name, |state, tell, now| {
            let before = state_of(&state.shard);
            let written = state.shard.write_answered(name, id, observed, wrote.digest, now, tell);
            disturbed = before.0.is_some() && before != state_of(&state.shard);
            if let (Some(copy), Some(metadata)) = (&written.session, wrote.metadata)
                && !written.overwritten
            {
                let fields: Vec<&str> = wrote.fields.iter().map(String::as_str).collect();
                let copy = Arc::new(copy.with(metadata, wrote.digest));
                state.shard.wrote(name, &copy, &fields, wrote.knows_all);
            }
            (written.session, written.dropped)
        });
        if disturbed {
            shared.store.events.disturbed(name);
        }
        let copy = written.ok_or(WriteError::NotFound)?;
        Ok(Session::new(copy, Origin::Written))
    }
}

/// What a write meant the metadata to be.
struct Wrote {
    digest: Digest,
    /// The map, if the client gave one.
    metadata: Option<Fields>,
    /// The fields of it that the client certainly knows.
    fields: Vec<String>,
    /// Whether it knows the others, too.
    knows_all: bool,
}

impl Wrote {
    fn map(metadata: &Metadata) -> Self {
        let (digest, metadata) = (Digest::of(metadata), Some(Fields::of(metadata)));
        Self { digest, metadata, fields: Vec::new(), knows_all: true }
    }

    /// What `base` becomes with this map, or stays without one. Of the map, the client knows the fields that are `sent`, and what
    /// it is `known` to know.
    fn of(base: &Session, metadata: Option<&Metadata>, sent: Vec<String>, known: Known) -> Self {
        let Some(metadata) = metadata else {
            return Self { digest: base.digest(), metadata: None, fields: Vec::new(), knows_all: false };
        };
        let (knows_all, mut fields) = match known {
            Known::All => (true, Vec::new()),
            Known::Only(fields) => (false, fields),
        };
        fields.extend(sent);
        Self { fields, knows_all, ..Self::map(metadata) }
    }
}

impl Flight<'_> {
    /// Nobody knows whether the write was done: the copy does not say any more what the session is, not even if it was one of
    /// the timeout only. Nor does what clients last had, if it was one `of_metadata`.
    fn unknown(mut self, of_metadata: bool) {
        if let Some(id) = self.id.take() {
            self.shared
                .store
                .change(self.name, |state, tell, _| ((), state.shard.write_unknown(self.name, id, of_metadata, tell)));
        }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.shared.store.change(self.name, |state, tell, _| ((), state.shard.write_failed(self.name, id, tell)));
        }
    }
}

impl Shared {
    pub async fn create(
        self: &Arc<Self>,
        name: &str,
        metadata: Metadata,
        options: CreateOptions,
    ) -> Result<Session, WriteError> {
        if !is_object_name(name) {
            return Err(invalid("refused as invalid: metadata.name must be a DNS subdomain"));
        }
        let wrote = Wrote::map(&metadata);
        let annotations = options.annotations;
        let spec = VmcpSessionSpec {
            metadata,
            server: options.server.or_else(|| self.config.server.clone()),
            idle_timeout_seconds: seconds(options.idle_timeout, "idle timeout")?,
            max_lifetime_seconds: seconds(options.max_lifetime, "maximum lifetime")?,
        };
        let name: Arc<str> = name.into();
        let written = self.run(async move |shared| {
            let flight = Flight::sent(&shared, &name);
            let observed =
                shared.attempts(false, || shared.api.create(&name, spec.clone(), annotations.clone())).await?;
            flight.answered(observed, wrote)
        });
        let (session, answered) = written.await?;
        self.visible(session, answered, options.visibility, false).await
    }

    pub async fn update(
        self: &Arc<Self>,
        base: &Session,
        metadata: Metadata,
        visibility: Visibility,
    ) -> Result<Session, WriteError> {
        self.patch(base, Change { metadata: Some(metadata), ..Change::default() }, visibility).await
    }

    pub async fn patch(
        self: &Arc<Self>,
        base: &Session,
        change: Change,
        visibility: Visibility,
    ) -> Result<Session, WriteError> {
        let Change { metadata, known, idle_timeout, annotations, only_if_unchanged, outdates_equal, repeats, renews } =
            change;
        let mut spec = Map::new();
        match idle_timeout {
            IdleTimeout::Keep => {}
            IdleTimeout::Clear => _ = spec.insert("idleTimeoutSeconds".into(), Value::Null),
            IdleTimeout::Set(timeout) => {
                let seconds = seconds(Some(timeout), "idle timeout")?;
                spec.insert("idleTimeoutSeconds".into(), seconds.into());
            }
        }
        let difference = metadata.as_ref().and_then(|metadata| difference(base.metadata(), metadata));
        // What is not compared is in no copy that anybody must drop first. But who writes a map relies on all of it, also on
        // what an earlier attempt has written.
        let visibility = if metadata.is_some() || outdates_equal { visibility } else { Visibility::Committed };
        let sent = difference.iter().flat_map(|difference| difference.keys().cloned()).collect();
        if let Some(difference) = difference {
            spec.insert("metadata".into(), difference.into());
        }
        if spec.is_empty() && annotations.is_empty() {
            let session = self.unchanged(base, only_if_unchanged, visibility).await?;
            // There is no answer to a write that would tell what clients have.
            match known {
                Known::All if metadata.is_some() => self.store.given(base),
                Known::Only(fields) if !fields.is_empty() => self.store.shown(&session, &fields),
                _ => {}
            }
            return Ok(session);
        }
        let wrote = Wrote::of(base, metadata.as_ref(), sent, known);
        // Never a write to a successor of that name: the API server compares the uid.
        let mut patch = json!({"metadata": {"uid": base.uid().to_string()}});
        if only_if_unchanged {
            patch["metadata"]["resourceVersion"] = base.resource_version().to_string().into();
        }
        if !annotations.is_empty() {
            patch["metadata"]["annotations"] = annotations.into_iter().collect();
        }
        if !spec.is_empty() {
            patch["spec"] = spec.into();
        }
        let tells = outdates_equal && visibility == Visibility::Everywhere;
        let meant = base.clone();
        let written = self.run(async move |shared| {
            let base = meant;
            let begun = tells.then(|| shared.unsettled.begin(&base, repeats));
            let flight = Flight::sent(&shared, base.name());
            let observed = shared.attempts(only_if_unchanged, || shared.api.patch(base.name(), &patch)).await;
            match observed {
                Ok(observed) => Ok((flight.answered(observed, wrote)?, begun)),
                Err(error) => {
                    shared.learn(&base, &error);
                    let is_unknown = matches!(error, WriteError::OutcomeUnknown { .. });
                    if is_unknown && !renews {
                        flight.unknown(wrote.metadata.is_some());
                    }
                    if !is_unknown && let Some(begun) = begun {
                        begun.refused();
                    }
                    Err(error)
                }
            }
        });
        let ((session, begun), answered) = written.await?;
        let session = self.visible(session, answered, visibility, outdates_equal).await?;
        if let Some(begun) = begun {
            begun.settled();
        }
        Ok(session)
    }

    /// An update that changes nothing sends nothing.
    async fn unchanged(
        self: &Arc<Self>,
        base: &Session,
        only_if_unchanged: bool,
        visibility: Visibility,
    ) -> Result<Session, WriteError> {
        // Nobody is shown what it is now. What must be just that is asked for: a copy may be behind.
        let session =
            if only_if_unchanged { self.fresh(base.name()).await? } else { self.restore(base.name()).await? };
        if session.uid() != base.uid() {
            return Err(WriteError::Replaced);
        }
        if only_if_unchanged && session.digest() != base.digest() {
            return Err(WriteError::Changed);
        }
        self.visible(session, Instant::now(), visibility, false).await
    }

    /// What the refusal of a write tells about the copy that it was made from.
    fn learn(&self, base: &Session, error: &WriteError) {
        if matches!(error, WriteError::NotFound | WriteError::Replaced) {
            self.store.evict(base.name(), gone(base.uid(), base.resource_version()));
            self.store.forget_base(base);
        }
    }

    /// Counts a write that was done, or has ended in this error, and says in the log what people must see to.
    fn note(&self, ended: Option<&WriteError>) {
        use WriteError::{
            AlreadyExists, Changed, Invalid, NotFound, OutcomeUnknown, Overloaded, Replaced, Unavailable,
        };
        let Counters { written, declined, write_errors, .. } = &self.counters;
        match ended {
            None => count(written),
            Some(NotFound | Replaced | AlreadyExists | Changed) => count(declined),
            Some(Invalid { .. } | Overloaded | Unavailable { .. } | OutcomeUnknown { .. }) => count(write_errors),
        }
        match ended {
            Some(error @ (Invalid { .. } | Unavailable { .. } | OutcomeUnknown { .. })) => {
                self.trouble.writes.failed(&error.to_string(), now());
            }
            Some(Overloaded) => {}
            _ => _ = self.trouble.writes.worked(),
        }
    }

    /// Runs a write in a task of its own: a request that is given up must not leave a write without its answer. Returns
    /// when the answer came.
    pub(super) async fn run<T: Send + 'static, E: From<WriteError> + AsRef<WriteError> + Send + 'static, W>(
        self: &Arc<Self>,
        write: impl FnOnce(Arc<Self>) -> W + Send + 'static,
    ) -> Result<(T, Instant), E>
    where
        W: Future<Output = Result<T, E>> + Send + 'static,
    {
        let enter = |n: usize| (n < self.writes.most).then_some(n + 1);
        let entered = self.writes.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter);
        if entered.is_err() {
            return Err(WriteError::Overloaded.into());
        }
        let waiting = Waiting(self.clone());
        let task = self.runtime.spawn(async move {
            let shared = waiting.0.clone();
            let turn = timeout(shared.writes.patience, shared.writes.permits.acquire()).await;
            let Ok(Ok(_permit)) = turn else {
                let reason = "waited too long for other requests to the API server".into();
                return Err(WriteError::Unavailable { cause: Cause::Busy, reason }.into());
            };
            let written = write(shared.clone()).await;
            shared.note(written.as_ref().err().map(AsRef::as_ref));
            Ok((written?, Instant::now()))
        });
        let unknown = |_| WriteError::OutcomeUnknown { reason: "the cache has ended".into() };
        task.await.map_err(|ended| E::from(unknown(ended)))?
    }

    /// Sends a write until it is done or refused. If it names the state that it changes, a conflict is an answer.
    async fn attempts<T, C: Future<Output = Result<T, CallError>>>(
        &self,
        only_if_unchanged: bool,
        mut send: impl FnMut() -> C,
    ) -> Result<T, WriteError> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            match send().await {
                Ok(answer) => return Ok(answer),
                Err(error) if only_if_unchanged && error.kind() == Some(ApiErrorKind::Conflict) => {
                    return Err(WriteError::Changed);
                }
                Err(error) if attempt < ATTEMPTS && error.kind() == Some(ApiErrorKind::Conflict) => {}
                Err(error) => return Err(self.refused(&error)),
            }
            attempt += 1;
            sleep(pause).await;
            pause *= 2;
        }
    }

    /// What a call that brought no answer means for whoever wanted to write.
    pub(super) fn refused(&self, error: &CallError) -> WriteError {
        let reason: Arc<str> = error.to_string().into();
        if error.outcome_unknown() {
            return WriteError::OutcomeUnknown { reason };
        }
        match error.kind() {
            None if *error == CallError::NotFound => WriteError::NotFound,
            Some(ApiErrorKind::NotFound) => WriteError::NotFound,
            Some(ApiErrorKind::UidMismatch) => WriteError::Replaced,
            Some(ApiErrorKind::AlreadyExists) => WriteError::AlreadyExists,
            Some(ApiErrorKind::Invalid | ApiErrorKind::TooLarge) => WriteError::Invalid { reason },
            _ => WriteError::Unavailable { cause: self.cause(error), reason },
        }
    }

    pub(super) async fn visible(
        &self,
        session: Session,
        answered: Instant,
        visibility: Visibility,
        outdates_equal: bool,
    ) -> Result<Session, WriteError> {
        if visibility == Visibility::Everywhere {
            let barrier = Barrier {
                mark: Mark {
                    uid: session.uid(),
                    fate: Fate::Stale { below: session.generation() },
                    resource_version: session.resource_version(),
                },
                digest: (!outdates_equal).then(|| session.digest()),
            };
            self.confirmer.confirm(session.name(), &barrier, answered).await;
        }
        Ok(session)
    }
}

pub(super) fn gone(uid: Uid, resource_version: ResourceVersion) -> Barrier {
    Barrier { mark: Mark { uid, fate: Fate::Gone, resource_version }, digest: None }
}

fn seconds(timeout: Option<Duration>, what: &str) -> Result<Option<u32>, WriteError> {
    let Some(timeout) = timeout else { return Ok(None) };
    match u32::try_from(timeout.as_secs()) {
        Ok(seconds) if timeout.subsec_nanos() == 0 => Ok(Some(seconds)),
        _ => Err(invalid(&format!("refused as invalid: the {what} must be whole seconds"))),
    }
}

fn invalid(reason: &str) -> WriteError {
    WriteError::Invalid { reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_whole_seconds() {
        assert_eq!(seconds(Some(Duration::from_secs(5)), "idle timeout"), Ok(Some(5)));
        assert!(seconds(Some(Duration::from_millis(1_500)), "idle timeout").is_err());
    }
}
