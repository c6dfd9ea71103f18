//! What whoever may write sessions, and no more, could do to everybody else.

use serde_json::json;
use testkit::ClusterOptions;

use crate::world::{Evictions, World, serves};

/// The API server takes a time that nobody else can read: the session's own affair.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_that_cannot_be_read_stops_nobody() {
    let world = World::start(ClusterOptions::default()).await;
    for name in ["odd", "other"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
        world.hold(name, &[0, 1]).await;
    }
    let status = json!({"status": {"lastRenewTime": "2026-01-01T00:00:00+99:99"}}).to_string();
    world.kubectl(&["patch", "vmcps", "odd", "--subresource=status", "--type=merge", "-p", &status]).await.unwrap();
    let pods = world.clients();
    let watchers = Evictions::of_all(&pods[..2]).await;
    // All that the API server shows after it comes through: to those that watch, and to one that lists.
    for name in ["odd", "other"] {
        world.merge(name, &json!({"n": "1"})).await;
        for watcher in &watchers {
            watcher.wait(name, 1).await;
        }
        for pod in &pods {
            serves(pod, name, "n", "1").await;
        }
        world.hold(name, &[0, 1, 2]).await;
    }
    world.settled().await;
    let mut world = world;
    world.add_controller().await.unwrap().wait_ready().await.unwrap();
}
