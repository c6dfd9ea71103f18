//! Deletes sessions that have outlived their timeouts, and persists when others were used.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::Client;
use kube::api::{Api, DeleteParams, Preconditions};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::condition::last_renewal;
use super::told::Told;
use crate::api::VmcpSession;
use crate::controller::election::LeadershipGuard;
use crate::controller::ledger::Ledger;
use crate::controller::ledger::standing::Standing;
use crate::controller::shared::Shared;
use crate::controller::status_writer::{Seen, SessionStatusWriter, StatusPatch};
use crate::core::expiry::Expired;
use crate::core::session::ResourceVersion;
use crate::core::session_ref::SessionRef;
use crate::core::time::Time;
use crate::runtime::api_error::{ApiError, ApiErrorKind, deadline};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(500);
/// Deletions, and uses that are persisted, in one tick. The rest waits.
const BATCH: usize = 256;
/// Uses are persisted while fewer statuses than this wait to be written: half of what the others stop at.
const WAITING: usize = super::status::WAITING / 2;
const CALLS: usize = 8;
const DEADLINE: Duration = Duration::from_secs(5);

/// Deletes what is over.
#[derive(Clone)]
pub struct Reaper {
    /// Where deadlines are kept.
    pub ledger: Arc<Ledger>,
    /// The replica, which knows who else is registered.
    pub shared: Arc<Shared>,
    /// The API server.
    pub client: Client,
    /// Where the last use is written.
    pub writer: SessionStatusWriter,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
    /// How many were deleted.
    pub reaped: Arc<Reaped>,
}

/// How many sessions were deleted, by reason.
#[derive(Debug, Default)]
pub struct Reaped {
    idle: AtomicU64,
    lifetime: AtomicU64,
}

impl Reaped {
    /// How many were deleted for this reason.
    pub fn by(&self, why: Expired) -> u64 {
        self.of(why).load(Ordering::Relaxed)
    }

    const fn of(&self, why: Expired) -> &AtomicU64 {
        match why {
            Expired::Idle => &self.idle,
            Expired::Lifetime => &self.lifetime,
        }
    }
}

impl Reaper {
    /// Deletes until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let told = Mutex::new(Told::default());
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            if !self.guard.is_leader() {
                continue;
            }
            let expired = futures::stream::iter(self.ledger.expired(self.registered(), BATCH));
            expired.for_each_concurrent(CALLS, |(session, seen, why)| self.delete(session, seen, why, &told)).await;
            self.persist();
        }
    }

    /// A replica that this one does not know of may have heard of a use.
    fn registered(&self) -> Option<Time> {
        self.shared.with(|replica, _| replica.registered_through())
    }

    /// Deletes just the object that was judged, as it was judged: whoever changed it meanwhile may have meant it to live.
    async fn delete(&self, session: SessionRef, seen: ResourceVersion, why: Expired, told: &Mutex<Told>) {
        let api: Api<VmcpSession> = Api::namespaced(self.client.clone(), session.key.namespace());
        let preconditions =
            Preconditions { uid: Some(session.uid.to_string()), resource_version: Some(seen.to_string()) };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        if !self.guard.is_leader() {
            return;
        }
        // Those before it may have taken long, and a use does not change the object.
        if why == Expired::Idle && !self.ledger.is_idle(&session, self.registered()) {
            return;
        }
        let deleted = deadline(DEADLINE, async { api.delete(session.key.name(), &params).await.map(drop) }).await;
        if deleted.is_ok() {
            self.reaped.of(why).fetch_add(1, Ordering::Relaxed);
        }
        say(&session, why, deleted, &mut told.lock());
    }

    fn persist(&self) {
        // Where the API server is slow, statuses that somebody waits for come first.
        if self.writer.depth() >= WAITING {
            return;
        }
        for persist in self.ledger.to_persist(BATCH) {
            let Some(session) = self.ledger.session(&persist.key).filter(|s| s.uid == persist.uid && !s.terminating)
            else {
                continue;
            };
            let status = session.standing.as_ref().map_or(Value::Null, Standing::to_value);
            let seen = Seen { status: &status, resource_version: session.resource_version };
            let patch = StatusPatch::new(last_renewal(persist.used));
            self.writer.offer(SessionRef { key: persist.key, uid: persist.uid }, patch, &seen);
        }
    }
}

/// Tells what came of a deletion. Returns whether it was said aloud that it failed.
fn say(session: &SessionRef, why: Expired, deleted: Result<(), ApiError>, told: &mut Told) -> bool {
    let namespace = session.key.namespace();
    let reason = match why {
        Expired::Idle => "nobody has used it for its idle timeout",
        Expired::Lifetime => "it has reached its maximum lifetime",
    };
    let error = match deleted {
        Ok(()) => {
            info!(%session, uid = %session.uid, reason, "session expired");
            if told.over(namespace) {
                info!(%namespace, "expired sessions are deleted again");
            }
            return false;
        }
        Err(error) => error,
    };
    match error.kind() {
        ApiErrorKind::NotFound | ApiErrorKind::UidMismatch => false,
        ApiErrorKind::Conflict => {
            debug!(%session, reason, "it has changed: it is judged again");
            false
        }
        _ if told.failed(namespace, &error, Instant::now()) => {
            warn!(%session, reason, %error, "cannot delete an expired session, perhaps others neither; trying again");
            true
        }
        _ => {
            debug!(%session, reason, %error, "cannot delete an expired session; trying again");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::session::{SessionKey, Uid};

    #[test]
    fn what_fails_at_each_try_is_said_once() {
        let session = SessionRef { key: SessionKey::new("a", "s"), uid: Uid::from_u128(1) };
        let mut told = Told::default();
        let refused = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            Err(ApiError::from_status(&status))
        };
        let mut said = |deleted| say(&session, Expired::Idle, deleted, &mut told);
        assert_eq!(
            [refused(404), refused(409), refused(403), refused(403)].map(&mut said),
            [false, false, true, false]
        );
        assert_eq!([Ok(()), refused(403), refused(503)].map(&mut said), [false, false, true]);
    }
}
