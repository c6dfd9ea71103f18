//! Keeps the session caches of vMCP pods coherent with `VmcpSession` objects in Kubernetes.
//!
//! The modules, and which may use which (a test holds this; docs/architecture.md says why):
//!
//! | module | may use | what it is |
//! |---|---|---|
//! | [`core`] | nothing of ours | every decision, without I/O, tasks or clocks |
//! | [`api`] | `core` | the resource `VmcpSession` |
//! | [`proto`] | `core` | the protocol between pods and controller |
//! | [`resp`] | nothing of ours | the Redis protocol: requests, replies, limits |
//! | [`runtime`] | nothing of ours | what every subcommand needs: signals, logs, admin endpoints, API client |
//! | [`cache`] | `api`, `core`, `proto`, `runtime` | the pod's side as a library |
//! | [`agent`] | `api`, `cache`, `core`, `proto`, `resp`, `runtime` | the sidecar: sessions over the Redis protocol |
//! | [`controller`] | `api`, `core`, `proto`, `runtime` | the controller: watch, streams, status, events, leader |

pub mod agent;
pub mod api;
pub mod cache;
pub mod controller;
pub mod core;
pub mod proto;
pub mod resp;
pub mod runtime;
