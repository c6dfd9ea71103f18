//! A shutdown ends in time, whoever does not answer.

use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, LoopbackAddr, PodClient, eventually};

use crate::world::{PATIENCE, World};

/// What Kubernetes is told to wait, at most.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_ends_in_time_though_the_api_server_is_silent() {
    // With leases of this length the write of a marker may take 12 s, which is longer than a shutdown.
    let world = World::start(ClusterOptions::default().size(2, 1).lease(Duration::from_mins(1))).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    // Not by a proxy that is silent: no new connection is made through that, which ends a call after 5 s.
    world.plane.etcd().pause().await.unwrap();
    let ends = world.controllers.iter().map(async |controller| {
        // The next call has begun then, and is as long as that.
        let unanswered = async || controller.process.log().contains("the marker cannot be written").then_some(());
        eventually(PATIENCE, "a call was not answered", unanswered).await.unwrap();
        let ended = controller.process.terminate(GRACE).await.unwrap();
        assert!(ended.success(), "{}: {ended}\n{}", controller.name, controller.process.log_tail());
    });
    futures::future::join_all(ends).await;
    world.plane.etcd().resume().await.unwrap();
}

/// Whoever kills it for that, as a kubelet does when a startup probe is not answered, has no controller when the API server is back.
#[tokio::test]
async fn a_controller_answers_probes_while_there_is_no_api_server() {
    let (dir, here) = (tempfile::tempdir().unwrap(), LoopbackAddr::claim().unwrap());
    let [nobody, streams, admin] = [(); 3].map(|()| here.free_socket().unwrap());
    let kubeconfig = dir.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": format!("http://{nobody}")}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "here"}}],
        "users": [{"name": "here", "user": {}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let mut controller = tokio::process::Command::new(crate::programs().session)
        .arg("controller")
        .args([format!("--listen={streams}"), format!("--admin-listen={admin}")])
        .env("KUBECONFIG", &kubeconfig)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let probes = PodClient { name: "controller".into(), address: admin };
    let alive = eventually(PATIENCE, "it is alive", async || probes.call("GET", "/livez", None).await.ok());
    assert_eq!(alive.await.unwrap().status, 200);
    let ready = probes.call("GET", "/readyz", None).await.unwrap();
    assert!(ready.status == 503 && ready.text.contains("api-server"), "{}: {}", ready.status, ready.text);
    assert_eq!(probes.call("GET", "/metrics", None).await.unwrap().status, 503, "there is nothing to show yet");
    assert!(controller.try_wait().unwrap().is_none(), "it has ended");
}
