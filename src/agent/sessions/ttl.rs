//! When a session ends: what a timeout becomes in the object, and what is made of that. Pure: time comes in.
//!
//! A timeout of whole seconds, a minute or longer, is the object's idle timeout, and is begun anew in memory. Any other one
//! is exact: the instant at which the session ends stands in an annotation, in milliseconds, and is written each time. The
//! idle timeout is there too, rounded up, so that the controller ends what no agent looks at any more.

use std::num::NonZeroU64;

use thiserror::Error;

use crate::api::{ANNOTATION_RENEWED_AT, MAX_TIMEOUT_SECONDS};
use crate::cache::Facts;

/// Annotation with the instant at which a session ends, in milliseconds since 1970.
pub const ANNOTATION_EXPIRES_AT: &str = "vmcp.dev/expires-at";

/// Shorter timeouts are exact.
const COARSE_FROM: u64 = 60_000;

/// What a write does to the timeout of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Leaves it as it is (`KEEPTTL`, hash commands).
    Keep,
    /// Removes it (`SET` without an option, `PERSIST`).
    Clear,
    /// The session ends so many milliseconds from now, unless it is renewed (`EX`, `PX`, `EXPIRE`, `PEXPIRE`).
    Millis(u64),
    /// The session ends at this instant, in milliseconds since 1970 (`EXAT`, `PXAT`, `EXPIREAT`, `PEXPIREAT`). If that is in
    /// the past, it has ended.
    At(u64),
}

/// A timeout is longer than the resource allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a session's timeout can be {MAX_TIMEOUT_SECONDS} seconds (a year) at most")]
pub struct TooLong;

/// A timeout as an object has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    /// `spec.idleTimeoutSeconds`.
    pub idle_seconds: u32,
    /// The instant at which the session ends, if it is exact.
    pub expires_at: Option<u64>,
}

/// What becomes of a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// It stays.
    Keep,
    /// There is none.
    Clear,
    /// It begins now.
    Begin(Timeout),
    /// It is over already.
    Over,
}

impl Ttl {
    /// What this means at `now` (milliseconds since 1970).
    pub fn at(self, now: u64) -> Result<Wanted, TooLong> {
        let (millis, instant) = match self {
            Self::Keep => return Ok(Wanted::Keep),
            Self::Clear => return Ok(Wanted::Clear),
            Self::Millis(millis) => (millis, now.saturating_add(millis)),
            Self::At(instant) => (instant.saturating_sub(now), instant),
        };
        if millis == 0 {
            return Ok(Wanted::Over);
        }
        let seconds = u32::try_from(millis.div_ceil(1_000)).unwrap_or(u32::MAX);
        if seconds > MAX_TIMEOUT_SECONDS {
            return Err(TooLong);
        }
        // An instant is kept as it was given: whoever asks for it must read it back.
        let coarse = matches!(self, Self::Millis(_)) && millis >= COARSE_FROM && millis % 1_000 == 0;
        let expires_at = (!coarse).then_some(instant);
        Ok(Wanted::Begin(Timeout { idle_seconds: seconds, expires_at }))
    }
}

/// When a session ends, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// In milliseconds since 1970.
    pub at: u64,
    /// Whether it ends then. Else somebody may have renewed it elsewhere, and the controller decides.
    pub exact: bool,
}

impl Deadline {
    /// When a session with these facts ends, if a client of this pod renewed it at `renewed`; `None` if it has no timeout.
    pub fn of(facts: &Facts, renewed: Option<u64>) -> Option<Self> {
        let idle = u64::from(facts.idle_timeout_seconds?) * 1_000;
        if let Some(at) = expires_at(facts) {
            return Some(Self { at, exact: true });
        }
        let last_renewed = facts.last_renewed.map(NonZeroU64::get);
        let known = [Some(facts.created), last_renewed, instant(facts, ANNOTATION_RENEWED_AT), renewed];
        let begun = known.into_iter().flatten().max().unwrap_or(0);
        Some(Self { at: begun.saturating_add(idle), exact: false })
    }

    /// Whether it has passed at `now`.
    pub fn has_passed(self, now: u64) -> bool {
        self.at <= now
    }

    /// Whether the session has ended at `now` by the clock of this machine, whatever others know of it.
    pub fn is_over(self, now: u64) -> bool {
        self.exact && self.has_passed(now)
    }
}

/// When the object says that it was renewed, or else was made.
pub fn written_renewal(facts: &Facts) -> u64 {
    instant(facts, ANNOTATION_RENEWED_AT).unwrap_or(0).max(facts.created)
}

/// The instant at which an object says that it ends.
pub fn expires_at(facts: &Facts) -> Option<u64> {
    instant(facts, ANNOTATION_EXPIRES_AT)
}

