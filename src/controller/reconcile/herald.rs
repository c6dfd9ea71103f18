//! Tells of evictions: a line in the log of every replica, and events by the one that leads.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::api::VmcpSession;
use crate::controller::clock::now;
use crate::controller::election::LeadershipGuard;
use crate::controller::events::EventWriter;
use crate::controller::ledger::Settlements;
use crate::core::notes::Note;
use crate::core::rate::Lines;
use crate::core::replica::{Late, Settled};
use crate::core::session_ref::SessionRef;
use crate::core::storm::{Storm, StormDetector, StormLimits};
use crate::runtime::api_error::deadline;

const DEADLINE: Duration = Duration::from_secs(5);
/// Storms that wait to be looked into. More go untold: there is trouble enough.
const STORMS: usize = 16;
/// Field managers that are named.
const MANAGERS: usize = 8;
/// Pods or keys that one line names, as many as a note does.
const NAMES: usize = 16;
/// Lines about evictions: so many at once, then one in each interval. A pod that reports what is not so can cause any number.
const LINES: (u32, Duration) = (10_000, Duration::from_millis(10));

/// Tells of settled changes as they come.
#[derive(Debug)]
pub struct Herald {
    events: EventWriter,
    guard: LeadershipGuard,
    storms: Mutex<StormDetector>,
    lines: Mutex<Lines>,
    told: mpsc::Sender<(SessionRef, Storm)>,
    measured: Measured,
}

/// What a herald measures; clones share it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// How long pods took to acknowledge.
    pub took: Histogram,
    /// Storms that were found.
    pub storms: Counter,
}

impl Default for Measured {
    fn default() -> Self {
        // From 100 µs to 52 s: from the first signal of a change to the last acknowledgement.
        Self { took: Histogram::new(exponential_buckets(0.0001, 2.0, 20)), storms: Counter::default() }
    }
}

/// Looks into storms: asks the API server who writes.
pub struct StormTeller {
    client: Client,
    events: EventWriter,
    guard: LeadershipGuard,
    storms: mpsc::Receiver<(SessionRef, Storm)>,
}

impl Herald {
    /// A herald, and what must be run for it to tell of storms.
    pub fn new(client: Client, events: EventWriter, guard: LeadershipGuard) -> (Self, StormTeller) {
        let (told, storms) = mpsc::channel(STORMS);
        let teller = StormTeller { client, events: events.clone(), guard: guard.clone(), storms };
        let storms = Mutex::new(StormDetector::new(StormLimits::default()));
        (
            Self {
                events,
                guard,
                storms,
                lines: Mutex::new(Lines::new(LINES.0, LINES.1)),
                told,
                measured: Measured::default(),
            },
            teller,
        )
    }

    /// What it measures.
    pub fn measured(&self) -> Measured {
        self.measured.clone()
    }

    fn tell(&self, settled: &Settled) {
        let Settled { key, uid, object, changed_keys, pods, silent, took, .. } = settled;
        let session = SessionRef { key: key.clone(), uid: object.unwrap_or(*uid) };
        if !silent.is_empty() {
            let pods = silent.iter().map(AsRef::as_ref);
            self.events.note(session.clone(), Note::pods_unreachable(pods, *took, Duration::ZERO));
        }
        // An object that is gone has no metadata that changed.
        if object.is_none() {
            return;
        }
        let keys = changed_keys.iter().map(AsRef::as_ref);
        self.events.note(session.clone(), Note::metadata_changed(keys, pods.len(), silent.len(), *took));
        if let Some(storm) = self.storms.lock().evicted(session.uid, changed_keys, now()) {
            self.measured.storms.inc();
            warn!(session = %key, rounds = storm.rounds, keys = storm.keys.join(","), "evicted again and again");
            if self.told.try_send((session, storm)).is_err() {
                warn!("too many storms at once: one goes without an event");
            }
        }
    }
}

impl Settlements for Herald {
    fn late(&self, late: &Late) {
        let Late { key, uid, pods, waited, lease_left } = late;
        if self.guard.is_leader() {
            let pods = pods.iter().map(AsRef::as_ref);
            let session = SessionRef { key: key.clone(), uid: *uid };
            self.events.note(session, Note::pods_unreachable(pods, *waited, *lease_left));
        }
    }

    fn settled(&self, settled: &Settled) {
        if settled.pods.is_empty() {
            return;
        }
        match self.lines.lock().next(now()) {
            Some(0) => log(settled),
            Some(unsaid) => {
                warn!(evictions = unsaid, "too many evictions at once: these have no lines of their own");
                log(settled);
            }
            None => {}
        }
        self.measured.took.observe(settled.took.as_secs_f64());
        if self.guard.is_leader() {
            self.tell(settled);
        }
    }
}

