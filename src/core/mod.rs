//! Every decision of the protocol, as plain code without I/O, tasks or clocks.
//!
//! Time and messages come in as arguments, signals and facts go out as values, so that a simulator, a model
//! checker and a unit test drive exactly what the controller and the pods run.
//!
//! * [`names`]: what objects and namespaces can be called.
//! * [`digest`]: when two metadata maps are equal.
//! * [`fields`]: what a pod keeps of such a map.
//! * [`signal`]: what replicas and agents tell each other, and which answers such a signal outdates.
//! * [`lease`]: how long an agent may serve a copy without asking.
//! * [`replica`]: the controller's side: the truth as its watch shows it, and who holds what.
//! * [`cache`]: the pod's side: what may be served, what must be validated, what must be dropped.
//! * [`election`]: which replica leads.
//! * [`expiry`]: which sessions have outlived their timeouts, by [`server_clock`].
//! * [`quorum`]: when enough replicas have confirmed a state.
//! * [`finalizing`]: which deleted sessions may be let go of.
//! * [`storm`]: which sessions are evicted again and again.
//! * [`coalesce`], [`rate`]: how much is written to Kubernetes, and when.
//! * [`patience`]: when what was in vain is tried again.
//! * [`tally`]: how much a pod or namespace may have of what is bounded.
//! * [`events`], [`notes`]: which events are written, and what they say.

pub mod cache;
pub mod coalesce;
pub mod digest;
pub mod election;
pub mod events;
pub mod expiry;
pub mod fields;
pub mod finalizing;
pub mod lease;
pub mod names;
pub mod notes;
pub mod patience;
pub mod quorum;
pub mod rate;
pub mod replica;
pub mod rules;
pub mod server_clock;
pub mod session;
pub mod session_ref;
pub mod signal;
pub mod storm;
pub mod tally;
pub mod time;

#[cfg(test)]
mod simulation;
