//! What the product promises, on a real control plane: real etcd, kube-apiserver and kubectl, RBAC on, and every
//! replica and every pod a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod agent;
mod balancer;
mod bundles;
mod cachelib;
mod certificates;
mod chart;
mod dev;
mod encryption;
mod events;
mod eviction;
mod expiry;
mod failover;
mod hostile;
mod idle;
mod injection;
mod ipv6;
mod leader;
mod monitoring;
mod namespaces;
mod observer;
mod policy;
mod protocol;
mod rbac;
mod reconcile;
mod release;
mod resource;
mod restore;
mod revocation;
mod scrape;
mod shutdown;
mod staleness;
mod status;
mod telling;
mod tokens;
mod world;
mod writes;

/// The programs that cargo built for these tests.
fn programs() -> testkit::Programs {
    let mut programs = testkit::Programs::beside_this_one(env!("CARGO_MANIFEST_DIR")).unwrap();
    programs.session = env!("CARGO_BIN_EXE_vmcp-session").into();
    programs
}
