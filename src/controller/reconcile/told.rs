//! Which failures those know of who read the log, of what is done for thousands of sessions.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::runtime::api_error::ApiError;
use crate::runtime::failing::Failing;

/// There may be thousands of sessions that fail for one reason, but what fails in one namespace may work in another.
#[derive(Debug, Default)]
pub(super) struct Told {
    failing: Failing,
    namespaces: BTreeSet<Arc<str>>,
}

impl Told {
    /// One in this namespace has failed. Returns whether that is to be said, aloud.
    pub fn failed(&mut self, namespace: &Arc<str>, error: &ApiError, now: Instant) -> bool {
        let aloud = self.failing.failed(&format!("{namespace}: {error}"), now);
        if aloud {
            self.namespaces.insert(namespace.clone());
        }
        aloud
    }

    /// It has worked for one in this namespace. Returns whether that is to be said.
    pub fn over(&mut self, namespace: &Arc<str>) -> bool {
        self.namespaces.remove(namespace)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn that_it_works_again_is_said_once_of_a_namespace_of_which_it_was_said_that_it_fails() {
        let namespaces: [Arc<str>; 2] = ["a".into(), "b".into()];
        let [a, b] = &namespaces;
        let (mut told, now) = (Told::default(), Instant::now());
        let away = ApiError::timeout(Duration::from_secs(5));
        assert!(told.failed(a, &away, now) && !told.failed(a, &away, now));
        assert!(!told.over(b), "nobody heard of it");
        assert!(told.failed(b, &away, now), "it is another one");
        assert!(told.over(a) && !told.over(a) && told.over(b));
    }
}
