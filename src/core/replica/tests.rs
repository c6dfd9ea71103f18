//! The replica, driven message by message.

use std::time::Duration;

use super::agents::Agent;
use super::{Config, Fact, Found, Hello, InstanceId, Kind, Object, Outgoing, Replica, ScopeId, SignalId};
use crate::core::cache::{Holding, Report};
use crate::core::digest::{Digest, Metadata, Summarizer};
use crate::core::lease::StreamId;
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::signal::Fate;
use crate::core::time::Time;

impl Replica {
    /// What is left over though nothing is under way and so many agents are connected, if anything.
    pub(crate) fn left_over(&self, agents: usize) -> Option<String> {
        let waiting: usize = self.scopes.iter().map(|s| s.waiting.len()).sum();
        let counts = [
            ("queued signals", self.queued_signals(), 0),
            ("confirmations", self.confirmations(), 0),
            ("confirmations that pods wait for", self.asked.used(), 0),
            ("waiting holdings", waiting, 0),
            ("holdings without cover", self.agents.values().map(|agent| agent.waiting.len()).sum(), 0),
            ("rounds", self.rounds.len(), 0),
            ("copies too many", self.held.used() - self.agents.values().map(Agent::holdings).sum::<usize>(), 0),
            ("replies", self.replies.values().map(Vec::len).sum(), 0),
            ("agents", self.agents.len(), agents),
            ("streams", self.by_stream.len(), agents),
            ("names of agents", self.by_hello.len(), agents),
        ];
        let wrong = counts.iter().find(|(_, n, expected)| n != expected);
        wrong.map(|(what, n, expected)| format!("has {n} {what} instead of {expected}"))
    }
}

const STREAM: StreamId = StreamId(1);

fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

fn held(resource_version: u64) -> Report {
    Report::Held(Holding {
        uid: Uid::from_u128(1),
        generation: 1,
        digest: Digest::of(&Metadata::new()),
        resource_version: ResourceVersion(resource_version),
        since: 1,
    })
}

/// A replica whose watch is at 50, with one agent.
fn replica() -> (Replica, ScopeId) {
    let mut replica = Replica::new(Config { lease: Duration::from_secs(15), ..Config::default() }, &[]);
    let scope = replica.scopes().map(|(id, _)| id).next().unwrap();
    replica.relist(scope, Vec::new(), ResourceVersion(50), at(1)).unwrap();
    let hello = Hello { instance: InstanceId(1), namespace: "a".into(), name: "pod".into() };
    assert_eq!(replica.stream_opened(STREAM, hello, at(1)), None);
    (replica, scope)
}

/// A session of which [`held`] is a copy.
fn object(key: &SessionKey, resource_version: u64) -> Object {
    Object {
        key: key.clone(),
        uid: Uid::from_u128(1),
        generation: 1,
        resource_version: ResourceVersion(resource_version),
        terminating: false,
        kind: Kind::Session(Summarizer::default().summarize(&Metadata::new())),
    }
}

