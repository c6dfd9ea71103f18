//! Some fields of a session's status, with the knowledge whether writing them would change anything.

use serde_json::{Map, Value};

use crate::api::CONDITION_SYNCED;
use crate::controller::status_writer::StatusPayload;
use crate::core::coalesce::Coalesce;

/// What fields of the status shall be. Fields that are not named are left alone, so that two parts of the controller
/// can care for different fields; those that are named are replaced as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusPatch {
    fields: Map<String, Value>,
    first: bool,
}

impl StatusPatch {
    /// A patch of these fields.
    pub const fn new(fields: Map<String, Value>) -> Self {
        Self { fields, first: false }
    }

    /// The fields.
    pub const fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// Whether conditions are among them that are none of ours: these are replaced with the list.
    pub fn has_foreign_conditions(&self) -> bool {
        self.fields.get("conditions").and_then(Value::as_array).is_some_and(|list| list.iter().any(is_foreign))
    }

    /// The same with the conditions of others as they are in `current`.
    #[must_use]
    pub fn beside(&self, current: &[Value]) -> Self {
        let mut fields = self.fields.clone();
        if let Some(list) = fields.get_mut("conditions").and_then(Value::as_array_mut) {
            list.retain(|condition| !is_foreign(condition));
            list.splice(0..0, current.iter().filter(|condition| is_foreign(condition)).cloned());
        }
        Self { fields, first: self.first }
    }

    /// Whether the object had no status at all when this was offered. It may have one by now.
    pub const fn is_first(&self) -> bool {
        self.first
    }
}

impl Coalesce for StatusPatch {
    fn absorb(&mut self, newer: Self) {
        self.fields.extend(newer.fields);
        self.first &= newer.first;
    }
}

impl StatusPayload for StatusPatch {
    type Status = Value;

    fn prepare(&mut self, current: &Value, sent: Option<&Self>) -> bool {
        self.first = !current.is_object() && sent.is_none();
        self.fields.iter().any(|(field, desired)| {
            let current = sent.and_then(|sent| sent.fields.get(field)).or_else(|| current.get(field));
            !current.is_some_and(|current| same(current, desired))
        })
    }
}

fn is_foreign(condition: &Value) -> bool {
    condition["type"] != CONDITION_SYNCED
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

    fn changes(value: Value, current: &Value) -> bool {
        patch(value).prepare(current, None)
    }

    #[test]
    fn what_is_so_already_is_no_change() {
        let current = json!({"observedGeneration": 3, "lastEviction": {"pods": 2, "generation": 3}});
        assert!(!changes(json!({"observedGeneration": 3}), &current));
        assert!(!changes(json!({"lastEviction": {"generation": 3, "pods": 2}}), &current));
        assert!(!changes(json!({}), &current));
        assert!(changes(json!({"lastEviction": {"generation": 3}}), &current));
        assert!(changes(json!({"observedGeneration": 4}), &current));
        assert!(changes(json!({"lastRenewTime": "x"}), &current));
        assert!(changes(json!({"observedGeneration": 3}), &Value::Null));
    }

    #[test]
    fn conditions_have_no_order() {
        let (a, b) = (json!({"type": "A", "status": "True"}), json!({"type": "B", "status": "True"}));
        let current = json!({"conditions": [a, b]});
        assert!(!changes(json!({"conditions": [b, a]}), &current));
        assert!(changes(json!({"conditions": [a]}), &current));
        assert!(changes(json!({"conditions": [a, {"type": "B", "status": "False"}]}), &current));
        assert!(changes(json!({"conditions": [a, a]}), &current));
    }

    #[test]
    fn other_lists_have_an_order() {
        let current = json!({"keys": ["a", "b"]});
        assert!(changes(json!({"keys": ["b", "a"]}), &current));
        assert!(!changes(json!({"keys": ["a", "b"]}), &current));
    }

    #[test]
    fn what_was_sent_counts_as_current() {
        let current = json!({"observedGeneration": 3, "lastRenewTime": "x"});
        let sent = patch(json!({"observedGeneration": 4}));
        assert!(!sent.clone().prepare(&current, Some(&sent)));
        assert!(!patch(json!({"lastRenewTime": "x"})).prepare(&current, Some(&sent)), "not in what was sent");
        assert!(patch(json!({"observedGeneration": 3})).prepare(&current, Some(&sent)), "back again");
    }

    #[test]
    fn the_first_status_is_known_as_such() {
        let mut first = patch(json!({"a": 1}));
        first.prepare(&Value::Null, None);
        assert!(first.is_first());
        let mut second = patch(json!({"b": 1}));
        second.prepare(&Value::Null, Some(&first));
        assert!(!second.is_first());
        second.prepare(&json!({}), None);
        assert!(!second.is_first());
    }

    #[test]
    fn two_patches_become_one() {
        let mut both = patch(json!({"a": 1, "o": {"x": 1, "y": 1}}));
        both.absorb(patch(json!({"b": 2, "o": {"y": 2}})));
        assert_eq!(both, patch(json!({"a": 1, "b": 2, "o": {"y": 2}})));
    }
}
