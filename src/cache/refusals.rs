//! Tells what an API server refuses for good from what it refuses because it has just started.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::api_server::CallError;
use crate::runtime::api_error::ApiErrorKind;

/// How long one that has started may refuse what it will grant: it does not know of all roles and accounts yet.
const SETTLES: Duration = Duration::from_secs(15);
/// Refusals that are further apart have nothing to do with each other.
const APART: Duration = Duration::from_mins(1);

/// Refusals for lack of a right, of which no answer says whether a role is missing or is not known yet.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// When the first one of a row was, and the last.
    row: Mutex<Option<(Instant, Instant)>>,
}

impl Refusals {
    /// Whether this one, at `now`, may pass by itself.
    pub fn may_pass(&self, error: &CallError, now: Instant) -> bool {
        if !matches!(error.kind(), Some(ApiErrorKind::Forbidden | ApiErrorKind::Unauthorized)) {
            return false;
        }
        let mut row = self.row.lock();
        let first = match *row {
            Some((first, last)) if now.saturating_duration_since(last) < APART => first,
            _ => now,
        };
        *row = Some((first, now));
        now.saturating_duration_since(first) < SETTLES
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::runtime::api_error::ApiError;

    #[test]
    fn a_lack_of_rights_counts_once_it_has_lasted_and_a_used_up_quota_at_once() {
        let refused = |message: &str| {
            let status = Status { code: 403, reason: "Forbidden".into(), message: message.into(), ..Status::default() };
            CallError::Api(ApiError::from_status(&status))
        };
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let may_pass = |seconds, message| refusals.may_pass(&refused(message), begin + Duration::from_secs(seconds));
        assert!(!may_pass(0, "it is forbidden: exceeded quota: q"));
        assert!(may_pass(0, "") && may_pass(14, ""));
        assert!(!may_pass(15, "") && !may_pass(70, ""));
        assert!(may_pass(130, ""), "another one, which may have started in between");
        let unauthorized = CallError::Api(ApiError::from_status(&Status { code: 401, ..Status::default() }));
        assert!(!refusals.may_pass(&unauthorized, begin + Duration::from_secs(145)));
        assert!(!refusals.may_pass(&CallError::NotServed, begin), "it says of its own accord that it is not ready yet");
    }
}
