//! Creates, updates and deletes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use super::api_server::CallError;
use super::difference::difference;
use super::error::WriteError;
use super::events::count;
use super::name::is_object_name;
use super::session::{Origin, Session};
use super::shared::Shared;
use crate::api::VmcpSessionSpec;
use crate::core::cache::{FlightId, Observed};
use crate::core::digest::{Digest, Metadata};
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::{Barrier, Fate, Mark};
use crate::runtime::api_error::ApiErrorKind;

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// When it is committed. Other pods drop their copies milliseconds later.
    #[default]
    Committed,
    /// When no pod can serve the older state any more: whoever reads anywhere after the answer reads what was written, or
    /// something newer. Milliseconds, or one lease if a replica or a pod cannot be reached.
    Everywhere,
}

/// How to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// When the write is answered.
    pub visibility: Visibility,
}

impl WriteOptions {
    /// Answered when no pod can serve the older state any more.
    pub const EVERYWHERE: Self = Self { visibility: Visibility::Everywhere };
}

/// What a new session has besides its metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// `spec.server`. Default: that of the cache's settings.
    pub server: Option<String>,
    /// The session is deleted when it has not been used for so long (whole seconds).
    pub idle_timeout: Option<Duration>,
    /// The session is deleted so long after its creation (whole seconds).
    pub max_lifetime: Option<Duration>,
    /// When the write is answered.
    pub visibility: Visibility,
}

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

    /// The write was answered with the object. `wrote` is the map that it was meant to have then.
    fn answered(mut self, observed: Observed, wrote: Digest) -> Result<Session, WriteError> {
        let Self { shared, name, .. } = self;
        let Some(id) = self.id.take() else {
            return Err(WriteError::NotFound);
        };
        let written = shared.store.change(name, |state, tell, now| {
            let written = state.shard.write_answered(name, id, observed, wrote, now, tell);
            (written.session, written.dropped)
        });
        let copy = written.ok_or(WriteError::NotFound)?;
        Ok(Session::new(name.into(), copy, Origin::Written))
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
        let wrote = Digest::of(&metadata);
        let spec = VmcpSessionSpec {
            metadata,
            server: options.server.or_else(|| self.config.server.clone()),
            idle_timeout_seconds: seconds(options.idle_timeout, "idle timeout")?,
            max_lifetime_seconds: seconds(options.max_lifetime, "maximum lifetime")?,
        };
        let name: Arc<str> = name.into();
        let written = self.run(async move |shared| {
            let flight = Flight::sent(&shared, &name);
            let observed = shared.attempts(|| shared.api.create(&name, spec.clone())).await?;
            flight.answered(observed, wrote)
        });
        let (session, answered) = written.await?;
        self.visible(session, answered, options.visibility).await
    }

    pub async fn update(
        self: &Arc<Self>,
        base: &Session,
        metadata: Metadata,
        visibility: Visibility,
    ) -> Result<Session, WriteError> {
        let uid = base.uid();
        let Some(difference) = difference(base.metadata(), &metadata) else {
            return self.unchanged(base, visibility).await;
        };
        let wrote = Digest::of(&metadata);
        // Never a write to a successor of that name: the API server compares the uid.
        let patch = json!({"metadata": {"uid": uid.to_string()}, "spec": {"metadata": difference}});
        let base = base.clone();
        let written = self.run(async move |shared| {
            let flight = Flight::sent(&shared, base.name());
            let observed = shared.attempts(|| shared.api.patch(base.name(), &patch)).await;
            let observed = observed.inspect_err(|error| shared.learn(&base, error))?;
            flight.answered(observed, wrote)
        });
        let (session, answered) = written.await?;
        self.visible(session, answered, visibility).await
    }

    /// An update that changes nothing sends nothing.
    async fn unchanged(self: &Arc<Self>, base: &Session, visibility: Visibility) -> Result<Session, WriteError> {
        let session = match self.store.hit(base.name()) {
            Some(session) => session,
            None => self.restore(base.name()).await?,
        };
        if session.uid() != base.uid() {
            return Err(WriteError::Replaced);
        }
        self.visible(session, Instant::now(), visibility).await
    }

    /// What the refusal of a write tells about the copy that it was made from.
    fn learn(&self, base: &Session, error: &WriteError) {
        if matches!(error, WriteError::NotFound | WriteError::Replaced) {
            self.store.evict(base.name(), gone(base.uid(), base.resource_version()));
        }
    }

    /// Runs a write in a task of its own: a request that is given up must not leave a write without its answer. Returns
    /// when the answer came.
    pub(super) async fn run<T: Send + 'static, E: From<WriteError> + Send + 'static, W>(
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
        let task = tokio::spawn(async move {
            let shared = waiting.0.clone();
            let turn = timeout(shared.writes.patience, shared.writes.permits.acquire()).await;
            let Ok(Ok(_permit)) = turn else {
                return Err(unavailable("waited too long for other requests to the API server").into());
            };
            let written = write(shared.clone()).await;
            count(if written.is_ok() { &shared.counters.written } else { &shared.counters.write_errors });
            Ok((written?, Instant::now()))
        });
        let unknown = |_| WriteError::OutcomeUnknown { reason: "the cache has ended".into() };
        task.await.map_err(|ended| E::from(unknown(ended)))?
    }

    /// Sends a write until it is done or refused.
    async fn attempts<T, C: Future<Output = Result<T, CallError>>>(
        &self,
        mut send: impl FnMut() -> C,
    ) -> Result<T, WriteError> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            match send().await {
                Ok(answer) => return Ok(answer),
                Err(error) if attempt < ATTEMPTS && error.kind() == Some(ApiErrorKind::Conflict) => {}
                Err(error) => return Err(refused(&error)),
            }
            attempt += 1;
            sleep(pause).await;
            pause *= 2;
        }
    }

    async fn visible(
        &self,
        session: Session,
        answered: Instant,
        visibility: Visibility,
    ) -> Result<Session, WriteError> {
        if visibility == Visibility::Everywhere {
            let barrier = Barrier {
                mark: Mark {
                    uid: session.uid(),
                    fate: Fate::Stale { below: session.generation() },
                    resource_version: session.resource_version(),
                },
                digest: Some(session.digest()),
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

fn unavailable(reason: &str) -> WriteError {
    WriteError::Unavailable { reason: reason.into() }
}

/// What a call that brought no answer means for whoever wanted to write.
pub(super) fn refused(error: &CallError) -> WriteError {
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
        _ => WriteError::Unavailable { reason },
    }
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
