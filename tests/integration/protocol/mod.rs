//! What a hostile or broken client can do to a replica of the controller: nothing that anybody else notices.
//!
//! All tests share one cluster, one after another. Throughout each of them a well-behaved pod keeps its lease, and hears of a
//! change at its end (see [`setup`]).

mod client;
mod connections;
mod floods;
mod identity;
mod inventory;
mod messages;
mod namespaces;
mod setup;
