//! Replicas that are reached by IPv6, and listen for IPv4 too, as in a cluster with both.

use std::net::Ipv4Addr;

use serde_json::json;
use testkit::{ClusterOptions, eventually};
use tokio::net::TcpStream;

use crate::world::{Evictions, PATIENCE, World, serves};

/// Pods and replicas find each other: evictions arrive, and a write waits for the pods of both replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_and_replicas_find_each_other_by_ipv6() {
    let world = World::start(ClusterOptions::default().size(2, 2).ipv6()).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1]).await;
    let watchers = Evictions::of_all(&world.clients()).await;
    world.patch("s", &json!({"n": "1"})).await.unwrap();
    for watcher in &watchers {
        assert_eq!(watcher.wait("s", 1).await[0].reason, "stale");
    }
    world.hold("s", &[0, 1]).await;
    let written = world.pods[0].patch("s", &json!({"n": "2"}), "everywhere").await.unwrap();
    assert_eq!(written.status, 200, "{written:?}");
    serves(&world.clients()[1], "s", "n", "2").await;

    for controller in &world.controllers {
        assert!(controller.address.is_ipv6());
        TcpStream::connect((Ipv4Addr::LOCALHOST, controller.address.port())).await.unwrap();
    }
    // The replica that leads asks the other one whether its pods have dropped what is deleted.
    let leader = world.leader().await;
    let (leader, other) = (&world.controllers[leader], &world.controllers[1 - leader]);
    eventually(PATIENCE, "the leader is connected to the other replica", async || {
        let log = leader.process.log();
        let connected = log.lines().find(|line| line.contains("connected to the peer"))?;
        connected.contains(&other.address.to_string()).then_some(())
    })
    .await
    .unwrap();
}
