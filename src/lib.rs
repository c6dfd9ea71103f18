//! Keeps the session caches of vMCP pods coherent with `VmcpSession` objects in Kubernetes.

pub mod api;
pub mod runtime;
