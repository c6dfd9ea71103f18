//! A shutdown ends in time, whoever does not answer.

use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, ProxyMode};

use crate::world::World;

/// What Kubernetes is told to wait, at most.
const GRACE: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_ends_in_time_though_the_api_server_is_silent() {
    let world = World::start(ClusterOptions::default().size(2, 1).proxied()).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    let leader = world.leader().await;
    // The leader first: it has the most to finish.
    for at in [leader, 1 - leader] {
        let controller = &world.controllers[at];
        controller.api.as_ref().unwrap().set(ProxyMode::BlackholeToClient).await.unwrap();
        let ended = controller.process.terminate(GRACE).await.unwrap();
        assert!(ended.success(), "{}: {ended}\n{}", controller.name, controller.process.log_tail());
    }
}
