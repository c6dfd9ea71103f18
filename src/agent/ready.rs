//! Whether an agent is of use: the API server can be reached, or a lease is held.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::cache::GetError;
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
            None => match cache.fresh(NOBODY).await {
                Ok(_) | Err(GetError::NotFound) => Ok(()),
                Err(error) => Err(error),
            },
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
