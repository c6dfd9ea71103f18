use std::collections::VecDeque;

use kube::core::Status;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::*;
use crate::core::session::{SessionKey, Uid};

type Answer = Result<Option<ResourceVersion>, ApiError>;

/// Answers as it was told, then with success; remembers what it was given; can hold calls up.
struct Fake {
    answers: Mutex<VecDeque<Answer>>,
    calls: Mutex<Vec<(SessionRef, StatusPatch)>>,
    gate: Semaphore,
    at_once: Mutex<(usize, usize)>,
}

impl StatusSink<SessionRef, StatusPatch> for Arc<Fake> {
    async fn patch(&self, key: &SessionRef, payload: &StatusPatch) -> Answer {
        self.calls.lock().push((key.clone(), payload.clone()));
        {
            let mut at_once = self.at_once.lock();
            at_once.0 += 1;
            at_once.1 = at_once.1.max(at_once.0);
        }
        self.gate.acquire().await.unwrap().forget();
        self.at_once.lock().0 -= 1;
        self.answers.lock().pop_front().unwrap_or(Ok(Some(ResourceVersion(100))))
    }
}

type Writer = StatusWriter<SessionRef, StatusPatch, Arc<Fake>>;

const OPEN: usize = 1_000;
const SOON: Backoff = Backoff { first: Duration::from_millis(1), longest: Duration::from_millis(4) };
const QUICK: StatusLimits = StatusLimits { capacity: 4, calls: 2, backoff: SOON, pause: SOON, attempts: 3 };

fn writer(answers: impl IntoIterator<Item = Answer>, open: usize) -> (Writer, Arc<Fake>) {
    let fake = Arc::new(Fake {
        answers: Mutex::new(answers.into_iter().collect()),
        calls: Mutex::new(Vec::new()),
        gate: Semaphore::new(open),
        at_once: Mutex::new((0, 0)),
    });
    (StatusWriter::new(Arc::clone(&fake), LeadershipGuard::always(), QUICK), fake)
}

fn session(name: &str) -> SessionRef {
    SessionRef { key: SessionKey::new("ns", name), uid: Uid::from_u128(7) }
}

fn generation(number: u64) -> StatusPatch {
    match json!({"observedGeneration": number}) {
        Value::Object(fields) => StatusPatch::new(fields),
        _ => StatusPatch::default(),
    }
}

fn offer(writer: &Writer, uid: &str, number: u64, current: u64, version: u64) -> bool {
    let status = json!({"observedGeneration": current});
    writer.offer(
        session(uid),
        generation(number),
        &Seen { status: &status, resource_version: ResourceVersion(version) },
    )
}

