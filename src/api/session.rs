//! `VmcpSession` and its spec.

#![allow(clippy::duplicated_attributes, reason = "the columns' types are attributes of the same name")]

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::schema;
use super::status::VmcpSessionStatus;

/// What a session is: the state that its vMCP pods restore it from, and how long it lives.
// The comments below are what `kubectl explain` shows, so they speak to those who write manifests. One line each:
// line breaks would be taken over as they are.
#[derive(CustomResource, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "vmcp.dev",
    version = "v1alpha1",
    kind = "VmcpSession",
    plural = "vmcpsessions",
    singular = "vmcpsession",
    shortname = "vmcps",
    category = "vmcp",
    namespaced,
    status = "VmcpSessionStatus",
    derive = "PartialEq",
    selectable = ".spec.server",
    doc = "VmcpSession is one session of a vMCP server. Its spec.metadata is the truth about the session: whenever it changes, every vMCP pod that holds a copy made from the older map drops that copy and restores the session from the new one.",
    printcolumn(
        name = "Server",
        type_ = "string",
        json_path = ".spec.server",
        description = "The vMCP server that the session belongs to."
    ),
    printcolumn(
        name = "Synced",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Synced\")].status",
        description = "Whether every pod that held an older copy has dropped it."
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Synced\")].reason",
        description = "Why the session is synced, or what it waits for."
    ),
    printcolumn(
        name = "Last-Evicted",
        type_ = "integer",
        format = "int64",
        json_path = ".status.lastEviction.generation",
        description = "The last generation that made pods drop their copies."
    ),
    printcolumn(
        name = "Pods-Evicted",
        type_ = "integer",
        format = "int32",
        json_path = ".status.lastEviction.pods",
        description = "How many pods dropped their copies for that generation."
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "How long ago the session was created."
    )
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::server_is_immutable()))]
pub struct VmcpSessionSpec {
    /// The session's state, as a map of strings; it may be empty. Pods compare the whole map, so a change of any key counts. At most 256 keys of 1 to 253 characters, values of at most 65536 characters, and at most 1 MiB of keys and values together. Write here only what is true for every pod: what is true inside one pod alone (its own connection ids, for instance) belongs in that pod.
    #[schemars(schema_with = "schema::metadata")]
    pub metadata: BTreeMap<String, String>,

    /// The vMCP server that the session belongs to, as a DNS label. It cannot be changed or removed once it is set. Sessions can be selected by it: kubectl get vmcps --field-selector spec.server=NAME.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::server")]
    pub server: Option<String>,

    /// The session is deleted when it has not been used for that many seconds: 1 to 31536000 (a year). Without it, a session that nobody uses stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::timeout")]
    pub idle_timeout_seconds: Option<u32>,

    /// The session is deleted that many seconds after its creation, in use or not: 1 to 31536000 (a year). Without it, there is no such limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::timeout")]
    pub max_lifetime_seconds: Option<u32>,
}

/// Shows the keys of the metadata, never a value, so that a spec may stand in a log line.
impl fmt::Debug for VmcpSessionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taken apart in full: a new field must be decided on here.
        let Self { metadata, server, idle_timeout_seconds, max_lifetime_seconds } = self;
        f.debug_struct("VmcpSessionSpec")
            .field("metadata_keys", &metadata.keys().collect::<Vec<_>>())
            .field("server", server)
            .field("idle_timeout_seconds", idle_timeout_seconds)
            .field("max_lifetime_seconds", max_lifetime_seconds)
            .finish()
    }
}

/// Annotation in which client-side `kubectl apply` repeats the whole manifest, metadata values included.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops what repeats the spec in an object's `metadata` and is of no use to us: the managed fields, which cost most of
/// the memory, and the annotation of client-side apply, which holds every value and would show in `{:?}`.
pub fn strip_echoes(metadata: &mut ObjectMeta) {
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
        if annotations.is_empty() {
            metadata.annotations = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CANARY: &str = "canary-4b1d";

    fn session() -> VmcpSession {
        let metadata = BTreeMap::from([("token".to_owned(), CANARY.to_owned())]);
        let mut session = VmcpSession::new("s1", VmcpSessionSpec { metadata, ..VmcpSessionSpec::default() });
        session.metadata.managed_fields = Some(Vec::new());
        session.metadata.annotations = Some(BTreeMap::from([(LAST_APPLIED.to_owned(), CANARY.to_owned())]));
        session
    }

    #[test]
    fn debug_shows_keys_and_no_values() {
        let mut session = session();
        strip_echoes(&mut session.metadata);
        let text = format!("{session:?} {session:#?}");
        assert!(text.contains("token"), "{text}");
        assert!(!text.contains(CANARY), "{text}");
    }

    #[test]
    fn stripping_keeps_other_annotations() {
        let mut meta = session().metadata;
        meta.annotations.as_mut().unwrap().insert("team".to_owned(), "a".to_owned());
        strip_echoes(&mut meta);
        assert_eq!(meta.annotations, Some(BTreeMap::from([("team".to_owned(), "a".to_owned())])));
        assert_eq!(meta.managed_fields, None);
    }

    #[test]
    fn an_empty_spec_serializes_to_an_empty_map_only() {
        let json = serde_json::to_value(VmcpSessionSpec::default()).unwrap();
        assert_eq!(json, serde_json::json!({ "metadata": {} }));
    }

    #[test]
    fn metadata_is_required() {
        assert!(serde_json::from_str::<VmcpSessionSpec>(r#"{"server":"a"}"#).is_err());
    }

    #[test]
    fn names_agree_with_the_derived_resource() {
        use kube::Resource;
        assert_eq!(VmcpSession::group(&()), super::super::GROUP);
        assert_eq!(VmcpSession::version(&()), super::super::VERSION);
        assert_eq!(VmcpSession::kind(&()), super::super::KIND);
        assert_eq!(VmcpSession::plural(&()), super::super::PLURAL);
    }
}
