//! What happens in the cache, for those who keep copies of their own or listen.

use std::convert::Infallible;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::cache::{Event, Subscription};

/// What listeners are told when a copy is dropped, for whatever reason.
const EVICTED: &str = "evicted";

/// Passes evictions on until `shutdown`.
pub async fn run(agent: Arc<Agent>, mut events: Subscription, shutdown: CancellationToken) -> Result<(), Infallible> {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Event::Evicted(eviction)) => match agent.sessions.key(&eviction.name) {
                Some(key) => {
                    agent.tracking.stale(&key);
                    agent.pubsub.event(EVICTED, &key);
                }
                // Whose key it is cannot be told, so it may be anybody's.
                None => agent.tracking.flush(),
            },
            Some(Event::Missed(_)) => agent.tracking.flush(),
            None => {
                agent.tracking.flush();
                shutdown.cancelled().await;
                return Ok(());
            }
        }
    }
}
