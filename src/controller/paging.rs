//! How many objects of a list are asked for at once. An object may have a mebibyte: what is right for small ones is more than
//! an API server can send in time, or this process should hold, of large ones.

use std::time::Duration;

use crate::runtime::api_error::ApiErrorKind;

/// Objects in the first page.
const FIRST: u32 = 100;
/// Objects in one page, at most.
const MOST: u32 = 500;
/// After so many pages in a row that came, twice as much may be asked for as before.
const GOOD: u32 = 4;
/// Bytes that a page should have.
const TARGET: usize = 16 << 20;
/// Bytes of a page that are read, at most. The objects behind small ones may be large, and a page of the largest is more than
/// this process has.
const MOST_BYTES: u64 = 48 << 20;
/// How long the answer with one page may take, at most.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a page is waited for that follows others. Where a list goes on is forgotten after some five minutes, or
/// more if the API server is away: whoever waited for that would hold the pages that came for nothing.
const LONGEST: Duration = Duration::from_mins(2);

/// The size of the next page. It is remembered from one list to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paging {
    objects: u32,
    /// A size at which the API server failed: less is asked for. It grows with the pages that come, since what failed may have had
    /// another reason.
    too_many: u32,
    /// Pages that came since then, or since it grew.
    good: u32,
    /// Answers of this list that did not come in time.
    late: u32,
}

impl Default for Paging {
    fn default() -> Self {
        Self { objects: FIRST, too_many: MOST + 1, good: 0, late: 0 }
    }
}

impl Paging {
    /// How many objects to ask for.
    pub fn limit(self) -> u32 {
        self.objects
    }

    /// How many bytes of the page to read. More is [too large](Self::failed), unless it is a single object.
    pub fn most_bytes(self) -> u64 {
        if self.objects == 1 { u64::MAX } else { MOST_BYTES }
    }

    /// How long to wait for the page. An API server that is cut off from etcd answers never, and another one may be in reach: whoever
    /// began with a long wait would have no lease meanwhile. One that is only slow is given twice as long each time.
    pub fn answer_within(self, patience: Duration) -> Duration {
        patience.saturating_mul(2_u32.saturating_pow(self.late)).min(ANSWER)
    }

    /// A page came: so many objects, which have so many bytes.
    pub fn came(&mut self, objects: usize, bytes: usize) {
        let Some(mean) = bytes.checked_div(objects) else { return };
        let fit = TARGET / mean.max(1);
        let most = MOST.min(self.too_many - 1).max(1);
        self.objects = u32::try_from(fit).unwrap_or(u32::MAX).clamp(1, most);
        self.good += 1;
        if self.good == GOOD {
            self.good = 0;
            self.too_many = (self.too_many * 2).min(MOST + 1);
        }
    }

    /// A page did not come. Says whether to ask for a smaller one.
    pub fn failed(&mut self, kind: ApiErrorKind) -> bool {
        self.late = self.late.saturating_add(u32::from(kind == ApiErrorKind::Timeout));
        let by_size = matches!(kind, ApiErrorKind::Timeout | ApiErrorKind::TooLarge | ApiErrorKind::ServerError);
        if !by_size || self.objects == 1 {
            return false;
        }
        self.too_many = self.objects;
        self.good = 0;
        self.objects /= 2;
        true
    }

    /// Whether to ask again for a page that follows others, did not come for this reason, and has been missing for so
    /// long. To begin the list anew would be to ask for all of them again.
    pub fn may_come(kind: ApiErrorKind, missing: Duration) -> bool {
        kind.passes() && missing < LONGEST
    }

    /// The list is complete, or must begin anew since it took too long.
    pub fn complete(&mut self) {
        self.too_many = MOST + 1;
        self.late = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_as_large_as_its_objects_allow() {
        let mut paging = Paging::default();
        assert_eq!(paging.limit(), 100);
        paging.came(100, 100 * 500);
        assert_eq!(paging.limit(), 500);
        paging.came(500, 500 << 20);
        assert_eq!(paging.limit(), 16);
        paging.came(1, 64 << 20);
        assert_eq!(paging.limit(), 1);
        paging.came(0, 0);
        assert_eq!(paging.limit(), 1);
    }

    #[test]
    fn what_is_too_much_is_halved_until_it_comes() {
        let mut paging = Paging::default();
        assert!(!paging.failed(ApiErrorKind::Forbidden), "no smaller page would be allowed");
        assert!(paging.failed(ApiErrorKind::Timeout) && paging.failed(ApiErrorKind::TooLarge));
        assert_eq!(paging.limit(), 25);
        paging.came(25, 25);
        assert_eq!(paging.limit(), 49, "less than what failed");
        paging.complete();
        paging.came(25, 25);
        assert_eq!(paging.limit(), 500);
        while paging.limit() > 1 {
            assert!(paging.failed(ApiErrorKind::Timeout));
        }
        assert!(!paging.failed(ApiErrorKind::Timeout));
    }

    #[test]
    fn a_page_is_waited_for_while_the_api_server_is_away_and_not_for_ever() {
        use ApiErrorKind::{Forbidden, Gone, ServerError, Timeout, TooLarge, TooManyRequests, Unreachable};
        for kind in [ServerError, Timeout, TooManyRequests, Unreachable] {
            assert!(Paging::may_come(kind, LONGEST / 2), "{kind:?}");
            assert!(!Paging::may_come(kind, LONGEST), "{kind:?}");
        }
        for kind in [Forbidden, Gone, TooLarge] {
            assert!(!Paging::may_come(kind, Duration::ZERO), "{kind:?}");
        }
    }

    #[test]
    fn who_does_not_answer_is_waited_for_longer_each_time_until_the_list_is_complete() {
        let (mut paging, patience) = (Paging::default(), Duration::from_secs(7));
        let mut within = Vec::new();
        for _ in 0..40 {
            within.push(paging.answer_within(patience).as_secs());
            paging.failed(ApiErrorKind::Timeout);
        }
        assert_eq!(within[..5], [7, 14, 28, 30, 30]);
        paging.failed(ApiErrorKind::ServerError);
        assert_eq!(paging.answer_within(patience), ANSWER, "also of a single object");
        paging.complete();
        assert_eq!(paging.answer_within(patience), patience);
        paging.failed(ApiErrorKind::ServerError);
        assert_eq!(paging.answer_within(patience), patience, "it has answered");
    }

    #[test]
    fn a_burst_of_failures_does_not_make_pages_small_for_long() {
        let mut paging = Paging::default();
        while paging.failed(ApiErrorKind::ServerError) {}
        let mut listed = 0;
        for _ in 0..50 {
            let limit = paging.limit();
            listed += limit;
            paging.came(limit as usize, 1_000 * limit as usize);
        }
        assert_eq!(paging.limit(), MOST);
        assert!(listed > 5 * MOST, "{listed}");
    }
}
