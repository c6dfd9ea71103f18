//! A shutdown ends in time, whoever does not answer.

use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, eventually};

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
