//! Agents whose keys have a prefix, as they have beside other users of a Redis server.

use testkit::{AgentOptions, AgentPod};

use crate::world::World;

/// Prefix of the keys.
pub const KEY_PREFIX: &str = "session:";

/// An agent whose keys have the prefix, with a lease of every replica.
pub async fn agent(world: &World, name: &str, options: AgentOptions) -> AgentPod {
    super::agent(world, name, options.args(&[&format!("--key-prefix={KEY_PREFIX}")])).await
}
