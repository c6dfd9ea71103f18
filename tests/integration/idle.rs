//! What the product costs when nothing happens.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::{ClusterOptions, eventually};
use tokio::time::sleep;

use crate::world::{PATIENCE, World};

/// What is measured: the issue's own number.
const QUIET: Duration = Duration::from_mins(1);

/// 14. An idle cluster with 1,000 sessions: in 60 s of audit log, our identities write only for leadership and freshness.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_cluster_writes_only_for_leadership_and_freshness() {
    // Whatever the machine does beside it makes leases late, and then reads are no idle ones.
    let mut world = World::start_alone(ClusterOptions::default().size(2, 2)).await;
    world.hold_many(1_000).await;
    world.fence().await;
    world.settled().await;
    // The leader tells whom to believe once, some seconds after it has begun to lead.
    let bundle = "clustertrustbundles.certificates.k8s.io/vmcp.dev:session-controller:vmcp-system";
    for place in ["configmap/vmcp-session-ca", bundle] {
        eventually(PATIENCE, &format!("{place} is written"), async || {
            world.plane.kubectl(&["get", "-n", "vmcp-system", place]).await.ok()
        })
        .await
        .unwrap();
    }
    world.plane.apiserver().audit_flush().await.unwrap();
    let mark = world.plane.audit().mark().unwrap();
    sleep(QUIET).await;
    world.plane.apiserver().audit_flush().await.unwrap();
    let mut writes = BTreeMap::new();
    let mut reads = BTreeMap::new();
    for entry in world.plane.audit().requests_since(mark).unwrap() {
        if !entry.user.starts_with("system:serviceaccount:vmcp") {
            continue;
        }
        let what = (entry.user.clone(), format!("{:?}", entry.verb), entry.namespace.clone(), entry.resource.clone());
        let counts = if entry.is_write() { &mut writes } else { &mut reads };
        *counts.entry(what).or_insert(0) += 1;
    }
    println!("writes: {writes:#?}\nreads: {reads:#?}");
    let controller = "system:serviceaccount:vmcp-system:vmcp-session-controller";
    let mut allowed = |verb: &str, resource: &str| {
        writes.remove(&(controller.into(), verb.into(), "vmcp-system".into(), resource.into())).unwrap_or(0)
    };
    // Two replicas write a marker every three seconds, or a little sooner; the leader renews every two.
    let (markers, lease) = (allowed("Patch", "vmcpsessions"), allowed("Update", "leases"));
    assert!((20..=50).contains(&markers), "{markers} writes of markers");
    assert!((20..=35).contains(&lease), "{lease} writes of the lease");
    assert!(writes.is_empty(), "somebody writes although nothing happens: {writes:#?}");
    assert!(reads.values().sum::<usize>() < 100, "somebody asks although nothing happens: {reads:#?}");
}
