//! What the server and the commands say to each other.

use std::future::Future;
use std::sync::Arc;

use super::handle::ClientHandle;
use crate::resp::{Reply, Request};

/// What a request leads to.
#[derive(Debug)]
pub enum Flow {
    /// One reply.
    Reply(Reply),
    /// Several, one after the other: `SUBSCRIBE` answers for each channel.
    Replies(Vec<Reply>),
    /// None: the client wants to hear nothing.
    None,
    /// The reply would be larger than all that may wait for the client, so it was not made: the connection ends, as if the
    /// client had not read it.
    TooLarge,
    /// The connection ends, perhaps after a last reply.
    Close(Option<Reply>),
}

/// What the server serves. The agent is one.
pub trait Handler: Send + Sync + 'static {
    /// What is known of a connection. It belongs to the connection's task.
    type Client: Send + 'static;

    /// Somebody has connected.
    fn connect(&self, handle: Arc<ClientHandle>) -> Self::Client;

    /// Answers one request. Requests of a client come one after the other.
    ///
    /// It is always run to its end, also when the client has gone or the server is about to stop.
    fn execute(&self, client: &mut Self::Client, request: Request) -> impl Future<Output = Flow> + Send;

    /// Whether the client has given the password, or needs none. Who has not may send less.
    fn trusts(&self, client: &Self::Client) -> bool;

    /// The connection has ended. Called exactly once for each client, also when its task panics.
    fn disconnect(&self, client: Self::Client);
}
