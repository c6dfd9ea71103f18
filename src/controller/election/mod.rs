//! Leader election against the API server: calls with deadlines around [`Election`].
//!
//! Whoever writes to Kubernetes asks [`LeadershipGuard::is_leader`] right before each write. The watch channel is for
//! starting and stopping work; it may be late, the guard is not.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::controller::clock;
use crate::controller::clock::now;
use crate::core::election::{Answer, Election, Observed, Step, Timings};
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};
use crate::runtime::failing::Failing;

mod args;
mod lease;

pub use args::{LeaderArgs, LeaderArgsError};

/// What the controller signs its writes with.
pub const FIELD_MANAGER: &str = "vmcp-session-controller";

/// How long a shutdown may spend on giving the lease back. Nobody waits for it but the next leader.
const RELEASE_DEADLINE: Duration = Duration::from_secs(3);

/// Why it ends that a replica leads, if nothing is wrong.
const SHUTTING_DOWN: &str = "shutting down";

/// What is known about leadership.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    /// Whether this replica leads.
    pub leading: bool,
    /// Who holds the lease, as last seen; `None` if nobody does.
    pub holder: Option<String>,
}

/// Tells at any instant whether this replica leads. Cheap: one atomic load and one reading of the clock.
#[derive(Clone, Debug, Default)]
pub struct LeadershipGuard {
    /// Nanoseconds of [`Time`]; zero means not leading.
    leads_until: Arc<AtomicU64>,
}

impl LeadershipGuard {
    /// Whether this replica leads now. The answer is good for this instant: ask again before the next write.
    pub fn is_leader(&self) -> bool {
        now().as_nanos() < self.leads_until.load(Ordering::Acquire)
    }

    /// A guard that says yes for ever, for tests and for tools that write without electing anybody.
    pub fn always() -> Self {
        Self { leads_until: Arc::new(AtomicU64::new(u64::MAX)) }
    }

    fn set(&self, until: Option<Time>) {
        self.leads_until.store(until.map_or(0, Time::as_nanos), Ordering::Release);
    }
}

/// One replica's election. [`Self::run`] must be awaited: a replica whose election ended must end, too.
#[derive(Debug)]
pub struct Elector {
    api: Api<Lease>,
    name: String,
    election: Election,
    /// The object that the next PUT replaces, with whatever others have put into it.
    seen: Option<Lease>,
    guard: LeadershipGuard,
    publish: watch::Sender<Leadership>,
    reads: Failing,
    writes: Failing,
}

impl Elector {
    /// An election over the lease `name`. No two processes may ever share an identity, not even one after the other
    /// (a restarted container): both would believe in one renewal. So it has a random part, and at most 253 bytes.
    pub fn new(api: Api<Lease>, name: String, identity: String, timings: Timings) -> Self {
        Self {
            api,
            name,
            election: Election::new(identity, timings),
            seen: None,
            guard: LeadershipGuard::default(),
            publish: watch::Sender::new(Leadership::default()),
            reads: Failing::default(),
            writes: Failing::default(),
        }
    }

    /// The identity that the lease shows while this replica holds it.
    pub fn identity(&self) -> &str {
        self.election.identity()
    }

    /// For whoever writes.
    pub fn guard(&self) -> LeadershipGuard {
        self.guard.clone()
    }

    /// For whoever starts and stops work with leadership.
    pub fn subscribe(&self) -> watch::Receiver<Leadership> {
        self.publish.subscribe()
    }

