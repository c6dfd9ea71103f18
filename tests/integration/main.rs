//! What the parts do on a real control plane.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod events;
mod leader;
mod status;
