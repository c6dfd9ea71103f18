//! The resource `VmcpSession`: its types, its names and its `CustomResourceDefinition`.
//!
//! The types say what an API server accepts; the rules themselves are in the generated definition (see [`crd`]),
//! so that a bad object is refused where it is written and not where it is read.

pub mod crd;
mod names;
mod schema;
mod session;
mod status;

pub use names::{
    ANNOTATION_ADDRESS, ANNOTATION_BEAT, ANNOTATION_LEASE, ANNOTATION_RENEWED_AT, CONDITION_SYNCED,
    FINALIZER_CONFIRM_EVICTION, GROUP, KIND, LABEL_REPLICA, MARKER_PREFIX, MAX_CHANGED_KEYS, MAX_KEY_CHARS, MAX_KEYS,
    MAX_METADATA_BYTES, MAX_TIMEOUT_SECONDS, MAX_VALUE_CHARS, PLURAL, SyncedReason, VERSION, is_marker,
};
pub use session::{VmcpSession, VmcpSessionSpec, strip_echoes};
pub(crate) use status::lenient;
pub use status::{LastEviction, VmcpSessionStatus};