/// Runs the writer until `done`.
async fn run_until(writer: &Writer, done: impl Fn() -> bool) {
    let shutdown = CancellationToken::new();
    let watch = async {
        while !done() {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    let both = async { tokio::join!(writer.clone().run(shutdown.clone()), watch) };
    tokio::time::timeout(Duration::from_secs(20), both).await.unwrap();
}

async fn drain(writer: &Writer) {
    run_until(writer, || writer.depth() == 0).await;
}

fn fault(code: u16) -> Answer {
    Err(ApiError::from_status(&Status::failure("", "").with_code(code)))
}

#[tokio::test]
async fn only_a_difference_is_written_and_the_latest_wins() {
    let (writer, fake) = writer([], OPEN);
    assert!(!offer(&writer, "a", 1, 1, 1));
    assert!(offer(&writer, "a", 2, 1, 1));
    assert!(offer(&writer, "a", 3, 1, 1));
    drain(&writer).await;
    assert_eq!(*fake.calls.lock(), [(session("a"), generation(3))]);
    assert_eq!((writer.patched(), writer.unchanged()), (1, 1));
}

#[tokio::test]
async fn a_watch_that_lags_causes_no_second_patch() {
    let (writer, fake) = writer([Ok(Some(ResourceVersion(50)))], OPEN);
    offer(&writer, "a", 2, 1, 1);
    drain(&writer).await;
    assert!(!offer(&writer, "a", 2, 1, 49), "the watch has not shown the patch yet");
    assert!(offer(&writer, "a", 2, 1, 50), "somebody has undone it");
    drain(&writer).await;
    assert_eq!(fake.calls.lock().len(), 2);
}

#[tokio::test]
async fn what_is_in_flight_is_not_sent_again() {
    let (writer, fake) = writer([], 0);
    offer(&writer, "a", 2, 1, 1);
    run_until(&writer, || {
        let sent = !fake.calls.lock().is_empty();
        if sent {
            assert!(!offer(&writer, "a", 2, 1, 1));
            assert!(offer(&writer, "b", 2, 1, 1));
            fake.gate.add_permits(OPEN);
        }
        sent
    })
    .await;
    drain(&writer).await;
    assert_eq!(fake.calls.lock().len(), 2);
}

#[tokio::test]
async fn a_few_calls_at_a_time() {
    let (writer, fake) = writer([], 0);
    for uid in ["a", "b", "c", "d"] {
        offer(&writer, uid, 2, 1, 1);
    }
    assert!(!offer(&writer, "e", 2, 1, 1));
    assert_eq!(writer.refused(), 1);
    run_until(&writer, || {
        let full = fake.at_once.lock().0 == 2;
        if full {
            fake.gate.add_permits(OPEN);
        }
        full
    })
    .await;
    drain(&writer).await;
    assert_eq!(fake.at_once.lock().1, 2);
    assert_eq!(fake.calls.lock().len(), 4);
}

#[tokio::test]
async fn trouble_that_passes_is_waited_out() {
    let answers = [fault(503), Err(ApiError::timeout(Duration::ZERO)), fault(429), fault(500), fault(401)];
    let (writer, fake) = writer(answers, OPEN);
    offer(&writer, "a", 2, 1, 1);
    drain(&writer).await;
    assert_eq!((fake.calls.lock().len(), writer.patched(), writer.failed()), (6, 1, 5));
    assert_eq!(writer.given_up(), 0);
}

#[tokio::test]
async fn what_is_refused_is_dropped() {
    for (answers, calls, given_up) in [
        (vec![fault(404)], 1, 0),
        (vec![fault(422)], 1, 1),
        (vec![fault(400)], 1, 1),
        (vec![fault(409), fault(409), fault(409), fault(409)], 3, 1),
    ] {
        let (writer, fake) = writer(answers, OPEN);
        offer(&writer, "a", 2, 1, 1);
        drain(&writer).await;
        assert_eq!((fake.calls.lock().len(), writer.given_up(), writer.patched()), (calls, given_up, 0));
    }
}

#[tokio::test]
async fn after_a_failure_the_same_status_is_offered_afresh() {
    let (writer, fake) = writer([fault(422)], OPEN);
    offer(&writer, "a", 2, 1, 1);
    drain(&writer).await;
    assert!(offer(&writer, "a", 2, 1, 1), "what was refused is not what the status is");
    drain(&writer).await;
    assert_eq!(fake.calls.lock().len(), 2);
}

#[tokio::test]
async fn an_object_that_went_is_forgotten() {
    let (writer, fake) = writer([], OPEN);
    offer(&writer, "a", 2, 1, 1);
    writer.forget(&session("a"));
    offer(&writer, "b", 2, 1, 1);
    drain(&writer).await;
    assert_eq!(fake.calls.lock().iter().map(|(key, _)| key.key.name()).collect::<Vec<_>>(), ["b"]);
}

#[tokio::test]
async fn who_does_not_lead_writes_nothing() {
    let (leading, fake) = writer([], OPEN);
    let limits = leading.shared.limits;
    let writer: Writer = StatusWriter::new(Arc::clone(&fake), LeadershipGuard::default(), limits);
    offer(&writer, "a", 2, 1, 1);
    drain(&writer).await;
    assert!(fake.calls.lock().is_empty());
    assert_eq!(writer.not_leading(), 1);
    assert!(offer(&writer, "a", 2, 1, 1), "what was not sent is offered afresh");
}

/// Some webhook of one namespace that fails is no reason for the others to wait.
#[tokio::test]
async fn a_servers_error_at_one_object_holds_up_nobody_else() {
    let hour = Duration::from_hours(1);
    let (_, fake) = writer([fault(500)], OPEN);
    let limits = StatusLimits { pause: Backoff { first: hour, longest: hour }, calls: 1, ..QUICK };
    let writer = StatusWriter::new(Arc::clone(&fake), LeadershipGuard::always(), limits);
    offer(&writer, "a", 2, 1, 1);
    offer(&writer, "b", 2, 1, 1);
    run_until(&writer, || writer.patched() == 2).await;
    assert_eq!(writer.failed(), 1);
}
