//! Adds the agent to pods that ask for it, where the API server cannot do that by itself: a mutating admission webhook.
//!
//! Which pods those are is said in the `MutatingWebhookConfiguration`; what they get in a [`definition`], which the chart
//! writes and makes its policy of, too. [`patch`](mod@patch) says what changes in a pod, [`webhook`] answers the API server.

pub mod args;
pub mod definition;
pub mod patch;
pub mod webhook;

pub use args::{InjectionArgs, InjectionError};