fn evicted(replica: &mut Replica) -> Vec<Fate> {
    match replica.drain(STREAM, 100) {
        Some(Outgoing::Signals { evictions, .. }) => evictions.iter().map(|(_, _, s)| s.mark.fate).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn a_copy_of_a_history_that_a_backup_wiped_out_is_evicted_by_the_first_write_after_it() {
    let (mut replica, scope) = replica();
    let key = SessionKey::new("a", "s");
    replica.reported(STREAM, vec![(key, held(100))], Some(1), at(2)).unwrap();
    assert_eq!(evicted(&mut replica), [], "the pod may know more than the watch");
    // Sent before the report: a resourceVersion below the copy's is no contradiction.
    replica.marker_answered(scope, at(1), ResourceVersion(50), ResourceVersion(60), at(3)).unwrap();
    assert_eq!(evicted(&mut replica), []);
    replica.marker_answered(scope, at(3), ResourceVersion(50), ResourceVersion(61), at(3)).unwrap();
    assert_eq!(evicted(&mut replica), [Fate::Gone]);
}

#[test]
fn no_round_waits_for_what_a_reset_has_cleared() {
    let (mut replica, scope) = replica();
    let key = SessionKey::new("a", "s");
    replica.apply(scope, object(&key, 51), at(2));
    replica.reported(STREAM, vec![(key.clone(), held(51))], Some(1), at(2)).unwrap();
    replica.delete(scope, &key, ResourceVersion(52), at(2));
    assert_eq!(replica.awaited(&key), 1);
    replica.void();
    assert_eq!(replica.drain(STREAM, 9), Some(Outgoing::Reset), "and no eviction that it could acknowledge");
    assert_eq!(replica.awaited(&key), 0);
}

#[test]
fn a_marker_whose_answer_calls_for_a_list_proves_nothing_before_that() {
    let (mut replica, scope) = replica();
    // The watch is quicker than the answer.
    replica.bookmark(scope, ResourceVersion(60), at(3));
    assert!(!replica.marker_found(scope, Found::LongAgo));
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(60), at(3)).unwrap();
    assert_eq!(replica.age_of(scope, at(3)), None);
    replica.relist(scope, Vec::new(), ResourceVersion(60), at(4)).unwrap();
    assert_eq!(replica.age_of(scope, at(4)), Some(Duration::from_secs(2)));
}

#[test]
fn no_lease_before_the_marker_came_through_the_watch() {
    let (mut replica, scope) = replica();
    replica.heartbeat(STREAM, 1, at(2));
    assert!(matches!(replica.drain(STREAM, 9), Some(Outgoing::Lease { age: Err(_), .. })));
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(60), at(3)).unwrap();
    replica.heartbeat(STREAM, 2, at(3));
    assert!(matches!(replica.drain(STREAM, 9), Some(Outgoing::Lease { age: Err(_), .. })), "answered, but not shown");
    replica.bookmark(scope, ResourceVersion(60), at(4));
    replica.heartbeat(STREAM, 3, at(5));
    let lease = Outgoing::Lease { heartbeat: 3, age: Ok(Duration::from_secs(3)), covers: 0 };
    assert_eq!(replica.drain(STREAM, 9), Some(lease), "as old as the sending of the marker");
    replica.heartbeat(STREAM, 4, at(17));
    assert!(matches!(replica.drain(STREAM, 9), Some(Outgoing::Lease { age: Err(_), .. })), "older than a lease");
}

#[test]
fn people_hear_once_of_a_watch_that_nothing_proves() {
    let (mut replica, scope) = replica();
    assert!(replica.begins_to_be_unproven(scope));
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(60), at(3)).unwrap();
    assert!(!replica.begins_to_be_unproven(scope), "answered, but not shown");
    replica.bookmark(scope, ResourceVersion(60), at(4));
    assert!(replica.begins_to_be_unproven(scope), "that is over, and this is another trouble");
}

#[test]
fn an_inventory_covers_nothing_before_its_last_part() {
    let (mut replica, scope) = replica();
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(50), at(2)).unwrap();
    let covers = |replica: &mut Replica, number| {
        replica.heartbeat(STREAM, number, at(3));
        match replica.drain(STREAM, 9) {
            Some(Outgoing::Lease { covers, .. }) => covers,
            other => panic!("{other:?}"),
        }
    };
    for (name, through, expected) in [("s", None, 0), ("t", Some(7), 7)] {
        let key = SessionKey::new("a", name);
        let position = replica.position(scope).0 + 1;
        replica.apply(scope, object(&key, position), at(3));
        replica.reported(STREAM, vec![(key, held(position))], through, at(3)).unwrap();
        assert_eq!(covers(&mut replica, position), expected);
    }
}

/// Each own write is reported before the watch shows it: that costs no lease, and nothing that was reported before.
#[test]
fn what_waits_for_the_watch_is_not_covered_until_it_was_compared() {
    let (mut replica, scope) = replica();
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(50), at(2)).unwrap();
    let [early, s, t] = ["early", "s", "t"].map(|name| SessionKey::new("a", name));
    replica.apply(scope, object(&early, 51), at(2));
    let report = |replica: &mut Replica, key: &SessionKey, resource_version, through| {
        replica.reported(STREAM, vec![(key.clone(), held(resource_version))], Some(through), at(3)).unwrap();
    };
    let covers = |replica: &mut Replica| {
        replica.heartbeat(STREAM, 1, at(3));
        match replica.drain(STREAM, 9) {
            Some(Outgoing::Lease { age: Ok(_), covers, .. }) => covers,
            other => panic!("{other:?}"),
        }
    };
    report(&mut replica, &early, 51, 3);
    report(&mut replica, &s, 60, 4);
    report(&mut replica, &t, 61, 5);
    assert_eq!(covers(&mut replica), 3);
    report(&mut replica, &s, 62, 6);
    assert_eq!(covers(&mut replica), 4, "the copy that was the fourth is no more");
    replica.apply(scope, object(&t, 61), at(3));
    assert_eq!(covers(&mut replica), 5);
    replica.reported(STREAM, vec![(s, Report::Released)], Some(7), at(3)).unwrap();
    assert_eq!(covers(&mut replica), 7);
}

