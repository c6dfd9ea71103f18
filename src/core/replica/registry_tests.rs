//! Registrations in a namespace of their own: what somebody writes among the sessions registers nobody.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::core::digest::{Metadata, Summarizer};
use crate::core::signal::{Barrier, Fate, Mark};

const LEASE: Duration = Duration::from_secs(10);
const STREAM: StreamId = StreamId(1);

struct Bench {
    replica: Replica,
    tenants: ScopeId,
    registry: ScopeId,
    now: Time,
}

impl Bench {
    fn new() -> Self {
        let config = Config { lease: LEASE, ..Config::default() };
        let mut replica = Replica::with_registry(config, &["a".into()], &"ops".into());
        let scopes: Vec<(ScopeId, Option<Arc<str>>)> = replica.scopes().map(|(id, n)| (id, n.cloned())).collect();
        let [(tenants, _), (registry, Some(namespace))] = &scopes[..] else { panic!("{scopes:?}") };
        assert_eq!(&**namespace, "ops");
        assert!(!replica.watches("ops"), "there are no sessions in it for us");
        let now = Time::ZERO + LEASE;
        for scope in [*tenants, *registry] {
            replica.relist(scope, Vec::new(), ResourceVersion(10), now).unwrap();
        }
        let hello = Hello { instance: InstanceId(1), namespace: "a".into(), name: "pod".into() };
        assert_eq!(replica.stream_opened(STREAM, hello, now), None);
        Self { replica, tenants: *tenants, registry: *registry, now }
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.replica.poll(self.now);
    }

    fn marker(&mut self, scope: ScopeId, namespace: &str, name: &str) {
        self.marker_with(scope, namespace, name, None);
    }

    fn marker_with(&mut self, scope: ScopeId, namespace: &str, name: &str, lease: Option<Duration>) {
        let object = Object {
            key: SessionKey::new(namespace, name),
            uid: Uid::from_u128(9),
            generation: 1,
            resource_version: ResourceVersion(self.replica.position(scope).0 + 1),
            terminating: false,
            kind: Kind::Marker { lease },
        };
        self.replica.apply(scope, object, self.now);
    }

    fn prove(&mut self, scope: ScopeId) {
        let (sent, seen) = (self.now, self.replica.position(scope));
        let answered = ResourceVersion(seen.0 + 1);
        self.replica.marker_answered(scope, sent, seen, answered, self.now).unwrap();
        self.replica.is_registered_since(scope, self.now);
        self.pass(Duration::from_millis(1));
        self.replica.bookmark(scope, answered, self.now);
    }

    fn both(&mut self) {
        self.prove(self.registry);
        self.prove(self.tenants);
    }

    fn leased(&mut self) -> bool {
        self.replica.heartbeat(STREAM, 1, self.now);
        loop {
            match self.replica.drain(STREAM, 10) {
                Some(Outgoing::Lease { age, .. }) => return age.is_ok(),
                Some(_) => {}
                None => panic!("no answer"),
            }
        }
    }

    fn age(&self) -> Option<Duration> {
        self.replica.age(self.now)
    }

    /// A replica that is known to all.
    fn known(&mut self) {
        self.both();
        self.pass(LEASE + LEASE / 10);
        self.both();
        assert!(self.leased());
    }

    fn confirmed(&mut self) -> Option<Vec<Arc<str>>> {
        let mark =
            Mark { uid: Uid::from_u128(1), fate: Fate::Stale { below: 1 }, resource_version: ResourceVersion(1) };
        let asked =
            self.replica.confirm(StreamId(7), 1, SessionKey::new("a", "s"), Barrier { mark, digest: None }, self.now);
        asked.unwrap();
        let agent = |outgoing| match outgoing {
            Outgoing::Signals { barriers, .. } => barriers,
            _ => Vec::new(),
        };
        while let Some(outgoing) = self.replica.drain(STREAM, 10) {
            for (key, signal, _) in agent(outgoing) {
                self.replica.acknowledged(STREAM, &key, signal, false, self.now);
            }
        }
        match self.replica.drain(StreamId(7), 10) {
            Some(Outgoing::Confirmed(confirmed)) => Some(confirmed.registered),
            _ => None,
        }
    }
}

