//! What the product promises, on a real control plane: real etcd, kube-apiserver and kubectl, RBAC on, and every
//! replica and every pod a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod events;
mod leader;
mod resource;
mod status;