/// The instant in an annotation. What is no number is nothing that an agent wrote.
fn instant(facts: &Facts, annotation: &str) -> Option<u64> {
    facts.annotations.get(annotation)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn timeout(idle_seconds: u32, expires_at: Option<u64>) -> Wanted {
        Wanted::Begin(Timeout { idle_seconds, expires_at })
    }

    fn facts(timeout: Timeout) -> Facts {
        let name: Arc<str> = ANNOTATION_EXPIRES_AT.into();
        let annotation = timeout.expires_at.map(|at| (name, at.to_string().into_boxed_str()));
        let annotations = annotation.into_iter().collect();
        Facts { idle_timeout_seconds: Some(timeout.idle_seconds), created: NOW, annotations, ..Facts::default() }
    }

    #[test]
    fn only_whole_seconds_from_a_minute_on_are_left_to_the_controller() {
        assert_eq!(Ttl::Millis(1_800_000).at(NOW), Ok(timeout(1_800, None)));
        assert_eq!(Ttl::Millis(60_000).at(NOW), Ok(timeout(60, None)));
        assert_eq!(Ttl::Millis(59_000).at(NOW), Ok(timeout(59, Some(NOW + 59_000))));
        assert_eq!(Ttl::Millis(60_001).at(NOW), Ok(timeout(61, Some(NOW + 60_001))));
        assert_eq!(Ttl::Millis(200).at(NOW), Ok(timeout(1, Some(NOW + 200))));
        assert_eq!(Ttl::At(NOW + 120_000).at(NOW), Ok(timeout(120, Some(NOW + 120_000))));
        assert_eq!(Ttl::Keep.at(NOW), Ok(Wanted::Keep));
        assert_eq!(Ttl::Clear.at(NOW), Ok(Wanted::Clear));
    }

    #[test]
    fn the_past_is_over_and_what_is_too_long_is_refused() {
        assert_eq!(Ttl::At(NOW).at(NOW), Ok(Wanted::Over));
        assert_eq!(Ttl::At(1).at(NOW), Ok(Wanted::Over));
        assert_eq!(Ttl::Millis(0).at(NOW), Ok(Wanted::Over));
        let year = u64::from(MAX_TIMEOUT_SECONDS) * 1_000;
        assert_eq!(Ttl::Millis(year).at(NOW), Ok(timeout(MAX_TIMEOUT_SECONDS, None)));
        for ttl in [Ttl::Millis(year + 1), Ttl::Millis(u64::MAX), Ttl::At(u64::MAX)] {
            assert_eq!(ttl.at(NOW), Err(TooLong), "{ttl:?}");
        }
    }

    #[test]
    fn a_session_lives_on_from_the_latest_renewal_that_is_known() {
        let coarse = |last_renewed: Option<u64>, renewed| {
            let last_renewed = last_renewed.and_then(NonZeroU64::new);
            let facts = Facts { last_renewed, ..facts(Timeout { idle_seconds: 60, expires_at: None }) };
            Deadline::of(&facts, renewed).unwrap()
        };
        assert_eq!(coarse(None, None), Deadline { at: NOW + 60_000, exact: false });
        assert_eq!(coarse(Some(NOW + 5_000), None).at, NOW + 65_000);
        assert_eq!(coarse(Some(NOW + 5_000), Some(NOW + 7_123)).at, NOW + 67_123);
        assert_eq!(coarse(Some(NOW + 9_000), Some(NOW + 7_123)).at, NOW + 69_000);
        let name: Arc<str> = ANNOTATION_RENEWED_AT.into();
        let annotations = [(name, (NOW + 100_000).to_string().into_boxed_str())].into_iter().collect();
        let set_anew = Facts { idle_timeout_seconds: Some(60), created: NOW, annotations, ..Facts::default() };
        assert_eq!(Deadline::of(&set_anew, None).unwrap().at, NOW + 160_000);
    }

    #[test]
    fn an_instant_without_an_idle_timeout_or_that_is_no_number_means_nothing() {
        let exact = facts(Timeout { idle_seconds: 1, expires_at: Some(NOW) });
        assert_eq!(Deadline::of(&exact, Some(NOW + 500)), Some(Deadline { at: NOW, exact: true }));
        let removed = Facts { idle_timeout_seconds: None, ..exact };
        assert_eq!(Deadline::of(&removed, None), None, "somebody took the timeout away");
        let name: Arc<str> = ANNOTATION_EXPIRES_AT.into();
        let nonsense = Facts { annotations: [(name, "soon".into())].into_iter().collect(), ..Facts::default() };
        assert_eq!(expires_at(&nonsense), None);
    }

    proptest! {
        #[test]
        fn what_an_object_is_given_tells_the_timeout_to_the_millisecond(millis in 1u64..100_000_000, later in 0u64..1_000_000) {
            for ttl in [Ttl::Millis(millis), Ttl::At(NOW + millis)] {
                let Ok(Wanted::Begin(timeout)) = ttl.at(NOW) else { panic!("{ttl:?}") };
                let deadline = Deadline::of(&facts(timeout), Some(NOW)).unwrap();
                prop_assert_eq!(deadline.at, NOW + millis);
                prop_assert_eq!(deadline.has_passed(NOW + later), later >= millis);
                // The controller never ends it before that.
                prop_assert!(u64::from(timeout.idle_seconds) * 1_000 >= millis);
            }
        }
    }
}
