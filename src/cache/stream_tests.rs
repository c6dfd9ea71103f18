//! Streams against a replica that says what the test wants.

use std::time::Duration;

use futures::FutureExt;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::cache::scripted_replica::{
    Attached, LEASE, Replica, SOON, authorities, lease, settings, settings_for, signals, state,
};
use crate::cache::store::now;
use crate::cache::stream::{self, Ended, Want};
use crate::cache::{Cache, CacheConfig, Event, WriteOptions};
use crate::core::cache::{Answer, Copy, Facts, Holding, Join, Observed, Report};
use crate::core::digest::{Digest, Metadata};
use crate::core::fields::Fields;
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::Fate;
use crate::proto::v1::agent_message::Message as Said;
use crate::proto::v1::replica_message::Message as Say;
use crate::proto::v1::{self, ReplicaMessage};
use crate::proto::{MAX_SESSIONS_PER_MESSAGE, convert};
use crate::runtime::backoff::Backoff;

/// A cache that reaches these replicas, and no API server.
fn cache(replicas: &[&Replica]) -> Cache {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let nowhere = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
    let config = CacheConfig {
        controllers: replicas.iter().map(|r| r.address.to_string()).collect(),
        ca_file: Some(authorities()),
        reconnect_at_most: Duration::from_millis(20),
        ..CacheConfig::new("ns", "pod")
    };
    Cache::connect(kube::Client::try_from(nowhere).unwrap(), config).unwrap()
}

/// Puts a copy into the cache as a restore would.
fn hold(cache: &Cache, name: &str, generation: u64) {
    let metadata = Metadata::from([("generation".into(), generation.to_string())]);
    let copy = Copy {
        name: name.into(),
        uid: Uid::from_u128(7),
        generation,
        resource_version: ResourceVersion(generation),
        digest: Digest::of(&metadata),
        metadata: Fields::of(&metadata),
        facts: Facts::default(),
    };
    cache.shared.store.change(name, |state, tell, now| {
        if let Join::Lead(id) = state.shard.join(name, now) {
            state.shard.restore_sent(name, id, now);
            let answer = Answer::Found(Observed { copy, terminating: false });
            state.shard.restore_answered(name, id, answer, now, tell);
        }
        ((), None)
    });
}

async fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !check() {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn problem(cache: &Cache) -> String {
    cache.state().streams.iter().filter_map(|s| s.problem.as_deref().map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_copy_is_served_when_it_was_told_and_a_lease_covers_it() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let (mut stream, inventory) = replica.greet("r").await;
    assert!(matches!(&inventory[..], [(name, Report::Held(Holding { generation: 1, .. }))] if name == "a"));
    stream.say(lease(77, 9)).await;
    stream.grant(1).await;
    until("the lease counts", || cache.hit("a").is_some()).await;
    assert!(cache.state().leased_for.is_some_and(|left| left <= LEASE));

    // A new copy is told, and covered by what the replica says that it has processed; not by what it had before.
    stream.say(Say::Revoke(v1::Revoke {})).await;
    assert_eq!(stream.hear_news().await, Said::LeaseReturned(v1::LeaseReturned {}));
    assert!(cache.hit("a").is_none(), "what was returned is over");
    hold(&cache, "b", 1);
    let Said::Reports(reports) = stream.hear_news().await else { panic!("expected a report") };
    assert_eq!((reports.through, reports.complete, &*reports.held[0].session), (2, true, "b"));
    stream.grant(1).await;
    until("the lease counts again", || cache.hit("a").is_some()).await;
    assert!(cache.hit("b").is_none());
    stream.grant(2).await;
    until("the new copy is covered", || cache.hit("b").is_some()).await;
}

#[tokio::test]
async fn an_answer_to_a_heartbeat_that_was_never_sent_or_sent_before_the_revocation_grants_nothing() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let (mut stream, _) = replica.greet("r").await;
    let before = stream.heartbeat().await;
    stream.say(lease(before + 1_000, 9)).await;
    stream.say(Say::Revoke(v1::Revoke {})).await;
    stream.say(lease(before, 9)).await;
    // What is acknowledged came after the leases.
    stream.say(Say::Signals(signals(&[("other", 1, 1)], &[]))).await;
    loop {
        if let Said::Acknowledgements(_) = stream.hear().await {
            break;
        }
    }
    assert!(cache.hit("a").is_none());
    let after = stream.heartbeat().await;
    let refused = v1::Lease { heartbeat: after, refused: "stopping\nnow".into(), age_micros: 0, covers: 9 };
    stream.say(Say::Lease(refused)).await;
    until("the refusal is shown", || problem(&cache).contains("stopping now")).await;
    assert!(cache.hit("a").is_none());
}

#[tokio::test]
async fn signals_are_carried_out_in_order_and_then_acknowledged() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    let mut evictions = cache.subscribe();
    hold(&cache, "a", 1);
    hold(&cache, "b", 1);
    hold(&cache, "c", 5);
    let (mut stream, inventory) = replica.greet("r").await;
    assert_eq!(inventory.len(), 3);
    let many = signals(&[("a", 11, 2), ("nobody", 12, 2), ("c", 13, 5)], &[("b", 14, 2)]);
    stream.say(Say::Signals(many)).await;
    let mut acknowledged = Vec::new();
    while acknowledged.len() < 4 {
        if let Said::Acknowledgements(acks) = stream.hear_news().await {
            acknowledged.extend(acks.done.into_iter().map(|a| (a.session, a.signal)));
        }
    }
    let expected = [("a", 11), ("nobody", 12), ("c", 13), ("b", 14)];
    assert_eq!(acknowledged, expected.map(|(name, signal)| (name.to_owned(), signal)));
    let held: Vec<_> = cache.held().iter().map(|(s, _)| s.name().to_owned()).collect();
    assert_eq!(held, ["c"], "by the time it is acknowledged it is done");
    for expected in ["a", "b"] {
        let Some(Event::Evicted(eviction)) = evictions.next().await else { panic!("expected an eviction") };
        assert_eq!((&*eviction.name, eviction.generation), (expected, 1));
        assert!(eviction.at <= now() && eviction.at + SOON > now());
    }
    stream.say(Say::Reset(v1::Reset {})).await;
    until("everything is dropped", || cache.held().is_empty()).await;
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_stream_with_the_reason_and_nothing_else() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let mut instance = None;
    let uid = |bytes: &'static [u8]| {
        let mut bad = signals(&[("a", 1, 2)], &[]);
        bad.evictions[0].uid = bytes.into();
        Say::Signals(bad)
    };
    let many: Vec<_> = (0..=MAX_SESSIONS_PER_MESSAGE).map(|n| ("a", n as u64, 0)).collect();
    let cases = [
        (Some(settings("r")), "unexpected message"),
        (Some(Say::Signals(signals(&[("../a", 1, 2)], &[]))), "field session"),
        (Some(uid(b"abc")), "field uid"),
        (Some(Say::Signals(signals(&many, &[]))), "at most 2048"),
        (None, "unexpected message"),
    ];
    for (message, reason) in cases {
        let (stream, hello) = replica.accept().await;
        assert_eq!(*instance.get_or_insert(hello.instance.clone()), hello.instance, "the same process");
        stream.say(settings("r")).await;
        stream.outbox.send(Ok(ReplicaMessage { message })).await.unwrap();
        until(reason, || problem(&cache).contains(reason)).await;
    }
    for (bad, reason) in [
        (v1::Settings { protocol_version: 9, ..v1::Settings::default() }, "version 9, the agent version 1: upgrade"),
        (v1::Settings { protocol_version: 1, ..v1::Settings::default() }, "field replica"),
    ] {
        let (stream, _) = replica.accept().await;
        stream.say(Say::Settings(bad)).await;
        until(reason, || problem(&cache).contains(reason)).await;
    }
    let (stream, _) = replica.accept().await;
    stream.outbox.send(Err(Status::unauthenticated("the token\nis not accepted"))).await.unwrap();
    until("a status", || problem(&cache).contains("the token is not accepted")).await;
    assert_eq!(cache.held().len(), 1, "no copy was dropped");
    assert_eq!(cache.state().streams.len(), 1);
}

#[test]
fn who_has_no_room_for_the_pod_is_left_alone_for_a_while() {
    let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(2));
    let full = Ended::Status(Status::resource_exhausted("more copies are held than may be"));
    assert!(full.pause(&mut backoff) >= Duration::from_secs(30), "at random from half a minute on");
    for other in [Ended::Status(Status::unavailable("")), Ended::Closed] {
        assert!(other.pause(&mut backoff) <= Duration::from_millis(2));
    }
}

/// Its leases and confirmations would be about sessions of the same names in another namespace.
#[tokio::test]
async fn a_replica_that_takes_the_pod_for_one_of_another_namespace_grants_nothing() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let (mut stream, _) = replica.accept().await;
    stream.say(Say::Settings(settings_for("r", Some("vmcp")))).await;
    let reason = "token is of namespace vmcp, and the cache is of namespace ns: set --namespace";
    until("the reason is shown", || problem(&cache).contains(reason)).await;
    assert_eq!(stream.ended().await, None, "it is told of no copy, and asked for no lease");
    assert!(cache.state().streams.iter().all(|stream| stream.replica.is_none()));

    let (mut stream, _) = replica.accept().await;
    stream.say(Say::Settings(settings_for("r", Some("ns")))).await;
    stream.grant(1).await;
    until("the lease counts", || cache.hit("a").is_some()).await;
}

