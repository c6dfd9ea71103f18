//! Uses of sessions that wait for whoever leads to take them.

use hashbrown::HashMap;

use crate::core::session::{SessionKey, Uid};
use crate::core::time::Time;

/// Whose turn it is to take them: the latest who began. A leader that was deposed may still have its stream open, and
/// what it took would be lost to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

/// The latest use of each session that was not taken yet.
#[derive(Debug, Default)]
pub struct Renewals {
    used: HashMap<SessionKey, (Uid, Time)>,
    turn: u64,
    /// Some did not fit since the last turn began.
    lost: bool,
}

impl Renewals {
    /// Room for sessions that the watch has not shown yet.
    pub const BEYOND: usize = 65_536;

    /// Somebody begins to take them. What is there by now does not count for them, since it is not all there was.
    pub fn begin(&mut self) -> Turn {
        self.turn += 1;
        self.lost = false;
        self.used = HashMap::new();
        Turn(self.turn)
    }

    /// A session was used.
    pub fn add(&mut self, key: &SessionKey, uid: Uid, used: Time, room: usize) {
        if let Some((known, latest)) = self.used.get_mut(key) {
            if used > *latest {
                (*known, *latest) = (uid, used);
            }
        } else if self.used.len() < room {
            self.used.insert(key.clone(), (uid, used));
        } else {
            self.lost = true;
        }
    }

    /// The session is gone.
    pub fn forget(&mut self, key: &SessionKey) {
        self.used.remove(key);
    }

    /// Takes at most `most`. `None` if it is somebody else's turn, or if this is not all there was.
    pub fn take(&mut self, turn: Turn, most: usize) -> Option<Vec<(SessionKey, Uid, Time)>> {
        if self.turn != turn.0 || self.lost {
            return None;
        }
        if self.used.len() <= most {
            return Some(
                std::mem::take(&mut self.used).into_iter().map(|(key, (uid, used))| (key, uid, used)).collect(),
            );
        }
        let keys: Vec<SessionKey> = self.used.keys().take(most).cloned().collect();
        Some(keys.into_iter().filter_map(|key| self.used.remove(&key).map(|(uid, used)| (key, uid, used))).collect())
    }

    /// How many sessions wait.
    pub fn len(&self) -> usize {
        self.used.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.used.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uid = Uid::from_u128(1);

    fn key(name: &str) -> SessionKey {
        SessionKey::new("ns", name)
    }

    fn at(secs: u64) -> Time {
        Time::from_nanos(secs * 1_000_000_000)
    }

    #[test]
    fn the_latest_use_is_taken_once_by_whoever_began_last() {
        let mut renewals = Renewals::default();
        let first = renewals.begin();
        renewals.add(&key("a"), A, at(5), 10);
        renewals.add(&key("a"), A, at(3), 10);
        assert_eq!(renewals.take(first, 10), Some(vec![(key("a"), A, at(5))]));
        assert_eq!(renewals.take(first, 10), Some(vec![]));
        let second = renewals.begin();
        renewals.add(&key("b"), A, at(6), 10);
        assert_eq!(renewals.take(first, 10), None);
        assert_eq!(renewals.take(second, 10), Some(vec![(key("b"), A, at(6))]));
    }

    #[test]
    fn what_does_not_fit_is_not_passed_over_in_silence() {
        let mut renewals = Renewals::default();
        let turn = renewals.begin();
        for name in ["a", "b", "c"] {
            renewals.add(&key(name), A, at(5), 2);
        }
        assert_eq!(renewals.len(), 2);
        assert_eq!(renewals.take(turn, 10), None);
        let turn = renewals.begin();
        assert_eq!(renewals.take(turn, 10), Some(vec![]), "whoever begins has heard nothing before");
    }

    #[test]
    fn they_are_taken_in_parts() {
        let mut renewals = Renewals::default();
        let turn = renewals.begin();
        for number in 0..10 {
            renewals.add(&key(&number.to_string()), A, at(5), 100);
        }
        let parts: Vec<usize> = (0..4).map(|_| renewals.take(turn, 4).unwrap().len()).collect();
        assert_eq!(parts, [4, 4, 2, 0]);
    }
}
