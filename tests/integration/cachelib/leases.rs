//! Streams, leases and evictions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use serde_json::json;
use testkit::{Cluster, ClusterOptions, Verb, eventually};
use vmcp_session::cache::{Cache, CreateOptions, DropReason, GetError, Metadata, Origin, Subscription, WriteOptions};

use super::{ACCOUNT, CANARY, LEASE, SOON, cache, cache_with, cached, map, next, with_controllers};
use crate::programs;

/// That nothing was evicted until now: what a later change evicts comes first.
async fn none_before(evictions: &mut Subscription, cache: &Cache, cluster: &Cluster, name: &str) {
    cached(cache, name).await;
    cluster.patch(name, &json!({"sentinel": format!("{:?}", Instant::now())})).await.unwrap();
    assert_eq!(next(evictions).await.0, name, "nothing was evicted before it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_a_lease_a_session_is_served_without_asking_until_it_changes() {
    let cluster = with_controllers(2).await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let (mut at_a, mut at_b) = (a.subscribe(), b.subscribe());
    let created = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    cached(&b, "s").await;
    assert!(a.hit("s").is_some(), "an own write is held");

    let mark = cluster.plane.audit().mark().unwrap();
    for _ in 0..1_000 {
        assert_eq!(b.get("s").await.unwrap().origin(), Origin::Cache);
    }
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let asked = cluster.plane.audit().count_since(mark, |e| e.name == "s" && e.verb == Verb::Get).unwrap();
    assert_eq!(asked, 0, "a hit does no I/O");

    // Somebody else: both drop it.
    assert!(b.set_local(&b.hit("s").unwrap(), "connection", "17"));
    assert_eq!(b.local(&b.hit("s").unwrap()).unwrap().get("connection").map(String::as_str), Some("17"));
    cluster.patch("s", &json!({"never-heard-of": "x"})).await.unwrap();
    assert_eq!(next(&mut at_a).await, ("s".into(), DropReason::Stale));
    assert_eq!(next(&mut at_b).await, ("s".into(), DropReason::Stale));
    let seen = b.get("s").await.unwrap();
    assert_eq!(seen.get("never-heard-of"), Some("x"));
    assert!(b.local(&seen).is_none(), "pod-local values go with the copy");

    // A pod: the other one drops it, itself does not.
    let base = cached(&a, "s").await;
    cached(&b, "s").await;
    let mut metadata = base.metadata().to_map();
    metadata.insert("k".into(), "2".into());
    a.update(&base, metadata, WriteOptions::default()).await.unwrap();
    assert_eq!(next(&mut at_b).await, ("s".into(), DropReason::Stale));
    assert_eq!(a.hit("s").unwrap().get("k"), Some("2"), "the writer keeps what it wrote");
    cluster.kubectl(&["label", "vmcps", "s", "team=a"]).await.unwrap();
    none_before(&mut at_a, &a, &cluster, "s").await;
    assert_eq!(a.get("s").await.unwrap().uid(), created.uid());
    // The change that served as a sentinel evicted the other one too, and nothing did between.
    let _ = cached(&b, "s").await;

    a.delete(&a.get("s").await.unwrap(), WriteOptions::default()).await.unwrap();
    loop {
        if next(&mut at_b).await == ("s".into(), DropReason::Gone) {
            break;
        }
    }
    assert_eq!(b.get("s").await.unwrap_err(), GetError::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_inventory_is_told_in_parts_and_covered() {
    const HELD: usize = 2_500;
    let mut cluster = with_controllers(1).await;
    let a = cache(&cluster, "a").await;
    for chunk in (0..HELD).collect::<Vec<_>>().chunks(50) {
        let created = chunk.iter().map(|n| {
            let (a, name) = (a.clone(), format!("session-{n}"));
            async move { a.create(&name, map([("k", "1")]), CreateOptions::default()).await.map(drop) }
        });
        join_all(created).await.into_iter().collect::<Result<(), _>>().unwrap();
    }
    cluster.controllers[0].process.kill9().await.unwrap();
    eventually(SOON, "the lease has ended", async || a.state().leased_for.is_none().then_some(())).await.unwrap();
    assert!(a.held().iter().all(|(_, servable)| !servable));
    let mark = cluster.plane.audit().mark().unwrap();
    cluster.controllers[0].restart().await.unwrap();
    eventually(SOON, "every copy is covered again", async || {
        let held = a.held();
        (held.len() == HELD && held.iter().all(|(_, servable)| *servable)).then_some(())
    })
    .await
    .unwrap();
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let asked = cluster.plane.audit().count_since(mark, |e| e.is_by("vmcp", ACCOUNT)).unwrap();
    assert_eq!(asked, 0, "no copy was asked for again");
    let by_reason: BTreeMap<_, _> = a.state().evictions.into_iter().map(|(r, n)| (r.as_str(), n)).collect();
    assert_eq!(by_reason.values().sum::<u64>(), 0, "{by_reason:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_cache_ends_its_streams_and_leases() {
    let cluster = with_controllers(1).await;
    let a = cache(&cluster, "a").await;
    a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    cached(&a, "s").await;
    let other = a.clone();
    a.shutdown().await;
    assert!(other.hit("s").is_none());
    assert_eq!(other.get("s").await.unwrap().origin(), Origin::Validated, "it still reads");

    let b = cache(&cluster, "b").await;
    let log = || cluster.controllers[0].process.log();
    let gone = |name: &str, log: &str| {
        log.lines().any(|l| l.contains("agent disconnected") && l.contains(&format!("\"{name}\"")))
    };
    assert!(!gone("b", &log()));
    drop(b);
    let both = async || (gone("a", &log()) && gone("b", &log())).then_some(());
    eventually(SOON, "the replica sees both leave", both).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_not_let_in_says_why_and_validates() {
    let cluster = with_controllers(1).await;
    let bad = cluster.plane.dir().join("bad-token");
    std::fs::write(&bad, CANARY).unwrap();
    for (name, file, expected) in [
        ("a", Some(bad), "does not accept the token"),
        ("b", Some("/nowhere/token".into()), "cannot read the token file /nowhere/token: No such file or directory"),
        ("c", None, "a service account token is expected"),
    ] {
        let a = cache_with(&cluster, name, cluster.plane.url(), |c| c.token_file = file).await;
        let problem = async || a.state().streams.first()?.problem.clone();
        let problem = eventually(SOON, "a problem is shown", problem).await.unwrap();
        assert!(problem.contains(expected) && !problem.contains(CANARY), "{problem}");
        let session = a.create(&format!("s-{name}"), Metadata::new(), CreateOptions::default()).await.unwrap();
        assert_eq!(a.get(session.name()).await.unwrap().origin(), Origin::Validated);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pod_of_tests_and_demo_does_what_it_is_told() {
    let options = ClusterOptions::default().size(1, 2).lease(LEASE);
    let cluster = Cluster::start(programs(), options).await.unwrap();
    let [a, b] = &cluster.pods[..] else { panic!("two pods") };
    assert_eq!(a.get("s").await.unwrap().status, 404);
    let created = a.create("s", &json!({"k": CANARY, "old": "x"}), "committed").await.unwrap();
    assert_eq!((created.status, created.from()), (200, "written".into()));
    assert_eq!(a.create("s", &json!({}), "committed").await.unwrap().status, 409);
    let cached = |reply: testkit::Reply| (reply.from() == "cache").then_some(reply);
    eventually(SOON, "served from the cache", async || cached(b.get("s").await.ok()?)).await.unwrap();
    assert_eq!(b.servable().await.unwrap(), ["s"]);
    assert_eq!(b.call("PUT", "/local/s/connection", Some(&json!(17))).await.unwrap().status, 200);
    assert_eq!(b.call("GET", "/local/s", None).await.unwrap().json(), json!({"connection": "17"}));

    let before = b.last_eviction().await.unwrap();
    let patched = a.patch("s", &json!({"old": null, "new": "y"}), "everywhere").await.unwrap();
    assert_eq!(patched.metadata(), Some(json!({"k": CANARY, "new": "y"})));
    assert_eq!(b.get("s").await.unwrap().metadata(), patched.metadata());
    let evictions = b.evictions(before).await.unwrap();
    assert_eq!(evictions.len(), 1, "{evictions:?}");
    assert_eq!((&evictions[0]["reason"], &evictions[0]["generation"]), (&json!("stale"), &json!(1)));
    assert!(evictions[0]["at"].as_u64().unwrap() > 0);
    assert_eq!(a.evictions(0).await.unwrap().len(), 0, "the writer drops nothing");
    let put = b.call("PUT", "/sessions/s", Some(&json!({"all": "new"}))).await.unwrap();
    assert_eq!(put.metadata(), Some(json!({"all": "new"})));
    let refused = a.patch("s", &json!({"": CANARY}), "committed").await.unwrap();
    assert_eq!(refused.status, 422, "{}", refused.text);
    assert!(!refused.text.contains(CANARY));
    assert_eq!(a.call("PATCH", "/sessions/s", Some(&json!([1]))).await.unwrap().status, 400);

    assert_eq!(a.delete("s", "everywhere").await.unwrap().status, 200);
    assert_eq!(b.servable().await.unwrap(), [""; 0]);
    assert_eq!(b.get("s").await.unwrap().status, 404);
    for pod in &cluster.pods {
        assert!(!pod.process.log().contains(CANARY), "{}", pod.process.log());
        let ended = pod.process.terminate(Duration::from_secs(10)).await.unwrap();
        assert_eq!(ended.code(), Some(0), "{}", pod.process.log_tail());
    }
}
