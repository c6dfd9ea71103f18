//! The parts of the schema that a derive cannot say: limits, CEL rules, and Kubernetes' own types.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::names::{
    MAX_CHANGED_KEYS, MAX_KEY_CHARS, MAX_KEYS, MAX_METADATA_BYTES, MAX_TIMEOUT_SECONDS, MAX_VALUE_CHARS,
};

/// `spec.metadata`: the limits are needed by the API server too, which estimates from them what the rules may cost.
pub(super) fn metadata(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": MAX_KEYS,
        "additionalProperties": { "type": "string", "maxLength": MAX_VALUE_CHARS },
        "x-kubernetes-validations": [
            {
                "rule": format!("self.all(k, size(k) >= 1 && size(k) <= {MAX_KEY_CHARS})"),
                "message": format!("each key must have 1 to {MAX_KEY_CHARS} characters"),
            },
            {
                "rule": format!("self.map(k, size(bytes(k)) + size(bytes(self[k]))).sum() <= {MAX_METADATA_BYTES}"),
                "message": format!(
                    "keys and values together must have at most {MAX_METADATA_BYTES} bytes (1 MiB) in UTF-8"
                ),
            },
        ],
    })
}

/// `spec.server`: a rule instead of a pattern, as a pattern has no message of its own.
pub(super) fn server(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",
            "message": "must be a DNS label: lower-case letters, digits and '-', with a letter or digit first and last",
        }],
    })
}

/// The rule stands at the spec: a rule at the field itself is not asked when the field is removed.
pub(super) fn server_is_immutable() -> Value {
    json!([{
        "rule": "!has(oldSelf.server) || (has(self.server) && self.server == oldSelf.server)",
        "message": "cannot be changed or removed once it is set",
        "fieldPath": ".server",
        "reason": "FieldValueForbidden",
    }])
}

/// A timeout in seconds.
pub(super) fn timeout(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": MAX_TIMEOUT_SECONDS })
}

/// A generation of an object.
pub(super) fn generation(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": 0 })
}

/// A number of things.
pub(super) fn count(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0 })
}

/// A point in time.
pub(super) fn date_time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

/// Names of metadata keys.
pub(super) fn changed_keys(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_CHANGED_KEYS,
        "items": { "type": "string", "maxLength": MAX_KEY_CHARS },
        "x-kubernetes-list-type": "set",
    })
}

/// An optional object without `nullable`: absent says the same, and one way of saying it is enough.
pub(super) fn object<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}

/// A list of Kubernetes' own `metav1.Condition`, with the schema that its own generator gives it.
pub(super) fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One aspect of the current state of the session.",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "description": "The type of the condition, in CamelCase.",
                    "type": "string",
                    "maxLength": 316,
                    "pattern": concat!(
                        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?",
                        "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$",
                    ),
                },
                "status": {
                    "description": "The status of the condition: True, False or Unknown.",
                    "type": "string",
                    "enum": ["True", "False", "Unknown"],
                },
                "observedGeneration": {
                    "description": "The generation of the spec that the condition speaks about. \
                        If it is lower than metadata.generation, the condition is out of date.",
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                },
                "lastTransitionTime": {
                    "description": "When the status of the condition last changed.",
                    "type": "string",
                    "format": "date-time",
                },
                "reason": {
                    "description": "Why the condition has this status, in one CamelCase word for programs.",
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "description": "The same in a sentence for people; it may be empty.",
                    "type": "string",
                    "maxLength": 32768,
                },
            },
        },
    })
}
