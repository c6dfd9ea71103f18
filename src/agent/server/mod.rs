//! The connections: who is connected, what came, what goes out, and the bounds of all that.
//!
//! Nothing here knows a command. A [`Handler`] answers requests; the server sees to it that each client's requests come one
//! after the other, that replies go out together where requests came together, and that no client can take more memory,
//! time or connections than the limits say.

mod clients;
mod clock;
mod connection;
mod flow;
mod handle;
mod limits;
mod listen;
mod mailbox;
mod memory;
mod serve;
mod thread;

pub use clients::{Clients, Room, Totals};
pub use flow::{Flow, Handler};
pub use handle::{Address, Caching, Carried, ClientHandle, ClientId};
pub use limits::Limits;
pub use listen::{ListenError, affordable};
pub use mailbox::{Ended, Mailbox};
pub use serve::{Server, ServerConfig};

#[cfg(test)]
mod tests;
