//! A change of a session's status, as a JSON merge patch that knows whether it would change anything.

use serde_json::{Map, Value};

use crate::controller::status::StatusPayload;
use crate::core::coalesce::Coalesce;

/// What the status shall be: the fields that are named get these values, `null` removes a field, and fields that are
/// not named are left alone (so that two parts of the controller can care for different fields).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusPatch(Map<String, Value>);

impl StatusPatch {
    /// A patch of these fields.
    pub const fn new(fields: Map<String, Value>) -> Self {
        Self(fields)
    }

    /// The fields.
    pub const fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl Coalesce for StatusPatch {
    /// Both patches in one. A field that was removed and then given an object again keeps what other members that
    /// object had, since one merge patch cannot say both; the status has no such field.
    fn absorb(&mut self, newer: Self) {
        merge(&mut self.0, newer.0, Nulls::Keep);
    }
}

impl StatusPayload for StatusPatch {
    type Status = Value;

    fn changes(&self, current: &Value, sent: Option<&Self>) -> bool {
        let mut before = match current {
            Value::Object(fields) => fields.clone(),
            _ => Map::new(),
        };
        if let Some(Self(sent)) = sent {
            merge(&mut before, sent.clone(), Nulls::Remove);
        }
        let mut after = before.clone();
        merge(&mut after, self.0.clone(), Nulls::Remove);
        !same_fields(&before, &after)
    }
}

#[derive(Clone, Copy)]
enum Nulls {
    /// Onto another patch: a null is something to say.
    Keep,
    /// Onto an object: a null takes the field away.
    Remove,
}

fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>, nulls: Nulls) {
    for (field, value) in patch {
        match (value, nulls) {
            (Value::Null, Nulls::Remove) => {
                target.remove(&field);
            }
            (Value::Object(members), _) => {
                let inner = target.entry(field).or_insert(Value::Null);
                if !inner.is_object() {
                    *inner = Value::Object(Map::new());
                }
                if let Value::Object(inner) = inner {
                    merge(inner, members, nulls);
                }
            }
            (value, _) => {
                target.insert(field, value);
            }
        }
    }
}

/// Equal but for the order of conditions: a comparison that depends on it would patch for ever.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => same_fields(a, b),
        (Value::Array(a), Value::Array(b)) => match (by_type(a), by_type(b)) {
            (Some(a), Some(b)) => same_fields(&a, &b),
            _ => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        },
        _ => a == b,
    }
}

fn same_fields(a: &Map<String, Value>, b: &Map<String, Value>) -> bool {
    a.len() == b.len() && a.iter().all(|(field, a)| b.get(field).is_some_and(|b| same(a, b)))
}

/// A list of conditions is a map by their type, unless a type comes twice.
fn by_type(list: &[Value]) -> Option<Map<String, Value>> {
    let mut map = Map::new();
    for item in list {
        let kind = item.get("type")?.as_str()?;
        if map.insert(kind.to_owned(), item.clone()).is_some() {
            return None;
        }
    }
    Some(map)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn patch(value: Value) -> StatusPatch {
        match value {
            Value::Object(fields) => StatusPatch::new(fields),
            _ => StatusPatch::default(),
        }
    }

    #[test]
    fn what_is_so_already_is_no_change() {
        let current = json!({"observedGeneration": 3, "lastEviction": {"pods": 2, "generation": 3}});
        assert!(!patch(json!({"observedGeneration": 3})).changes(&current, None));
        assert!(!patch(json!({"lastEviction": {"generation": 3}})).changes(&current, None));
        assert!(!patch(json!({"lastRenewTime": null})).changes(&current, None));
        assert!(patch(json!({"observedGeneration": 4})).changes(&current, None));
        assert!(patch(json!({"lastEviction": null})).changes(&current, None));
        assert!(patch(json!({"lastRenewTime": "x"})).changes(&current, None));
        assert!(patch(json!({"observedGeneration": 3})).changes(&Value::Null, None));
    }

    #[test]
    fn conditions_have_no_order() {
        let (a, b) = (json!({"type": "A", "status": "True"}), json!({"type": "B", "status": "True"}));
        let current = json!({"conditions": [a, b]});
        assert!(!patch(json!({"conditions": [b, a]})).changes(&current, None));
        assert!(patch(json!({"conditions": [a]})).changes(&current, None));
        assert!(patch(json!({"conditions": [a, {"type": "B", "status": "False"}]})).changes(&current, None));
        assert!(patch(json!({"conditions": [a, a]})).changes(&current, None));
    }

    #[test]
    fn other_lists_have_an_order() {
        let current = json!({"keys": ["a", "b"]});
        assert!(patch(json!({"keys": ["b", "a"]})).changes(&current, None));
        assert!(!patch(json!({"keys": ["a", "b"]})).changes(&current, None));
    }

    #[test]
    fn what_was_sent_counts_as_current() {
        let current = json!({"observedGeneration": 3});
        let sent = patch(json!({"observedGeneration": 4}));
        assert!(!sent.changes(&current, Some(&sent)));
        assert!(patch(json!({"observedGeneration": 3})).changes(&current, Some(&sent)), "back again");
    }

    #[test]
    fn two_patches_become_one() {
        let mut both = patch(json!({"a": 1, "o": {"x": 1, "y": 1}, "gone": 1}));
        both.absorb(patch(json!({"b": 2, "o": {"y": 2}, "gone": null})));
        assert_eq!(both, patch(json!({"a": 1, "b": 2, "o": {"x": 1, "y": 2}, "gone": null})));
    }
}
