//! Whose confirmation is needed, and whose is there.

use std::collections::BTreeSet;
use std::sync::Arc;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Quorum {
    /// As the first answer has it: the replicas that were registered when the deletion was committed.
    needed: Option<BTreeSet<Arc<str>>>,
    confirmed: BTreeSet<Arc<str>>,
}

impl Quorum {
    pub fn confirmed(&mut self, replica: Arc<str>, registered: Vec<Arc<str>>) {
        self.needed.get_or_insert_with(|| registered.into_iter().collect());
        self.confirmed.insert(replica);
    }

    /// Whether all have confirmed, this replica (`own`) among them in any case.
    ///
    /// Those that are not registered any more need not: a marker goes when the last lease of its replica has ended, and
    /// whoever registers after that knows of the deletion. `is_registered` speaks for this replica's own watch, which shows
    /// the deletion once this replica has confirmed. One that does not even see itself there has seen nothing.
    pub fn is_complete(&self, own: &str, is_registered: impl Fn(&str) -> bool) -> bool {
        let Some(needed) = self.needed.as_ref().filter(|_| self.confirmed.contains(own)) else {
            return false;
        };
        let mut missing = needed.difference(&self.confirmed).peekable();
        missing.peek().is_none() || is_registered(own) && missing.all(|replica| !is_registered(replica))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn everybody_of_the_first_answer_must_confirm_and_this_replica_in_any_case() {
        let mut quorum = Quorum::default();
        let is_complete = |quorum: &Quorum| quorum.is_complete("own", |_| true);
        assert!(!is_complete(&quorum));
        quorum.confirmed("a".into(), names(&["own", "a", "b"]));
        quorum.confirmed("own".into(), names(&["own"]));
        assert!(!is_complete(&quorum), "b is missing");
        quorum.confirmed("b".into(), names(&["own", "a", "b", "new"]));
        assert!(is_complete(&quorum), "who registered later knows of the deletion");
        let mut quorum = Quorum::default();
        quorum.confirmed("a".into(), names(&["a"]));
        assert!(!is_complete(&quorum));
    }

    #[test]
    fn whoever_is_not_registered_any_more_need_not_confirm() {
        let mut quorum = Quorum::default();
        let among = |registered: &'static [&str]| move |name: &str| registered.contains(&name);
        quorum.confirmed("a".into(), names(&["own", "a", "b", "c"]));
        assert!(!quorum.is_complete("own", among(&["own"])), "this replica's watch may not show the deletion yet");
        quorum.confirmed("own".into(), names(&["own", "a", "b", "c"]));
        assert!(!quorum.is_complete("own", among(&["own", "a", "b"])), "b may have leases");
        assert!(!quorum.is_complete("own", among(&[])), "nothing is known after a restore of etcd");
        assert!(quorum.is_complete("own", among(&["own", "a", "new"])));
    }
}
