use std::collections::VecDeque;

use kube::core::Status;
use tokio::sync::mpsc;

use super::*;
use crate::core::session::{SessionKey, Uid};

/// Answers as it was told, then with success, and tells what it was given.
struct Fake {
    answers: Mutex<VecDeque<ApiError>>,
    texts: mpsc::UnboundedSender<String>,
}

impl EventSink for Fake {
    async fn create(&self, event: &PendingEvent) -> Result<(), ApiError> {
        self.texts.send(event.text()).unwrap();
        self.answers.lock().pop_front().map_or(Ok(()), Err)
    }
}

fn session() -> SessionRef {
    SessionRef { key: SessionKey::new("ns", "s"), uid: Uid::from_u128(7) }
}

fn note() -> Note {
    Note::metadata_changed(["k"], 1, 0, Duration::from_millis(1))
}

fn writer(
    guard: LeadershipGuard,
    answers: impl IntoIterator<Item = ApiError>,
) -> (Arc<Shared<Fake>>, mpsc::UnboundedReceiver<String>) {
    let (texts, seen) = mpsc::unbounded_channel();
    let sink = Fake { answers: Mutex::new(answers.into_iter().collect()), texts };
    (Arc::new(Shared::new(sink, guard, EventLimits::default())), seen)
}

/// Runs until nothing waits.
async fn drain(shared: &Arc<Shared<Fake>>) {
    let shutdown = CancellationToken::new();
    let empty = async {
        while !shared.queue.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    let both = async { tokio::join!(pump::run(&**shared, CALLS, &shared.wake, &shutdown), empty) };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
}

#[tokio::test]
async fn what_is_noted_is_written() {
    let (shared, mut seen) = writer(LeadershipGuard::always(), []);
    shared.note(session(), note());
    shared.note(session(), note());
    drain(&shared).await;
    let text = seen.recv().await.unwrap();
    assert!(text.ends_with("changed keys: k (and 1 earlier note like this)"), "{text}");
    assert_eq!(shared.counts.written.load(Ordering::Relaxed), 1);
    assert_eq!(shared.counts.merged.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let (shared, mut seen) = writer(LeadershipGuard::default(), []);
    shared.note(session(), note());
    drain(&shared).await;
    assert!(seen.try_recv().is_err());
    assert_eq!(shared.counts.dropped.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_refused_event_is_dropped_and_a_lost_one_tried_again() {
    let refused = ApiError::from_status(&Status::failure("", "Invalid").with_code(422));
    let (shared, mut seen) = writer(LeadershipGuard::always(), [refused]);
    shared.note(session(), note());
    drain(&shared).await;
    assert_eq!((seen.recv().await.is_some(), seen.try_recv().is_err()), (true, true));

    let (shared, mut seen) = writer(LeadershipGuard::always(), [ApiError::timeout(DEADLINE)]);
    shared.note(session(), note());
    drain(&shared).await;
    assert_eq!(seen.recv().await, seen.recv().await);
    assert_eq!(shared.counts.written.load(Ordering::Relaxed), 1);
    assert_eq!(shared.counts.failed.load(Ordering::Relaxed), 1);
}

#[test]
fn the_object_has_what_the_api_requires() {
    let event = PendingEvent { session: session(), note: note(), occurred_micros: 1_000_001, merged: 0 };
    let object = object(&event, REPORTING_CONTROLLER, "pod-0");
    let json = serde_json::to_value(&object).unwrap();
    assert_eq!(json["eventTime"], "1970-01-01T00:00:01.000001Z");
    assert_eq!(json["regarding"]["uid"], "00000000-0000-0000-0000-000000000007");
    assert_eq!(json["type"], "Normal");
    for field in ["reason", "action", "note", "reportingController", "reportingInstance"] {
        assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field}");
    }
}
