//! The pod's side: its copies, what of them may be served, and what it must tell the replicas.
//!
//! * [`shard`]: the copies, and the requests in flight that may replace them.
//! * [`reports`]: which copies each replica must still be told of.
//! * [`recency`]: which copy was used least recently.
//! * [`facts`]: what a copy knows of its object besides the metadata.
//! * [`departed`]: sessions whose last use must still be told, though no copy is left.
//! * [`Formers`]: what clients last had of sessions whose copies are gone.
//! * [`renewed`]: when an idle timeout was begun anew.

pub mod copy;
pub mod departed;
pub mod facts;
pub mod flight;
mod formers;
pub mod recency;
pub mod renewed;
pub mod reports;
pub mod shard;
mod used;

pub use copy::{Answer, Copy, DropReason, Dropped, LocalValues, Observed};
pub use departed::Departed;
pub use facts::{Annotations, CommonAnnotations, Facts};
pub use flight::FlightId;
pub use formers::Formers;
pub use renewed::Renewal;
pub use reports::{Holding, Report, Reporter, Reports};
pub use shard::{Beside, Habits, Join, Limits, LocalChange, Restored, Shard, Written};