/// Names for a line of the log: as many as may be read, and how many more there are.
fn names(all: &[Arc<str>]) -> String {
    let (named, more) = all.split_at(all.len().min(NAMES));
    let named = named.join(",");
    if more.is_empty() { named } else { format!("{named} and {} more", more.len()) }
}

/// One line for each eviction.
fn log(settled: &Settled) {
    let Settled { key, uid, generation, changed_keys, pods, silent, took, .. } = settled;
    info!(
        session = %key,
        %uid,
        generation = generation.unwrap_or_default(),
        gone = settled.object.is_none(),
        changed_keys = names(changed_keys),
        pods = names(pods),
        silent = names(silent),
        micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        "evicted"
    );
}

impl StormTeller {
    /// Tells of storms until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        loop {
            let (session, storm) = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(storm) = self.storms.recv() => storm,
                else => {
                    shutdown.cancelled().await;
                    return Ok(());
                }
            };
            let managers = self.managers(&session).await;
            if self.guard.is_leader() {
                let Storm { rounds, took, keys } = storm;
                let keys = keys.iter().map(AsRef::as_ref);
                let managers = managers.iter().map(String::as_str);
                self.events.note(session, Note::eviction_storm(rounds, took, keys, managers));
            }
        }
    }

    /// Who writes `spec.metadata`, as the API server knows it. Only the metadata of the object are asked for.
    async fn managers(&self, session: &SessionRef) -> BTreeSet<String> {
        let api: Api<VmcpSession> = Api::namespaced(self.client.clone(), session.key.namespace());
        match deadline(DEADLINE, api.get_metadata(session.key.name())).await {
            Ok(object) => writers(&object),
            Err(error) => {
                warn!(session = %session.key, %error, "cannot tell who writes the session");
                BTreeSet::new()
            }
        }
    }
}

/// The field managers that own a key of `spec.metadata`.
fn writers(object: &PartialObjectMeta<VmcpSession>) -> BTreeSet<String> {
    let mut writers = BTreeSet::new();
    for entry in object.managed_fields() {
        let owned = entry.fields_v1.as_ref().and_then(|fields| fields.0.get("f:spec")?.get("f:metadata"));
        let some = owned.and_then(Value::as_object).is_some_and(|keys| keys.keys().any(|key| key.starts_with("f:")));
        if let Some(manager) = entry.manager.as_ref().filter(|_| some && writers.len() < MANAGERS) {
            writers.insert(manager.clone());
        }
    }
    writers
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::core::time::Time;

    #[test]
    fn lines_are_bounded_and_those_that_were_not_are_counted() {
        let (mut lines, now) = (Lines::new(LINES.0, LINES.1), Time::default());
        for _ in 0..LINES.0 {
            assert_eq!(lines.next(now), Some(0));
        }
        assert_eq!((lines.next(now), lines.next(now)), (None, None));
        assert_eq!(lines.next(now + LINES.1), Some(2));
        assert_eq!(lines.next(now + LINES.1), None);
    }

    #[test]
    fn a_line_names_some_of_many_and_counts_the_others() {
        let some = |count: usize| -> Vec<Arc<str>> { (0..count).map(|pod| format!("p{pod}").into()).collect() };
        assert_eq!((names(&some(0)), names(&some(2))), (String::new(), "p0,p1".to_owned()));
        assert!(names(&some(NAMES)).ends_with(",p15"));
        let text = names(&some(1_000));
        assert!(text.ends_with(",p15 and 984 more"), "{text}");
    }

    #[test]
    fn those_who_own_a_key_of_the_map_are_named() {
        let owns =
            |manager: &str, fields: Value| json!({"manager": manager, "operation": "Update", "fieldsV1": fields});
        let object: PartialObjectMeta<VmcpSession> = serde_json::from_value(json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
            "metadata": {"name": "s", "managedFields": [
                owns("agent", json!({"f:spec": {"f:metadata": {"f:conn": {}}}})),
                owns("maker", json!({"f:spec": {".": {}, "f:metadata": {".": {}}}})),
                owns("labeller", json!({"f:metadata": {"f:labels": {"f:a": {}}}})),
                owns("timer", json!({"f:spec": {"f:idleTimeoutSeconds": {}}})),
                owns("kubectl-edit", json!({"f:spec": {"f:metadata": {".": {}, "f:conn": {}, "f:k": {}}}})),
                {"manager": "old"},
            ]},
        }))
        .unwrap();
        assert_eq!(writers(&object), BTreeSet::from(["agent".to_owned(), "kubectl-edit".to_owned()]));
    }
}
