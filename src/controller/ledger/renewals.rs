//! Uses of sessions that wait for whoever leads to take them.

use hashbrown::HashMap;

use crate::core::session::{SessionKey, Uid};
use crate::core::tally::{Bounds, Full, Tally};
use crate::core::time::Time;

/// Sessions that the watch has not shown yet, or that do not exist: anybody can name as many as they like.
const STRANGERS: Bounds = Bounds { all: 65_536, per_pod: usize::MAX };

/// Whose turn it is to take them: the latest who began. A leader that was deposed may still have its stream open, and
/// what it took would be lost to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn(u64);

#[derive(Debug)]
struct Use {
    uid: Uid,
    at: Time,
    stranger: bool,
}

/// The latest use of each session that was not taken yet. There is room for all sessions that are known, and for others of
/// each namespace as [`Tally`] has it: so whoever makes up names harms its own namespace only.
#[derive(Debug, Default)]
pub struct Renewals {
    used: HashMap<SessionKey, Use>,
    strangers: Tally,
    turn: u64,
    /// Whoever's turn it is has taken something.
    begun: bool,
}

/// What was taken.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken {
    /// The latest use of each session.
    pub uses: Vec<(SessionKey, Uid, Time)>,
    /// Whether nothing was taken in this turn before.
    pub first: bool,
}

impl Renewals {
    /// Somebody begins to take them.
    pub fn begin(&mut self) -> Turn {
        self.turn += 1;
        self.begun = false;
        Turn(self.turn)
    }

    /// Nobody takes any more, and nothing waits.
    pub fn restart(&mut self) {
        self.begin();
        self.clear();
    }

    fn clear(&mut self) -> HashMap<SessionKey, Use> {
        self.strangers = Tally::default();
        std::mem::take(&mut self.used)
    }

    /// A session was used. Of `sessions` it is one if it is `known`.
    ///
    /// # Errors
    ///
    /// It is not known, and no more of its namespace can wait: nothing is kept.
    pub fn add(&mut self, key: &SessionKey, uid: Uid, at: Time, known: bool, sessions: usize) -> Result<(), Full> {
        if let Some(latest) = self.used.get_mut(key) {
            if at > latest.at {
                (latest.uid, latest.at) = (uid, at);
            }
            return Ok(());
        }
        // Some that wait may have been known once.
        let stranger = !known || self.used.len() - self.strangers.used() >= sessions;
        if stranger {
            self.strangers.admits(key.namespace(), "", STRANGERS)?;
            self.strangers.add(key.namespace(), "");
        }
        self.used.insert(key.clone(), Use { uid, at, stranger });
        Ok(())
    }

    /// The session is gone.
    pub fn forget(&mut self, key: &SessionKey) {
        if self.used.remove(key).is_some_and(|used| used.stranger) {
            self.strangers.remove(key.namespace(), "");
        }
    }

    /// Takes all of them. `None` if it is somebody else's turn.
    pub fn take(&mut self, turn: Turn) -> Option<Taken> {
        if self.turn != turn.0 {
            return None;
        }
        let uses = self.clear().into_iter().map(|(key, used)| (key, used.uid, used.at)).collect();
        Some(Taken { uses, first: !std::mem::replace(&mut self.begun, true) })
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
        renewals.add(&key("a"), A, at(5), true, 10).unwrap();
        renewals.add(&key("a"), A, at(3), true, 10).unwrap();
        assert_eq!(renewals.take(first), Some(Taken { uses: vec![(key("a"), A, at(5))], first: true }));
        assert_eq!(renewals.take(first), Some(Taken { uses: vec![], first: false }));
        renewals.add(&key("b"), A, at(6), true, 10).unwrap();
        let second = renewals.begin();
        assert_eq!(renewals.take(first), None);
        assert_eq!(renewals.take(second), Some(Taken { uses: vec![(key("b"), A, at(6))], first: true }));
        renewals.add(&key("b"), A, at(7), true, 10).unwrap();
        renewals.restart();
        assert!(renewals.is_empty() && renewals.take(second).is_none());
    }

    #[test]
    fn who_makes_up_names_takes_nothing_from_sessions_and_from_other_namespaces() {
        let mut renewals = Renewals::default();
        let turn = renewals.begin();
        let flood = |renewals: &mut Renewals, sessions| {
            (0..STRANGERS.all)
                .take_while(|n| renewals.add(&key(&n.to_string()), A, at(5), false, sessions).is_ok())
                .count()
        };
        let most = flood(&mut renewals, 1);
        assert!(most > STRANGERS.all / 2 && most < STRANGERS.all, "{most}");
        // Also of sessions that were known when they were used, and are no more.
        let other = SessionKey::new("other", "unknown");
        assert_eq!(renewals.add(&key("known"), A, at(5), true, 1), Ok(()));
        assert_eq!(renewals.add(&key("known-too"), A, at(5), true, 1), Err(Full::Namespace));
        assert_eq!(renewals.add(&other, A, at(5), false, 1), Ok(()));
        assert_eq!(renewals.len(), most + 2);
        renewals.forget(&key("0"));
        renewals.forget(&key("1"));
        assert_eq!(renewals.add(&key("0"), A, at(5), false, 1), Ok(()));
        assert_eq!(renewals.take(turn).map(|taken| taken.uses.len()), Some(most + 1));
        assert_eq!(flood(&mut renewals, 1), most, "what was taken counts no more");
    }
}
