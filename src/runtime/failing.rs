//! Which failures of something that is tried again and again are worth a line in the log.

use std::time::Duration;

use tokio::time::Instant;

/// How long a reason is not said again.
const QUIET: Duration = Duration::from_mins(1);
/// Reasons that are said within that time, at most: some differ with each attempt.
const MOST: usize = 4;

/// What is known to those who read the log: a reason that is new to them is said at once, and again each minute while it lasts;
/// and that it is over, once.
#[derive(Debug, Default)]
pub struct Failing {
    /// What was said, and when, of the last minute.
    said: Vec<(String, Instant)>,
    told: bool,
}

impl Failing {
    /// It has failed at `now` for `reason`. Returns whether that is to be said, aloud; otherwise it is known.
    pub fn failed(&mut self, reason: &str, now: Instant) -> bool {
        self.said.retain(|(_, at)| now.saturating_duration_since(*at) < QUIET);
        if self.said.len() >= MOST || self.said.iter().any(|(said, _)| said == reason) {
            return false;
        }
        self.said.push((reason.to_owned(), now));
        self.told = true;
        true
    }

    /// It works. Returns whether that is to be said: somebody was told that it does not. What was said stays known, so that
    /// what fails every other time does not fill the log.
    pub fn over(&mut self) -> bool {
        std::mem::take(&mut self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of these, so many seconds after a begin that is the same for all.
    fn said(failing: &mut Failing, begin: Instant, attempts: &[(u64, &str)]) -> Vec<bool> {
        let at = |seconds: &u64| begin + Duration::from_secs(*seconds);
        attempts.iter().map(|(seconds, reason)| failing.failed(reason, at(seconds))).collect()
    }

    #[test]
    fn another_reason_is_said_at_once_and_the_same_one_each_minute() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        let attempts = [(0, "refused"), (1, "refused"), (2, "unknown issuer"), (3, "refused"), (59, "refused")];
        assert_eq!(said(&mut failing, begin, &attempts), [true, false, true, false, false]);
        assert_eq!(said(&mut failing, begin, &[(60, "refused"), (61, "refused")]), [true, false]);
        assert_eq!(said(&mut failing, begin, &[(62, "unknown issuer")]), [true]);
    }

    #[test]
    fn reasons_that_always_differ_are_bounded() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        let reasons: Vec<String> = (0..120).map(|second| format!("port {second}")).collect();
        let attempts: Vec<(u64, &str)> = (0..).zip(reasons.iter().map(String::as_str)).collect();
        let aloud = said(&mut failing, begin, &attempts).into_iter().filter(|said| *said).count();
        assert_eq!(aloud, 2 * MOST);
    }

    #[test]
    fn that_it_is_over_is_said_once_and_only_to_those_who_were_told() {
        let (mut failing, begin) = (Failing::default(), Instant::now());
        assert!(!failing.over());
        assert_eq!(said(&mut failing, begin, &[(0, "refused")]), [true]);
        assert!(failing.over() && !failing.over());
        // Failing every other time: nobody is told of either.
        assert_eq!(said(&mut failing, begin, &[(1, "refused")]), [false]);
        assert!(!failing.over());
        assert_eq!(said(&mut failing, begin, &[(60, "refused")]), [true]);
        assert!(failing.over());
    }
}
