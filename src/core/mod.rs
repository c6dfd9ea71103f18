//! Decisions without I/O: no runtime, no Kubernetes client, no clock.

pub mod coalesce;
pub mod election;
pub mod events;
pub mod notes;
pub mod rate;
pub mod session_ref;
pub mod time;
