//! The cache library by itself: in this process, against a real API server, with the rights that a pod has.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use testkit::{AuditEntry, Cluster, ClusterOptions, LoopbackAddr, ProxyMode, TcpProxy, Verb, eventually};
use vmcp_session::api::{VmcpSession, VmcpSessionSpec};
use vmcp_session::cache::{
    Cache, CacheConfig, CreateOptions, DropReason, Event, GetError, Metadata, Origin, Session, Subscription,
    WriteError, WriteOptions,
};
use vmcp_session::runtime::kube_client::{KubeArgs, Timeouts};

use crate::programs;

const SOON: Duration = Duration::from_secs(20);
const HOUR: Duration = Duration::from_hours(1);
const LEASE: Duration = Duration::from_secs(3);
const ACCOUNT: &str = "vmcp-server";
const CANARY: &str = "canary-7f3a";

fn map<const N: usize>(pairs: [(&str, &str); N]) -> Metadata {
    pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// An API server with the definition and the accounts, and no controller.
async fn without_controller() -> Cluster {
    let cluster = Cluster::start(programs(), ClusterOptions::default().size(0, 0)).await.unwrap();
    // The first write of a new type takes an API server two seconds; some tests have shorter deadlines.
    let first = VmcpSession::new("first", VmcpSessionSpec::default());
    sessions(&cluster).create(&PostParams::default(), &first).await.unwrap();
    cluster
}

async fn with_controllers(replicas: usize) -> Cluster {
    Cluster::start(programs(), ClusterOptions::default().size(replicas, 0).lease(LEASE)).await.unwrap()
}

/// A cache in the pod `name`, with settings of the test's choice.
async fn cache_with(cluster: &Cluster, name: &str, url: &str, change: impl FnOnce(&mut CacheConfig)) -> Cache {
    let (plane, namespace) = (&cluster.plane, &cluster.options.namespace);
    let ip = LoopbackAddr::claim().unwrap();
    let pod = plane.create_pod(namespace, name, ACCOUNT, ip.ip()).await.unwrap();
    let token = plane.token_for_pod(namespace, ACCOUNT, &pod, &[], HOUR).await.unwrap();
    let access = plane.kubeconfig_for_token(name, url, &token).unwrap();
    let stream = plane.token_for_pod(namespace, ACCOUNT, &pod, &["vmcp.dev"], HOUR).await.unwrap();
    let stream = plane.kubeconfig_for_token(&format!("{name}-stream"), url, &stream).unwrap();
    let kube = KubeArgs { kubeconfig: Some(access.kubeconfig.display().to_string()), ..KubeArgs::default() };
    let mut config = CacheConfig {
        controllers: cluster.controllers.iter().map(|c| c.address.to_string()).collect(),
        token_file: Some(stream.token_file),
        ..CacheConfig::new(namespace.as_str(), name)
    };
    change(&mut config);
    Cache::connect(kube.client(Timeouts::default()).await.unwrap(), config).unwrap()
}

/// A cache in the pod `name`, with a lease of each replica.
async fn cache(cluster: &Cluster, name: &str) -> Cache {
    let cache = cache_with(cluster, name, cluster.plane.url(), |_| ()).await;
    leased(&cache, cluster.controllers.len()).await;
    cache
}

async fn leased(cache: &Cache, replicas: usize) {
    eventually(SOON, "every replica has granted a lease", async || {
        let leases = cache.state().streams.iter().filter(|s| s.leased_for.is_some()).count();
        (leases == replicas).then_some(())
    })
    .await
    .unwrap();
}

/// Asks until the session comes from the cache alone.
async fn cached(cache: &Cache, name: &str) -> Session {
    eventually(SOON, "the session is served from the cache", async || {
        let session = cache.get(name).await.ok()?;
        (session.origin() == Origin::Cache).then_some(session)
    })
    .await
    .unwrap()
}

fn sessions(cluster: &Cluster) -> Api<VmcpSession> {
    Api::namespaced(cluster.plane.client(), &cluster.options.namespace)
}

async fn next(evictions: &mut Subscription) -> (String, DropReason) {
    let event = tokio::time::timeout(SOON, evictions.next()).await.expect("an eviction").unwrap();
    match event {
        Event::Evicted(eviction) => (eviction.name.to_string(), eviction.reason),
        Event::Missed(_) => panic!("missed evictions"),
    }
}

/// That nothing was evicted until now: what a later change evicts comes first.
async fn none_before(evictions: &mut Subscription, cache: &Cache, cluster: &Cluster, name: &str) {
    cached(cache, name).await;
    cluster.patch(name, &json!({"sentinel": format!("{:?}", Instant::now())})).await.unwrap();
    assert_eq!(next(evictions).await.0, name, "nothing was evicted before it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_created_read_changed_and_deleted() {
    let cluster = without_controller().await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let options = CreateOptions {
        server: Some("weather".into()),
        idle_timeout: Some(Duration::from_mins(1)),
        max_lifetime: Some(HOUR),
        ..CreateOptions::default()
    };
    let created = a.create("s1", map([("k", "1"), ("gone", "x")]), options).await.unwrap();
    assert_eq!((created.origin(), created.generation()), (Origin::Written, 1));
    let object = sessions(&cluster).get("s1").await.unwrap();
    assert_eq!(object.spec.server.as_deref(), Some("weather"));
    assert_eq!((object.spec.idle_timeout_seconds, object.spec.max_lifetime_seconds), (Some(60), Some(3_600)));
    let manager = object.metadata.managed_fields.unwrap()[0].manager.clone();
    assert_eq!(manager.as_deref(), Some("vmcp/a"), "managedFields name the pod");
    assert_eq!(a.create("s1", Metadata::new(), CreateOptions::default()).await.unwrap_err(), WriteError::AlreadyExists);

    let restored = b.get("s1").await.unwrap();
    assert_eq!((restored.origin(), restored.uid()), (Origin::Restored, created.uid()));
    assert_eq!(b.get("s1").await.unwrap().origin(), Origin::Validated, "without a lease each get asks");
    assert!(b.hit("s1").is_none());

    let mut evictions = b.subscribe();
    let updated = a.update(&created, map([("k", "2"), ("new", "y")]), WriteOptions::default()).await.unwrap();
    assert_eq!(updated.metadata(), &map([("k", "2"), ("new", "y")]));
    let seen = b.get("s1").await.unwrap();
    assert_eq!((seen.origin(), seen.metadata(), seen.generation()), (Origin::Restored, updated.metadata(), 2));
    assert_eq!(next(&mut evictions).await, ("s1".into(), DropReason::Stale));

    b.delete(&seen, WriteOptions::default()).await.unwrap();
    assert_eq!(next(&mut evictions).await, ("s1".into(), DropReason::Gone));
    assert_eq!(a.get("s1").await.unwrap_err(), GetError::NotFound);
    assert_eq!(b.get("s1").await.unwrap_err(), GetError::NotFound);
    assert_eq!(a.delete(&updated, WriteOptions::default()).await.unwrap_err(), WriteError::NotFound);
    for name in ["", "..", "a/b", "UPPER", "s1?watch=1"] {
        assert_eq!(a.get(name).await.unwrap_err(), GetError::NotFound, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_writers_of_different_keys_lose_nothing() {
    const ROUNDS: usize = 100;
    let cluster = without_controller().await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let created = a.create("s", map([("shared", "x")]), CreateOptions::default()).await.unwrap();
    let write = async |cache: &Cache, key: &str| {
        let mut base = created.clone();
        for round in 0..ROUNDS {
            let mut metadata = base.metadata().clone();
            metadata.insert(format!("{key}{}", round % 10), round.to_string());
            base = cache.update(&base, metadata, WriteOptions::default()).await.unwrap();
        }
    };
    tokio::join!(write(&a, "a"), write(&b, "b"));
    let end = a.get("s").await.unwrap();
    let mut expected = map([("shared", "x")]);
    for digit in 0..10 {
        for key in ["a", "b"] {
            expected.insert(format!("{key}{digit}"), (ROUNDS - 10 + digit).to_string());
        }
    }
    assert_eq!(end.metadata(), &expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_write_never_touches_a_successor_and_brings_nothing_back() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let api = sessions(&cluster);
    let old = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    api.delete("s", &DeleteParams::default()).await.unwrap();
    let spec = VmcpSessionSpec { metadata: map([("k", "1")]), ..VmcpSessionSpec::default() };
    api.create(&PostParams::default(), &VmcpSession::new("s", spec.clone())).await.unwrap();

    let late = a.update(&old, map([("k", "late")]), WriteOptions::default()).await;
    assert_eq!(late.unwrap_err(), WriteError::Replaced);
    assert_eq!(a.delete(&old, WriteOptions::default()).await.unwrap_err(), WriteError::Replaced);
    assert_eq!(
        a.update(&old, old.metadata().clone(), WriteOptions::default()).await.unwrap_err(),
        WriteError::Replaced
    );
    assert_eq!(api.get("s").await.unwrap().spec, spec, "the successor is untouched");

    api.delete("s", &DeleteParams::default()).await.unwrap();
    for metadata in [map([("k", "late")]), old.metadata().clone()] {
        let late = a.update(&old, metadata, WriteOptions::default()).await;
        assert_eq!(late.unwrap_err(), WriteError::NotFound);
    }
    assert_eq!(a.delete_uid("s", old.uid(), WriteOptions::default()).await.unwrap_err(), WriteError::NotFound);
    assert!(api.get_opt("s").await.unwrap().is_none(), "nothing came back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_being_deleted_counts_as_not_found() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let api = sessions(&cluster);
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    let finalizer = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    api.patch("s", &PatchParams::default(), &Patch::Merge(finalizer)).await.unwrap();
    a.delete(&session, WriteOptions::default()).await.unwrap();
    assert!(api.get("s").await.unwrap().metadata.deletion_timestamp.is_some(), "it is still there");

    assert_eq!(a.get("s").await.unwrap_err(), GetError::NotFound);
    let late = a.update(&session, map([("k", "2")]), WriteOptions::default()).await;
    assert_eq!(late.unwrap_err(), WriteError::NotFound);
    let again = a.create("s", Metadata::new(), CreateOptions::default()).await;
    assert_eq!(again.unwrap_err(), WriteError::AlreadyExists);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_nothing_sends_nothing() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    cluster.patch("s", &json!({"theirs": "x"})).await.unwrap();
    let mark = cluster.plane.audit().mark().unwrap();
    let same = a.update(&session, session.metadata().clone(), WriteOptions::default()).await.unwrap();
    assert_eq!(same.metadata(), &map([("k", "1"), ("theirs", "x")]), "the answer is the session as it is now");
    let writes = cluster.plane.audit().count_since(mark, AuditEntry::is_write).unwrap();
    assert_eq!(writes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_server_nothing_is_served_and_the_error_says_why() {
    let cluster = without_controller().await;
    let proxy = TcpProxy::start(cluster.plane.apiserver().address()).await.unwrap();
    let call_deadline = Duration::from_secs(2);
    let a = cache_with(&cluster, "a", &proxy.https_url(), |c| c.call_deadline = call_deadline).await;
    let session = a.create("s", map([("k", CANARY)]), CreateOptions::default()).await.unwrap();
    assert_eq!(a.get("s").await.unwrap().origin(), Origin::Validated);

    for mode in [ProxyMode::Cut, ProxyMode::Blackhole] {
        proxy.set(mode).await.unwrap();
        let Err(GetError::Unavailable { reason }) = a.get("s").await else { panic!("{mode:?}: served or not found") };
        let expected = if mode == ProxyMode::Cut { "cannot be reached" } else { "timed out" };
        assert!(reason.contains(expected), "{mode:?}: {reason}");
        assert!(matches!(a.get("other").await, Err(GetError::Unavailable { .. })), "absence cannot be known");
        let write = a.update(&session, map([("k", "2")]), WriteOptions::default()).await.unwrap_err();
        assert!(matches!(write, WriteError::OutcomeUnknown { .. }), "{mode:?}: {write}");
        assert!(!format!("{reason} {write:?} {write}").contains(CANARY));
        proxy.set(ProxyMode::Pass).await.unwrap();
        eventually(SOON, "it recovers by itself", async || a.get("s").await.ok()).await.unwrap();
    }

    // A definition that is gone says nothing about a session.
    cluster.plane.kubectl(&["delete", "crd", "vmcpsessions.vmcp.dev"]).await.unwrap();
    eventually(SOON, "the type is not served", async || {
        let error = a.get("s").await.unwrap_err();
        (error != GetError::NotFound && error.to_string().contains("does not serve")).then_some(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_unknown_names_is_not_a_flood_on_the_api_server() {
    const FLOOD: usize = 3_000;
    let cluster = without_controller().await;
    let a = cache_with(&cluster, "a", cluster.plane.url(), |c| {
        (c.concurrent_gets, c.waiting_gets) = (8, 256);
        (c.unknown_per_second, c.unknown_burst) = (20, 40);
        c.call_deadline = Duration::from_secs(1);
    })
    .await;
    a.create("known", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    let mark = cluster.plane.audit().mark().unwrap();
    let begun = Instant::now();
    let flood = join_all((0..FLOOD).map(|n| {
        let a = a.clone();
        tokio::spawn(async move { a.get(&format!("unknown-{n}")).await.unwrap_err() })
    }));
    let honest = async {
        let mut served = 0;
        while served < 20 {
            match a.get("known").await {
                Ok(_) => served += 1,
                Err(error) => panic!("a session that is held must be validated through a flood: {error}"),
            }
        }
    };
    let (flood, ()) = tokio::join!(flood, honest);
    let errors: Vec<GetError> = flood.into_iter().map(Result::unwrap).collect();
    let refused = errors.iter().filter(|e| **e == GetError::Overloaded).count();
    let missing = errors.iter().filter(|e| **e == GetError::NotFound).count();
    assert_eq!(refused + missing, FLOOD);
    let is_flood = |e: &AuditEntry| e.verb == Verb::Get && e.name.starts_with("unknown-");
    let asked = cluster.plane.audit().count_since(mark, is_flood).unwrap();
    let allowed = 40 + 20 * (usize::try_from(begun.elapsed().as_secs()).unwrap() + 1);
    assert!(asked <= allowed && asked >= missing, "{asked} GETs, {allowed} allowed, {missing} answered");
    assert_eq!(a.state().waiting, 0, "nothing is left behind");
    assert_eq!(a.state().entries, 1);

    // Requests for one session share a GET: those that come while one is sent share the next.
    let mark = cluster.plane.audit().mark().unwrap();
    let gets = join_all((0..200).map(|_| a.get("known"))).await;
    assert!(gets.iter().all(Result::is_ok));
    let asked = cluster.plane.audit().count_since(mark, |e| e.name == "known").unwrap();
    assert!(asked <= 4, "{asked} GETs for one session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_harms_nobody() {
    let cluster = without_controller().await;
    let proxy = TcpProxy::start(cluster.plane.apiserver().address()).await.unwrap();
    let a = cache_with(&cluster, "a", &proxy.https_url(), |_| ()).await;
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    let slow = ProxyMode::Delay { to_server: Duration::ZERO, to_client: Duration::from_millis(300) };
    proxy.set(slow).await.unwrap();
    let impatient = Duration::from_millis(50);
    let given_up = async { tokio::time::timeout(impatient, a.get("s")).await.is_err() };
    let (given_up, shared) = tokio::join!(given_up, a.get("s"));
    assert!(given_up && shared.is_ok(), "{shared:?}");
    let write = a.update(&session, map([("k", "2")]), WriteOptions::default());
    assert!(tokio::time::timeout(impatient, write).await.is_err());
    eventually(SOON, "the write is done all the same", async || (a.state().written == 2).then_some(())).await.unwrap();
    assert_eq!(a.get("s").await.unwrap().get("k"), Some("2"));
    assert_eq!(a.state().waiting, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_name_fields_and_never_values() {
    let cluster = without_controller().await;
    let a = cache(&cluster, "a").await;
    let session = a.create("s", map([("k", CANARY)]), CreateOptions::default()).await.unwrap();
    let shown = format!("{session:?} {:?} {a:?}", a.state());
    assert!(!shown.contains(CANARY), "{shown}");
    let long = CANARY.repeat(6_000);
    let bad = [map([("", CANARY)]), map([("k", &long)]), (0..300).map(|n| (n.to_string(), CANARY.into())).collect()];
    for metadata in bad {
        for error in [
            a.create("bad", metadata.clone(), CreateOptions::default()).await.unwrap_err(),
            a.update(&session, metadata.clone(), WriteOptions::default()).await.unwrap_err(),
        ] {
            assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
            let text = format!("{error} {error:?}");
            assert!(text.contains("spec.metadata") && !text.contains(CANARY), "{text}");
        }
    }
    let other = CreateOptions { server: Some(format!("Not-{CANARY}")), ..CreateOptions::default() };
    let error = a.create("bad", Metadata::new(), other).await.unwrap_err();
    assert!(matches!(error, WriteError::Invalid { .. }), "{error}");
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
    let mut metadata = base.metadata().clone();
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
async fn a_write_that_is_visible_everywhere_is_read_everywhere() {
    const WRITES: usize = 200;
    let cluster = with_controllers(2).await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let mut base = a.create("s", map([("n", "0")]), CreateOptions::default()).await.unwrap();
    let mut took = Vec::new();
    for n in 1..=WRITES {
        // Sometimes held, sometimes just being restored.
        let restoring = tokio::spawn({
            let b = b.clone();
            async move { b.get("s").await.map(drop) }
        });
        let begun = Instant::now();
        base = a.update(&base, map([("n", &n.to_string())]), WriteOptions::EVERYWHERE).await.unwrap();
        took.push(begun.elapsed());
        let read = b.get("s").await.unwrap();
        assert_eq!(read.get("n"), base.get("n"), "from {:?}", read.origin());
        restoring.await.unwrap().unwrap();
    }
    took.sort_unstable();
    let median = took[WRITES / 2];
    assert!(median < Duration::from_millis(100), "the median is {median:?}");

    b.get("s").await.unwrap();
    a.delete(&base, WriteOptions::EVERYWHERE).await.unwrap();
    assert!(b.hit("s").is_none() && b.get("s").await.is_err(), "I4");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_replica_costs_a_confirmed_write_one_lease_and_no_more() {
    let mut cluster = with_controllers(2).await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let base = a.create("s", map([("n", "0")]), CreateOptions::default()).await.unwrap();
    cached(&b, "s").await;
    cluster.controllers[1].process.kill9().await.unwrap();
    let begun = Instant::now();
    let base = a.update(&base, map([("n", "1")]), WriteOptions::EVERYWHERE).await.unwrap();
    let took = begun.elapsed();
    assert_eq!(b.get("s").await.unwrap().get("n"), Some("1"));
    assert!(took > LEASE && took < LEASE * 2, "{took:?}");

    // A new process at the same address: the streams come back by themselves, with all that is held.
    cluster.controllers[1].restart().await.unwrap();
    leased(&a, 2).await;
    leased(&b, 2).await;
    cluster.controllers[0].process.kill9().await.unwrap();
    eventually(SOON, "the new replica alone gives cover", async || {
        let state = a.state();
        let alone = state.streams.iter().filter(|s| s.replica.is_some()).count() == 1;
        (alone && state.leased_for.is_some() && a.hit("s").is_some()).then_some(())
    })
    .await
    .unwrap();
    drop(base);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_gets_its_leases_back_and_nobody_notices() {
    let cluster = with_controllers(2).await;
    let a = cache(&cluster, "a").await;
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    cached(&a, "s").await;
    let log = || cluster.controllers[0].process.log();
    let stopping = cluster.controllers[0].process.terminate(Duration::from_secs(10));
    tokio::pin!(stopping);
    let mut hits = 0;
    let ended = loop {
        tokio::select! {
            ended = &mut stopping => break ended.unwrap(),
            () = tokio::task::yield_now() => {
                assert!(a.hit("s").is_some(), "the other replica's lease covers it");
                hits += 1;
            }
        }
    };
    assert!(ended.success() && hits > 0, "{ended:?}");
    assert!(!log().contains("have not returned their leases"), "{}", log());
    let begun = Instant::now();
    a.update(&session, map([("k", "2")]), WriteOptions::EVERYWHERE).await.unwrap();
    assert!(begun.elapsed() < LEASE, "a replica that has left is not waited for: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cache_that_is_not_let_in_says_why_and_validates() {
    let cluster = with_controllers(1).await;
    let bad = cluster.plane.dir().join("bad-token");
    std::fs::write(&bad, CANARY).unwrap();
    for (name, file, expected) in [
        ("a", Some(bad), "does not accept the token"),
        ("b", Some("/nowhere/token".into()), "cannot read the token file /nowhere/token: entity not found"),
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
