//! Whether an agent is of use: the API server can be reached, or a lease is held.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::runtime::health::Readiness;

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(1);
/// No session has this name: ids that begin with the escape are named otherwise.
const NOBODY: &str = "x--probe";

/// Keeps `readiness` up to date until `shutdown`. The API server is asked only while there is no lease.
pub async fn run(agent: Arc<Agent>, readiness: Readiness, shutdown: CancellationToken) -> Result<(), Infallible> {
    loop {
        let cache = agent.sessions.cache();
        let reached = match cache.leased_until() {
            Some(_) => Ok(()),
            // Not by a read: what clients ask for must not decide whether this is answered, nor the other way round.
            None => cache.reaches_api_server(NOBODY).await,
        };
        match reached {
            Ok(()) => readiness.ready(),
            Err(error) => readiness.not_ready(format!("no lease is held, and {error}")),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = sleep(PERIOD) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::testing::Bench;

    #[tokio::test]
    async fn a_flood_of_unknown_ids_does_not_hide_that_the_api_server_answers() {
        let bench = Bench::new();
        let cache = bench.agent.sessions.cache().clone();
        for n in 0..1_000 {
            let sessions = bench.agent.sessions.clone();
            tokio::spawn(async move { sessions.get(format!("unknown-{n}").as_bytes()).await });
        }
        while cache.state().overloaded == 0 {
            tokio::task::yield_now().await;
        }
        // It does not queue behind what waits for seconds.
        let told = tokio::time::timeout(Duration::from_secs(2), cache.reaches_api_server(NOBODY)).await;
        told.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_look_at_the_api_server_is_in_no_count_of_reads() {
        let bench = Bench::new();
        let cache = bench.agent.sessions.cache();
        cache.reaches_api_server(NOBODY).await.unwrap();
        bench.api.is_down(true);
        cache.reaches_api_server(NOBODY).await.unwrap_err();
        let state = cache.state();
        assert_eq!((state.not_found, state.unavailable, state.restored, state.api_calls), (0, 0, 0, 2));
    }
}
