//! The controller: it watches sessions, tells the agents, and writes to Kubernetes.

pub mod clock;
pub mod events;
pub mod fault;
pub mod leader;
mod pump;
pub mod status;
