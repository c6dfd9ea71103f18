//! What ends and begins anew: watches, streams, API servers, replicas. No good copy pays for it (I2), and no change goes
//! unsignalled.

use std::time::Duration;

use serde_json::json;
use testkit::{AuditEntry, AuditLog, AuditMark, ClusterOptions, ProxyMode, Verb, eventually};
use vmcp_session::runtime::clock::boottime_nanos;

use crate::observer::Observer;
use crate::world::{Evictions, PATIENCE, PATIENCE_WITH_MANY, World};

/// A watch of sessions by the controller.
fn is_watch(entry: &AuditEntry) -> bool {
    entry.verb == Verb::Watch
        && entry.resource == "vmcpsessions"
        && entry.is_by("vmcp-system", "vmcp-session-controller")
}

/// Waits until so many watches have ended since `mark`, and as many have begun.
async fn watches_anew(audit: &AuditLog, mark: AuditMark, count: usize) {
    eventually(PATIENCE, &format!("{count} watches end and begin anew"), async || {
        let entries = audit.entries_since(mark).ok()?;
        let at = |stage: &str| entries.iter().filter(|e| is_watch(e) && e.stage == stage).count();
        (at("ResponseComplete") >= count && at("ResponseStarted") >= count).then_some(())
    })
    .await
    .unwrap();
}

/// 6. An update of the definition (which ends every watch), a restart of the API server, a relist, a cut of all streams and
/// new replicas in turn, with 1,000 sessions held: zero evictions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_ends_and_begins_anew_evicts_nobody() {
    const SESSIONS: usize = 1_000;
    let mut world = World::start(ClusterOptions::default().size(2, 2).proxied()).await;
    world.hold_many(SESSIONS).await;
    let pods = world.clients();
    let watchers = Evictions::of_all(&pods).await;
    let observer = Observer::start(&pods, &[("s0", 0), ("s1", 0)], world.options.lease);
    let nobody = async |world: &mut World, after: &str| {
        world.fence().await;
        for pod in &pods {
            // A lease that was granted on old knowledge may end once more before the next one.
            eventually(PATIENCE_WITH_MANY, &format!("{} may serve all copies after {after}", pod.name), async || {
                let servable = pod.servable().await.ok()?;
                (servable.iter().filter(|name| name.starts_with('s')).count() == SESSIONS).then_some(())
            })
            .await
            .unwrap();
        }
        for watcher in &watchers {
            assert_eq!(watcher.seen().await, [], "{} after {after}", watcher.pod());
        }
        observer.check();
        println!("{after}: nobody was evicted");
    };
    nobody(&mut world, "the start").await;

    let mark = world.plane.audit().mark().unwrap();
    let column = json!([{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns/-",
        "value": {"name": "Uid", "type": "string", "jsonPath": ".metadata.uid", "priority": 1}}]);
    let patch = column.to_string();
    world.plane.kubectl(&["patch", "crd", "vmcpsessions.vmcp.dev", "--type=json", "-p", &patch]).await.unwrap();
    watches_anew(world.plane.audit(), mark, 2).await;
    nobody(&mut world, "an update of the definition").await;

    let mark = world.plane.audit().mark().unwrap();
    world.plane.apiserver().restart().await.unwrap();
    watches_anew(world.plane.audit(), mark, 1).await;
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    nobody(&mut world, "a restart of the API server").await;

    // A replica misses changes, and the API server that it comes back to remembers none: it must list again.
    let api = world.controllers[0].api.as_ref().unwrap();
    api.set(ProxyMode::Cut).await.unwrap();
    for label in ["team=a", "team=b"] {
        world.kubectl(&["label", "--overwrite", "vmcps", "s0", "s1", "s2", label]).await.unwrap();
    }
    world.plane.apiserver().restart().await.unwrap();
    let api = world.controllers[0].api.as_ref().unwrap();
    api.set(ProxyMode::Pass).await.unwrap();
    eventually(PATIENCE, "the replica lists again", async || {
        let log = world.controllers[0].process.log();
        (log.matches("\"message\":\"listed\"").count() >= 2).then_some(())
    })
    .await
    .unwrap();
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    nobody(&mut world, "a relist").await;

    for at in 0..2 {
        let ended = world.controllers[at].process.terminate(Duration::from_secs(10)).await.unwrap();
        assert!(ended.success(), "{ended:?}");
        world.controllers[at].restart().await.unwrap();
        world.controllers[at].wait_ready().await.unwrap();
        for pod in &pods {
            pod.wait_leases(2).await.unwrap();
        }
    }
    nobody(&mut world, "new replicas").await;

    for proxy in world.pods.iter().flat_map(|pod| &pod.streams) {
        proxy.set(ProxyMode::Cut).await.unwrap();
        proxy.set(ProxyMode::Pass).await.unwrap();
    }
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    nobody(&mut world, "new streams").await;
    observer.stop().await;
}

/// 9. kill -9 of the leader in the middle of 200 changes: every change is signalled, at once, and the status ends right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_the_leader_loses_no_signal_and_no_status() {
    const CHANGES: usize = 200;
    const TAKEOVER: Duration = Duration::from_secs(12);
    let leader = ["--leader-lease-seconds=12", "--leader-renew-deadline-seconds=8", "--leader-retry-seconds=0.5"];
    let world = World::start_alone(ClusterOptions::default().controller_args(&leader)).await;
    world.hold_many(CHANGES).await;
    let watchers = Evictions::of_all(&world.clients()).await;
    let leader = world.leader().await;
    let mut committed = Vec::new();
    for n in 0..CHANGES {
        if n == CHANGES / 2 {
            world.controllers[leader].process.kill9().await.unwrap();
        }
        world.merge(&format!("s{n}"), &json!({"n": "1"})).await;
        committed.push(boottime_nanos());
    }

    let mut slowest = Duration::ZERO;
    for watcher in &watchers {
        for (n, committed) in committed.iter().enumerate() {
            let seen = watcher.wait(&format!("s{n}"), 1).await;
            assert_eq!((seen.len(), seen[0].reason.as_str()), (1, "stale"), "{}: {seen:?}", watcher.pod());
            slowest = slowest.max(Duration::from_nanos(seen[0].at.saturating_sub(*committed)));
        }
    }
    println!("slowest signal: {slowest:?}");
    assert!(slowest < TAKEOVER / 2, "a change waited for a new leader: {slowest:?}");

    let successor = eventually(PATIENCE, "another replica leads", async || {
        Some(world.leader().await).filter(|successor| *successor != leader)
    });
    successor.await.unwrap();
    let statuses = world.settled().await;
    for session in statuses.iter().filter(|s| s["metadata"]["name"] != "fence") {
        let (name, status) = (&session["metadata"]["name"], &session["status"]);
        let synced = &status["conditions"][0];
        assert_eq!((&synced["type"], &synced["status"]), (&json!("Synced"), &json!("True")), "{name}: {status}");
        assert_eq!(synced["observedGeneration"], 2, "{name}: {status}");
        let evicted = &status["lastEviction"];
        assert_eq!((&evicted["generation"], &evicted["pods"]), (&json!(2), &json!(3)), "{name}: {status}");
        assert_eq!(evicted["changedKeys"], json!(["n"]), "{name}: {status}");
    }
}
