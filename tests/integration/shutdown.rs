//! A shutdown ends in time, whoever does not answer.

use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, ProxyMode, eventually};

use crate::world::{PATIENCE, World};

/// What Kubernetes is told to wait, at most.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_ends_in_time_though_the_api_server_is_silent() {
    // With leases of this length a call that is part of them may take longer than a shutdown.
    let options = ClusterOptions::default().size(2, 1).lease(Duration::from_mins(1));
    let world = World::start(ClusterOptions { api_proxies: true, ..options }).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    let leader = world.leader().await;
    for controller in &world.controllers {
        controller.api.as_ref().unwrap().set(ProxyMode::BlackholeToClient).await.unwrap();
    }
    // The leader first: it has the most to finish.
    for at in [leader, 1 - leader] {
        let controller = &world.controllers[at];
        // From then on there is always a call that is not answered.
        let unanswered = async || controller.process.log().contains("the marker cannot be written").then_some(());
        eventually(PATIENCE, "a call was not answered", unanswered).await.unwrap();
        let ended = controller.process.terminate(GRACE).await.unwrap();
        assert!(ended.success(), "{}: {ended}\n{}", controller.name, controller.process.log_tail());
    }
}
