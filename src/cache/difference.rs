//! What an update sends: the difference between two maps, so that pods that change different keys both win (I7).

use serde_json::{Map, Value};

use crate::core::digest::Metadata;
use crate::core::fields::Fields;

/// The keys in which `new` differs from `base`, as a JSON merge patch; `None` if there are none.
pub(super) fn difference(base: &Fields, new: &Metadata) -> Option<Map<String, Value>> {
    let removed = base.keys().filter(|key| !new.contains_key(*key));
    let removed = removed.map(|key| (key.to_owned(), Value::Null));
    let set = new.iter().filter(|(key, value)| base.get(key) != Some(value));
    let set = set.map(|(key, value)| (key.clone(), Value::from(value.as_str())));
    let difference: Map<_, _> = removed.chain(set).collect();
    (!difference.is_empty()).then_some(difference)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// JSON merge patch (RFC 7386), as far as a flat map of strings needs it.
    fn patched(base: &Metadata, patch: &Map<String, Value>) -> Metadata {
        let mut map = base.clone();
        for (key, value) in patch {
            match value {
                Value::String(value) => _ = map.insert(key.clone(), value.clone()),
                _ => _ = map.remove(key),
            }
        }
        map
    }

    fn metadata() -> impl Strategy<Value = Metadata> {
        proptest::collection::btree_map("[a-d]", "[x-z]{0,1}", 0..5)
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_map_to_the_other_and_touches_nothing_else(base in metadata(), new in metadata(), other in "[e-h]") {
            match difference(&Fields::of(&base), &new) {
                None => prop_assert_eq!(base, new),
                Some(patch) => {
                    prop_assert_eq!(&patched(&base, &patch), &new);
                    prop_assert!(patch.keys().all(|key| base.get(key) != new.get(key)));
                    let mut elsewhere = base.clone();
                    elsewhere.insert(other.clone(), "theirs".into());
                    let merged = patched(&elsewhere, &patch);
                    prop_assert_eq!(merged.get(&other).map(String::as_str), Some("theirs"));
                }
            }
        }
    }
}
