//! Misses: GETs that several requests share, bounded so that a flood of them is not passed on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::api_server::CallError;
use super::error::{Cause, GetError};
use super::events::count;
use super::respite::Respite;
use super::session::{Origin, Session};
use super::shared::Shared;
use super::store::now;
use super::unconfirmed::Begun;
use crate::core::cache::{Answer, FlightId, Join, Restored, Shard};
use crate::core::names::is_object_name;
use crate::core::rate::TokenBucket;
use crate::core::time::Time;
use crate::runtime::api_error::ApiErrorKind;

/// How often one GET is sent, at most: an answer may be outdated by what came in meanwhile, or not come at all.
const ATTEMPTS: u32 = 8;
/// Pause before the second attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(5);

/// What those who wait for a GET are told.
type Outcome = Result<Session, GetError>;

/// A GET that requests wait for.
pub(super) struct Pending {
    id: FlightId,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// Bounds of all GETs together.
pub(super) struct Gets {
    permits: Semaphore,
    unknown: Mutex<TokenBucket>,
    respite: Respite,
    waiting: AtomicUsize,
    most: usize,
    patience: Duration,
}

impl Gets {
    pub fn new(config: &super::CacheConfig) -> Self {
        let second = Duration::from_secs(1);
        // Its own check has refused a rate of zero.
        let each = second.checked_div(config.unknown_per_second).unwrap_or(second);
        Self {
            permits: Semaphore::new(config.concurrent_gets),
            respite: Respite::default(),
            unknown: Mutex::new(TokenBucket::new(config.unknown_burst, each)),
            waiting: AtomicUsize::new(0),
            most: config.waiting_gets,
            patience: config.call_deadline,
        }
    }

    /// Sessions that are waited for.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Some room is left for sessions that were met before: a flood of names that were not must not keep anybody from these.
    fn enter(&self, met: bool) -> bool {
        let most = if met { self.most } else { self.most - self.most / 4 };
        let enter = |n: usize| (n < most).then_some(n + 1);
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok()
    }

    async fn permit(&self, turn: Instant) -> Result<SemaphorePermit<'_>, GetError> {
        match timeout_at(turn, self.permits.acquire()).await {
            Ok(permit) => permit.map_err(|_| GetError::unavailable(Cause::Ended, "the cache has ended")),
            Err(_) => Err(GetError::unavailable(Cause::Busy, "waited too long for other requests to the API server")),
        }
    }
}

/// A GET on its way. However it ends, those who wait for it are told and the next one can be sent.
struct Flight {
    shared: Arc<Shared>,
    name: Arc<str>,
    id: FlightId,
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.shared.store.change(&self.name, |state, _, _| {
            // Over already, unless it failed.
            state.shard.restore_failed(&self.name, self.id);
            if let Some(pending) = state.waited_for.get_mut(&self.name) {
                pending.retain(|p| p.id != self.id);
                if pending.is_empty() {
                    state.waited_for.remove(&self.name);
                }
            }
            ((), None)
        });
        self.shared.gets.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a request that found nothing to serve does.
enum Found {
    Serve(Session),
    Wait(watch::Receiver<Option<Outcome>>),
    Lead(Flight, watch::Sender<Option<Outcome>>, Option<watch::Receiver<Option<Outcome>>>),
    Overloaded,
    Lost,
}

impl Shared {
    /// Why nothing can be said without the API server, which did not say it.
    pub(super) fn cause(&self, error: &CallError) -> Cause {
        Cause::of(error, self.streams.unheard_for().is_zero())
    }

    /// The same, for whoever wanted to read.
    pub(super) fn unavailable(&self, error: &CallError) -> GetError {
        GetError::unavailable(self.cause(error), error)
    }

    /// Restores or validates a session that cannot be served from the cache alone.
    pub async fn restore(self: &Arc<Self>, name: &str) -> Outcome {
        // What may be served, and is no hit for whoever asks, changes nothing: others may read meanwhile.
        if let Some(copy) = self.store.look(name, |shard| shard.find(name, now()).cloned()) {
            return Ok(Session::new(copy, Origin::Cache));
        }
        self.ask(name, |shard, now| shard.join(name, now)).await
    }

    /// The session as it is now, whatever is held: a GET that is sent after this was called.
    pub async fn fresh(self: &Arc<Self>, name: &str) -> Outcome {
        self.ask(name, |shard, _| shard.join_anew(name)).await
    }

    async fn ask(self: &Arc<Self>, name: &str, join: impl FnOnce(&mut Shard, Time) -> Join) -> Outcome {
        // No object can have another name, and to ask would be no GET of an object.
        if !is_object_name(name) {
            count(&self.counters.not_found);
            return Err(GetError::NotFound);
        }
        let mut outcome = match self.find(name, join) {
            Found::Serve(session) => return Ok(session),
            Found::Wait(outcome) => outcome,
            Found::Lead(flight, teller, before) => {
                let outcome = teller.subscribe();
                // A task of its own: a request that is given up must not take the others with it.
                self.runtime.spawn(flight.run(teller, before));
                outcome
            }
            Found::Overloaded => {
                count(&self.counters.overloaded);
                return Err(GetError::Overloaded);
            }
            Found::Lost => return Err(given_up()),
        };
        let told = outcome.wait_for(Option::is_some).await;
        let told = told.ok().and_then(|outcome| outcome.clone());
        told.unwrap_or_else(|| Err(given_up()))
    }

