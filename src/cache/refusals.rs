//! Tells what an API server refuses for good from what it refuses because it has just started.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::runtime::api_error::ApiErrorKind as K;

/// How long one that has started may refuse what it will grant: it does not know of all roles and accounts yet.
const SETTLES: Duration = Duration::from_secs(15);

/// What is asked of it. An account may have the right for one and not for another.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    /// `get`
    Get,
    /// `create`
    Create,
    /// `patch`
    Patch,
    /// `delete`
    Delete,
}

/// Since when each verb has been refused for lack of a right, and never granted: no answer says whether a role is missing or is not
/// known yet.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<[Option<Instant>; 4]>);

impl Refusals {
    /// It was answered, at `now`: with an error of this kind, or with what was asked for. Returns whether that is a refusal which may
    /// pass by itself.
    pub fn answered(&self, verb: Verb, error: Option<K>, now: Instant) -> bool {
        let since = &mut self.0.lock()[verb as usize];
        match error {
            Some(K::Forbidden | K::Unauthorized) => now.saturating_duration_since(*since.get_or_insert(now)) < SETTLES,
            // Whoever may not is told so before anything else is looked at.
            None | Some(K::AlreadyExists | K::Conflict | K::UidMismatch | K::Invalid | K::OverQuota) => {
                *since = None;
                false
            }
            // It says nothing about rights.
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_rights_counts_once_it_has_lasted_and_each_verb_has_its_own() {
        let (refusals, begin) = (Refusals::default(), Instant::now());
        let may_pass = |seconds, verb, error| refusals.answered(verb, error, begin + Duration::from_secs(seconds));
        let refused = Some(K::Forbidden);
        assert!(!may_pass(0, Verb::Create, Some(K::OverQuota)));
        assert!(may_pass(0, Verb::Get, refused) && may_pass(14, Verb::Get, Some(K::Unauthorized)));
        assert!(!may_pass(15, Verb::Get, refused) && !may_pass(4_000, Verb::Get, refused));
        assert!(may_pass(4_000, Verb::Delete, refused), "it is another right");
        assert!(!may_pass(4_001, Verb::Get, Some(K::Timeout)) && !may_pass(4_002, Verb::Get, refused));
        for granted in [None, Some(K::Conflict)] {
            assert!(!may_pass(4_003, Verb::Get, granted));
            assert!(may_pass(4_004, Verb::Get, refused), "another one may have started");
            assert!(!may_pass(4_020, Verb::Delete, refused));
        }
    }
}
