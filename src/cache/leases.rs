//! Says in the log that no lease is in force, and that one is again: without one all is slow, and nothing else may say why.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use super::shared::Shared;
use super::store::now;
use crate::core::lease::with_drift;
use crate::core::time::Time;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(1);
/// How long there may be none before that is said: at the start, when the controller's name may not be known yet, and when one
/// stream takes another's place.
const MOMENT: Duration = Duration::from_secs(10);

/// What there is to say.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// There is no lease.
    None,
    /// There is one again.
    Again,
}

/// What is known of leases, and what was said.
#[derive(Debug, Default)]
struct Known {
    /// Since when there has been none.
    without: Option<Time>,
    told: bool,
}

impl Known {
    fn look(&mut self, in_force: bool, now: Time) -> Option<News> {
        if in_force {
            self.without = None;
            return std::mem::take(&mut self.told).then_some(News::Again);
        }
        let since = *self.without.get_or_insert(now);
        let news = now.saturating_since(since) >= MOMENT && !std::mem::replace(&mut self.told, true);
        news.then_some(News::None)
    }
}

/// Looks until the cache ends. Whoever has no controllers knows that there are no leases.
pub(super) async fn tell(shared: Arc<Shared>) {
    if !shared.config.controllers.is_empty() {
        let ended = shared.ended.clone();
        ended.run_until_cancelled(look(&shared)).await;
    }
}

async fn look(shared: &Shared) {
    let mut known = Known::default();
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match known.look(shared.store.leased_until().is_some(), now()) {
            Some(News::None) => {
                let seconds = with_drift(shared.confirmer.longest_lease()).as_secs_f64();
                warn!(
                    seconds,
                    "no lease is in force: each read asks the API server, and each write that must be visible everywhere \
                     waits so long, until all leases must have ended"
                );
            }
            Some(News::Again) => info!("a lease is in force again"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Time {
        Time::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn that_there_is_none_for_longer_than_a_moment_is_said_once_and_that_there_is_one_again() {
        let mut known = Known::default();
        let said = |known: &mut Known, seconds: std::ops::RangeInclusive<u64>, in_force: bool| {
            seconds.filter_map(|second| known.look(in_force, at(second)).map(|news| (second, news))).collect::<Vec<_>>()
        };
        assert_eq!(said(&mut known, 10..=12, false), [], "it has just begun");
        assert_eq!(said(&mut known, 13..=20, true), []);
        assert_eq!(said(&mut known, 21..=22, false), [], "a moment");
        assert_eq!(said(&mut known, 23..=23, true), [], "nobody was told");
        assert_eq!(said(&mut known, 24..=90, false), [(34, News::None)]);
        assert_eq!(said(&mut known, 91..=99, true), [(91, News::Again)]);
        assert_eq!(said(&mut known, 100..=120, false), [(110, News::None)]);
    }
}
