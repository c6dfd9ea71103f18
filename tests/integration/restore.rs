//! etcd is restored from a backup, while everything runs: what pods and replicas know is of a history that never was.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, PodClient, eventually};
use vmcp_session::api::VmcpSession;

use crate::world::{Evictions, PATIENCE, World};

/// The watch that is open when the restore is noticed must be younger than the half of it.
const LEASE: Duration = Duration::from_secs(10);
/// Far more than the control plane itself writes while it starts: the restored one must be behind what was seen.
const WRITES: usize = 300;

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&from, &to);
        } else {
            fs::copy(from, to).unwrap();
        }
    }
}

/// Waits until a pod serves a session with this number from its cache.
async fn cached(pod: &PodClient, name: &str, n: &str) {
    let what = format!("{} serves {name} n={n} from its cache", pod.name);
    let same = async || {
        let reply = pod.get(name).await.ok()?;
        (reply.from() == "cache" && reply.metadata()?["n"] == n).then_some(())
    };
    eventually(PATIENCE, &what, same).await.unwrap();
}

/// What etcd has, as it will be again after [`restore`].
async fn back_up(world: &World) {
    let data = world.plane.dir().join("etcd");
    world.plane.etcd().stop().await.unwrap();
    copy(&data, &world.plane.dir().join("etcd-backup"));
    world.plane.etcd().restart().await.unwrap();
    for pod in &world.clients() {
        pod.wait_leases(2).await.unwrap();
    }
}

async fn restore(world: &World) {
    let data = world.plane.dir().join("etcd");
    // It would wait for the watches of whoever is paused.
    world.plane.apiserver().kill9().await.unwrap();
    world.plane.etcd().stop().await.unwrap();
    fs::remove_dir_all(&data).unwrap();
    fs::rename(world.plane.dir().join("etcd-backup"), &data).unwrap();
    world.plane.etcd().restart().await.unwrap();
    world.plane.apiserver().restart().await.unwrap();
}

/// All copies go, and the restored ones are cached, covered, and stay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_restore_from_a_backup_pods_serve_what_was_restored_and_are_left_alone() {
    let mut world = World::start(ClusterOptions::default().lease(LEASE)).await;
    let pods = world.clients();
    for name in ["kept", "changed"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
        world.hold(name, &[0, 1, 2]).await;
    }
    back_up(&world).await;

    for n in 1..=WRITES {
        world.merge("changed", &json!({"n": n.to_string()})).await;
    }
    world.apply("born", &json!({"n": "0"})).await.unwrap();
    for pod in &pods {
        cached(pod, "changed", &WRITES.to_string()).await;
        cached(pod, "born", "0").await;
        cached(pod, "kept", "0").await;
    }

    restore(&world).await;

    for pod in &pods {
        cached(pod, "changed", "0").await;
        cached(pod, "kept", "0").await;
        eventually(PATIENCE, "what never was is not served", async || {
            (pod.get("born").await.ok()?.status == 404).then_some(())
        })
        .await
        .unwrap();
    }
    for controller in &world.controllers {
        controller.wait_ready().await.unwrap();
    }
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
        cached(pod, "changed", "0").await;
        cached(pod, "kept", "0").await;
    }
    let watchers = Evictions::of_all(&pods).await;
    world.fence().await;
    for (watcher, pod) in watchers.iter().zip(&pods) {
        assert_eq!(watcher.seen().await, [], "{}: the restored copies equal the truth", watcher.pod());
        assert_eq!(pod.get("kept").await.unwrap().from(), "cache");
    }
    world.patch("kept", &json!({"n": "1"})).await.unwrap();
    for watcher in &watchers {
        watcher.wait("kept", 1).await;
    }
}

/// The new history has passed the position of the watches by the time at which they are resumed: no number is too low.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_is_noticed_also_when_more_was_written_since_than_was_lost() {
    const LOST: usize = 20;
    let world = World::start(ClusterOptions::default().lease(LEASE)).await;
    let pods = world.clients();
    for name in ["changed", "other"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
        world.hold(name, &[0, 1, 2]).await;
    }
    back_up(&world).await;
    for n in 1..=LOST {
        world.merge("changed", &json!({"n": n.to_string()})).await;
    }
    world.apply("born", &json!({"n": "0"})).await.unwrap();
    for pod in &pods {
        cached(pod, "changed", &LOST.to_string()).await;
        cached(pod, "born", "0").await;
    }
    let version = |session: &VmcpSession| session.metadata.resource_version.as_deref().unwrap().parse::<u64>().unwrap();
    let last = version(&world.merge("other", &json!({"n": "1"})).await);

    for controller in &world.controllers {
        controller.process.pause().await.unwrap();
    }
    restore(&world).await;
    for n in 2.. {
        if version(&world.merge("other", &json!({"n": n.to_string()})).await) > last + 100 {
            break;
        }
    }
    for controller in &world.controllers {
        controller.process.resume().unwrap();
    }

    // Nobody has asked since: what is served from a cache was checked by the replicas alone.
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
        cached(pod, "changed", "0").await;
        eventually(PATIENCE, "what never was is not served", async || {
            (pod.get("born").await.ok()?.status == 404).then_some(())
        })
        .await
        .unwrap();
    }
}
