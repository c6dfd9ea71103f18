//! Offers statuses to the writer: of each spec that is settled, and of each that is not when some pod is late.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::condition::{self, Pods};
use crate::controller::clock::{self, now};
use crate::controller::election::LeadershipGuard;
use crate::controller::ledger::Ledger;
use crate::controller::ledger::standing::Standing;
use crate::controller::shared::Shared;
use crate::controller::status_writer::{Seen, SessionStatusWriter, StatusPatch};
use crate::core::session_ref::SessionRef;
use crate::core::time::Time;

/// At most so many statuses wait at the writer. More wait in the ledger, where they cost less and are coalesced.
pub(super) const WAITING: usize = 1024;
/// How often it is looked for statuses that are behind although nobody works on them.
const SWEEP: Duration = Duration::from_mins(1);
/// How soon it is looked again whether the writer has room, or whether this replica leads.
const PAUSE: Duration = Duration::from_millis(100);

/// Offers statuses.
#[derive(Clone, Debug)]
pub struct StatusReconciler {
    /// What is to be said.
    pub ledger: Arc<Ledger>,
    /// Who holds what.
    pub shared: Arc<Shared>,
    /// Where statuses are written.
    pub writer: SessionStatusWriter,
    /// Whether this replica leads.
    pub guard: LeadershipGuard,
}

impl StatusReconciler {
    /// Offers until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Infallible> {
        let mut sweep = now() + SWEEP;
        loop {
            let mut wake = sweep;
            if self.guard.is_leader() {
                if sweep <= now() {
                    self.ledger.sweep();
                    sweep = now() + SWEEP;
                }
                let full = !self.offer_all();
                let look = self.ledger.next_look().unwrap_or(sweep);
                wake = if full { now() + PAUSE } else { sweep.min(look) };
            } else {
                sweep = sweep.max(now() + SWEEP);
            }
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = self.ledger.wakers().status.notified() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Offers what is due. Says whether that was all.
    fn offer_all(&self) -> bool {
        while self.guard.is_leader() {
            if self.writer.depth() >= WAITING {
                return false;
            }
            let Some((due, session)) = self.ledger.next_due() else {
                return true;
            };
            let pods = self.shared.with(|replica, _| Pods {
                holding: replica.holders(&due.key).len(),
                awaited: replica.awaited(&due.key),
            });
            let standing = session.standing.as_ref();
            let fields = condition::fields(due.generation, &due.verdict, pods, standing, Timestamp::now());
            let status = standing.map_or(Value::Null, Standing::to_value);
            let seen = Seen { status: &status, resource_version: session.resource_version };
            debug!(session = %due.key, generation = due.generation, "the status is offered");
            // If it is not taken, it was sent a moment ago. If it is lost, the ledger gives it out again.
            self.writer.offer(SessionRef { key: due.key, uid: due.uid }, StatusPatch::new(fields), &seen);
        }
        true
    }
}

/// As [`clock::sleep_until`], and never less than a moment, so that a deadline that is past does not make a busy loop.
async fn sleep_until(until: Time) {
    clock::sleep_until(until.max(now() + Duration::from_millis(5))).await;
}
