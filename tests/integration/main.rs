//! What the product promises, on a real control plane: real etcd, kube-apiserver and kubectl, RBAC on, and every
//! replica and every pod a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod events;
mod eviction;
mod leader;
mod observer;
mod rbac;
mod resource;
mod status;
mod world;
mod writes;