    fn find(self: &Arc<Self>, name: &str, join: impl FnOnce(&mut Shard, Time) -> Join) -> Found {
        self.store.change(name, |state, _, now| {
            let found = match join(&mut state.shard, now) {
                Join::Serve(copy) => Found::Serve(Session::new(copy, Origin::Cache)),
                Join::Follow(id) => {
                    let pending = state.waited_for.get(name).into_iter().flatten();
                    let pending = pending.into_iter().find(|p| p.id == id);
                    pending.map_or(Found::Lost, |p| Found::Wait(p.outcome.clone()))
                }
                Join::Lead(id) => {
                    let name: Arc<str> = name.into();
                    if !self.gets.enter(self.store.has_met_in(&state.shard, &name)) {
                        state.shard.restore_failed(&name, id);
                        return (Found::Overloaded, None);
                    }
                    let teller = watch::Sender::new(None);
                    let pending = state.waited_for.entry(name.clone()).or_default();
                    let before = pending.last().map(|p| p.outcome.clone());
                    pending.push(Pending { id, outcome: teller.subscribe() });
                    Found::Lead(Flight { shared: self.clone(), name, id }, teller, before)
                }
            };
            (found, None)
        })
    }
}

impl Flight {
    async fn run(self, teller: watch::Sender<Option<Outcome>>, before: Option<watch::Receiver<Option<Outcome>>>) {
        if let Some(mut before) = before {
            // An error means that it is over too.
            let _ = before.wait_for(Option::is_some).await;
        }
        let outcome = self.admitted().await;
        let counters = &self.shared.counters;
        count(match &outcome {
            Ok(session) if session.origin() == Origin::Validated => &counters.validated,
            Ok(_) => &counters.restored,
            Err(GetError::NotFound) => &counters.not_found,
            Err(GetError::Overloaded | GetError::TooManyUnknown) => &counters.overloaded,
            Err(GetError::Unavailable { .. }) => &counters.unavailable,
        });
        match &outcome {
            Err(GetError::Unavailable { reason, .. }) => _ = self.shared.trouble.reads.failed(reason, now()),
            Err(GetError::Overloaded | GetError::TooManyUnknown) => {}
            Ok(_) | Err(GetError::NotFound) => _ = self.shared.trouble.reads.worked(),
        }
        // Those who are told find nothing of it any more.
        drop(self);
        teller.send_replace(Some(outcome));
    }

    /// Waits for its turn.
    async fn admitted(&self) -> Outcome {
        let gets = &self.shared.gets;
        let turn = Instant::now() + gets.patience;
        // The permit comes before the token. So no more tokens are out for sessions that are found than there are permits, and
        // these do not refuse each other.
        let mut permit = gets.permit(turn).await?;
        if self.shared.store.has_met(&self.name) {
            return self.ask().await;
        }
        let patience = turn.saturating_duration_since(Instant::now());
        let wait = gets.unknown.lock().take_within(now(), patience).ok_or(GetError::TooManyUnknown)?;
        if !wait.is_zero() {
            // There is a flood. Whoever is known need not wait for it.
            drop(permit);
            sleep(wait).await;
            permit = gets.permit(turn).await.inspect_err(|_| gets.unknown.lock().give_back())?;
        }
        let outcome = self.ask().await;
        // What was not found out cost the API server as much as what is not there.
        if outcome.is_ok() {
            gets.unknown.lock().give_back();
        }
        // Not earlier: whoever has the permit next needs the token.
        drop(permit);
        outcome
    }

    async fn ask(&self) -> Outcome {
        let Self { shared, name, id, .. } = self;
        let end = Instant::now() + shared.gets.patience;
        let mut pause = PAUSE;
        let mut last = GetError::unavailable(Cause::Busy, "it changes faster than it can be read");
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(pause).await;
                pause *= 2;
                if Instant::now() >= end {
                    break;
                }
            }
            if !shared.gets.respite.over_by(end).await {
                return Err(GetError::unavailable(Cause::Busy, "the API server has asked for a pause"));
            }
            shared.store.change(name, |state, _, now| {
                state.shard.restore_sent(name, *id, now);
                ((), None)
            });
            let begun = shared.unconfirmed.begun();
            let answer = shared.api.get(name).await;
            shared.gets.respite.heard(answer.as_ref().err());
            match answer {
                Ok(answer) => {
                    if let Some(outcome) = self.answered(answer, begun) {
                        return outcome;
                    }
                }
                // A connection that was kept open may have been closed by the other side: worth another try at once.
                Err(error) if attempt < 2 && is_transient(&error) => last = shared.unavailable(&error),
                Err(error) => return Err(shared.unavailable(&error)),
            }
        }
        Err(last)
    }

    /// Takes an answer; `None` if it must be asked for again.
    fn answered(&self, answer: Answer, begun: Begun) -> Option<Outcome> {
        let Self { shared, name, id, .. } = self;
        let outcome = shared.store.change(name, |state, tell, now| {
            let serve = |copy, origin| Some(Ok(Session::new(copy, origin)));
            match state.shard.restore_answered(name, *id, answer, now, tell) {
                Restored::Serve { copy, validated: true, dropped } => (serve(copy, Origin::Validated), dropped),
                Restored::Serve { copy, dropped, .. } => (serve(copy, Origin::Restored), dropped),
                Restored::NotFound { dropped } => (Some(Err(GetError::NotFound)), dropped),
                Restored::AskAgain => (None, None),
            }
        });
        if let Some(Err(GetError::NotFound)) = &outcome {
            shared.store.events.absent(name);
            shared.unconfirmed.absent(name, begun, Instant::now());
        }
        outcome
    }
}

fn given_up() -> GetError {
    GetError::unavailable(Cause::Ended, "the request was given up")
}

fn is_transient(error: &CallError) -> bool {
    matches!(error.kind(), Some(ApiErrorKind::Unreachable | ApiErrorKind::ServerError))
}