/// It waited for nobody when its state was shown at a lower resourceVersion, and a lease may cover it.
#[test]
fn a_copy_whose_state_was_shown_is_not_newer_than_what_is_shown_next() {
    let (mut replica, scope) = replica();
    let key = SessionKey::new("a", "s");
    replica.apply(scope, object(&key, 51), at(2));
    replica.reported(STREAM, vec![(key.clone(), held(100))], Some(1), at(2)).unwrap();
    assert_eq!(evicted(&mut replica), []);
    replica.delete(scope, &key, ResourceVersion(52), at(3));
    assert_eq!(evicted(&mut replica), [Fate::Gone]);
}

#[test]
fn a_lease_that_was_given_back_is_not_granted_to_a_heartbeat_from_before() {
    let (mut replica, scope) = replica();
    replica.marker_answered(scope, at(2), ResourceVersion(50), ResourceVersion(50), at(2)).unwrap();
    replica.heartbeat(STREAM, 1, at(3));
    assert!(matches!(replica.drain(STREAM, 9), Some(Outgoing::Lease { .. })));
    assert!(!replica.all_leases_over(at(3)));
    replica.heartbeat(STREAM, 2, at(3));
    replica.lease_returned(STREAM);
    assert_eq!(replica.drain(STREAM, 9), None);
    assert!(replica.all_leases_over(at(3)));
    replica.stream_closed(STREAM, at(3));
    assert_eq!(replica.left_over(0), None);
}

#[test]
fn strangers_change_nothing() {
    let (mut replica, _) = replica();
    let (stranger, key) = (StreamId(99), SessionKey::new("a", "s"));
    replica.reported(stranger, vec![(key.clone(), held(60))], Some(7), at(2)).unwrap();
    replica.heartbeat(stranger, 1, at(2));
    replica.acknowledged(stranger, &key, SignalId(5), false, at(2));
    replica.acknowledged(STREAM, &key, SignalId(5), false, at(2));
    replica.lease_returned(stranger);
    replica.stream_closed(stranger, at(2));
    assert_eq!(replica.drain(stranger, 9), None);
    assert_eq!(replica.holdings(), 0);
    assert_eq!(replica.left_over(1), None);
}

#[test]
fn a_pod_that_another_replica_told_first_is_counted_when_the_watch_shows_the_change() {
    let (mut replica, scope) = replica();
    let key = SessionKey::new("a", "s");
    let mut summarizer = Summarizer::default();
    let mut object = |generation, resource_version, value: &str| Object {
        key: key.clone(),
        uid: Uid::from_u128(1),
        generation,
        resource_version: ResourceVersion(resource_version),
        terminating: false,
        kind: Kind::Session(summarizer.summarize(&Metadata::from([("k".into(), value.into())]))),
    };
    let old = object(1, 51, "old");
    let Kind::Session(summary) = &old.kind else { panic!() };
    let digest = summary.digest;
    let holding = Holding { uid: old.uid, generation: 1, digest, resource_version: ResourceVersion(51), since: 1 };
    replica.apply(scope, old, at(2));
    replica.reported(STREAM, vec![(key.clone(), Report::Held(holding))], Some(1), at(2)).unwrap();
    replica.take_facts();
    replica.reported(STREAM, vec![(key.clone(), Report::Released)], Some(2), at(3)).unwrap();
    replica.apply(scope, object(2, 52, "new"), at(3));
    let settled = replica.take_facts().into_iter().find_map(|fact| match fact {
        Fact::Settled(settled) => Some(settled),
        _ => None,
    });
    assert_eq!(settled.unwrap().pods, ["pod".into()]);
}

