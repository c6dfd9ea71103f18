//! Keeps the session caches of vMCP pods coherent with `VmcpSession` objects in Kubernetes.

pub mod controller;
pub mod core;
