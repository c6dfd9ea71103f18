//! Whose turn it is where many wait for the API server: namespaces take turns, so that one with thousands does not keep the
//! others waiting.

use std::collections::HashMap;
use std::sync::Arc;

use crate::core::session::SessionKey;

/// Which of those that are `ready` come next, `most` of them: of namespaces that have the fewest `under_way` and chosen before
/// them, the first first.
pub fn next<'a, T>(
    ready: Vec<(SessionKey, T)>,
    under_way: impl Iterator<Item = &'a SessionKey>,
    most: usize,
) -> Vec<(SessionKey, T)> {
    let mut of_namespace: HashMap<Arc<str>, usize> = HashMap::new();
    for key in under_way {
        *of_namespace.entry(key.namespace().clone()).or_default() += 1;
    }
    let mut turns: Vec<(usize, (SessionKey, T))> = Vec::with_capacity(ready.len());
    for (key, what) in ready {
        let before = of_namespace.entry(key.namespace().clone()).or_default();
        turns.push((*before, (key, what)));
        *before += 1;
    }
    // It keeps the order of equals.
    turns.sort_by_key(|(before, _)| *before);
    turns.into_iter().take(most).map(|(_, next)| next).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> SessionKey {
        let (namespace, name) = text.split_once('/').unwrap();
        SessionKey::new(namespace, name)
    }

    fn chosen(ready: &[&str], under_way: &[&str], most: usize) -> Vec<String> {
        let under_way: Vec<_> = under_way.iter().map(|text| key(text)).collect();
        let ready = ready.iter().map(|text| (key(text), ())).collect();
        let next = next(ready, under_way.iter(), most).into_iter();
        next.map(|(key, ())| format!("{}/{}", key.namespace(), key.name())).collect()
    }

    #[test]
    fn namespaces_take_turns() {
        let ready = ["a/1", "a/2", "a/3", "b/1", "b/2", "c/1"];
        assert_eq!(chosen(&ready, &[], 4), ["a/1", "b/1", "c/1", "a/2"]);
        assert_eq!(chosen(&ready, &[], 10), ["a/1", "b/1", "c/1", "a/2", "b/2", "a/3"]);
        assert_eq!(chosen(&ready, &[], 0), [""; 0]);
    }

    #[test]
    fn who_has_some_under_way_comes_later() {
        let ready = ["a/3", "a/4", "b/1"];
        assert_eq!(chosen(&ready, &["a/1", "a/2"], 1), ["b/1"]);
        assert_eq!(chosen(&ready, &["a/1", "a/2"], 2), ["b/1", "a/3"]);
    }
}
