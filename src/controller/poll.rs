//! Looks again and again whether something that the replica remembers is over: nothing else would tell it so.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::shared::Shared;
use crate::core::replica::Replica;
use crate::runtime::health::Heartbeat;

/// How often it is looked.
const POLL: Duration = Duration::from_millis(50);

/// Looks until `shutdown`. The heartbeat shows that the replica can be locked.
pub(super) async fn poll(
    shared: Arc<Shared>,
    heartbeat: Heartbeat,
    shutdown: CancellationToken,
) -> Result<(), Infallible> {
    let mut ticks = interval(POLL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            _ = ticks.tick() => {
                shared.with(Replica::poll);
                heartbeat.beat();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::ledger::Ledger;
    use crate::controller::tests::Nobody;
    use crate::core::replica::Config;
    use crate::runtime::health::Health;

    #[test]
    fn a_replica_that_nobody_can_lock_is_not_alive() {
        let second = Duration::from_secs(1);
        let ledger = Arc::new(Ledger::new("own", second, second, Box::new(Nobody)));
        let shared = Arc::new(Shared::new(Replica::new(Config::default(), &[]), ledger));
        let (health, shutdown) = (Health::default(), CancellationToken::new());
        let heartbeat = health.heartbeat("poll", Duration::from_millis(300));
        // Threads of its own: the one that is stuck may be the one that wakes the others.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let polling = runtime.spawn(poll(shared.clone(), heartbeat, shutdown.clone()));
        let becomes = |alive: bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(10);
            while health.livez().passed != alive {
                assert!(std::time::Instant::now() < deadline, "it stays {}", health.livez().text);
                std::thread::yield_now();
            }
        };
        let locked = shared.with(|_, _| {
            becomes(false);
            health.livez().text
        });
        assert!(locked.contains("poll"), "{locked}");
        becomes(true);
        shutdown.cancel();
        runtime.block_on(polling).unwrap().unwrap();
    }
}
