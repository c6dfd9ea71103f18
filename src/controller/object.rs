//! Objects as lists and watches bring them, cut down to what is used on the way in.
//!
//! `managedFields` and annotations (which repeat whole manifests) are never stored, and metadata values live only until
//! their summary is made.
//!
//! One object that cannot be read must not end the watch of all the others. So what a person may write beside the schema's
//! notice (the API server's check of times is not ours) is read leniently.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as WallTime;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use thiserror::Error;

use super::config::MAX_LEASE;
use crate::api::{FINALIZER_CONFIRM_EVICTION, is_marker, lenient};
use crate::core::digest::{Metadata, Summarizer};
use crate::core::replica::{Kind, Object};
use crate::core::session::{Interner, InvalidResourceVersion, InvalidUid, ResourceVersion, SessionKey, Uid};

/// A `VmcpSession` as it is read.
#[derive(Clone, Debug, Deserialize)]
pub struct Watched {
    metadata: Meta,
    #[serde(default)]
    spec: Readable,
    #[serde(default, deserialize_with = "lenient")]
    status: Option<Status>,
}

impl Watched {
    /// About how large it is.
    pub(super) fn bytes(&self) -> usize {
        match &self.spec {
            Readable::Spec(spec) => spec.metadata.iter().map(|(key, value)| key.len() + value.len()).sum(),
            Readable::Not(_) => 0,
        }
    }
}

/// A spec, if it is one.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Readable {
    Spec(Spec),
    Not(IgnoredAny),
}

impl Default for Readable {
    fn default() -> Self {
        Self::Spec(Spec::default())
    }
}

/// A status, as far as it can be read: what cannot is as if it were not there.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `observedGeneration`.
    #[serde(deserialize_with = "lenient")]
    pub observed_generation: Option<i64>,
    /// All conditions, as they are: those of others are kept whatever they look like.
    #[serde(deserialize_with = "lenient")]
    pub conditions: Vec<Value>,
    /// `lastRenewTime`.
    #[serde(deserialize_with = "lenient")]
    pub last_renew_time: Option<WallTime>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta {
    namespace: String,
    name: String,
    uid: String,
    #[serde(default)]
    generation: u64,
    resource_version: String,
    #[serde(default, deserialize_with = "lenient")]
    creation_timestamp: Option<WallTime>,
    deletion_timestamp: Option<IgnoredAny>,
    #[serde(default)]
    finalizers: Vec<String>,
    #[serde(default)]
    labels: Labels,
    #[serde(default)]
    annotations: Annotations,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Labels {
    #[serde(rename = "vmcp.dev/replica")]
    replica: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct Annotations {
    #[serde(rename = "vmcp.dev/address")]
    address: Option<String>,
    #[serde(rename = "vmcp.dev/lease-milliseconds")]
    lease: Option<String>,
    #[serde(rename = "vmcp.dev/renewed-at")]
    renewed_at: Option<String>,
}

impl Annotations {
    /// How long the replica's leases are, if it says so. Nobody has longer ones than the controller takes.
    fn lease(&self) -> Option<Duration> {
        let lease = Duration::from_millis(self.lease.as_ref()?.parse().ok()?);
        Some(lease.min(MAX_LEASE))
    }
}

#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(default)]
    metadata: Metadata,
    idle_timeout_seconds: Option<u32>,
    max_lifetime_seconds: Option<u32>,
}

impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Spec(values withheld)")
    }
}

