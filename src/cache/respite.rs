//! A pause for an API server that says it has too much to do, or fails: for all GETs together, since it is one server.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::api_server::CallError;
use crate::runtime::api_error::ApiErrorKind;

/// The pause after the first failure; it doubles with each that follows.
const FIRST: Duration = Duration::from_millis(10);
/// The longest pause of our own.
const LONGEST: Duration = Duration::from_secs(1);
/// The longest pause that an API server is granted: whatever is wrong may be over.
const GRANTED: Duration = Duration::from_secs(30);
/// What an API server wants that sheds load without saying for how long: it sends this as a header, which is not passed on.
const SHED: Duration = Duration::from_secs(1);

/// Until when nothing is asked.
#[derive(Debug, Default)]
pub(super) struct Respite {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    /// In a row.
    failures: u32,
}

impl Respite {
    /// Waits until the pause is over. `false`, at once, if that is later than `end`.
    pub async fn over_by(&self, end: Instant) -> bool {
        loop {
            let until = self.state.lock().until;
            match until {
                Some(until) if until > end => return false,
                // It may have become longer meanwhile.
                Some(until) if until > Instant::now() => sleep_until(until).await,
                _ => return true,
            }
        }
    }

    /// A call was answered, or failed.
    pub fn heard(&self, error: Option<&CallError>) {
        let asked = error.and_then(CallError::retry_after);
        let pause = match error.and_then(CallError::kind) {
            Some(ApiErrorKind::TooManyRequests) => asked.unwrap_or(SHED),
            Some(ApiErrorKind::ServerError) => match asked {
                Some(asked) => asked,
                None => FIRST.saturating_mul(1 << self.state.lock().failures.min(10)).min(LONGEST),
            },
            // It answers as it should, or not at all: then the calls' own deadline is pause enough.
            _ => {
                self.state.lock().failures = 0;
                return;
            }
        };
        let until = Instant::now() + pause.min(GRANTED);
        let mut state = self.state.lock();
        state.failures = state.failures.saturating_add(1);
        state.until = state.until.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;
    use crate::runtime::api_error::ApiError;

    fn refused(code: u16, seconds: u32) -> CallError {
        let text = json!({"kind": "Status", "status": "Failure", "code": code, "reason": "", "message": "",
            "details": {"retryAfterSeconds": seconds}});
        CallError::Api(ApiError::from_status(&serde_json::from_value::<Status>(text).unwrap()))
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_as_long_as_the_api_server_asks() {
        let (respite, begun) = (Respite::default(), Instant::now());
        assert!(respite.over_by(begun).await, "nothing was wrong");
        respite.heard(Some(&refused(429, 7)));
        assert!(!respite.over_by(begun + Duration::from_secs(5)).await);
        assert_eq!(begun.elapsed(), Duration::ZERO, "nobody waits who cannot");
        assert!(respite.over_by(begun + Duration::from_secs(9)).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(7));
        respite.heard(Some(&refused(429, 3_600)));
        assert!(respite.over_by(Instant::now() + GRANTED).await, "but not for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn without_that_it_grows_with_each_failure_and_ends_with_the_first_answer() {
        let respite = Respite::default();
        let waited = async || {
            let begun = Instant::now();
            assert!(respite.over_by(begun + LONGEST).await);
            begun.elapsed()
        };
        for expected in [FIRST, FIRST * 2, FIRST * 4] {
            respite.heard(Some(&refused(500, 0)));
            assert_eq!(waited().await, expected);
        }
        respite.heard(None);
        assert_eq!(waited().await, Duration::ZERO);
        respite.heard(Some(&refused(503, 0)));
        assert_eq!(waited().await, FIRST);
    }
}
