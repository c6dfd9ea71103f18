//! The pod's side: its copies, what of them may be served, and what it must tell the replicas.
//!
//! * [`shard`]: the copies, and the requests in flight that may replace them.
//! * [`reports`]: which copies each replica must still be told of.
//! * [`recency`]: which copy was used least recently.

pub mod copy;
pub mod flight;
pub mod recency;
pub mod reports;
pub mod shard;

pub use copy::{Answer, Copy, DropReason, Dropped, LocalValues, Observed};
pub use flight::FlightId;
pub use reports::{Holding, Report, Reporter, Reports};
pub use shard::{Join, Limits, Restored, Shard, Written};
