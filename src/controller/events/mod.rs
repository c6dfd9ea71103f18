//! Writes events.k8s.io/v1 Events on sessions: without blocking whoever notes them, merged and rate-limited.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::api::{GROUP, KIND, VERSION};
use crate::controller::clock::now;
use crate::controller::election::{FIELD_MANAGER, LeadershipGuard};
use crate::controller::pump::{self, Source};
use crate::controller::remedy::Remedy;
use crate::core::coalesce::{Offered, Taken};
use crate::core::events::{EventKey, EventLimits, EventQueue, PendingEvent};
use crate::core::notes::{Note, cut};
use crate::core::session_ref::SessionRef;
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// Who reports, as the API wants it: a qualified name.
pub const REPORTING_CONTROLLER: &str = "vmcp.dev/session-controller";

const DEADLINE: Duration = Duration::from_secs(5);
const CALLS: usize = 4;
/// The API server's limit for `reportingInstance`.
const MAX_INSTANCE: usize = 128;

/// A handle for noting events; clones share one queue. Somebody must await [`Self::run`].
#[derive(Clone, Debug)]
pub struct EventWriter {
    shared: Arc<Shared<Kube>>,
}

#[derive(Debug)]
struct Shared<S> {
    sink: S,
    guard: LeadershipGuard,
    queue: Mutex<EventQueue>,
    wake: Notify,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    merged: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl EventWriter {
    /// A writer that signs as `reporting_controller` (see [`REPORTING_CONTROLLER`]) and `reporting_instance` (the
    /// pod's name), and writes only while `guard` says that this replica leads.
    pub fn new(client: Client, reporting_controller: &str, reporting_instance: &str, guard: LeadershipGuard) -> Self {
        let sink = Kube {
            client,
            controller: reporting_controller.to_owned(),
            instance: cut(reporting_instance, MAX_INSTANCE).to_owned(),
        };
        Self { shared: Arc::new(Shared::new(sink, guard, EventLimits::default())) }
    }

    /// Notes an event. Never waits; what is too much is merged or dropped, and counted.
    pub fn note(&self, session: SessionRef, note: Note) {
        self.shared.note(session, note);
    }

    /// Writes what is noted, until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        pump::run(&*self.shared, CALLS, &self.shared.wake, &shutdown).await;
        Ok(())
    }

    /// How many events wait or are being written.
    pub fn depth(&self) -> usize {
        self.shared.queue.lock().len()
    }

    /// How many events were written.
    pub fn written(&self) -> u64 {
        self.shared.counts.written.load(Ordering::Relaxed)
    }

    /// How many notes were merged into another's event.
    pub fn suppressed(&self) -> u64 {
        self.shared.counts.merged.load(Ordering::Relaxed)
    }

    /// How many notes were dropped, because too many sessions had some or because this replica stopped leading.
    pub fn dropped(&self) -> u64 {
        self.shared.counts.dropped.load(Ordering::Relaxed)
    }

    /// How many attempts to write an event failed.
    pub fn failed(&self) -> u64 {
        self.shared.counts.failed.load(Ordering::Relaxed)
    }
}

/// Where events go.
trait EventSink: Send + Sync {
    fn create(&self, event: &PendingEvent) -> impl Future<Output = Result<(), ApiError>> + Send;
}

impl<S: EventSink> Shared<S> {
    fn new(sink: S, guard: LeadershipGuard, limits: EventLimits) -> Self {
        Self { sink, guard, queue: Mutex::new(EventQueue::new(limits)), wake: Notify::new(), counts: Counts::default() }
    }

    fn note(&self, session: SessionRef, note: Note) {
        let occurred_micros = Timestamp::now().as_microsecond();
        let event = PendingEvent { session, note, occurred_micros, merged: 0 };
        let offered = self.queue.lock().offer(event, now());
        match offered {
            Offered::Queued => self.wake.notify_one(),
            Offered::Merged => add(&self.counts.merged),
            Offered::Full => add(&self.counts.dropped),
        }
    }
}

fn add(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}

impl<S: EventSink> Source for Shared<S> {
    type Work = Taken<EventKey, PendingEvent>;

    fn take(&self, now: Time) -> Option<Self::Work> {
        self.queue.lock().take(now)
    }

    fn next_ready(&self, now: Time) -> Option<Time> {
        self.queue.lock().next_ready(now)
    }

    async fn perform(&self, taken: Self::Work) {
        if !self.guard.is_leader() {
            add(&self.counts.dropped);
            self.queue.lock().finish(&taken.key);
            return;
        }
        match self.sink.create(&taken.value).await {
            Ok(()) => {
                add(&self.counts.written);
                self.queue.lock().finish(&taken.key);
            }
            Err(error) => {
                add(&self.counts.failed);
                let (session, reason) = (taken.value.session.to_string(), taken.value.note.reason);
                let mut queue = self.queue.lock();
                let again = match Remedy::of(&error) {
                    Remedy::Retry => queue.retry(taken, now()),
                    Remedy::RetryFewTimes | Remedy::Forget | Remedy::GiveUp => {
                        queue.finish(&taken.key);
                        false
                    }
                };
                drop(queue);
                tracing::warn!(session, reason, %error, again, "could not write an event");
            }
        }
    }
}

#[derive(Clone)]
struct Kube {
    client: Client,
    controller: String,
    instance: String,
}

impl std::fmt::Debug for Kube {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kube").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl EventSink for Kube {
    async fn create(&self, event: &PendingEvent) -> Result<(), ApiError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), event.session.key.namespace());
        let signed = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let body = object(event, &self.controller, &self.instance);
        match deadline(DEADLINE, api.create(&signed, &body)).await {
            // The name is this event's own: an earlier attempt was stored, and its answer was lost.
            Err(error) if error.kind() == ApiErrorKind::AlreadyExists => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn object(event: &PendingEvent, controller: &str, instance: &str) -> Event {
    let PendingEvent { session, note, occurred_micros, .. } = event;
    let occurred = Timestamp::from_microsecond(*occurred_micros).unwrap_or(Timestamp::UNIX_EPOCH);
    Event {
        metadata: ObjectMeta {
            name: Some(event.object_name(instance)),
            namespace: Some(session.key.namespace().to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(occurred)),
        type_: Some(note.kind.as_str().to_owned()),
        reason: Some(note.reason.to_owned()),
        action: Some(note.action.to_owned()),
        note: Some(event.text()),
        regarding: Some(ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(KIND.to_owned()),
            namespace: Some(session.key.namespace().to_string()),
            name: Some(session.key.name().to_owned()),
            uid: Some(session.uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(controller.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests;
