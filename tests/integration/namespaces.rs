//! A controller of chosen namespaces: it follows these, and what is written in them registers no replica.

use std::time::{Duration, Instant};

use futures::FutureExt;
use serde_json::json;
use testkit::ClusterOptions;
use tokio::net::TcpListener;

use crate::world::{Evictions, World, serves};

/// Longer than anything takes that works, so that it shows whether a lease was waited for.
const LEASE: Duration = Duration::from_secs(10);

async fn start(options: ClusterOptions, namespaces: &[&str]) -> World {
    let mut world = World::start(options.size(0, 0).lease(LEASE).chosen(namespaces)).await;
    for _ in 0..2 {
        world.add_controller().await.unwrap();
    }
    for controller in &world.controllers {
        controller.wait_ready().await.unwrap();
    }
    for _ in 0..2 {
        world.add_pod().await.unwrap().wait_leases(2).await.unwrap();
    }
    world
}

async fn apply(world: &World, namespace: &str, metadata: &serde_json::Value, n: &str) {
    let mut object = json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": metadata,
        "spec": {"metadata": {"n": n}}});
    object["metadata"]["namespace"] = json!(namespace);
    world.plane.apply_yaml(&object.to_string()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_a_tenant_forged_reaches_nobody_and_blocks_nothing() {
    let world = start(ClusterOptions::default().without_policies(), &["vmcp"]).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    for n in 0..40 {
        let forged = json!({"name": format!("replica-forged-{n}"), "labels": {"vmcp.dev/replica": "true"},
            "annotations": {"vmcp.dev/address": address}});
        apply(&world, "vmcp", &forged, "0").await;
    }
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1]).await;
    let quick = |begun: Instant, what: &str| {
        let took = begun.elapsed();
        assert!(took < LEASE / 2, "{what} took {took:?}: a lease was waited for");
    };
    for n in 1..4 {
        let begun = Instant::now();
        let reply = world.pods[0].patch("s", &json!({"n": n.to_string()}), "everywhere").await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        quick(begun, "a write that is visible everywhere");
        assert_eq!(world.pods[1].get("s").await.unwrap().metadata().unwrap()["n"], n.to_string());
    }
    let guarded = json!({"name": "guarded", "finalizers": ["vmcp.dev/confirm-eviction"]});
    apply(&world, "vmcp", &guarded, "0").await;
    world.hold("guarded", &[0, 1]).await;
    let begun = Instant::now();
    world.kubectl(&["delete", "vmcps", "guarded"]).await.unwrap();
    quick(begun, "a confirmed delete");
    assert!(listener.accept().now_or_never().is_none(), "somebody connected, with a token");
}

/// A session that somebody has labelled as markers are is one for all, and so is one that is only named like them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_only_looks_like_a_marker_is_a_session() {
    let world = World::start(ClusterOptions::default()).await;
    apply(&world, "vmcp", &json!({"name": "labelled", "labels": {"vmcp.dev/replica": "true"}}), "0").await;
    apply(&world, "vmcp", &json!({"name": "replica-named"}), "0").await;
    for name in ["labelled", "replica-named"] {
        world.hold(name, &[0, 1]).await;
        let watchers = Evictions::of_all(&world.clients()[..2]).await;
        world.merge(name, &json!({"n": "1"})).await;
        for watcher in &watchers {
            watcher.wait(name, 1).await;
        }
        serves(&world.pods[0], name, "n", "1").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_followed_in_each_chosen_namespace_and_in_no_other() {
    let mut world = start(ClusterOptions::default(), &["vmcp", "second"]).await;
    world.plane.create_namespace("third").await.unwrap();
    world.plane.create_service_account("second", "vmcp-server").await.unwrap();
    let rules = vec![testkit::policy_rule("vmcp.dev", &["vmcpsessions"], &["get", "create", "patch", "delete"])];
    world.plane.bind_role("second", "vmcp-server", rules).await.unwrap();
    for namespace in ["third", "vmcp-system", "second", "vmcp"] {
        apply(&world, namespace, &json!({"name": "s"}), "0").await;
    }
    // A pod in the other chosen namespace.
    world.options.namespace = "second".into();
    world.add_pod().await.unwrap().wait_leases(2).await.unwrap();
    world.hold("s", &[0, 1, 2]).await;
    let watchers = Evictions::of_all(&world.clients()).await;
    for namespace in ["third", "vmcp-system", "vmcp", "second"] {
        apply(&world, namespace, &json!({"name": "s"}), "1").await;
        if namespace == "vmcp" {
            watchers[0].wait("s", 1).await;
            watchers[1].wait("s", 1).await;
            assert_eq!(watchers[2].of_session("s").await, [], "it is of another namespace");
        }
    }
    watchers[2].wait("s", 1).await;
    for namespace in ["vmcp", "second"] {
        let wait =
            ["wait", "-n", namespace, "--for=jsonpath={.status.observedGeneration}=2", "vmcps/s", "--timeout=30s"];
        world.plane.kubectl(&wait).await.unwrap();
    }
    for namespace in ["third", "vmcp-system"] {
        let status = ["get", "-n", namespace, "vmcps", "s", "-o", "jsonpath={.status}"];
        assert_eq!(world.plane.kubectl(&status).await.unwrap(), "", "nobody follows {namespace}");
    }
}

/// A namespace that is being deleted, or is full, refuses markers. That is its own trouble.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_refuses_markers_keeps_no_replica_from_being_ready() {
    let options = ClusterOptions::default().size(0, 0).lease(LEASE).chosen(&["vmcp", "second"]);
    let mut world = World::start(options).await;
    world.plane.kubectl(&["delete", "namespace", "second", "--wait=false"]).await.unwrap();
    for _ in 0..2 {
        world.add_controller().await.unwrap();
    }
    for controller in &world.controllers {
        controller.wait_ready().await.unwrap();
    }
    world.add_pod().await.unwrap().wait_leases(2).await.unwrap();
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    let begun = Instant::now();
    let reply = world.pods[0].patch("s", &json!({"n": "1"}), "everywhere").await.unwrap();
    assert!(reply.status == 200 && begun.elapsed() < LEASE / 2, "{reply:?} after {:?}", begun.elapsed());
    for controller in &world.controllers {
        let metrics = controller.metrics().await.unwrap();
        assert!(metrics.lines().any(|line| line == "vmcp_session_namespaces_refused 1"), "{metrics}");
        // Each marker tells what time it is: the first one was written more than a lease ago.
        let off = metrics.lines().find_map(|line| line.strip_prefix("vmcp_session_clock_offset_seconds "));
        assert!(off.is_some_and(|off| off.parse::<f64>().unwrap() < LEASE.as_secs_f64() / 2.0), "{off:?}");
        let log = controller.process.log();
        let told = log.lines().filter(|line| line.contains("the marker cannot be written"));
        assert!(
            told.clone().count() == 1 && told.clone().all(|line| line.contains("\"namespace\":\"second\"")),
            "{log}"
        );
    }
}
