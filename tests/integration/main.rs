//! What the product promises, on a real control plane: real etcd, kube-apiserver and kubectl, RBAC on, and every
//! replica and every pod a process of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]
/// The programs that cargo built for these tests.
fn programs() -> testkit::Programs {
    testkit::Programs {
        session: env!("CARGO_BIN_EXE_vmcp-session").into(),
        pod: concat!(env!("CARGO_MANIFEST_DIR"), "/target/debug/examples/pod").into(),
        crd: concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml").into(),
    }
}

mod cachelib;
mod events;
mod leader;
mod resource;
mod smoke;
mod status;