#[test]
fn the_first_lease_rests_on_a_proof_that_was_begun_when_every_other_replica_knew_of_this_one() {
    let mut bench = Bench::new();
    bench.both();
    assert!(!bench.leased(), "others may not know of it");
    assert_eq!(bench.replica.age(bench.now), None, "it is not ready");
    bench.pass(LEASE + LEASE / 10);
    bench.prove(bench.registry);
    assert!(!bench.leased(), "the proof was begun before");
    bench.prove(bench.tenants);
    assert!(bench.leased());
    // Whoever was taken for dead begins anew.
    bench.replica.is_not_registered(bench.registry);
    assert!(!bench.leased());
    bench.both();
    assert!(!bench.leased());
}

/// As while an upgrade makes leases shorter.
#[test]
fn replicas_with_longer_leases_are_given_the_time_of_these() {
    let mut bench = Bench::new();
    assert_eq!(bench.replica.longest_lease_in(bench.tenants), LEASE);
    bench.marker_with(bench.registry, "ops", "replica-old", Some(LEASE * 3));
    bench.marker_with(bench.tenants, "a", "replica-forged", Some(LEASE * 9));
    bench.marker_with(bench.registry, "ops", "replica-short", Some(LEASE / 3));
    assert_eq!(bench.replica.longest_lease_in(bench.tenants), LEASE * 3);
    bench.both();
    for _ in 0..2 {
        bench.pass(LEASE + LEASE / 10);
        bench.both();
        assert!(!bench.leased(), "one with older knowledge may not know of it");
    }
    bench.pass(LEASE + LEASE / 10);
    bench.both();
    assert!(bench.leased());
}

#[test]
fn a_lease_ends_when_the_registration_stands_still() {
    let mut bench = Bench::new();
    bench.known();
    bench.pass(LEASE);
    bench.prove(bench.tenants);
    assert!(!bench.leased(), "its registration may be removed");
    bench.prove(bench.registry);
    assert!(bench.leased());
}

#[test]
fn a_marker_among_the_sessions_registers_nobody() {
    let mut bench = Bench::new();
    bench.known();
    bench.marker(bench.registry, "ops", "replica-1");
    bench.marker(bench.tenants, "a", "replica-1");
    bench.marker(bench.tenants, "a", "replica-forged");
    assert_eq!(bench.confirmed(), Some(vec!["replica-1".into()]));
    let registered: Vec<&str> = bench.replica.registered_for(bench.tenants).keys().map(|name| &**name).collect();
    assert!(registered.contains(&"replica-1") && !registered.contains(&"replica-forged"), "{registered:?}");
}

#[test]
fn whoever_does_not_know_who_is_registered_now_confirms_nothing() {
    let mut bench = Bench::new();
    bench.known();
    bench.pass(LEASE);
    bench.prove(bench.tenants);
    assert_eq!(bench.confirmed(), None);
    bench.prove(bench.registry);
    bench.pass(Duration::from_millis(1));
    assert!(matches!(bench.replica.drain(StreamId(7), 10), Some(Outgoing::Confirmed(_))));
}

#[test]
fn what_counts_nowhere_is_no_session_either() {
    let mut bench = Bench::new();
    let object = |kind, at| Object {
        key: SessionKey::new("a", "replica-x"),
        uid: Uid::from_u128(9),
        generation: 1,
        resource_version: ResourceVersion(at),
        terminating: false,
        kind,
    };
    let session = Kind::Session(Summarizer::default().summarize(&Metadata::new()));
    bench.replica.apply(bench.tenants, object(session, 20), bench.now);
    assert_eq!(bench.replica.sessions(), 1);
    bench.replica.apply(bench.tenants, object(Kind::Neither, 21), bench.now);
    assert_eq!(bench.replica.sessions(), 0);
    assert!(bench.replica.registered(bench.tenants).is_empty());
}

