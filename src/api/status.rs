//! The status of a `VmcpSession`: written by the leader, read by people and by `kubectl wait`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::de::{DeserializeOwned, Deserializer};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::schema;

/// What the controller has seen of the session. It never holds a metadata value.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VmcpSessionStatus {
    /// The generation of the spec that this status speaks about.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::generation")]
    pub observed_generation: Option<i64>,

    /// The session's conditions. Synced is True when no pod holds a copy made from an older metadata map; its reasons are AllPodsCurrent, WaitingForPods and NoHolders. To wait for it: kubectl wait --for=condition=Synced vmcps/NAME.
    #[serde(default, deserialize_with = "lenient_each", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,

    /// The last change that made pods drop their copies.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::object::<LastEviction>")]
    pub last_eviction: Option<LastEviction>,

    /// When the session was last known to be in use. It is written coarsely: the session may have been used since.
    #[serde(default, deserialize_with = "lenient", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::date_time")]
    pub last_renew_time: Option<Time>,
}

/// A change that made pods drop their copies.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastEviction {
    /// The generation that replaced the copies.
    #[schemars(schema_with = "schema::generation")]
    pub generation: i64,

    /// When the controller told the pods.
    #[schemars(schema_with = "schema::date_time")]
    pub time: Time,

    /// How many pods dropped a copy for it. The pod that wrote the change keeps its own, and is not among them.
    #[schemars(schema_with = "schema::count")]
    pub pods: u32,

    /// The names of the metadata keys that were added, changed or removed; the first 16 of them, in order. Values are never shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::changed_keys")]
    pub changed_keys: Vec<String>,
}

/// Reads what it can, and otherwise nothing.
///
/// The API server's check of a date-time is not ours: it takes `2026-01-01T00:00:00+99:99`. A status that somebody has
/// written by hand must not make the whole object unreadable.
pub(crate) fn lenient<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(from: D) -> Result<T, D::Error> {
    Ok(T::deserialize(Value::deserialize(from)?).unwrap_or_default())
}

/// As [`lenient`], for each item of a list.
fn lenient_each<'de, D: Deserializer<'de>, T: DeserializeOwned>(from: D) -> Result<Vec<T>, D::Error> {
    let items: Vec<Value> = lenient(from)?;
    Ok(items.into_iter().filter_map(|item| T::deserialize(item).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_way_to_json_and_back() {
        let text = r#"{
            "observedGeneration": 3,
            "conditions": [{
                "type": "Synced", "status": "True", "reason": "NoHolders", "message": "",
                "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 3
            }],
            "lastEviction": {"generation": 3, "time": "2026-01-02T03:04:05Z", "pods": 2, "changedKeys": ["a"]},
            "lastRenewTime": "2026-01-02T03:04:05Z"
        }"#;
        let status: VmcpSessionStatus = serde_json::from_str(text).unwrap();
        let back = serde_json::to_value(&status).unwrap();
        assert_eq!(back, serde_json::from_str::<serde_json::Value>(text).unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_left_out() {
        let bad = "2026-01-01T00:00:00+99:99";
        let condition = |at| serde_json::json!({"type": "A", "status": "True", "reason": "R", "message": "", "lastTransitionTime": at});
        let status: VmcpSessionStatus = serde_json::from_value(serde_json::json!({
            "observedGeneration": 3, "conditions": [condition(bad), condition("2026-01-01T00:00:00Z")],
            "lastEviction": {"generation": 3, "time": bad, "pods": 2}, "lastRenewTime": bad,
        }))
        .unwrap();
        assert_eq!((status.observed_generation, status.conditions.len()), (Some(3), 1));
        assert_eq!((status.last_eviction, status.last_renew_time), (None, None));
    }

    #[test]
    fn an_empty_status_is_an_empty_object() {
        assert_eq!(serde_json::to_string(&VmcpSessionStatus::default()).unwrap(), "{}");
    }
}
