//! A session's status as it stands, cut down to what decides whether it must be written.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use crate::api::CONDITION_SYNCED;
use crate::controller::object::Status;

/// The status as the watch shows it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// `observedGeneration`; 0 if there is none.
    pub observed: u64,
    /// The condition `Synced`.
    pub synced: Option<Synced>,
    /// Conditions that somebody else has put there.
    pub others: Option<Box<[Value]>>,
}

/// The condition `Synced` as it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Synced {
    /// Its status; `None` if that is neither `True` nor `False`.
    pub status: Option<bool>,
    /// Its own `observedGeneration`; 0 if there is none.
    pub observed: u64,
    /// When its status changed last.
    pub since: Timestamp,
}

impl Standing {
    /// What is kept of a status.
    pub fn of(status: &Status) -> Self {
        let generation = |given: Option<i64>| given.and_then(|g| u64::try_from(g).ok()).unwrap_or(0);
        let mut standing = Self { observed: generation(status.observed_generation), ..Self::default() };
        let mut others = Vec::new();
        for condition in &status.conditions {
            if condition["type"] != CONDITION_SYNCED {
                others.push(condition.clone());
                continue;
            }
            let status = match condition["status"].as_str() {
                Some("True") => Some(true),
                Some("False") => Some(false),
                _ => None,
            };
            let observed = generation(condition["observedGeneration"].as_i64());
            let since = condition["lastTransitionTime"].as_str().and_then(|at| at.parse().ok());
            standing.synced = Some(Synced { status, observed, since: since.unwrap_or(Timestamp::UNIX_EPOCH) });
        }
        standing.others = (!others.is_empty()).then(|| others.into());
        standing
    }

    /// Whether it says of this generation that all is well.
    pub fn is_current(&self, generation: u64) -> bool {
        let synced = |s: Synced| s.status == Some(true) && s.observed >= generation;
        self.observed >= generation && self.synced.is_some_and(synced)
    }

    /// The status as JSON, as far as it is kept.
    pub fn to_value(&self) -> Value {
        let mut conditions: Vec<Value> = self.others().collect();
        if let Some(Synced { status, observed, since }) = self.synced {
            let status = match status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            conditions.push(json!({
                "type": CONDITION_SYNCED, "status": status, "observedGeneration": observed,
                "lastTransitionTime": Time(since),
            }));
        }
        let mut fields = Map::new();
        fields.insert("observedGeneration".to_owned(), self.observed.into());
        fields.insert("conditions".to_owned(), conditions.into());
        fields.into()
    }

    /// Conditions that are none of ours, which a patch of the whole list must keep.
    pub fn others(&self) -> impl Iterator<Item = Value> {
        self.others.iter().flatten().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(status: Value) -> Standing {
        Standing::of(&serde_json::from_value(status).unwrap())
    }

    fn synced(status: &str, generation: u64) -> Value {
        json!({"type": "Synced", "status": status, "reason": "AllPodsCurrent", "message": "m",
            "observedGeneration": generation, "lastTransitionTime": "2026-01-02T03:04:05Z"})
    }

    #[test]
    fn it_is_current_if_both_generations_are_and_the_condition_is_true() {
        let cases = [
            (3, "True", 3, true),
            (4, "True", 4, true),
            (2, "True", 3, false),
            (3, "True", 2, false),
            (3, "False", 3, false),
            (3, "Unknown", 3, false),
        ];
        for (observed, status, generation, expected) in cases {
            let standing =
                standing(json!({"observedGeneration": observed, "conditions": [synced(status, generation)]}));
            assert_eq!(standing.is_current(3), expected, "{observed} {status} {generation}");
        }
        assert!(!standing(json!({"observedGeneration": 3})).is_current(3));
        assert!(!Standing::default().is_current(1));
    }

    #[test]
    fn what_others_have_put_there_stays() {
        let mut other = synced("True", 1);
        other["type"] = json!("Audited");
        let standing = standing(json!({"observedGeneration": 1, "conditions": [other, synced("True", 1)]}));
        assert_eq!(standing.others().collect::<Vec<_>>(), [other]);
        let value = standing.to_value();
        assert_eq!(value["conditions"][1]["lastTransitionTime"], "2026-01-02T03:04:05Z");
    }
}
