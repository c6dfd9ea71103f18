//! The thinnest path.
use std::time::Duration;
use testkit::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_becomes_ready() {
    let programs = Programs {
        session: env!("CARGO_BIN_EXE_vmcp-session").into(),
        pod: "none".into(),
        crd: concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml").into(),
    };
    let cluster =
        Cluster::start(programs, ClusterOptions::default().size(2, 0).lease(Duration::from_secs(3))).await.unwrap();
    println!("{}", cluster.plane.kubectl(&["get", "vmcps", "-A", "-o", "wide"]).await.unwrap());
    cluster.apply("a", &serde_json::json!({"k": "v"})).await.unwrap();
    println!("{}", cluster.controllers[0].process.log());
    cluster.controllers[0].process.terminate(Duration::from_secs(10)).await.unwrap();
    println!("{}", cluster.controllers[0].process.log());
    println!("{}", cluster.plane.kubectl(&["get", "vmcps", "-A", "-o", "wide"]).await.unwrap());
}
