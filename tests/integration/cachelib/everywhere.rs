//! Writes that are visible everywhere when they return.

use std::time::{Duration, Instant};

use testkit::eventually;
use vmcp_session::cache::{CreateOptions, WriteError, WriteOptions};

use super::{LEASE, SOON, cache, cache_with, cached, leased, map, with_controllers, with_leases};

/// So long that whatever waits for a lease to end is told from whatever does not, on any machine.
const LONG: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_visible_everywhere_is_read_everywhere() {
    const WRITES: usize = 200;
    let cluster = with_leases(2, LONG).await;
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
    println!("median {:?}, slowest {:?}", took[WRITES / 2], took[WRITES - 1]);
    assert!(took[WRITES - 1] < LONG, "a write waited for a lease to end: {:?}", took[WRITES - 1]);

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
    println!("it took {took:?}");
    assert!(took > LEASE && took < SOON, "{took:?}");

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
async fn a_replica_that_stops_gets_its_leases_back_and_nobody_notices() {
    let cluster = with_leases(2, LONG).await;
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
    assert!(begun.elapsed() < LONG, "a replica that has left is not waited for: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_can_be_repeated_until_it_is_confirmed() {
    let cluster = with_leases(2, LONG).await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    a.delete(&session, WriteOptions::default()).await.unwrap();
    let begun = Instant::now();
    let again = b.delete(&session, WriteOptions::EVERYWHERE).await;
    assert_eq!(again.unwrap_err(), WriteError::NotFound);
    assert!(begun.elapsed() < LONG, "the replicas confirm what somebody else deleted: {:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_can_ask_nobody_waits_for_the_leases_to_end() {
    let mut cluster = with_controllers(2).await;
    let (a, b) = (cache(&cluster, "a").await, cache(&cluster, "b").await);
    let session = a.create("s", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    a.delete(&session, WriteOptions::default()).await.unwrap();
    // It knows no state at which the session lived.
    let begun = Instant::now();
    let again = b.delete_uid("s", session.uid(), WriteOptions::EVERYWHERE).await;
    assert_eq!(again.unwrap_err(), WriteError::NotFound);
    assert!(begun.elapsed() > LEASE, "{:?}", begun.elapsed());

    // This one reaches no replica, and was never told how long leases are: it waits as long as it was set up to.
    cluster.controllers.clear();
    let alone = cache_with(&cluster, "alone", cluster.plane.url(), |c| c.lease_upper_bound = LEASE * 2).await;
    let session = alone.create("t", map([("k", "1")]), CreateOptions::default()).await.unwrap();
    let begun = Instant::now();
    alone.update(&session, map([("k", "2")]), WriteOptions::EVERYWHERE).await.unwrap();
    assert!(begun.elapsed() > LEASE * 2, "{:?}", begun.elapsed());
}