/// An object that cannot be what it should be.
#[derive(Debug, Error)]
pub enum NotASession {
    /// It cannot be read, and counts as absent: no pod is to serve what nobody can compare.
    #[error("{key} cannot be read: {why}")]
    Unreadable {
        /// Its namespace and name.
        key: SessionKey,
        /// Its resourceVersion.
        resource_version: ResourceVersion,
        /// What is wrong.
        why: Unreadable,
    },
    /// Its resourceVersion cannot be compared.
    #[error(transparent)]
    ResourceVersion(#[from] InvalidResourceVersion),
}

/// What is wrong with an object.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// Its uid is not one.
    #[error(transparent)]
    Uid(#[from] InvalidUid),
    /// Its spec is not one.
    #[error("its spec is not that of a session")]
    Spec,
}

/// What the leader keeps of a session, beyond what is compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// The object's uid.
    pub uid: Uid,
    /// Its generation.
    pub generation: u64,
    /// Its resourceVersion.
    pub resource_version: ResourceVersion,
    /// When it was created, by the API server's clock.
    pub created: Timestamp,
    /// Whether it has a deletionTimestamp.
    pub terminating: bool,
    /// Whether it carries the finalizer `vmcp.dev/confirm-eviction`.
    pub confirm_eviction: bool,
    /// It is deleted when nobody has used it for so long.
    pub idle_timeout: Option<Duration>,
    /// It is deleted when it is this old.
    pub max_lifetime: Option<Duration>,
    /// When an agent wrote that it renewed it, in milliseconds since 1970.
    pub renewed_at: Option<u64>,
    /// Its status as it stands.
    pub status: Option<Box<Status>>,
}

/// A replica's marker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marker {
    /// Name of the replica.
    pub replica: String,
    /// Where it serves.
    pub address: String,
}

/// An object, for those who use it.
#[derive(Debug)]
pub struct Read {
    /// For the comparison.
    pub object: Object,
    /// For the leader, if it is a session.
    pub terms: Option<Terms>,
    /// If it is the registration of a replica.
    pub marker: Option<Marker>,
}

/// Turns what was read into what is kept.
#[derive(Debug, Default)]
pub struct Reader {
    namespaces: Interner,
    summarizer: Summarizer,
    /// Where the collection's markers are.
    markers_in: Option<String>,
    /// Replicas register only here: who may write sessions elsewhere may write a marker too, with any address in it.
    registry: Option<String>,
}

impl Reader {
    /// A reader that takes markers only in `markers_in`, and registrations only in `registry`.
    pub fn new(markers_in: &str, registry: &str) -> Self {
        let (markers_in, registry) = (Some(markers_in.to_owned()), Some(registry.to_owned()));
        Self { markers_in, registry, ..Self::default() }
    }

