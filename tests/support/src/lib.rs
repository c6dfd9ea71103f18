//! What the tests, the demo and the benchmarks stand on: a real control plane, a network that can be made hostile, and
//! processes that never outlive the one that started them.
//!
//! | to get | use |
//! |---|---|
//! | etcd and kube-apiserver, started, stopped, killed, paused | [`ControlPlane`], [`ApiServer`], [`Component`] |
//! | all of that with a node on which pods really run | [`RealNode`] |
//! | connections that are slow, silent or cut | [`TcpProxy`] |
//! | a whole cluster: controllers and pods as processes | [`Cluster`], [`Controller`], [`VmcpPod`], [`PodClient`] |
//! | a vMCP server that speaks MCP, and a client of another make | [`McpScene`], [`McpClient`] |
//! | pods whose sidecar is the agent, and what speaks to it | [`AgentPod`], [`RespClient`] |
//! | a program under supervision | [`Process`] |
//! | service accounts, roles, pods and tokens bound to them | the methods of [`ControlPlane`] |
//! | the requests that an API server has answered | [`AuditLog`] |
//! | the rights that the programs used for them, and those that the chart grants | [`RightUsed`], [`Grant`] |
//! | an address of one's own | [`LoopbackAddr`] |
//! | a condition to come true | [`eventually`] |
//!
//! Nothing stays behind: every child process dies with this one, however this one ends (see [`Process`]).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod agent;
mod apiserver;
mod assets;
mod audit;
mod cluster;
mod component;
mod control_plane;
mod controller;
mod error;
mod grants;
mod identity;
mod kubectl;
mod loopback;
mod mcp;
mod pki;
mod process;
mod proxy;
mod real_node;
mod resp;
mod rights;
mod scratch;
mod supervisor;
mod vmcp_pod;
mod wait;

pub use agent::{AgentOptions, AgentPod};
pub use apiserver::ApiServer;
pub use audit::{AuditEntry, AuditLog, AuditMark, Verb};
pub use cluster::{Cluster, ClusterOptions, Programs, TokensOf};
pub use component::Component;
pub use control_plane::{ControlPlane, ControlPlaneOptions};
pub use controller::Controller;
pub use error::{Error, Result};
pub use grants::{Grant, rendered_chart};
pub use identity::{TokenAccess, policy_rule};
pub use kubectl::KubectlOutput;
pub use loopback::{LoopbackAddr, free_port};
pub use mcp::{Exchange, McpAnswer, McpClient, McpPod, McpPrograms, McpScene, McpSessions};
pub use pki::{StreamFiles, stream_authority};
pub use process::{Process, ProcessBuilder};
pub use proxy::{ProxyMode, TcpProxy};
pub use real_node::{Forward, RealNode};
pub use resp::{Resp, RespClient};
pub use rights::{Left, RightUsed};
pub use vmcp_pod::{PodClient, Reply, VmcpPod};
pub use wait::eventually;
