//! What the product promises, on a real control plane: real etcd, kube-apiserver and kubectl, RBAC on, and every
//! replica and every pod a process of its own.
//!
//! Each promise has a test that is numbered as in docs/architecture.md's list.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod eviction;
mod observer;
mod rbac;
mod resource;
mod world;