    /// Reads an object.
    pub fn read(&mut self, watched: Watched) -> Result<Read, NotASession> {
        let Watched { metadata: meta, spec, status } = watched;
        let resource_version: ResourceVersion = meta.resource_version.parse()?;
        let key = SessionKey::new(self.namespaces.intern(&meta.namespace), meta.name);
        let unreadable = |why| NotASession::Unreadable { key: key.clone(), resource_version, why };
        let uid: Uid = meta.uid.parse().map_err(|invalid: InvalidUid| unreadable(invalid.into()))?;
        let terminating = meta.deletion_timestamp.is_some();
        let is = |namespace: &Option<String>| namespace.as_deref() == Some(&meta.namespace);
        let (kind, terms, marker) = if is_marker(key.name(), meta.labels.replica.is_some()) {
            let lease = meta.annotations.lease();
            let address = meta.annotations.address.unwrap_or_default();
            let marker = is(&self.registry).then(|| Marker { replica: key.name().to_owned(), address });
            let kind = if is(&self.markers_in) { Kind::Marker { lease } } else { Kind::Neither };
            (kind, None, marker)
        } else {
            let Readable::Spec(spec) = spec else {
                return Err(unreadable(Unreadable::Spec));
            };
            let seconds = |s: Option<u32>| s.map(|s| Duration::from_secs(s.into()));
            let terms = Terms {
                uid,
                generation: meta.generation,
                resource_version,
                created: meta.creation_timestamp.map_or(Timestamp::UNIX_EPOCH, |t| t.0),
                terminating,
                confirm_eviction: meta.finalizers.iter().any(|f| f == FINALIZER_CONFIRM_EVICTION),
                idle_timeout: seconds(spec.idle_timeout_seconds),
                max_lifetime: seconds(spec.max_lifetime_seconds),
                renewed_at: meta.annotations.renewed_at.and_then(|at| at.parse().ok()),
                status: status.map(Box::new),
            };
            (Kind::Session(self.summarizer.summarize(&spec.metadata)), Some(terms), None)
        };
        let object = Object { key, uid, generation: meta.generation, resource_version, terminating, kind };
        Ok(Read { object, terms, marker })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn watched(name: &str, labels: &serde_json::Value) -> Watched {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "a", "name": name, "uid": "0189ab00-0000-4000-8000-00000000beef", "generation": 3,
                "resourceVersion": "77", "creationTimestamp": "2026-01-01T00:00:00Z", "labels": labels,
                "finalizers": ["vmcp.dev/confirm-eviction"],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "canary", "vmcp.dev/address": "127.0.0.1:1",
                    "vmcp.dev/lease-milliseconds": "6500"},
                "managedFields": [{"manager": "x"}],
            },
            "spec": {"metadata": {"k": "canary"}, "idleTimeoutSeconds": 5},
        }))
        .unwrap()
    }

    #[test]
    fn a_session_is_read_without_its_values() {
        let watched = watched("s", &json!({}));
        assert!(!format!("{watched:?}").contains("canary"), "{watched:?}");
        let read = Reader::new("a", "a").read(watched).unwrap();
        assert!(!format!("{read:?}").contains("canary"), "{read:?}");
        assert_eq!(read.object.key.to_string(), "a/s");
        let terms = read.terms.unwrap();
        assert!(terms.confirm_eviction);
        assert_eq!(terms.idle_timeout, Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_cannot_be_read_of_a_status_is_as_if_it_were_not_there() {
        let mut object = json!({
            "metadata": {"namespace": "a", "name": "s", "uid": "0189ab00-0000-4000-8000-00000000beef", "generation": 3,
                "resourceVersion": "77", "creationTimestamp": "9999-12-31T23:59:59Z"},
            "spec": {"metadata": {}},
            "status": {"observedGeneration": 3, "lastRenewTime": "2026-01-01T00:00:00+99:99", "conditions": [{"type": "X"}]},
        });
        let read = |object: &Value| Reader::new("a", "a").read(serde_json::from_value(object.clone()).unwrap());
        let status = read(&object).unwrap().terms.unwrap().status.unwrap();
        assert_eq!((status.observed_generation, status.conditions.len(), status.last_renew_time), (Some(3), 1, None));
        object["status"] = json!("none");
        assert_eq!(read(&object).unwrap().terms.unwrap().status, None);
        // A spec is another matter: it is what is compared.
        object["spec"] = json!({"metadata": {"k": 1}});
        let Err(NotASession::Unreadable { key, resource_version, .. }) = read(&object) else { panic!("it was read") };
        assert_eq!((key.to_string().as_str(), resource_version), ("a/s", ResourceVersion(77)));
    }

    #[test]
    fn a_replica_registers_only_in_the_operators_namespace() {
        let labels = json!({"vmcp.dev/replica": "true"});
        let read = |markers_in, registry, name| Reader::new(markers_in, registry).read(watched(name, &labels)).unwrap();
        let own = read("a", "a", "replica-s");
        assert_eq!(own.marker, Some(Marker { replica: "replica-s".into(), address: "127.0.0.1:1".into() }));
        assert!(matches!(own.object.kind, Kind::Marker { lease: Some(lease) } if lease.as_millis() == 6_500));
        let tenants = read("a", "ops", "replica-s");
        assert!(
            matches!((tenants.object.kind, tenants.marker), (Kind::Marker { .. }, None)),
            "it proves, and registers nobody"
        );
        let elsewhere = read("ops", "ops", "replica-s");
        assert!(matches!((elsewhere.object.kind, elsewhere.marker), (Kind::Neither, None)));
        let lease = |text: &str| Annotations { lease: Some(text.to_owned()), ..Annotations::default() }.lease();
        assert_eq!(["300001", "-1", "x", ""].map(lease), [Some(MAX_LEASE), None, None, None]);
        let session = read("a", "a", "s");
        assert!(matches!((session.object.kind, session.marker), (Kind::Session(_), None)), "labelled by somebody");
    }
}
