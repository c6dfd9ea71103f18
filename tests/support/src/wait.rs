//! Waiting for conditions, never for time.

use crate::{Error, Result};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// How long to pause between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// Calls `check` until it returns something, and returns that; fails when it has not within `deadline`.
///
/// A check that hangs is given up at the deadline too. Not `AsyncFnMut`: with that, the futures of callers are not
/// `Send` in the compiler's eyes.
pub async fn eventually<T, F>(deadline: Duration, what: &str, mut check: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Option<T>>,
{
    let end = Instant::now() + deadline;
    loop {
        match timeout_at(end, check()).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) if Instant::now() < end => sleep(POLL).await,
            Ok(None) | Err(_) => {
                return Err(Error::Deadline { what: what.to_owned(), waited: deadline });
            }
        }
    }
}
