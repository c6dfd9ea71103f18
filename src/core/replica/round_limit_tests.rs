//! What is kept, and for how long, of copies that pods do not drop.

use std::sync::Arc;
use std::time::Duration;

use super::agents::Agent;
use super::limit_tests::{Bench, LEASE, UID, held, key};
use super::rounds::MOST_AWAITED;
use super::{Config, Fact, Kind, Object, SignalId};
use crate::core::cache::{Holding, Report};
use crate::core::digest::{Digest, Metadata, Summarizer};
use crate::core::session::{ResourceVersion, SessionKey};
use crate::core::tally::Bounds;

#[test]
fn keys_that_change_while_somebody_does_not_obey_are_not_collected_for_ever() {
    let mut bench = Bench::new(16, 16);
    let (silent, _) = bench.agent(1, "ns", "a", 1);
    bench.replica.reported(silent, vec![(key(), Report::Held(held()))], Some(1), bench.now).unwrap();
    let mut summarizer = Summarizer::default();
    for generation in 2..1_000 {
        let object = Object {
            key: key(),
            uid: UID,
            generation,
            resource_version: ResourceVersion(bench.replica.position(bench.scope).0 + 1),
            terminating: false,
            kind: Kind::Session(summarizer.summarize(&Metadata::from([(generation.to_string(), String::new())]))),
        };
        bench.replica.apply(bench.scope, object, bench.now);
        // It takes one lease after the other, and never acknowledges.
        bench.prove();
        bench.lease(silent);
        bench.pass(LEASE / 10);
    }
    assert_eq!(bench.replica.awaited(&key()), 1);
    bench.replica.take_facts();
    bench.replica.reported(silent, vec![(key(), Report::Released)], Some(2), bench.now).unwrap();
    bench.replica.acknowledged(silent, &key(), SignalId(u64::MAX), false, bench.now);
    let facts = bench.replica.take_facts();
    let [Fact::Settled(settled)] = &facts[..] else { panic!("{facts:?}") };
    assert_eq!(settled.changed_keys.len(), 256);
}

#[test]
fn pods_that_are_silent_are_told_of_once_while_they_have_leases() {
    let mut bench = Bench::new(16, 16);
    for (stream, pod) in [(1, "b"), (2, "a")] {
        let (silent, _) = bench.agent(stream, "ns", pod, stream.into());
        bench.replica.reported(silent, vec![(key(), Report::Held(held()))], Some(1), bench.now).unwrap();
    }
    let object = Object {
        key: key(),
        uid: UID,
        generation: 2,
        resource_version: ResourceVersion(bench.replica.position(bench.scope).0 + 1),
        terminating: false,
        kind: Kind::Session(Summarizer::default().summarize(&Metadata::from([("k".into(), String::new())]))),
    };
    bench.replica.apply(bench.scope, object, bench.now);
    let late = |bench: &mut Bench| -> Vec<super::Late> {
        let facts = bench.replica.take_facts();
        facts.into_iter().filter_map(|fact| if let Fact::Late(late) = fact { Some(late) } else { None }).collect()
    };
    bench.pass(LEASE / 10);
    assert_eq!(late(&mut bench), [], "they may answer yet");
    bench.pass(LEASE / 10);
    let [told] = &late(&mut bench)[..] else { panic!("nothing, or too much") };
    assert_eq!((told.pods.join(","), told.waited), ("a,b".into(), LEASE / 5));
    assert!(told.lease_left > LEASE / 2 && told.lease_left <= LEASE, "{told:?}");
    bench.pass(LEASE / 10);
    assert_eq!(late(&mut bench), []);
}

#[test]
fn who_takes_leases_and_acknowledges_nothing_is_waited_for_until_the_last_of_them_has_ended() {
    let mut bench = Bench::new(16, 16);
    let (silent, _) = bench.agent(1, "ns", "a", 1);
    let copy = key();
    bench.replica.reported(silent, vec![(copy.clone(), Report::Held(held()))], Some(1), bench.now).unwrap();
    bench.delete(&copy);
    let settled = |bench: &mut Bench| {
        let facts = bench.replica.take_facts();
        facts.into_iter().find_map(|fact| if let Fact::Settled(settled) = fact { Some(settled) } else { None })
    };
    bench.replica.take_facts();
    let begun = bench.now;
    while bench.now < begun + LEASE * 5 {
        bench.prove();
        bench.lease(silent);
        bench.pass(LEASE / 10);
        assert_eq!((settled(&mut bench), bench.replica.awaited(&copy)), (None, 1));
    }
    let until = bench.replica.agents.values().map(Agent::remembered_until).max().unwrap();
    bench.pass(until.saturating_since(bench.now).saturating_sub(Duration::from_nanos(1)));
    assert_eq!(settled(&mut bench), None);
    bench.pass(Duration::from_nanos(1));
    let over = settled(&mut bench).expect("nobody can be waited for any more");
    assert_eq!(over.silent, ["a".into()]);
    bench.replica.stream_closed(silent, bench.now);
    assert_eq!(bench.replica.left_over(0), None);
}

