//! What clients have read is over when no lease covers it any longer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Tracking;
use crate::agent::Agent;
use crate::core::time::Time;
use crate::runtime::clock::boottime_nanos;

/// A client is told so much before the cover ends, so that it has dropped its copy by then.
pub(super) const AHEAD: Duration = Duration::from_millis(20);
/// Longest pause: timers stand still while a machine is suspended, leases do not.
const PAUSE: Duration = Duration::from_millis(100);

impl Tracking {
    /// Some key's cover must be looked at by then.
    pub(super) fn look_by(&self, until: Time) {
        let before = self.due.fetch_min(until.as_nanos(), Ordering::SeqCst);
        if until.as_nanos() < before {
            self.sooner.notify_one();
        }
    }
}

/// Watches over the cover of what clients have read, until `shutdown`.
pub async fn run(agent: Arc<Agent>, shutdown: CancellationToken) -> Result<(), Infallible> {
    let tracking = &agent.tracking;
    let mut leased = false;
    loop {
        let now = Time::from_nanos(boottime_nanos());
        let soon = now + AHEAD;
        let covered = agent.sessions.cache().leased_until().filter(|until| *until > soon);
        if covered.is_none() && leased {
            tracking.flush();
        }
        leased = covered.is_some();
        if tracking.due.load(Ordering::SeqCst) <= soon.as_nanos() {
            look(&agent, soon);
        }
        let due = Time::from_nanos(tracking.due.load(Ordering::SeqCst));
        let next = covered.map_or(due, |until| until.min(due));
        let pause = next.saturating_since(soon).min(PAUSE);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = tracking.sooner.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Looks at all keys whose cover may end by `soon`.
fn look(agent: &Agent, soon: Time) {
    let tracking = &agent.tracking;
    tracking.due.store(u64::MAX, Ordering::SeqCst);
    let parts = tracking.table.lock().parts();
    for part in (0..parts).rev() {
        let (due, next) = tracking.table.lock().due(part, soon);
        tracking.look_by(next);
        for key in due {
            match agent.covered_until(&key).filter(|until| *until > soon) {
                Some(until) => {
                    tracking.table.lock().extend(&key, until);
                    tracking.look_by(until);
                }
                None => tracking.stale(&key),
            }
        }
    }
}
