//! Who is told to have dropped a copy.

use std::time::Duration;

use super::{Config, Counts, Fact, Hello, InstanceId, Kind, Object, Outgoing, Replica, ScopeId, Settled, SignalId};
use crate::core::cache::{Holding, Report};
use crate::core::digest::{Digest, Metadata, Summarizer};
use crate::core::lease::{StreamId, with_drift};
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::time::Time;

const STREAM: StreamId = StreamId(1);
const LEASE: Duration = Duration::from_secs(15);
const NOW: Time = Time::from_nanos(1_000_000_000);

fn key() -> SessionKey {
    SessionKey::new("a", "s")
}

fn metadata(generation: u64) -> Metadata {
    Metadata::from([("k".into(), generation.to_string())])
}

fn object(generation: u64) -> Object {
    Object {
        key: key(),
        uid: Uid::from_u128(1),
        generation,
        resource_version: ResourceVersion(50 + generation),
        terminating: false,
        kind: Kind::Session(Summarizer::default().summarize(&metadata(generation))),
    }
}

/// A copy of this generation that was restored at that one.
fn held(generation: u64, since: u64) -> Vec<(SessionKey, Report)> {
    let digest = Digest::of(&metadata(generation));
    let resource_version = ResourceVersion(50 + generation);
    vec![(key(), Report::Held(Holding { uid: Uid::from_u128(1), generation, digest, resource_version, since }))]
}

/// A replica that has just seen the session's second generation, and an agent that holds the first one.
fn changed() -> (Replica, ScopeId) {
    let mut replica = Replica::new(Config { lease: LEASE, ..Config::default() }, &[]);
    let scope = replica.scopes().map(|(id, _)| id).next().unwrap();
    replica.relist(scope, vec![object(1)], ResourceVersion(51), NOW).unwrap();
    let hello = Hello { instance: InstanceId(1), namespace: "a".into(), name: "pod".into() };
    assert_eq!(replica.stream_opened(STREAM, hello, NOW), None);
    replica.reported(STREAM, held(1, 1), Some(1), NOW).unwrap();
    replica.apply(scope, object(2), NOW);
    (replica, scope)
}

fn signalled(replica: &mut Replica) -> SignalId {
    match replica.drain(STREAM, 9) {
        Some(Outgoing::Signals { evictions, .. }) => evictions[0].1,
        other => panic!("{other:?}"),
    }
}

/// The pods of the round that has ended, those of them that are silent, and how many copies were evicted.
fn outcome(replica: &mut Replica) -> (usize, usize, u64) {
    let facts = replica.take_facts().into_iter();
    let settled = facts.filter_map(|fact| if let Fact::Settled(settled) = fact { Some(settled) } else { None });
    let Some(Settled { pods, silent, .. }) = settled.last() else { panic!("nothing is settled") };
    let Counts { stale, .. } = replica.counts();
    (pods.len(), silent.len(), stale)
}

#[test]
fn who_writes_is_not_evicted_by_what_it_wrote() {
    for (kept, expected) in [(true, (0, 0, 0)), (false, (1, 0, 1))] {
        let (mut replica, _) = changed();
        let signal = signalled(&mut replica);
        replica.take_facts();
        replica.acknowledged(STREAM, &key(), signal, kept, NOW);
        assert_eq!(outcome(&mut replica), expected, "kept: {kept}");
    }
}

#[test]
fn who_reports_what_it_wrote_before_it_is_signalled_is_not_evicted_either() {
    // The copy of the second generation: written over the first one, or restored after another replica's signal.
    for (since, expected) in [(1, (0, 0, 0)), (2, (1, 0, 1))] {
        let (mut replica, _) = changed();
        replica.take_facts();
        replica.reported(STREAM, held(2, since), Some(2), NOW).unwrap();
        assert_eq!(outcome(&mut replica), expected, "since: {since}");
        assert_eq!(replica.drain(STREAM, 9), None);
    }
}

#[test]
fn who_was_told_by_another_replica_and_has_restored_an_older_state_was_evicted_too() {
    let (mut replica, scope) = changed();
    replica.apply(scope, object(3), NOW);
    replica.take_facts();
    // It was restored at 2, and this replica has seen 3 by now.
    replica.reported(STREAM, held(2, 2), Some(2), NOW).unwrap();
    assert_eq!(replica.counts().stale, 1);
}

#[test]
fn who_leaves_with_a_signal_in_its_hands_is_not_waited_for() {
    let (mut replica, _) = changed();
    signalled(&mut replica);
    replica.take_facts();
    replica.stream_closed(STREAM, NOW);
    assert_eq!(outcome(&mut replica), (1, 0, 1));
}

#[test]
fn nobody_carries_on_what_is_gone() {
    let (mut replica, scope) = changed();
    replica.delete(scope, &key(), ResourceVersion(60), NOW);
    let signal = signalled(&mut replica);
    replica.acknowledged(STREAM, &key(), signal, true, NOW);
    assert_eq!(replica.counts().gone, 1);
}

#[test]
fn who_is_silent_counts_as_evicted_when_its_lease_is_over() {
    let (mut replica, _) = changed();
    signalled(&mut replica);
    replica.take_facts();
    replica.poll(NOW + LEASE / 5);
    assert_eq!(replica.counts().stale, 0, "it may keep its copy yet");
    replica.poll(NOW + with_drift(LEASE));
    assert_eq!(outcome(&mut replica), (1, 1, 1));
}