#[test]
fn rounds_of_who_acknowledges_nothing_are_looked_at_in_turns() {
    let (many, all) = (5_000, Bounds { all: 20_000, per_pod: 10_000 });
    let mut bench = Bench::with(Config { lease: LEASE, holdings: all, ..Config::default() });
    let (silent, _) = bench.agent(1, "ns", "a", 1);
    bench.deleted(silent, many);
    let late = |bench: &mut Bench| {
        let facts = bench.replica.take_facts();
        facts.iter().filter(|fact| matches!(fact, Fact::Late(_))).count()
    };
    bench.pass(LEASE / 5);
    let first = late(&mut bench);
    assert!(first < many, "{first} in one go");
    bench.pass(Duration::ZERO);
    assert_eq!(first + late(&mut bench), many);
    // It comes back and holds none of them: nothing is left of the rounds.
    let (back, superseded) = bench.agent(2, "ns", "a", 1);
    assert_eq!(superseded, Some(silent));
    bench.replica.reported(back, Vec::new(), Some(1), bench.now).unwrap();
    bench.replica.stream_closed(back, bench.now);
    bench.pass(LEASE * 2);
    assert_eq!(bench.replica.left_over(0), None);
}

#[test]
fn copies_of_what_never_was_are_to_be_dropped_and_counted_and_nobody_waits_for_that() {
    let mut bench = Bench::new(16, 16);
    let (liar, _) = bench.agent(1, "ns", "a", 1);
    let made_up = SessionKey::new("ns", "made-up");
    bench.replica.reported(liar, vec![(made_up.clone(), Report::Held(held()))], Some(1), bench.now).unwrap();
    assert_eq!((bench.replica.queued_signals(), bench.replica.rounds.len()), (1, 0));
    let counted = |bench: &Bench| (bench.replica.counts().unknown, bench.replica.counts().gone);
    assert_eq!(counted(&bench), (1, 0));
    bench.replica.take_facts();
    bench.pass(LEASE);
    assert_eq!(bench.replica.take_facts(), []);
    // Nor for a state that a session does not have: that one is told of.
    let wrong = Holding { digest: Digest::of(&Metadata::from([("k".into(), String::new())])), ..held() };
    bench.replica.reported(liar, vec![(key(), Report::Held(wrong))], Some(2), bench.now).unwrap();
    assert_eq!(bench.replica.awaited(&key()), 1);
    assert_eq!(counted(&bench), (1, 0));
}

#[test]
fn acknowledgements_that_are_waited_for_are_bounded_and_the_others_count_at_once() {
    let (most, more) = (MOST_AWAITED.per_pod, 100);
    let all = Bounds { all: 1_000_000, per_pod: 1_000_000 };
    let mut bench = Bench::with(Config { lease: LEASE, holdings: all, ..Config::default() });
    let (silent, _) = bench.agent(1, "ns", "a", 1);
    bench.deleted(silent, most + more);
    let rounds = |bench: &Bench| (bench.replica.rounds.len(), bench.replica.counts().gone);
    assert_eq!(rounds(&bench), (most + more, more as u64));
    // None of them is over: those that nobody waits for may be served until the leases end.
    let is_over = |fact: &Fact| matches!(fact, Fact::Settled(settled) if settled.object.is_none());
    assert!(!bench.replica.take_facts().iter().any(is_over));
    // Another process of the pod has no more, though the first has gone without a word; another pod has.
    bench.replica.stream_closed(silent, bench.now);
    let (again, _) = bench.agent(2, "ns", "a", 2);
    bench.deleted(again, more);
    assert_eq!(rounds(&bench), (most + more, 2 * more as u64));
    let (other, _) = bench.agent(3, "ns", "b", 3);
    bench.deleted(other, more);
    assert_eq!(bench.replica.awaited(&SessionKey::new("ns", "0")), 2);
    bench.replica.stream_closed(again, bench.now);
    bench.replica.stream_closed(other, bench.now);
    // As many are looked at in one go as there may be.
    for _ in 0..20 {
        bench.pass(LEASE);
    }
    assert_eq!(rounds(&bench), (0, (most + 3 * more) as u64));
    assert_eq!(bench.replica.left_over(0), None);
}

/// What a pod can make of a copy: the longest name, of no session, and one more than fit into the tables, which doubles these. The
/// chart's limits of memory rest on it.
#[test]
fn a_copy_takes_no_more_than_is_said_whatever_a_pod_makes_of_it() {
    let (many, all) = (14_337, Bounds { all: 1_000_000, per_pod: 1_000_000 });
    let mut bench = Bench::with(Config { lease: LEASE, holdings: all, ..Config::default() });
    for (stream, version) in [(1, 0), (2, u64::MAX)] {
        let (pod, _) = bench.agent(stream, "ns", "a", stream.into());
        let namespace: Arc<str> = "ns".into();
        let copies = move |from: u32| {
            let held = Holding { resource_version: ResourceVersion(version), ..held() };
            let key = |n| SessionKey::new(namespace.clone(), format!("{n:0253}"));
            (from..(from + 2_048).min(many)).map(|n| (key(n), Report::Held(held))).collect()
        };
        let taken = allocation_counter::measure(|| {
            for from in (0..many).step_by(2_048) {
                bench.replica.reported(pod, copies(from), None, bench.now).unwrap();
            }
            bench.pass(Duration::from_millis(1));
            bench.prove();
        });
        assert_eq!(bench.replica.queued_signals(), many as usize);
        let each = taken.bytes_current / i64::from(many);
        assert!(each <= 1_100, "{each} bytes");
        bench.replica.stream_closed(pod, bench.now);
        bench.pass(LEASE * 2);
        bench.prove();
    }
}
