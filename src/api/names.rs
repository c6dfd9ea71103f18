//! Names and limits that other parts and other programs rely on.

/// API group of the resource.
pub const GROUP: &str = "vmcp.dev";

/// API version of the resource.
pub const VERSION: &str = "v1alpha1";

/// Kind of the resource.
pub const KIND: &str = "VmcpSession";

/// Plural name of the resource, as in URLs and RBAC rules.
pub const PLURAL: &str = "vmcpsessions";

/// Finalizer that keeps a deleted session until no pod can serve it any more.
pub const FINALIZER_CONFIRM_EVICTION: &str = "vmcp.dev/confirm-eviction";

/// Label that marks the freshness marker of a controller replica, which bears the replica's name; its value is "true".
///
/// The markers are `VmcpSession` objects too, so that they come through the watch that they vouch for.
pub const LABEL_REPLICA: &str = "vmcp.dev/replica";

/// How the name of each freshness marker begins. Neither the name nor the label makes a marker alone: people may label and name
/// their sessions as they like.
pub const MARKER_PREFIX: &str = "replica-";

/// Whether an object is a freshness marker, and so no session, wherever it is.
pub fn is_marker(name: &str, has_replica_label: bool) -> bool {
    has_replica_label && name.starts_with(MARKER_PREFIX)
}

/// Annotation of a freshness marker: the address at which agents and peers reach the replica.
pub const ANNOTATION_ADDRESS: &str = "vmcp.dev/address";

/// Annotation of a freshness marker: how long the replica's leases are, in milliseconds. While an upgrade changes that, replicas of both
/// lengths run.
pub const ANNOTATION_LEASE: &str = "vmcp.dev/lease-milliseconds";

/// Annotation of a session with the instant at which a timeout was set that is not exact, or was renewed by an agent that had no
/// controller to tell, in milliseconds since 1970: neither the creation of the object nor a use of it need be as late. A change of
/// it counts as a use.
pub const ANNOTATION_RENEWED_AT: &str = "vmcp.dev/renewed-at";

/// Annotation of a freshness marker: a number that the replica raises with each write.
pub const ANNOTATION_BEAT: &str = "vmcp.dev/beat";

/// Type of the condition that says whether every holder has dropped its old copy.
pub const CONDITION_SYNCED: &str = "Synced";

/// Reason of the condition [`CONDITION_SYNCED`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncedReason {
    /// Every pod that held a copy has dropped or adopted it.
    AllPodsCurrent,
    /// Some pods have not confirmed yet.
    WaitingForPods,
    /// No pod holds a copy.
    NoHolders,
}

impl SyncedReason {
    /// The reason as it stands in the condition.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AllPodsCurrent => "AllPodsCurrent",
            Self::WaitingForPods => "WaitingForPods",
            Self::NoHolders => "NoHolders",
        }
    }

    /// The condition's status that belongs to the reason.
    pub const fn status(self) -> &'static str {
        match self {
            Self::AllPodsCurrent | Self::NoHolders => "True",
            Self::WaitingForPods => "False",
        }
    }
}

/// Most keys that `spec.metadata` may have.
pub const MAX_KEYS: usize = 256;

/// Most characters of a key of `spec.metadata`.
pub const MAX_KEY_CHARS: usize = 253;

/// Most characters of a value of `spec.metadata`.
pub const MAX_VALUE_CHARS: usize = 65_536;

/// Most bytes that keys and values of `spec.metadata` may have together, in UTF-8.
pub const MAX_METADATA_BYTES: usize = 1_048_576;

/// Longest timeout: a year.
pub const MAX_TIMEOUT_SECONDS: u32 = 31_536_000;

/// Most key names that `status.lastEviction` lists.
pub const MAX_CHANGED_KEYS: usize = 16;