/// Nobody is waited for any less because nothing is known.
#[test]
fn after_a_restore_of_etcd_it_is_not_known_who_is_registered() {
    let mut bench = Bench::new();
    bench.known();
    assert!(bench.replica.knows_registered(bench.tenants, bench.now));
    bench.replica.void();
    for scope in [bench.tenants, bench.registry] {
        assert!(!bench.replica.knows_registered(scope, bench.now));
    }
}

#[test]
fn a_namespace_that_refuses_the_marker_keeps_no_agent_from_the_others() {
    let config = Config { lease: LEASE, ..Config::default() };
    let mut bench = Bench::new();
    let mut replica = Replica::with_registry(config, &["a".into(), "full".into()], &"ops".into());
    let scopes: Vec<ScopeId> = replica.scopes().map(|(id, _)| id).collect();
    let &[tenants, full, registry] = &scopes[..] else { panic!("{scopes:?}") };
    for scope in &scopes {
        replica.relist(*scope, Vec::new(), ResourceVersion(10), bench.now).unwrap();
    }
    (bench.replica, bench.tenants, bench.registry) = (replica, tenants, registry);
    bench.both();
    bench.pass(LEASE + LEASE / 10);
    bench.both();
    assert_eq!((bench.age(), bench.replica.refused(bench.now)), (None, 0), "it may be slow only");
    bench.replica.marker_refused(full);
    assert_eq!(bench.replica.refused(bench.now), 1);
    assert!(bench.age().is_some_and(|age| age < LEASE));
    // It stays so when the marker is written, until the watch has shown it.
    let written = ResourceVersion(bench.replica.position(full).0 + 1);
    let sent = bench.now;
    bench.replica.marker_answered(full, sent, ResourceVersion(0), written, sent).unwrap();
    assert!(bench.age().is_some());
    bench.replica.bookmark(full, written, bench.now);
    assert_eq!(bench.replica.refused(bench.now), 0);
    bench.pass(LEASE);
    bench.both();
    assert!(bench.age().is_some_and(|age| age >= LEASE), "it counts now");

    // One refusal of many markers counts for nothing.
    bench.prove(full);
    bench.replica.marker_refused(full);
    assert_eq!(bench.replica.refused(bench.now), 0);
    // If all are refused there is nothing to be ready for.
    bench.replica.marker_refused(tenants);
    bench.pass(LEASE);
    assert!(bench.age().is_some_and(|age| age >= LEASE));
    // And without registrations there is no lease at all.
    let mut bench = Bench::new();
    bench.known();
    bench.replica.marker_refused(bench.registry);
    bench.pass(LEASE);
    bench.prove(bench.tenants);
    assert!(bench.age().is_some_and(|age| age >= LEASE));
}

/// A replica that registers later may hear of what nobody else knows.
#[test]
fn who_is_registered_is_known_as_far_as_the_registry_is_proven() {
    let mut bench = Bench::new();
    bench.prove(bench.tenants);
    assert_eq!(bench.replica.registered_through(), None);
    let then = bench.now;
    bench.both();
    bench.pass(LEASE);
    bench.prove(bench.tenants);
    assert_eq!(bench.replica.registered_through(), Some(then));
}

#[test]
fn a_marker_that_a_tenant_may_have_changed_or_removed_costs_no_other_namespace_anything() {
    for found in [Found::Behind, Found::Removed] {
        let mut bench = Bench::new();
        bench.both();
        assert!(!bench.replica.marker_found(bench.tenants, found), "it proves nothing");
        assert!(bench.replica.must_list(bench.tenants) && !bench.replica.must_list(bench.registry), "{found:?}");
    }
}
