//! Metadata keys that are true only in this pod: which they are, and what is made of a map that has some.

use thiserror::Error;

use crate::cache::{LocalValues, Metadata};

/// Patterns, at most.
const MAX_PATTERNS: usize = 64;
/// Characters of a pattern, at most.
const MAX_PATTERN: usize = 253;

/// The patterns make no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// One is empty.
    #[error("--pod-local-keys: an empty pattern matches nothing")]
    Empty,
    /// One is too long.
    #[error("--pod-local-keys: a pattern may have {MAX_PATTERN} characters at most")]
    TooLong,
    /// There are too many.
    #[error("--pod-local-keys: there may be {MAX_PATTERNS} patterns at most")]
    TooMany,
}

/// Which metadata keys are true only in this pod. In a pattern `*` stands for any characters, `?` for any one.
#[derive(Clone, Debug, Default)]
pub struct LocalKeys(Box<[Box<[char]>]>);

impl LocalKeys {
    /// The keys that match one of these patterns.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut all = Vec::new();
        for pattern in patterns {
            let pattern: Box<[char]> = pattern.chars().take(MAX_PATTERN + 1).collect();
            match pattern.len() {
                0 => return Err(PatternError::Empty),
                1..=MAX_PATTERN => all.push(pattern),
                _ => return Err(PatternError::TooLong),
            }
            if all.len() > MAX_PATTERNS {
                return Err(PatternError::TooMany);
            }
        }
        Ok(Self(all.into()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is true only in this pod.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, key))
    }

    /// Splits a map into what is shared and what is true only in this pod.
    pub fn split(&self, map: Metadata) -> (Metadata, LocalValues) {
        if self.0.is_empty() {
            return (map, LocalValues::new());
        }
        let (mut shared, mut local) = (Metadata::new(), LocalValues::new());
        for (key, value) in map {
            let part = if self.has(&key) { &mut local } else { &mut shared };
            part.insert(key, value);
        }
        (shared, local)
    }
}

/// Whether a key matches a pattern. It goes back to the last `*` only: the time is bounded by the product of the lengths.
fn matches(pattern: &[char], key: &str) -> bool {
    let mut rest = key.chars();
    let mut at = 0;
    let mut star = None;
    loop {
        if pattern.get(at) == Some(&'*') {
            at += 1;
            star = Some((at, rest.clone()));
            continue;
        }
        let mut ahead = rest.clone();
        match (ahead.next(), pattern.get(at)) {
            (None, None) => return true,
            (Some(c), Some(p)) if *p == '?' || *p == c => {
                rest = ahead;
                at += 1;
                continue;
            }
            _ => {}
        }
        // The last star takes one character more.
        let Some((after, mut from)) = star.take() else {
            return false;
        };
        if from.next().is_none() {
            return false;
        }
        (at, rest) = (after, from.clone());
        star = Some((after, from));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keys(patterns: &[&str]) -> LocalKeys {
        LocalKeys::new(patterns.iter().copied()).unwrap()
    }

    /// The same by its definition.
    fn by_definition(pattern: &[char], key: &[char]) -> bool {
        match (pattern, key) {
            ([], []) => true,
            (['*', after @ ..], _) => (0..=key.len()).any(|n| by_definition(after, &key[n..])),
            ([p, after @ ..], [c, rest @ ..]) => (*p == '?' || p == c) && by_definition(after, rest),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn a_pattern_matches_what_its_definition_says(pattern in "[aé*?]{0,6}", key in "[aéb]{0,7}") {
            let pattern: Vec<char> = pattern.chars().collect();
            let chars: Vec<char> = key.chars().collect();
            prop_assert_eq!(matches(&pattern, &key), by_definition(&pattern, &chars));
        }

        #[test]
        fn a_split_loses_nothing(map in proptest::collection::btree_map("[ab]{1,3}", "[xy]", 0..6)) {
            let (mut shared, local) = keys(&["a*", "?b"]).split(map.clone());
            prop_assert!(shared.keys().all(|key| !key.starts_with('a')) && local.keys().all(|key| key != "b"));
            shared.extend(local);
            prop_assert_eq!(shared, map);
        }
    }

    #[test]
    fn only_what_a_pattern_names_is_local() {
        let keys = keys(&["conn-*", "pod.id"]);
        assert!(keys.has("conn-1") && keys.has("conn-") && keys.has("pod.id"));
        assert!(!keys.has("con") && !keys.has("podxid") && !keys.has("a conn-1"));
        assert!(!LocalKeys::default().has("anything"), "without the option every key is shared");
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let pattern = "*a".repeat(126);
        let key = "a".repeat(65_536) + "b";
        // Without the bound this would not end in the lifetime of the machine.
        assert!(!keys(&[&pattern]).has(&key));
    }

    #[test]
    fn nonsense_is_refused() {
        let refused = |patterns: &[&str]| LocalKeys::new(patterns.iter().copied()).unwrap_err();
        assert_eq!(refused(&["a", ""]), PatternError::Empty);
        assert_eq!(refused(&[&"a".repeat(254)]), PatternError::TooLong);
        assert_eq!(refused(&["a"; 65]), PatternError::TooMany);
    }
}
