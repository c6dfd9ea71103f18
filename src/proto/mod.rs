//! The protocol between agents and replicas: code generated from `proto/`, and its conversion to and from [`core`].
//!
//! [`core`]: crate::core

pub mod codec;
pub mod convert;
pub mod version;

#[cfg(test)]
mod properties;

/// Generated from `proto/vmcp/session/v1`, where every message is documented.
#[allow(missing_docs, clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("vmcp.session.v1");
}

/// Bytes of one message, at most. Inventories and signals are cut into messages far below it.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Sessions in one message, at most: each takes up to 253 bytes of name and 70 of state.
pub const MAX_SESSIONS_PER_MESSAGE: usize = 2_048;