#[tokio::test]
async fn a_large_inventory_comes_in_parts_and_reports_come_after_it() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    let count = MAX_SESSIONS_PER_MESSAGE + 500;
    for n in 0..count {
        hold(&cache, &format!("s-{n}"), 1);
    }
    let (mut stream, _) = replica.accept().await;
    stream.say(settings("r")).await;
    let mut told = 0;
    loop {
        let Said::Reports(reports) = stream.hear_past_renewals().await else {
            panic!("a heartbeat before the inventory")
        };
        assert!(reports.held.len() <= MAX_SESSIONS_PER_MESSAGE);
        told += reports.held.len();
        assert_eq!(reports.complete, told == count, "only the last part is complete");
        if reports.complete {
            assert_eq!(reports.through, count as u64);
            break;
        }
    }
    hold(&cache, "new", 1);
    let Said::Reports(reports) = stream.hear_news().await else { panic!("expected a report") };
    assert_eq!((reports.held.len(), reports.through), (1, count as u64 + 1));
}

#[tokio::test]
async fn uses_are_told_once_also_of_copies_that_are_gone() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    let (mut stream, _) = replica.greet("r").await;
    for name in ["held", "dropped"] {
        hold(&cache, name, 1);
    }
    stream.say(Say::Signals(signals(&[("dropped", 1, 2)], &[]))).await;
    let mut told = Vec::new();
    while told.len() < 2 {
        if let Said::Renewals(renewals) = stream.hear().await {
            for renewal in &renewals.used {
                let (name, uid, idle) = convert::renewal(renewal).unwrap();
                assert!(uid == Uid::from_u128(7) && idle < SOON);
                if !told.contains(&name.to_owned()) {
                    told.push(name.to_owned());
                }
            }
        }
    }
    told.sort();
    assert_eq!(told, ["dropped", "held"]);
}

#[tokio::test]
async fn a_confirmation_is_asked_again_on_a_stream_that_comes_back_and_where_it_was_refused() {
    let (mut one, mut two) = (Replica::start().await, Replica::start().await);
    let cache = cache(&[&one, &two]);
    let (mut first, _) = one.greet("one").await;
    let (second, _) = two.greet("two").await;
    let confirmed = {
        let cache = cache.clone();
        tokio::spawn(async move {
            let confirmer = &cache.shared.confirmer;
            confirmer.confirm("s", &state(Fate::Gone), Instant::now()).await
        })
    };
    let request = async |stream: &mut Attached| loop {
        if let Said::Confirm(request) = stream.hear().await {
            let (name, barrier) = convert::barrier(request.state.as_ref()).unwrap();
            assert_eq!((name, barrier), ("s", state(Fate::Gone)));
            return request.number;
        }
    };
    let registered = vec!["one".to_owned(), "two".to_owned()];
    let number = request(&mut first).await;
    first.say(Say::Confirmed(v1::Confirmed { number, registered: registered.clone() })).await;
    drop(second);
    let (mut second, _) = two.greet("two").await;
    let number = request(&mut second).await;
    assert!(!confirmed.is_finished());
    second.say(Say::ConfirmRefused(v1::ConfirmRefused { number, reason: "busy".into() })).await;
    let again = timeout(SOON, request(&mut second)).await.expect("it is asked again");
    assert_eq!(again, number);
    second.say(Say::Confirmed(v1::Confirmed { number, registered })).await;
    let how = timeout(SOON, confirmed).await.expect("before any lease has ended").unwrap();
    assert_eq!(how, crate::cache::confirm::Confirmed::Answered);
}

