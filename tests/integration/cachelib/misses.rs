//! What is asked of the API server, and what becomes of it when that is slow, gone or flooded.

use std::time::{Duration, Instant};

use futures::future::join_all;
use testkit::{AuditEntry, ProxyMode, TcpProxy, Verb, eventually};
use vmcp_session::cache::{Cause, CreateOptions, GetError, Origin, WriteError, WriteOptions};

use super::{CANARY, SOON, cache_with, map, without_controller};

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
        let Err(GetError::Unavailable { cause, reason }) = a.get("s").await else {
            panic!("{mode:?}: served or not found")
        };
        assert_eq!(cause, Cause::CutOff, "{mode:?}: it reaches nobody");
        let expected = if mode == ProxyMode::Cut { "cannot be reached" } else { "timed out" };
        assert!(reason.contains(expected), "{mode:?}: {reason}");
        assert!(matches!(a.get("other").await, Err(GetError::Unavailable { .. })), "absence cannot be known");
        let write = a.update(&session, map([("k", "2")]), WriteOptions::default()).await.unwrap_err();
        // Where no connection is taken, nothing was written; otherwise nobody knows.
        let known = matches!(write, WriteError::Unavailable { .. }) && mode == ProxyMode::Cut;
        assert!(known || matches!(write, WriteError::OutcomeUnknown { .. }), "{mode:?}: {write}");
        assert!(!format!("{reason} {write:?} {write}").contains(CANARY));
        proxy.set(ProxyMode::Pass).await.unwrap();
        eventually(SOON, "it recovers by itself", async || a.get("s").await.ok()).await.unwrap();
    }

    // A definition that is gone says nothing about a session.
    cluster.plane.kubectl(&["delete", "crd", "vmcpsessions.vmcp.dev"]).await.unwrap();
    eventually(SOON, "the type is not served", async || {
        let Err(GetError::Unavailable { cause, reason }) = a.get("s").await else { return None };
        (cause == Cause::Refused && reason.contains("does not serve")).then_some(())
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
    let refused = errors.iter().filter(|e| matches!(e, GetError::Overloaded | GetError::TooManyUnknown)).count();
    let missing = errors.iter().filter(|e| **e == GetError::NotFound).count();
    assert_eq!(refused + missing, FLOOD);
    let is_flood = |e: &AuditEntry| e.verb == Verb::Get && e.name.starts_with("unknown-");
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let asked = cluster.plane.audit().count_since(mark, is_flood).unwrap();
    let allowed = 40 + 20 * (usize::try_from(begun.elapsed().as_secs()).unwrap() + 1);
    assert!(asked <= allowed && asked >= missing, "{asked} GETs, {allowed} allowed, {missing} answered");
    assert_eq!(a.state().waiting, 0, "nothing is left behind");
    assert_eq!(a.state().entries, 1);

    // Requests for one session share a GET: those that come while one is sent share the next. Answers take so long that all
    // requests have come by the first.
    let proxy = TcpProxy::start(cluster.plane.apiserver().address()).await.unwrap();
    let b = cache_with(&cluster, "b", &proxy.https_url(), |c| c.call_deadline = SOON).await;
    b.get("known").await.unwrap();
    let late = Duration::from_secs(1);
    proxy.set(ProxyMode::Delay { to_server: Duration::ZERO, to_client: late }).await.unwrap();
    let mark = cluster.plane.audit().mark().unwrap();
    let gets = join_all((0..200).map(|_| b.get("known"))).await;
    assert!(gets.iter().all(Result::is_ok));
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let asked = cluster.plane.audit().count_since(mark, |e| e.name == "known").unwrap();
    assert!(asked <= 2, "{asked} GETs for one session");
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