#[test]
fn after_a_restore_of_etcd_nothing_counts_before_a_whole_list() {
    let (mut replica, scope) = replica();
    let (kept, changed) = (SessionKey::new("a", "kept"), SessionKey::new("a", "changed"));
    replica.apply(scope, object(&kept, 51), at(2));
    assert!(replica.marker_answered(scope, at(3), ResourceVersion(51), ResourceVersion(40), at(3)).is_err());
    replica.void();
    assert_eq!(replica.drain(STREAM, 9), Some(Outgoing::Reset));
    assert!(replica.must_list(scope));

    // The watch goes on: it shows what changes from now on, and a marker of ours among it.
    replica.reported(STREAM, vec![(kept.clone(), held(41))], Some(1), at(4)).unwrap();
    replica.marker_answered(scope, at(4), ResourceVersion(0), ResourceVersion(61), at(4)).unwrap();
    replica.apply(scope, object(&changed, 60), at(5));
    replica.delete(scope, &changed, ResourceVersion(61), at(5));
    replica.bookmark(scope, ResourceVersion(62), at(5));
    assert_eq!(evicted(&mut replica), [], "what was not shown is not gone");
    assert_eq!((replica.position(scope), replica.age(at(5))), (ResourceVersion(0), None), "and nothing is proven");

    replica.relist(scope, vec![object(&kept, 30)], ResourceVersion(62), at(6)).unwrap();
    assert!(!replica.must_list(scope));
    assert_eq!(replica.age(at(6)), Some(Duration::from_secs(2)));
    replica.heartbeat(STREAM, 1, at(6));
    assert!(matches!(replica.drain(STREAM, 9), Some(Outgoing::Lease { age: Ok(_), covers: 1, .. })));
}

#[test]
fn a_marker_that_says_less_than_was_acknowledged_voids_all() {
    let (mut replica, scope) = replica();
    assert!(!replica.marker_found(scope, Found::Ahead) && !replica.marker_found(scope, Found::NotYet));
    assert!(!replica.must_list(scope));
    assert!(replica.marker_found(scope, Found::Behind));
    assert!(replica.must_list(scope));
    assert_eq!(replica.drain(STREAM, 9), Some(Outgoing::Reset));
}

/// Whoever leads removes the marker of a replica that was cut off; or it was not in a backup.
#[test]
fn after_the_marker_was_removed_a_list_comes_before_the_next_lease() {
    let (mut replica, scope) = replica();
    let answered = |replica: &mut Replica, version, sent| {
        replica.marker_answered(scope, sent, ResourceVersion(50), ResourceVersion(version), sent).unwrap();
    };
    answered(&mut replica, 50, at(2));
    assert_eq!(replica.age(at(2)), Some(Duration::ZERO));
    // On its way through the watch.
    answered(&mut replica, 55, at(3));
    replica.heartbeat(STREAM, 1, at(3));
    assert!(!replica.marker_found(scope, Found::Removed), "it proves nothing");
    assert_eq!(replica.drain(STREAM, 9), None, "it costs no copy, and there is no lease");
    replica.bookmark(scope, ResourceVersion(60), at(4));
    assert_eq!(replica.age(at(4)), None, "what came through the watch does not count");
    assert!(replica.relist(scope, Vec::new(), ResourceVersion(49), at(5)).is_err(), "it is still below the position");
    answered(&mut replica, 61, at(5));
    replica.relist(scope, Vec::new(), ResourceVersion(61), at(6)).unwrap();
    assert_eq!(replica.age(at(6)), Some(Duration::from_secs(1)));
}

/// The list may show an older state, of which a copy is right then.
#[test]
fn what_is_in_doubt_evicts_nothing() {
    let (mut replica, scope) = replica();
    let key = SessionKey::new("a", "s");
    let object = |generation, resource_version, value: &str| Object {
        key: key.clone(),
        uid: Uid::from_u128(1),
        generation,
        resource_version: ResourceVersion(resource_version),
        terminating: false,
        kind: Kind::Session(Summarizer::default().summarize(&Metadata::from([("k".into(), value.into())]))),
    };
    replica.apply(scope, object(5, 51, "lost"), at(2));
    replica.marker_found(scope, Found::LongAgo);
    let restored = Digest::of(&Metadata::from([("k".into(), "kept".into())]));
    let copy = Holding {
        uid: Uid::from_u128(1),
        generation: 4,
        digest: restored,
        resource_version: ResourceVersion(40),
        since: 4,
    };
    replica.reported(STREAM, vec![(key.clone(), Report::Held(copy))], Some(1), at(3)).unwrap();
    assert_eq!(evicted(&mut replica), []);
    replica.relist(scope, vec![object(4, 40, "kept")], ResourceVersion(60), at(4)).unwrap();
    assert_eq!(evicted(&mut replica), []);
    replica.apply(scope, object(5, 61, "new"), at(5));
    assert_eq!(evicted(&mut replica), [Fate::Stale { below: 5 }]);
}
