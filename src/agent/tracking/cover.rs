//! What clients have read is over when no lease covers it any longer.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Tracking;
use crate::agent::Agent;
use crate::core::time::Time;
use crate::runtime::clock::boottime_nanos;

/// A client is told so much before the cover ends, so that it has dropped its copy by then.
pub(super) const AHEAD: Duration = Duration::from_millis(20);
/// Keys that can be told of one by one in that time.
const MOST_AT_ONCE: usize = 4_096;
/// Keys whose cover ends within this time are looked at beforehand, or within a quarter of a lease, if that is less: as a rule, their
/// leases have been renewed long since. Otherwise all keys would be looked at each time.
const EARLY: Duration = Duration::from_secs(3);
/// So many times within that time. To look at all keys that fit takes a second or so.
const LOOKS: u32 = 6;
/// Longest pause: timers stand still while a machine is suspended, leases do not.
const PAUSE: Duration = Duration::from_millis(100);

/// How long before its end a cover is looked at, if leases are this long.
fn early(lease: Duration) -> Duration {
    (lease / 4).clamp(LOOKS * PAUSE, EARLY)
}

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
    tokio::select! {
        never = watch(&agent) => match never {},
        never = extend(&agent) => match never {},
        () = shutdown.cancelled() => Ok(()),
    }
}

/// Has clients told before the cover of what they have read ends.
async fn watch(agent: &Agent) -> Infallible {
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
            look(agent, soon);
        }
        let due = Time::from_nanos(tracking.due.load(Ordering::SeqCst));
        let next = covered.map_or(due, |until| until.min(due));
        let pause = next.saturating_since(soon).min(PAUSE);
        tokio::select! {
            () = tracking.sooner.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// Looks at all keys whose cover may end by `soon`. If these are too many to be told of in time, clients are told to drop all
/// that they have.
fn look(agent: &Agent, soon: Time) {
    let tracking = &agent.tracking;
    tracking.due.store(u64::MAX, Ordering::SeqCst);
    let parts = tracking.table.lock().parts();
    let mut room = MOST_AT_ONCE;
    for part in (0..parts).rev() {
        let (due, next) = tracking.table.lock().due(part, soon);
        tracking.look_by(next);
        let Some(left) = room.checked_sub(due.len()) else {
            return tracking.flush();
        };
        room = left;
        for (key, ends) in due {
            match agent.covered_until(&key).filter(|until| *until > soon) {
                Some(until) => {
                    tracking.table.lock().extend(&key, ends, until);
                    tracking.look_by(until);
                }
                None => tracking.stale(&key),
            }
        }
    }
}

/// Notes which keys are covered for longer by now, a part at a time and before it matters, so that only those are left for the
/// last moment of which it matters.
async fn extend(agent: &Agent) -> Infallible {
    let tracking = &agent.tracking;
    loop {
        let early = early(agent.sessions.cache().lease_length());
        let parts = tracking.table.lock().parts();
        for part in (0..parts).rev() {
            let soon = Time::from_nanos(boottime_nanos()) + early;
            let (due, _) = tracking.table.lock().due(part, soon);
            for (key, ends) in due {
                if let Some(until) = agent.covered_until(&key).filter(|until| *until > ends) {
                    tracking.table.lock().extend(&key, ends, until);
                    tracking.look_by(until);
                }
            }
            yield_now().await;
        }
        sleep(early / LOOKS).await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::json;

    use super::*;
    use crate::agent::testing::{Bench, Guest};
    use crate::agent::tracking::{Mode, Options};

    /// An agent with room for many keys, and a client that tracks.
    fn tracked() -> (Bench, Guest) {
        let mut bench = Bench::new();
        let agent = Arc::get_mut(&mut bench.agent).unwrap();
        agent.tracking = Tracking::new(4 * MOST_AT_ONCE, agent.clients.clone());
        let guest = bench.guest();
        let options = Options { mode: Mode::Default, no_loop: false, redirect: None };
        bench.agent.tracking.enable(guest.client.handle(), &options);
        (bench, guest)
    }

    fn read(tracking: &Tracking, guest: &Guest, key: &str, ends: Time) {
        let client = guest.client.handle().id();
        tracking.reading(client, key.as_bytes());
        tracking.read(client, key.as_bytes(), Some(ends));
    }

    #[tokio::test]
    async fn what_is_too_much_to_be_told_of_in_time_is_told_of_all_together() {
        let (bench, guest) = tracked();
        let (tracking, ends) = (&bench.agent.tracking, Time::from_nanos(boottime_nanos()));
        let told = || [&tracking.told().invalidations, &tracking.told().flushes].map(|n| n.load(Ordering::Relaxed));
        let most = u64::try_from(MOST_AT_ONCE).unwrap();
        (0..MOST_AT_ONCE).for_each(|n| read(tracking, &guest, &n.to_string(), ends));
        look(&bench.agent, ends);
        assert_eq!(told(), [most, 0]);
        (0..2 * MOST_AT_ONCE).for_each(|n| read(tracking, &guest, &n.to_string(), ends));
        look(&bench.agent, ends);
        assert_eq!((told(), tracking.counts().keys), ([2 * most, 1], 0));
    }

    #[tokio::test]
    async fn what_is_covered_for_longer_by_now_is_noted_before_it_matters() {
        let (bench, mut guest) = tracked();
        bench.api.put("held", &json!({}));
        guest.sends(&["HGETALL", "held"]).await;
        let (tracking, now) = (&bench.agent.tracking, Time::from_nanos(boottime_nanos()));
        let [soon, later] = [1, 60].map(|seconds| now + Duration::from_secs(seconds));
        for (key, ends) in [("held", soon), ("none", soon), ("late", later)] {
            read(tracking, &guest, key, ends);
        }
        assert_eq!(extend(&bench.agent).now_or_never(), None);
        let (due, next) = tracking.table.lock().due(0, soon);
        assert_eq!((due, next), (vec![(b"none"[..].into(), soon)], later));
    }

    #[tokio::test]
    async fn what_a_short_lease_covers_is_not_looked_at_all_the_time() {
        let (bench, mut guest) = tracked();
        bench.api.put("held", &json!({}));
        guest.sends(&["HGETALL", "held"]).await;
        let (tracking, lease) = (&bench.agent.tracking, Duration::from_secs(2));
        let ends = Time::from_nanos(boottime_nanos()) + lease;
        read(tracking, &guest, "held", ends);
        bench.agent.sessions.cache().lease_for_tests(lease);
        assert_eq!(extend(&bench.agent).now_or_never(), None);
        assert_eq!(tracking.table.lock().due(0, ends).0, vec![(b"held"[..].into(), ends)]);
        let shown = [0, 1, 8, 12, 15, 3_600].map(|seconds| early(Duration::from_secs(seconds)).as_millis());
        assert_eq!(shown, [600, 600, 2_000, 3_000, 3_000, 3_000]);
    }
}
