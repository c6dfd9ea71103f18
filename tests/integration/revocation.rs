//! Deletes that are confirmed (I4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use testkit::{ClusterOptions, PodClient};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::world::World;

/// Longer than kubectl and everything else takes on a busy machine, so that it shows whether a lease was waited for.
const LEASE: Duration = Duration::from_secs(8);
/// A lease with one per cent, and what everything else may take on a busy machine.
const AT_MOST: Duration = Duration::from_secs(28);

/// Applies a session that is deleted only when no pod can serve it any more, and lets the pods hold it.
async fn guarded(world: &World, name: &str, pods: &[usize]) {
    let object = json!({
        "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
        "metadata": {"name": name, "namespace": "vmcp", "finalizers": ["vmcp.dev/confirm-eviction"]},
        "spec": {"metadata": {"a": "1"}},
    });
    world.plane.apply_yaml(&object.to_string()).await.unwrap();
    world.hold(name, pods).await;
}

/// Asks a pod for a session without a pause. Once `gone` is set before a request is sent, no answer may have the session.
async fn besiege(pod: PodClient, name: String, gone: Arc<AtomicBool>) -> usize {
    let mut refused = 0;
    while refused < 20 {
        let after = gone.load(Ordering::SeqCst);
        let reply = timeout(Duration::from_secs(1), pod.get(&name)).await;
        if let Ok(Ok(reply)) = reply
            && after
        {
            assert_ne!(reply.status, 200, "{} serves {name}, which is gone: {reply:?}", pod.name);
            refused += 1;
        }
        sleep(Duration::from_millis(2)).await;
    }
    refused
}

/// Deletes a session with kubectl, which returns when the object is gone, while the pods are asked for it all the time.
async fn delete(world: &World, name: &str) -> Duration {
    let gone = Arc::new(AtomicBool::new(false));
    let mut siege = JoinSet::new();
    for pod in world.clients() {
        siege.spawn(besiege(pod.clone(), name.to_owned(), gone.clone()));
        siege.spawn(besiege(pod, name.to_owned(), gone.clone()));
    }
    let started = Instant::now();
    world.kubectl(&["delete", "vmcps", name, "--timeout=60s"]).await.unwrap();
    let took = started.elapsed();
    gone.store(true, Ordering::SeqCst);
    for pod in &world.pods {
        if pod.process.is_running() {
            // Also one that was asleep: what it answers first, it answers now.
            pod.process.resume().unwrap();
        } else {
            siege.abort_all();
        }
    }
    while let Some(ended) = siege.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
    took
}

/// 18. Deleting an object that carries `vmcp.dev/confirm-eviction`: when it is gone, no pod serves it (I4), and no object hangs
/// when pods or replicas are dead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_delete_is_a_delete_everywhere_and_never_hangs() {
    let leader = ["--leader-lease-seconds=3", "--leader-renew-deadline-seconds=2", "--leader-retry-seconds=0.5"];
    let options = ClusterOptions::default().lease(LEASE).controller_args(&leader);
    let mut world = World::start(options).await;
    let mut quickest = Duration::MAX;
    for n in 0..10 {
        let name = format!("s{n}");
        guarded(&world, &name, &[0, 1, 2]).await;
        quickest = quickest.min(delete(&world, &name).await);
    }
    println!("confirmed deletes, kubectl included: {quickest:?} at best");
    assert!(quickest < LEASE, "it waits for leases although nobody is silent: {quickest:?}");

    println!("a pod is paused");
    guarded(&world, "paused", &[0, 1, 2]).await;
    world.pods[1].process.pause().await.unwrap();
    let took = delete(&world, "paused").await;
    assert!(took < AT_MOST, "{took:?}");

    println!("a replica is killed");
    for pod in &world.pods {
        pod.wait_leases(2).await.unwrap();
    }
    guarded(&world, "replica", &[0, 1, 2]).await;
    let leader = world.leader().await;
    world.controllers[leader].process.kill9().await.unwrap();
    // Besides the leases, the lease of the leader must end.
    let took = delete(&world, "replica").await;
    assert!(took < AT_MOST * 2, "{took:?}");
    world.controllers[leader].restart().await.unwrap();
    world.controllers[leader].wait_ready().await.unwrap();

    println!("all pods are killed");
    for pod in &world.pods {
        pod.wait_leases(2).await.unwrap();
    }
    guarded(&world, "dead", &[0, 1, 2]).await;
    for pod in &mut world.pods {
        pod.process.kill9().await.unwrap();
    }
    let took = delete(&world, "dead").await;
    assert!(took < AT_MOST, "{took:?}");
}
