//! When enough replicas have confirmed that no pod serves anything older than a state (I4, I8).
//!
//! Each names those that were registered when it had seen the state. If everybody on one of these lists has confirmed, that is
//! enough: the list holds every replica that may have granted a lease without knowing of the state.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Replicas that are remembered, and that one of them may name, at most.
const MOST: usize = 256;

/// Who has confirmed, and whom each has named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    confirmed: BTreeMap<Arc<str>, Vec<Arc<str>>>,
}

impl Quorum {
    /// A replica has confirmed, and names those that were registered.
    pub fn confirmed(&mut self, replica: Arc<str>, registered: Vec<Arc<str>>) {
        if self.confirmed.len() < MOST && registered.len() <= MOST {
            self.confirmed.insert(replica, registered);
        }
    }

    /// Whether this replica has confirmed.
    pub fn has(&self, replica: &str) -> bool {
        self.confirmed.contains_key(replica)
    }

    /// Whether enough have confirmed. Whoever is `excused` need not.
    pub fn is_complete(&self, excused: impl Fn(&str) -> bool) -> bool {
        // A replica that does not see its own registration speaks of another collection, or of a state before it.
        self.confirmed.iter().any(|(replica, registered)| {
            registered.contains(replica) && registered.iter().all(|one| self.has(one) || excused(one))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quorum(confirmed: &[(&str, &[&str])]) -> Quorum {
        let mut quorum = Quorum::default();
        for (replica, registered) in confirmed {
            quorum.confirmed((*replica).into(), registered.iter().map(|name| Arc::from(*name)).collect());
        }
        quorum
    }

    fn is_complete(confirmed: &[(&str, &[&str])]) -> bool {
        quorum(confirmed).is_complete(|_| false)
    }

    #[test]
    fn everybody_on_one_list_must_have_confirmed() {
        assert!(!is_complete(&[]));
        assert!(!is_complete(&[("a", &["a", "b"])]), "b is missing");
        assert!(
            is_complete(&[("a", &["a", "b"]), ("b", &["a", "b", "new"])]),
            "who registered later knows of the state"
        );
        assert!(is_complete(&[("b", &["a", "b", "gone"]), ("a", &["a", "b"])]), "in any order");
    }

    #[test]
    fn a_replica_that_does_not_see_itself_registered_proves_nothing() {
        assert!(!is_complete(&[("a", &[])]));
        assert!(!is_complete(&[("a", &["b"]), ("b", &["a", "b", "c"])]));
    }

    #[test]
    fn whoever_is_excused_need_not_confirm() {
        let quorum = quorum(&[("a", &["a", "b", "c"])]);
        assert!(!quorum.is_complete(|name| name == "b"));
        assert!(quorum.is_complete(|name| name != "a"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut quorum = Quorum::default();
        for n in 0..2 * MOST {
            quorum.confirmed(n.to_string().into(), Vec::new());
        }
        assert_eq!(quorum.confirmed.len(), MOST);
        let mut quorum = Quorum::default();
        quorum.confirmed("a".into(), vec!["a".into(); MOST + 1]);
        assert!(!quorum.has("a"));
    }
}
