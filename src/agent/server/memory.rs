//! What all clients take together, and who goes when that is too much.

use std::cmp::Reverse;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

use super::handle::ClientId;

/// The account of the bytes that clients take: buffers, messages that wait, commands that wait for `EXEC`, requests that are
/// being carried out.
///
/// A connection enters what it has after it has grown, so for a moment there may be more than the limit. What keeps this
/// short is that whoever enters too much wakes the one who [ends](too_large) the largest. A request that is carried out ends no
/// sooner for that, so it is asked [before](Self::carry) it begins: such requests take half of all at most.
#[derive(Debug)]
pub(super) struct Memory {
    limit: usize,
    total: AtomicUsize,
    /// What of it belongs to requests that are being carried out.
    carried: AtomicUsize,
    exceeded: Notify,
}

impl Memory {
    /// Nothing yet, of so many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, total: AtomicUsize::new(0), carried: AtomicUsize::new(0), exceeded: Notify::new() }
    }

    /// Bytes that clients may take beside the requests that are being carried out.
    pub(super) fn room(&self) -> usize {
        self.limit.saturating_sub(self.carried.load(Ordering::Relaxed))
    }

    /// Bytes that they take.
    pub(super) fn total(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    /// Whether that is too much.
    pub(super) fn is_exceeded(&self) -> bool {
        self.total() > self.limit
    }

    /// Returns when somebody has taken more than there is.
    pub(super) async fn exceeded(&self) {
        self.exceeded.notified().await;
    }

    /// Enters so many bytes of a request that takes `own` already while it is carried out; false: all take too much. A single one is
    /// always taken, however large: to wait for others would not help it.
    pub(super) fn carry(&self, own: usize, bytes: usize) -> bool {
        let enter = |carried: usize| {
            let with = carried.saturating_add(bytes);
            (carried <= own || with <= self.limit / 2).then_some(with)
        };
        let entered = self.carried.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_ok();
        if entered {
            self.change(0, bytes);
        }
        entered
    }

    /// A request that was entered is done.
    pub(super) fn carried(&self, bytes: usize) {
        self.carried.fetch_sub(bytes, Ordering::Relaxed);
        self.change(bytes, 0);
    }

    /// What was `before` is `now`.
    pub(super) fn change(&self, before: usize, now: usize) {
        if now >= before {
            let taken = now - before;
            if self.total.fetch_add(taken, Ordering::Relaxed) + taken > self.limit && taken > 0 {
                self.exceeded.notify_one();
            }
        } else {
            self.total.fetch_sub(before - now, Ordering::Relaxed);
        }
    }
}

/// Who must go so that the others take no more than `limit` bytes: the largest first, and of equals the newest, as few as
/// will do. It is what Redis does for `maxmemory-clients`, but that it takes a client of about the same size.
pub(super) fn too_large(clients: impl Iterator<Item = (ClientId, usize)>, limit: usize) -> Vec<ClientId> {
    let mut clients: Vec<_> = clients.filter(|(_, bytes)| *bytes > 0).collect();
    let mut total: usize = clients.iter().map(|(_, bytes)| bytes).sum();
    if total <= limit {
        return Vec::new();
    }
    clients.sort_unstable_by_key(|(id, bytes)| Reverse((*bytes, *id)));
    let must_go = clients.into_iter().take_while(|(_, bytes)| {
        let still = total > limit;
        total -= bytes;
        still
    });
    must_go.map(|(id, _)| id).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::time::timeout;

    use super::*;

    fn go(clients: &[(u64, usize)], limit: usize) -> Vec<u64> {
        too_large(clients.iter().map(|(id, bytes)| (ClientId(*id), *bytes)), limit).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn the_largest_goes_and_of_equals_the_newest() {
        assert_eq!(go(&[(1, 10), (2, 70), (3, 20)], 100), [0; 0]);
        assert_eq!(go(&[(1, 10), (2, 70), (3, 20)], 99), [2]);
        assert_eq!(go(&[(1, 50), (2, 50), (3, 50)], 100), [3]);
        assert_eq!(go(&[(1, 50), (2, 50), (3, 50), (4, 0)], 0), [3, 2, 1]);
    }

    proptest! {
        #[test]
        fn as_few_go_as_will_do(sizes in prop::collection::vec(0_usize..1_000, 0..50), limit in 0_usize..20_000) {
            let clients: Vec<_> = (0..).zip(sizes).collect();
            let gone = go(&clients, limit);
            let left = |gone: &[u64]| -> usize {
                clients.iter().filter(|(id, _)| !gone.contains(id)).map(|(_, bytes)| bytes).sum()
            };
            prop_assert!(left(&gone) <= limit);
            if let Some((_, all_but_the_last)) = gone.split_last() {
                prop_assert!(left(all_but_the_last) > limit);
            }
        }
    }

    #[tokio::test]
    async fn who_takes_too_much_wakes_whoever_sees_to_it() {
        let memory = Memory::new(100);
        let woken = async || timeout(Duration::from_millis(1), memory.exceeded()).await.is_ok();
        memory.change(0, 100);
        assert!(!memory.is_exceeded() && !woken().await);
        memory.change(0, 1);
        assert!(memory.is_exceeded() && woken().await);
        memory.change(100, 50);
        assert!(!memory.is_exceeded() && !woken().await);
        assert_eq!(memory.total(), 51);
        // More than before is too much, even if it is of one who has little.
        memory.change(50, 100);
        assert!(woken().await);
    }

    #[test]
    fn requests_that_are_carried_out_take_half_and_leave_the_rest_to_others() {
        let memory = Memory::new(100);
        assert!(memory.carry(0, 30) && memory.carry(0, 20));
        assert!(!memory.carry(0, 1), "that is half of all");
        assert_eq!((memory.total(), memory.room()), (50, 50));
        memory.carried(30);
        assert!(memory.carry(0, 1));
        memory.carried(20);
        memory.carried(1);
        assert_eq!((memory.total(), memory.room()), (0, 100));
        // Otherwise it could never be carried out.
        assert!(memory.carry(0, 1_000) && !memory.carry(0, 1));
        assert_eq!(memory.room(), 0);
        assert!(memory.is_exceeded());
    }
}