    /// Takes part until `shutdown`, then stops leading at once and gives the lease back. Cancel `shutdown` only after
    /// the leader's work has ended: the next leader may start as soon as the lease is free.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut started = self.start();
        while let Some(outcome) = self.attend(&mut started, &shutdown).await {
            self.take(&started, outcome);
            started = self.start();
        }
        self.stop(&started);
        if tokio::time::timeout(RELEASE_DEADLINE, self.release()).await.is_err() {
            tracing::warn!(lease = self.name, "could not give the lease back in time: it will expire");
        }
        Ok(())
    }

    /// Begins the next step. The instant of sending is read before anything is sent.
    fn start(&self) -> Started {
        let sent = now();
        let step = self.election.next(sent);
        let call = self.call(&step);
        Started { step, sent, call }
    }

    /// Waits for the step's outcome, but tells of lost leadership when it is lost. `None` means shutdown.
    async fn attend(&mut self, started: &mut Started, shutdown: &CancellationToken) -> Option<Outcome> {
        loop {
            let expiry = self.election.leads_until().unwrap_or_default();
            let leading = self.publish.borrow().leading;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return None,
                outcome = &mut started.call => return Some(outcome),
                () = clock::sleep_until(expiry), if leading => self.tell("no renewal succeeded in time"),
            }
        }
    }

    fn call(&self, step: &Step) -> BoxFuture<'static, Outcome> {
        let limit = self.election.timings().renew_deadline() / 3;
        let (api, name) = (self.api.clone(), self.name.clone());
        let signed = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match step {
            Step::Wait { until } => {
                let until = *until;
                async move {
                    clock::sleep_until(until).await;
                    Outcome::Nothing
                }
                .boxed()
            }
            Step::Done => std::future::pending().boxed(),
            Step::Read => async move { Outcome::Read(deadline(limit, api.get_opt(&name)).await) }.boxed(),
            Step::Create => {
                let body = self.body(step);
                async move { Outcome::Wrote(deadline(limit, api.create(&signed, &body)).await) }.boxed()
            }
            Step::Acquire { .. } | Step::Renew { .. } | Step::Release { .. } => {
                let body = self.body(step);
                async move { Outcome::Wrote(deadline(limit, api.replace(&name, &signed, &body)).await) }.boxed()
            }
        }
    }

    fn body(&self, step: &Step) -> Lease {
        let identity = self.election.identity();
        let now = k8s_openapi::jiff::Timestamp::now();
        lease::body(self.seen.as_ref(), step, &self.name, identity, self.election.timings(), now)
    }

    fn take(&mut self, started: &Started, outcome: Outcome) {
        let at = now();
        match outcome {
            Outcome::Nothing => {}
            Outcome::Read(Ok(found)) => {
                if self.reads.over() {
                    tracing::info!(lease = self.name, "the lease can be read again");
                }
                let observed = found.as_ref().map(lease::observed);
                self.seen = found;
                match observed {
                    // Without a version there is nothing that a PUT could name.
                    Some(None) => self.election.read_failed(at),
                    Some(Some(observed)) => self.election.observed(Some(observed), at),
                    None => self.election.observed(None, at),
                }
            }
            Outcome::Read(Err(error)) => {
                if self.reads.failed(&error.to_string(), Instant::now()) {
                    tracing::warn!(lease = self.name, %error, "could not read the lease; trying again");
                } else {
                    tracing::debug!(lease = self.name, %error, "could not read the lease");
                }
                self.election.read_failed(at);
            }
            Outcome::Wrote(Ok(stored)) => {
                if self.writes.over() {
                    tracing::info!(lease = self.name, "the lease can be written again");
                }
                let answer = match lease::observed(&stored) {
                    Some(Observed { resource_version, .. }) => Answer::Stored { resource_version },
                    None => Answer::Unknown,
                };
                self.seen = Some(stored);
                self.wrote(started, answer, at);
            }
            Outcome::Wrote(Err(error)) => {
                // Somebody else was faster: that is how elections go.
                let lost = matches!(error.kind(), ApiErrorKind::Conflict | ApiErrorKind::AlreadyExists);
                if !lost && self.writes.failed(&error.to_string(), Instant::now()) {
                    tracing::warn!(lease = self.name, %error, "could not write the lease; trying again");
                } else {
                    tracing::debug!(lease = self.name, %error, "could not write the lease");
                }
                let answer = if error.outcome_unknown() { Answer::Unknown } else { Answer::NotStored };
                self.wrote(started, answer, at);
            }
        }
        self.tell(reason(&started.step));
    }

    fn wrote(&mut self, started: &Started, answer: Answer, at: Time) {
        self.election.wrote(&started.step, started.sent, answer, at);
    }

    /// The guard first: it must never say yes for longer than the election does.
    fn tell(&self, reason: &str) {
        self.guard.set(self.election.leads_until());
        let leading = self.election.is_leader(now());
        let holder = self.election.holder().map(str::to_owned);
        self.publish.send_if_modified(|told| {
            let (lease, identity) = (self.name.as_str(), self.election.identity());
            if leading && !told.leading {
                tracing::info!(lease, identity, reason, "leading");
            } else if told.leading && !leading {
                if reason == SHUTTING_DOWN {
                    tracing::info!(lease, identity, reason, holder, "not leading any more");
                } else {
                    tracing::warn!(lease, identity, reason, holder, "not leading any more");
                }
            }
            let changed = told.leading != leading || told.holder != holder;
            *told = Leadership { leading, holder };
            changed
        });
    }

    fn stop(&mut self, interrupted: &Started) {
        let at = now();
        match &interrupted.step {
            Step::Read => self.election.read_failed(at),
            Step::Wait { .. } | Step::Done => {}
            _ => self.wrote(interrupted, Answer::Unknown, at),
        }
        self.election.stop(at);
        self.tell(SHUTTING_DOWN);
    }

    async fn release(&mut self) {
        loop {
            let mut started = self.start();
            if started.step == Step::Done {
                return;
            }
            let outcome = (&mut started.call).await;
            self.take(&started, outcome);
        }
    }
}

impl Drop for Elector {
    /// Whatever ended the election ended leadership, a panic too.
    fn drop(&mut self) {
        self.guard.set(None);
    }
}

struct Started {
    step: Step,
    sent: Time,
    call: BoxFuture<'static, Outcome>,
}

enum Outcome {
    Nothing,
    Read(Result<Option<Lease>, ApiError>),
    Wrote(Result<Lease, ApiError>),
}

fn reason(step: &Step) -> &'static str {
    match step {
        Step::Create => "there was no lease",
        Step::Acquire { .. } => "the lease was free or had expired",
        Step::Renew { .. } => "the own lease was renewed",
        Step::Read => "another holds the lease",
        Step::Release { .. } => "the lease was given back",
        Step::Wait { .. } | Step::Done => "no renewal succeeded in time",
    }
}
