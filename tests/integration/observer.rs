//! Watches the promises while a test breaks things: asks every pod for sessions without a pause, and compares each answer
//! with what was written and when.
//!
//! A session that is observed has a number at its key `n`, which each write raises; whoever writes tells the observer.
//! Each request has a floor: the least number that its answer may have. It is taken before the request is sent, so that
//! whatever the pod answers, it answers later:
//! - I1: a number that was committed a lease (and one per cent) before;
//! - I5: any number that this pod has answered before;
//! - I8: a number whose write was answered as visible everywhere.
//!
//! An answer that the session cannot be served now (fail closed) breaks no promise; it is counted.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use testkit::{PodClient, eventually};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use vmcp_session::api::VmcpSession;

/// Requests for each pod at once. Some give up soon, so that there are always some which were sent a moment ago, even if a
/// pod does not answer for long; the others wait for late answers.
const PATIENCE: [Duration; 4] = [Duration::from_millis(300), Duration::from_millis(300), PATIENT, PATIENT];
const PATIENT: Duration = Duration::from_secs(30);
/// Between two writes of a [`Writer`].
const BETWEEN_WRITES: Duration = Duration::from_millis(20);
/// Between two requests of each.
const PAUSE: Duration = Duration::from_millis(10);

/// What was seen of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers by origin: `cache`, `validated`, `restored`, `written`.
    pub answers: HashMap<String, usize>,
    /// Answers that the session cannot be served now.
    pub unavailable: usize,
    /// Requests that were given up soon, as is their nature.
    pub given_up: usize,
    /// Requests that were not answered although they were waited for, or without anybody who answers.
    pub lost: usize,
    /// Longest time that an answer was behind what had been committed.
    pub stalest: Duration,
}

impl Seen {
    /// All answers with a session.
    pub fn served(&self) -> usize {
        self.answers.values().sum()
    }

