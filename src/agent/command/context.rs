//! What a command that needs no waiting gets to work with.

use super::client::Client;
use crate::agent::Agent;

/// The agent, and the client that asks.
pub struct Context<'a> {
    /// The agent.
    pub agent: &'a Agent,
    /// The client.
    pub client: &'a mut Client,
}
