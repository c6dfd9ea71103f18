//! Misses against an API server that answers at once, whatever it is asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use axum::http::{StatusCode, Uri, header};
use futures::FutureExt;
use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::pin;
use tokio::time::Instant;

use crate::cache::{Cache, CacheConfig, GetError, WriteOptions};
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::Fate;
use crate::core::time::Time;

use super::scripted_replica::state;
use super::unconfirmed::Deletion;

const UID: &str = "00000000-0000-0000-0000-000000000007";

/// A cache with room for ten unknown names at once, and one more each second.
fn config() -> CacheConfig {
    CacheConfig {
        unknown_per_second: 1,
        unknown_burst: 10,
        concurrent_gets: 10,
        call_deadline: Duration::from_millis(500),
        lease_upper_bound: Duration::from_millis(10),
        ..CacheConfig::new("ns", "pod")
    }
}

/// An API server that answers the request for each name with this code, and counts them.
async fn answering(
    config: CacheConfig,
    code: impl Fn(&str) -> u16 + Clone + Send + Sync + 'static,
) -> (Cache, Arc<AtomicUsize>) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let seen = asked.clone();
    let answer = move |uri: Uri| async move {
        seen.fetch_add(1, Ordering::Relaxed);
        let name = uri.path().rsplit('/').next().unwrap();
        let code = code(name);
        let body = if code == 200 {
            let metadata =
                json!({"namespace": "ns", "name": name, "uid": UID, "generation": 1, "resourceVersion": "7"});
            json!({"apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession", "metadata": metadata, "spec": {"metadata": {}}})
        } else {
            let reason = if code == 404 { "NotFound" } else { "" };
            let details = json!({"name": name, "kind": "vmcpsessions"});
            json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "", "details": details})
        };
        (StatusCode::from_u16(code).unwrap(), [(header::CONTENT_TYPE, "application/json")], body.to_string())
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    let mut server = kube::Config::new(format!("http://{address}").parse().unwrap());
    // As the real client has it.
    server.default_retry = false;
    let client = kube::Client::try_from(server).unwrap();
    (Cache::connect(client, config).unwrap(), asked)
}

#[tokio::test]
async fn a_flood_of_unknown_names_is_bounded_also_when_the_api_server_refuses_it_at_once() {
    for code in [403, 429, 500] {
        let (cache, asked) = answering(config(), move |_| code).await;
        let mut refused = 0;
        for n in 0..300 {
            match cache.get(&format!("unknown-{n}")).await {
                Err(GetError::TooManyUnknown) => refused += 1,
                Err(GetError::Unavailable { .. }) => {}
                other => panic!("{code}: {other:?}"),
            }
        }
        let asked = asked.load(Ordering::Relaxed);
        // Three attempts for each of the burst, and for what came to be free meanwhile.
        assert!(asked <= 3 * 20, "{code}: {asked} requests reached the API server");
        assert!(refused > 200, "{code}: only {refused} were refused");
    }
}

#[tokio::test]
async fn sessions_that_are_there_do_not_refuse_each_other() {
    let (cache, _) = answering(CacheConfig { call_deadline: Duration::from_mins(1), ..config() }, |_| 200).await;
    let names: Vec<String> = (0..1_000).map(|n| format!("there-{n}")).collect();
    let found = join_all(names.iter().map(|name| cache.get(name))).await;
    let refused = found.iter().filter(|found| found.is_err()).count();
    assert_eq!(refused, 0, "{:?}", found.iter().find_map(|found| found.as_ref().err()));
    assert_eq!(cache.shared.gets.waiting(), 0);
}

#[tokio::test]
async fn a_flood_of_unknown_names_keeps_nobody_from_what_was_met_before() {
    let (cache, asked) = answering(config(), |name| if name.starts_with("met") { 200 } else { 404 }).await;
    for name in ["met-held", "met-dropped"] {
        cache.get(name).await.unwrap();
    }
    let uid = Uid::from_u128(7);
    cache.shared.store.evict("met-dropped", state(Fate::Stale { below: 2 }));
    assert_eq!(cache.held().len(), 1);
    // Of this one, it is told that it is gone.
    cache.shared.store.events.departed("gone".into(), uid, Time::from_nanos(1));
    assert!(cache.shared.store.has_met(&"gone".into()));
    assert_eq!(cache.get("gone").await.unwrap_err(), GetError::NotFound);
    assert!(!cache.shared.store.has_met(&"gone".into()));
    let flood: Vec<String> = (0..1_000).map(|n| format!("unknown-{n}")).collect();
    let flood = async { join_all(flood.iter().map(|name| cache.get(name))).await };
    let (flooded, ()) = tokio::join!(flood, async {
        while cache.get("unknown").await.unwrap_err() != GetError::TooManyUnknown {}
        for name in ["met-held", "met-dropped", "met-held"] {
            cache.get(name).await.unwrap();
        }
    });
    assert!(flooded.iter().filter(|found| matches!(found, Err(GetError::TooManyUnknown))).count() > 900);
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked < 50, "{asked}");
}

#[tokio::test]
async fn what_may_be_served_is_found_while_others_read() {
    let (cache, asked) = answering(config(), |_| 200).await;
    cache.lease_for_tests(Duration::from_hours(1));
    cache.find("s").await.unwrap();
    let (done, waits) = mpsc::channel();
    std::thread::scope(|threads| {
        let found = cache.shared.store.look("s", |_| {
            threads.spawn(|| done.send(cache.find("s").now_or_never().is_some_and(|found| found.is_ok())));
            waits.recv_timeout(Duration::from_secs(10))
        });
        assert_eq!(found, Ok(true));
    });
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_look_up_that_finds_nothing_says_so_of_deletions_that_were_begun_before() {
    let (cache, _) = answering(config(), |_| 404).await;
    let deletion = |uid| Deletion { uid: Uid::from_u128(uid), alive: None };
    let (unconfirmed, name) = (&cache.shared.unconfirmed, "s".into());
    unconfirmed.insert(&name, deletion(1));
    assert_eq!(cache.find("s").await.unwrap_err(), GetError::NotFound);
    unconfirmed.insert(&name, deletion(2));
    assert_eq!(unconfirmed.all(&name).deletions, [(deletion(1), true), (deletion(2), false)]);
    // No controller has granted anything.
    cache.confirm_gone("s", WriteOptions::EVERYWHERE).await;
    assert_eq!(unconfirmed.all(&name).deletions, [(deletion(2), false)]);
}

#[tokio::test]
async fn a_deletion_that_was_forgotten_is_confirmed_by_time() {
    let lease = Duration::from_millis(500);
    let (cache, _) = answering(CacheConfig { lease_upper_bound: lease, ..config() }, |_| 404).await;
    let tell = |n: usize| {
        let (name, uid) = (format!("s-{n}"), Uid::from_u128(7));
        cache.shared.unconfirmed.told_gone(&name, uid, ResourceVersion(7), lease * 100);
    };
    let confirm = || cache.confirm_gone("s-0", WriteOptions::EVERYWHERE);
    assert_eq!(confirm().now_or_never(), Some(()), "nothing is known of it");
    let told = Instant::now();
    (0..=8_192).for_each(tell);
    let confirmed = confirm();
    pin!(confirmed);
    assert_eq!(confirmed.as_mut().now_or_never(), None);
    confirmed.await;
    assert!(told.elapsed() >= lease);
    // Nobody serves it any more.
    assert_eq!(confirm().now_or_never(), Some(()));
}