/// Some other cache deletes it, and confirms that. Whoever repeats the deletion here finds nothing.
#[tokio::test]
async fn what_a_replica_says_is_gone_is_confirmed_by_whoever_asks_and_once() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    let (mut stream, _) = replica.greet("r").await;
    let gone = convert::state_message("s", &state(Fate::Gone));
    let barrier = v1::Barrier { signal: 1, state: Some(gone) };
    stream.say(Say::Signals(v1::Signals { barriers: vec![barrier], ..v1::Signals::default() })).await;
    while !matches!(stream.hear().await, Said::Acknowledgements(_)) {}
    timeout(SOON, cache.confirm_gone("other", WriteOptions::EVERYWHERE)).await.expect("of this nobody has said so");
    let asking = {
        let cache = cache.clone();
        tokio::spawn(async move { cache.confirm_gone("s", WriteOptions::EVERYWHERE).await })
    };
    let asked = async {
        loop {
            if let Said::Confirm(request) = stream.hear().await {
                return request;
            }
        }
    };
    let request = timeout(SOON, asked).await.expect("it is confirmed first");
    assert_eq!(convert::barrier(request.state.as_ref()).unwrap(), ("s", state(Fate::Gone)));
    assert!(!asking.is_finished());
    let confirmed = v1::Confirmed { number: request.number, registered: vec!["r".to_owned()] };
    stream.say(Say::Confirmed(confirmed)).await;
    timeout(SOON, asking).await.expect("all have answered").unwrap();
    timeout(SOON, cache.confirm_gone("s", WriteOptions::EVERYWHERE)).await.expect("it is confirmed");
}

#[tokio::test]
async fn a_lease_runs_on_when_its_stream_ends() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let (mut stream, _) = replica.greet("r").await;
    stream.grant(1).await;
    until("the lease counts", || cache.hit("a").is_some()).await;
    drop(stream);
    let (_stream, inventory) = replica.greet("r").await;
    assert_eq!(inventory.len(), 1, "all is told again");
    assert!(cache.hit("a").is_some());
    cache.shutdown().await;
    assert!(cache.hit("a").is_none(), "the end of the cache ends it");
}

#[tokio::test]
async fn the_last_uses_are_told_when_the_cache_ends() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    let (mut stream, _) = replica.greet("r").await;
    stream.grant(1).await;
    until("the lease counts", || cache.hit("a").is_some()).await;
    // All that was used until now is told in time; then comes another use, and the end.
    while !matches!(stream.hear().await, Said::Renewals(_)) {}
    let used = tokio::time::Instant::now();
    assert!(cache.hit("a").is_some());
    let end = tokio::spawn(async move { cache.shutdown().await });
    let mut told = Vec::new();
    loop {
        match stream.hear().await {
            Said::Heartbeat(_) => {}
            Said::Renewals(renewals) => told.extend(renewals.used),
            Said::LeaseReturned(_) => break,
            other => panic!("{other:?}"),
        }
    }
    let last = told.iter().map(|renewal| Duration::from_millis(renewal.idle_millis)).min();
    assert!(last.is_some_and(|idle| idle <= used.elapsed()), "{told:?}");
    drop(stream);
    end.await.unwrap();
}

#[tokio::test]
async fn whoever_ends_the_cache_again_waits_for_the_same_end_and_subscribers_see_it() {
    let mut replica = Replica::start().await;
    let cache = cache(&[&replica]);
    hold(&cache, "a", 1);
    hold(&cache, "b", 1);
    let (mut stream, _) = replica.greet("r").await;
    stream.grant(2).await;
    until("the lease counts", || cache.hit("a").is_some() && cache.hit("b").is_some()).await;
    let mut evictions = cache.subscribe();
    cache.shared.store.evict("b", state(Fate::Gone));
    assert!(cache.shutdown().now_or_never().is_none(), "the replica has not heard of it");
    assert!(cache.hit("a").is_none(), "leases end at once");
    while !matches!(stream.hear().await, Said::LeaseReturned(_)) {}
    assert!(cache.shutdown().now_or_never().is_none(), "the replica has not closed the stream");
    drop(stream);
    let both = async { tokio::join!(cache.shutdown(), cache.shutdown()) };
    timeout(SOON, both).await.unwrap();
    // Though handles of the cache are left.
    let mut later = cache.subscribe();
    let next = async { (evictions.next().await, evictions.next().await, later.next().await) };
    let (first, second, none) = timeout(SOON, next).await.unwrap();
    assert!(matches!(first, Some(Event::Evicted(eviction)) if &*eviction.name == "b"));
    assert!(second.is_none() && none.is_none());
}

#[tokio::test]
async fn a_stream_that_is_not_wanted_ends_also_if_the_replica_does_not() {
    let mut replica = Replica::start().await;
    let cache = cache(&[]);
    let (want, wanted) = watch::channel(Want::Always);
    let running = tokio::spawn(stream::run(cache.shared.clone(), replica.address, wanted));
    let (mut stream, _) = replica.greet("r").await;
    want.send_replace(Want::Never);
    while !matches!(stream.hear().await, Said::LeaseReturned(_)) {}
    // It hears that, and says nothing.
    timeout(SOON, running).await.expect("the stream has ended").unwrap();
}
