//! Timeouts of sessions that are there: begun anew in memory, or written.

use std::time::Duration;

use super::entry::Entry;
use super::failure::Failure;
use super::plan::Plan;
use super::ttl::{Ttl, Wanted, written_renewal};
use super::write::Exact;
use super::{Inner, Sessions, now_millis};
use crate::cache::{Change, WriteError};

/// Renewals that are written in each timeout while no controller hears of them.
const WRITTEN_RENEWALS: u32 = 4;

/// What became of a session that was given a timeout.
#[derive(Clone, Debug)]
pub enum TimeoutOutcome {
    /// It has it.
    Begins(Entry),
    /// The time was over, perhaps only by then: it was deleted.
    Over,
    /// There was none any more.
    Gone,
}

impl Sessions {
    /// Gives the session this timeout from now on, in memory only, if that is all it takes, and a controller hears of it. `None`:
    /// use [`Self::expire`].
    /// Never waits: the fast path of `GETEX`.
    #[inline]
    pub fn renew(&self, base: &Entry, ttl: Ttl) -> Option<Entry> {
        let now = now_millis();
        let Ok(Wanted::Begin(timeout)) = ttl.at(now) else {
            return None;
        };
        if timeout.expires_at.is_some() || base.timeout() != Some(timeout) || self.inner.is_unheard(base, now) {
            return None;
        }
        // It may be what is in the object, and no other agent may have heard of it.
        if self.inner.cache.is_unsettled(base.session()) {
            return None;
        }
        self.inner.cache.renew(base.session(), now);
        Some(base.clone().renewed(now))
    }

    /// Gives the session this timeout from now on. Writes only if the timeout is another one than before, or is an exact
    /// one, or no controller would hear of it. `Gone`: it was before that. What is to be [exact](Exact::Whole) has a base that was
    /// just read.
    pub async fn expire(&self, base: &Entry, ttl: Ttl, exact: Exact) -> Result<TimeoutOutcome, Failure> {
        if let Some(renewed) = self.renew(base, ttl) {
            return Ok(TimeoutOutcome::Begins(renewed));
        }
        let now = now_millis();
        let wanted = ttl.at(now)?;
        if wanted == Wanted::Over {
            let existed = match exact {
                Exact::No => self.delete(base).await?,
                exact => self.delete_exact(base, exact).await?,
            };
            return Ok(if existed { TimeoutOutcome::Over } else { TimeoutOutcome::Gone });
        }
        let plan = Plan::of(base, None, wanted, now).heard_unless(self.inner.is_unheard(base, now));
        let plan = plan.again_if(self.inner.cache.is_unsettled(base.session()));
        if !plan.needed {
            if plan.begins && plan.ends_at.is_none() {
                // What stood in the way when it was looked first has gone.
                self.inner.cache.renew(base.session(), now);
                return Ok(TimeoutOutcome::Begins(base.clone().renewed(now)));
            }
            return Ok(TimeoutOutcome::Begins(base.clone()));
        }
        let change = Change { only_if_unchanged: exact != Exact::No, ..plan.change(None) };
        match self.inner.cache.patch(base.session(), change, self.inner.options()).await {
            Ok(session) => Ok(TimeoutOutcome::Begins(self.inner.begun(session, &plan, now))),
            Err(WriteError::NotFound | WriteError::Replaced) => Ok(TimeoutOutcome::Gone),
            Err(WriteError::Changed) => Err(Failure::Conflict),
            Err(error) => Err(error.into()),
        }
    }
}

impl Inner {
    /// Whether a renewal is to be written, a few times in each timeout, since no controller hears of it: who decides that nobody
    /// uses a session any more knows only what it is told.
    pub(super) fn is_unheard(&self, base: &Entry, now: u64) -> bool {
        let Some(timeout) = base.timeout().filter(|timeout| timeout.expires_at.is_none()) else {
            return false;
        };
        let part = Duration::from_secs(timeout.idle_seconds.into()) / WRITTEN_RENEWALS;
        let written = Duration::from_millis(now.saturating_sub(written_renewal(base.session().facts())));
        written >= part && self.cache.unheard_for() >= part
    }
}
