//! What happens in the cache, for those who keep copies of their own or listen.

use std::sync::Arc;

use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::cache::{Event, Subscription};

/// What listeners are told when a copy is dropped, for whatever reason.
const EVICTED: &str = "evicted";

/// The cache has ended before the agent: it has no streams any more, and clients hear of nothing.
#[derive(Debug, Error)]
#[error("the cache has ended")]
pub struct CacheEnded;

/// Passes evictions on until `shutdown`.
pub async fn run(agent: Arc<Agent>, mut events: Subscription, shutdown: CancellationToken) -> Result<(), CacheEnded> {
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = events.next() => event,
        };
        match event {
            Some(Event::Evicted(eviction)) => match agent.sessions.key(&eviction.name) {
                Some(key) => {
                    agent.tracking.stale(&key);
                    // Who deleted it has told of that.
                    if !eviction.own {
                        agent.pubsub.event(EVICTED, &key);
                    }
                }
                // Whose key it is cannot be told, so it may be anybody's.
                None => agent.tracking.flush(),
            },
            Some(Event::Missed(_)) => agent.tracking.flush(),
            None => {
                agent.tracking.flush();
                return if shutdown.is_cancelled() { Ok(()) } else { Err(CacheEnded) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::agent::testing::Bench;

    #[tokio::test]
    async fn an_agent_does_not_outlive_its_cache() {
        let bench = Bench::new();
        let cache = bench.agent.sessions.cache();
        let shutdown = CancellationToken::new();
        let telling = tokio::spawn(run(bench.agent.clone(), cache.subscribe(), shutdown.clone()));
        cache.shutdown().await;
        telling.await.unwrap().unwrap_err();
        shutdown.cancel();
        run(bench.agent.clone(), cache.subscribe(), shutdown).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_client_deletes_is_not_told_as_evicted_too() {
        let bench = Bench::new();
        let shutdown = CancellationToken::new();
        let events = bench.agent.sessions.cache().subscribe();
        let telling = tokio::spawn(run(bench.agent.clone(), events, shutdown.clone()));
        let (mut guest, mut listener) = (bench.guest(), bench.guest());
        listener.sends(&["PSUBSCRIBE", "__keyevent@0__:*"]).await;
        for key in ["deleted", "taken", "emptied", "gone"] {
            guest.asks(&format!("HSET {key} f v")).await;
        }
        for command in ["DEL deleted", "GETDEL taken", "HDEL emptied f"] {
            guest.asks(command).await;
        }
        // Somebody else deletes this one: the agent learns of it when it asks.
        bench.api.remove("gone");
        guest.asks("TTL gone").await;
        let mut heard = BytesMut::new();
        let told = |heard: &BytesMut, event: &str, key: &str| {
            String::from_utf8_lossy(heard).contains(&format!("__keyevent@0__:{event}\r\n${}\r\n{key}\r\n", key.len()))
        };
        // Events come in order.
        while !told(&heard, "evicted", "gone") {
            tokio::task::yield_now().await;
            let handle = listener.client.handle();
            handle.mailbox().take(handle.protocol(), true, &mut heard);
        }
        for key in ["deleted", "taken", "emptied"] {
            assert!(told(&heard, "del", key), "{heard:?}");
            assert!(!told(&heard, "evicted", key), "{heard:?}");
        }
        shutdown.cancel();
        telling.await.unwrap().unwrap();
    }
}