    /// Answers of this origin.
    pub fn by(&self, origin: &str) -> usize {
        self.answers.get(origin).copied().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
struct Truth {
    /// Each number with the moment at which it surely was committed, in order.
    committed: Vec<(u64, Instant)>,
    /// The greatest number that is visible everywhere.
    confirmed: u64,
}

#[derive(Debug, Default)]
struct State {
    sessions: HashMap<String, Truth>,
    /// The greatest number that each pod has answered, by pod and session.
    reached: HashMap<(String, String), u64>,
    seen: HashMap<String, Seen>,
    violations: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The lease, and one per cent for clocks that do not tick alike.
    bound: Duration,
}

/// Observes until it is stopped. Dropping it ends the requests.
pub struct Observer {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

/// Raises the number of a session again and again, until it is stopped.
pub struct Writer {
    stopping: CancellationToken,
    task: JoinHandle<u64>,
}

impl Writer {
    /// Stops, and returns the last number.
    pub async fn stop(self) -> u64 {
        self.stopping.cancel();
        self.task.await.unwrap()
    }
}

/// The least that an answer may have, and why.
struct Floor {
    bounded: u64,
    confirmed: u64,
    reached: u64,
}

impl Observer {
    /// Observes these sessions, which have these numbers, on these pods, whose leases are so long.
    pub fn start<'a>(pods: impl IntoIterator<Item = &'a PodClient>, sessions: &[(&str, u64)], lease: Duration) -> Self {
        let shared = Arc::new(Shared { state: Mutex::default(), bound: lease + lease / 100 });
        let names: Vec<String> = sessions.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (name, number) in sessions {
            let truth = Truth { committed: vec![(*number, Instant::now())], confirmed: 0 };
            shared.lock().sessions.insert((*name).to_owned(), truth);
        }
        let mut observer = Self { shared, workers: JoinSet::new() };
        for pod in pods {
            for patience in PATIENCE {
                observer.workers.spawn(ask(observer.shared.clone(), pod.clone(), names.clone(), patience));
            }
        }
        observer
    }

    /// The write of this number was answered just now: it is committed.
    pub fn committed(&self, session: &str, number: u64) {
        self.shared.committed(session, number);
    }

    /// Writes the session from now on, one number after the other.
    pub fn write(&self, sessions: Api<VmcpSession>, session: &str) -> Writer {
        let (shared, session) = (self.shared.clone(), session.to_owned());
        let stopping = CancellationToken::new();
        let stop = stopping.clone();
        let task = tokio::spawn(async move {
            let mut last = shared.number(&session);
            while !stop.is_cancelled() {
                let patch = Patch::Merge(json!({"spec": {"metadata": {"n": (last + 1).to_string()}}}));
                // A number whose fate is not known is written again: none ever comes late, after a greater one.
                if sessions.patch(&session, &PatchParams::default(), &patch).await.is_ok() {
                    last += 1;
                    shared.committed(&session, last);
                }
                sleep(BETWEEN_WRITES).await;
            }
            last
        });
        Writer { stopping, task }
    }

    /// The last number that is known to be committed.
    pub fn number(&self, session: &str) -> u64 {
        self.shared.number(session)
    }

    /// Waits until nobody may serve any more what was committed before this call.
    pub async fn outdated(&self, session: &str) {
        let now = self.number(session);
        eventually(Duration::from_mins(1), &format!("nobody may serve {session} n={now} any more"), async || {
            (self.shared.floor("", session, Instant::now()).bounded > now).then_some(())
        })
        .await
        .unwrap();
    }

    /// The write of this number was answered just now: it is visible everywhere.
    pub fn confirmed(&self, session: &str, number: u64) {
        self.committed(session, number);
        self.shared.lock().sessions.get_mut(session).expect("a session that is observed").confirmed = number;
    }

    /// What was seen of a pod so far.
    pub fn seen(&self, pod: &PodClient) -> Seen {
        self.shared.lock().seen.get(&pod.name).cloned().unwrap_or_default()
    }

    /// Fails if a promise was broken so far.
    pub fn check(&self) {
        let state = self.shared.lock();
        let mut text = String::new();
        for violation in state.violations.iter().take(10) {
            let _ = writeln!(text, "  {violation}");
        }
        assert!(text.is_empty(), "{} promises broken:\n{text}", state.violations.len());
    }

    /// Ends, and fails if a promise was broken or a pod never answered. Returns what was seen, by pod.
    pub async fn stop(mut self) -> HashMap<String, Seen> {
        self.workers.shutdown().await;
        self.check();
        let seen = self.shared.lock().seen.clone();
        for (pod, seen) in &seen {
            println!("{pod}: {seen:?}");
            assert!(seen.served() > 0, "{pod} never served anything: {seen:?}");
        }
        seen
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn committed(&self, session: &str, number: u64) {
        let mut state = self.lock();
        let truth = state.sessions.get_mut(session).expect("a session that is observed");
        assert!(truth.committed.last().is_none_or(|(last, _)| *last < number), "{session}: numbers must rise");
        truth.committed.push((number, Instant::now()));
    }

    fn number(&self, session: &str) -> u64 {
        self.lock().sessions[session].committed.last().map_or(0, |(number, _)| *number)
    }

    fn floor(&self, pod: &str, session: &str, sent: Instant) -> Floor {
        let state = self.lock();
        let truth = &state.sessions[session];
        let old = truth.committed.iter().rev().find(|(_, at)| *at + self.bound <= sent);
        let reached = state.reached.get(&(pod.to_owned(), session.to_owned())).copied();
        Floor { bounded: old.map_or(0, |(n, _)| *n), confirmed: truth.confirmed, reached: reached.unwrap_or(0) }
    }

    /// A pod has answered `number` to a request that was sent at `sent`.
    fn answered(&self, pod: &str, session: &str, origin: String, number: u64, sent: Instant, floor: &Floor) {
        let mut state = self.lock();
        let next = state.sessions[session].committed.iter().find(|(n, _)| *n > number);
        let behind = next.map_or(Duration::ZERO, |(_, at)| sent.saturating_duration_since(*at));
        let broken = [
            ("I1: older than a lease", floor.bounded),
            ("I8: older than what is visible everywhere", floor.confirmed),
            ("I5: older than an answer before it", floor.reached),
        ];
        for (promise, least) in broken {
            if number < least {
                let text = format!(
                    "{promise}: {pod} served {session} n={number} ({origin}), {behind:?} late, expected {least} or more"
                );
                state.violations.push(text);
            }
        }
        let seen = state.seen.entry(pod.to_owned()).or_default();
        seen.stalest = seen.stalest.max(behind);
        *seen.answers.entry(origin).or_default() += 1;
        let reached = state.reached.entry((pod.to_owned(), session.to_owned())).or_default();
        *reached = (*reached).max(number);
    }

    fn count(&self, pod: &str, count: impl FnOnce(&mut Seen)) {
        count(self.lock().seen.entry(pod.to_owned()).or_default());
    }
}

/// Asks one pod for all sessions in turn, for ever.
async fn ask(shared: Arc<Shared>, pod: PodClient, sessions: Vec<String>, patience: Duration) {
    for session in sessions.iter().cycle() {
        let sent = Instant::now();
        let floor = shared.floor(&pod.name, session, sent);
        match timeout(patience, pod.get(session)).await {
            Ok(Ok(reply)) if reply.status == 200 => {
                let metadata = reply.metadata().unwrap_or_default();
                match metadata["n"].as_str().and_then(|n| n.parse().ok()) {
                    Some(number) => shared.answered(&pod.name, session, reply.from(), number, sent, &floor),
                    None => shared.lock().violations.push(format!("{}: {session} has no number: {reply:?}", pod.name)),
                }
            }
            Ok(Ok(reply)) if reply.status == 503 => shared.count(&pod.name, |seen| seen.unavailable += 1),
            Ok(Ok(reply)) => shared.lock().violations.push(format!("{} on {session}: {reply:?}", pod.name)),
            Err(_) if patience < PATIENT => shared.count(&pod.name, |seen| seen.given_up += 1),
            Ok(Err(_)) | Err(_) => shared.count(&pod.name, |seen| seen.lost += 1),
        }
        sleep(PAUSE).await;
    }
}
