//! What one pod can have of a replica, and for how long.

use std::time::Duration;

use super::{Config, ConfirmRefused, Hello, InstanceId, Kind, Object, Outgoing, Replica, ScopeId};
use crate::core::cache::{Holding, Report};
use crate::core::digest::{Digest, Metadata, Summarizer};
use crate::core::lease::{StreamId, with_drift};
use crate::core::session::{ResourceVersion, SessionKey, Uid};
use crate::core::signal::{Barrier, Fate, Mark};
use crate::core::tally::{Bounds, Full};
use crate::core::time::Time;

pub(super) const LEASE: Duration = Duration::from_secs(15);
pub(super) const UID: Uid = Uid::from_u128(1);

/// A replica whose watch has come to resourceVersion 10, where session `s` is at generation 1.
pub(super) struct Bench {
    pub replica: Replica,
    pub scope: ScopeId,
    pub now: Time,
}

impl Bench {
    pub(super) fn new(confirmations: usize, confirmations_per_pod: usize) -> Self {
        let holdings = Bounds { all: 25, per_pod: 10 };
        let confirmations = Bounds { all: confirmations, per_pod: confirmations_per_pod };
        Self::with(Config { lease: LEASE, holdings, confirmations })
    }

    pub(super) fn with(config: Config) -> Self {
        let replica = Replica::new(config, &[]);
        let scope = replica.scopes().next().unwrap().0;
        let mut bench = Self { replica, scope, now: Time::default() + LEASE };
        let object = Object {
            key: key(),
            uid: UID,
            generation: 1,
            resource_version: ResourceVersion(10),
            terminating: false,
            kind: Kind::Session(Summarizer::default().summarize(&Metadata::new())),
        };
        bench.replica.relist(scope, vec![object], ResourceVersion(10), bench.now).unwrap();
        bench.prove();
        bench
    }

    /// A marker is sent now, and comes through the watch later.
    pub(super) fn prove(&mut self) {
        let sent = self.now;
        let seen = self.replica.position(self.scope);
        let answered = ResourceVersion(seen.0 + 1);
        self.pass(Duration::from_millis(1));
        self.replica.marker_answered(self.scope, sent, seen, answered, self.now).unwrap();
        self.replica.bookmark(self.scope, answered, self.now);
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
        self.replica.poll(self.now);
    }

    /// An agent that was granted a lease.
    pub(super) fn agent(
        &mut self,
        stream: u32,
        namespace: &str,
        pod: &str,
        instance: u128,
    ) -> (StreamId, Option<StreamId>) {
        let hello = Hello { instance: InstanceId(instance), namespace: namespace.into(), name: pod.into() };
        let superseded = self.replica.stream_opened(StreamId(stream), hello, self.now);
        self.lease(StreamId(stream));
        (StreamId(stream), superseded)
    }

    pub(super) fn lease(&mut self, stream: StreamId) {
        self.replica.heartbeat(stream, 1, self.now);
        while !matches!(self.replica.drain(stream, 10), Some(Outgoing::Lease { age: Ok(_), .. })) {}
    }

    fn next_version(&self) -> ResourceVersion {
        ResourceVersion(self.replica.position(self.scope).0 + 1)
    }

    fn create(&mut self, key: SessionKey) {
        let kind = Kind::Session(Summarizer::default().summarize(&Metadata::new()));
        let resource_version = self.next_version();
        let object = Object { key, uid: UID, generation: 1, resource_version, terminating: false, kind };
        self.replica.apply(self.scope, object, self.now);
    }

    pub(super) fn delete(&mut self, key: &SessionKey) {
        self.replica.delete(self.scope, key, self.next_version(), self.now);
    }

    /// So many sessions that are deleted while whoever is at the other end of `stream` holds copies.
    pub(super) fn deleted(&mut self, stream: StreamId, many: usize) {
        let keys: Vec<_> = (0..many).map(|n| SessionKey::new("ns", n.to_string())).collect();
        for key in &keys {
            self.create(key.clone());
        }
        let copies = keys.iter().map(|key| (key.clone(), Report::Held(held()))).collect();
        self.replica.reported(stream, copies, Some(1), self.now).unwrap();
        for key in &keys {
            self.delete(key);
        }
    }

    fn confirm(&mut self, stream: StreamId, at: u64) -> Result<(), ConfirmRefused> {
        self.replica.confirm(stream, at, key(), state(Fate::Stale { below: 1 }, at), self.now)
    }

    /// The answers that wait for who asked.
    fn answers(&mut self, stream: StreamId) -> Vec<u64> {
        let mut answers = Vec::new();
        while let Some(outgoing) = self.replica.drain(stream, 10) {
            if let Outgoing::Confirmed(confirmed) = outgoing {
                answers.push(confirmed.request);
            }
        }
        answers
    }
}

pub(super) fn key() -> SessionKey {
    SessionKey::new("ns", "s")
}

fn state(fate: Fate, at: u64) -> Barrier {
    Barrier { mark: Mark { uid: UID, fate, resource_version: ResourceVersion(at) }, digest: None }
}

#[test]
fn a_state_that_a_later_proof_does_not_show_was_never_committed() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    bench.confirm(asker, 1_000).unwrap();
    bench.replica.confirm(asker, 2, key(), state(Fate::Gone, 10), bench.now).unwrap();
    // The proof was sent before the requests came: it says nothing of them.
    bench.prove();
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.replica.confirmations(), 2);
    bench.pass(Duration::from_millis(1));
    bench.prove();
    bench.pass(Duration::from_millis(1));
    assert_eq!((bench.replica.confirmations(), bench.replica.queued_signals()), (0, 0));
    assert!(bench.answers(asker).is_empty(), "a lie was confirmed");
    assert_eq!(bench.replica.asked.used(), 0);
}

/// It can only be of a history that a restored backup has wiped out, or made up.
#[test]
fn a_copy_that_nobody_can_have_read_is_told_once_and_looked_at_no_more() {
    let mut bench = Bench::new(16, 16);
    let (holder, _) = bench.agent(1, "ns", "a", 1);
    let holding = Holding { generation: 9, resource_version: ResourceVersion(u64::MAX), ..held() };
    bench.replica.reported(holder, vec![(key(), Report::Held(holding))], Some(1), bench.now).unwrap();
    assert_eq!(bench.replica.scopes[bench.scope.0].waiting.len(), 1);
    bench.pass(Duration::from_millis(1));
    bench.prove();
    assert_eq!(bench.replica.scopes[bench.scope.0].waiting.len(), 0);
    let Some(Outgoing::Signals { evictions, .. }) = bench.replica.drain(holder, 10) else { panic!("it was not told") };
    assert_eq!(evictions.len(), 1);
}

#[test]
fn a_state_that_is_committed_is_waited_for_as_long_as_nothing_is_proven() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    bench.confirm(asker, 20).unwrap();
    bench.pass(LEASE * 10);
    assert_eq!(bench.replica.confirmations(), 1, "the watch may be silent");
    bench.replica.bookmark(bench.scope, ResourceVersion(20), bench.now);
    assert_eq!(bench.answers(asker), [20]);
}

#[test]
fn nobody_is_waited_for_longer_than_a_lease() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    let (silent, _) = bench.agent(2, "ns", "b", 2);
    bench.confirm(asker, 10).unwrap();
    let first = bench.replica.drain(asker, 10);
    let Some(Outgoing::Signals { barriers, .. }) = first else { panic!("expected a barrier, not {first:?}") };
    bench.replica.acknowledged(asker, &key(), barriers[0].1, false, bench.now);
    bench.pass(Duration::ZERO);
    // It takes one lease after the other, and never acknowledges.
    let begun = bench.now;
    while bench.now < begun + with_drift(LEASE) {
        assert!(bench.answers(asker).is_empty(), "after {:?}", bench.now.saturating_since(begun));
        bench.prove();
        bench.lease(silent);
        bench.pass(LEASE / 10);
    }
    assert_eq!(bench.answers(asker), [10]);
}

#[test]
fn a_pod_and_a_namespace_have_their_parts_of_the_confirmations_and_leave_the_leaders() {
    let mut bench = Bench::new(16, 6);
    let pods: Vec<_> = (1..=3).map(|n| bench.agent(n, "ns", &n.to_string(), n.into()).0).collect();
    // Another stream of the first pod has no more for it; a pod of the same name elsewhere has its own.
    let (again, _) = bench.agent(4, "ns", "1", 4);
    let (elsewhere, _) = bench.agent(5, "other", "1", 5);
    let refused = |bench: &mut Bench, stream| bench.confirm(stream, 1_000) == Err(ConfirmRefused::Busy);
    for _ in 0..6 {
        bench.confirm(pods[0], 1_000).unwrap();
    }
    assert!(refused(&mut bench, pods[0]) && refused(&mut bench, again));
    bench.confirm(elsewhere, 1_000).unwrap();
    // The namespace has four times what is free of 14, since two are for other replicas, and for them only.
    for _ in 0..5 {
        bench.confirm(pods[1], 1_000).unwrap();
    }
    assert!(refused(&mut bench, pods[1]) && refused(&mut bench, pods[2]));
    bench.confirm(elsewhere, 1_000).unwrap();
    bench.confirm(elsewhere, 1_000).unwrap();
    assert!(refused(&mut bench, elsewhere));
    for _ in 0..2 {
        bench.confirm(StreamId(99), 1_000).unwrap();
    }
    assert!(refused(&mut bench, StreamId(99)));
    // Who leaves does not get more by it.
    bench.replica.stream_closed(pods[0], bench.now);
    let (back, _) = bench.agent(6, "ns", "1", 6);
    assert!(refused(&mut bench, back));
}

#[test]
fn answers_that_nobody_reads_count() {
    let mut bench = Bench::new(100, 3);
    // Nobody has a lease: each is confirmed at once.
    let hello = Hello { instance: InstanceId(1), namespace: "ns".into(), name: "a".into() };
    assert_eq!(bench.replica.stream_opened(StreamId(1), hello, bench.now), None);
    for _ in 0..3 {
        bench.confirm(StreamId(1), 10).unwrap();
        bench.pass(Duration::ZERO);
    }
    assert_eq!(bench.replica.confirmations(), 0);
    assert_eq!(bench.confirm(StreamId(1), 10), Err(ConfirmRefused::Busy));
    assert_eq!(bench.answers(StreamId(1)).len(), 3);
    assert_eq!(bench.confirm(StreamId(1), 10), Ok(()));
}

#[test]
fn what_is_over_waits_for_nobody_who_does_not_read() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    let (_stuck, _) = bench.agent(2, "ns", "b", 2);
    for _ in 0..5 {
        bench.confirm(asker, 10).unwrap();
        bench.pass(with_drift(LEASE));
        bench.pass(with_drift(LEASE));
    }
    assert_eq!(bench.answers(asker).len(), 5);
    assert_eq!(bench.replica.queued_signals(), 0, "barriers of confirmations that are over");
}

#[test]
fn barriers_take_no_room_for_each_pod_that_does_not_read() {
    const PODS: u32 = 200;
    const CONFIRMATIONS: u32 = 400;
    let mut bench = Bench::new(4_096, 4_096);
    let agents: Vec<_> = (1..=PODS).map(|n| bench.agent(n, "ns", &n.to_string(), n.into()).0).collect();
    let taken = allocation_counter::measure(|| {
        for _ in 0..CONFIRMATIONS {
            bench.confirm(agents[0], 1_000).unwrap();
        }
    });
    assert_eq!(bench.replica.queued_signals(), (PODS * CONFIRMATIONS) as usize);
    // That it is waited for.
    let each = taken.bytes_current / i64::from(PODS * CONFIRMATIONS);
    assert!(each <= 16, "{each} bytes");
}

#[test]
fn who_reads_late_is_told_of_what_is_under_way_once_over_each_stream_and_of_nothing_that_is_over() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    let (late, _) = bench.agent(2, "ns", "b", 2);
    let (elsewhere, _) = bench.agent(3, "other", "b", 3);
    for version in 1_001..=1_006 {
        bench.confirm(asker, version).unwrap();
    }
    let told = |bench: &mut Bench, stream| match bench.replica.drain(stream, 2) {
        Some(Outgoing::Signals { barriers, .. }) => {
            barriers.iter().map(|(.., barrier)| barrier.mark.resource_version.0).collect()
        }
        Some(Outgoing::Lease { .. }) => vec![],
        other => panic!("{other:?}"),
    };
    assert_eq!(told(&mut bench, late), [1_001, 1_002]);
    // Nobody waits for the answers any more.
    bench.replica.stream_closed(asker, bench.now);
    bench.replica.bookmark(bench.scope, ResourceVersion(1_003), bench.now);
    bench.replica.heartbeat(late, 2, bench.now);
    assert_eq!(told(&mut bench, late), [1_004, 1_005]);
    assert_eq!(told(&mut bench, late), [1_006]);
    assert_eq!(told(&mut bench, late), [0; 0], "a lease");
    assert_eq!(bench.replica.drain(elsewhere, 2), None);
    let hello = Hello { instance: InstanceId(2), namespace: "ns".into(), name: "b".into() };
    assert_eq!(bench.replica.stream_opened(StreamId(4), hello, bench.now), Some(late));
    bench.replica.heartbeat(StreamId(4), 1, bench.now);
    assert_eq!(told(&mut bench, StreamId(4)), [1_004, 1_005], "before any lease");
    assert_eq!(told(&mut bench, StreamId(4)), [1_006]);
    assert_eq!(told(&mut bench, StreamId(4)), [0; 0], "a lease");
}

#[test]
fn the_watch_looks_at_no_confirmation_that_waits_for_an_agent_or_for_a_later_state() {
    let mut bench = Bench::new(16, 16);
    let (asker, _) = bench.agent(1, "ns", "a", 1);
    for version in 1_001..=1_003 {
        bench.confirm(asker, version).unwrap();
    }
    let Some(Outgoing::Signals { barriers, .. }) = bench.replica.drain(asker, 10) else { panic!("no barriers") };
    for at in [0, 2] {
        bench.replica.acknowledged(asker, &key(), barriers[at].1, false, bench.now);
    }
    let looked_at = |bench: &Bench, version| -> Vec<u64> {
        let all = bench.replica.confirmations.acknowledged(ResourceVersion(version));
        all.map(|(_, confirmation)| confirmation.barrier.mark.resource_version.0).collect()
    };
    assert_eq!(looked_at(&bench, 1_000), [0; 0]);
    assert_eq!(looked_at(&bench, 1_002), [1_001]);
    assert_eq!(looked_at(&bench, 1_003), [1_001, 1_003]);
    bench.replica.bookmark(bench.scope, ResourceVersion(1_002), bench.now);
    assert_eq!(bench.answers(asker), [1_001]);
    assert_eq!(looked_at(&bench, 1_003), [1_003], "what is over is not looked at");
    bench.replica.stream_closed(asker, bench.now);
    assert_eq!(looked_at(&bench, 1_003), [1_002, 1_003], "nobody waits for an answer");
    bench.replica.bookmark(bench.scope, ResourceVersion(1_003), bench.now);
    assert_eq!((bench.replica.confirmations(), looked_at(&bench, u64::MAX)), (0, vec![]));
}

#[test]
fn an_instance_is_one_of_its_pod() {
    let mut bench = Bench::new(16, 16);
    let (first, _) = bench.agent(1, "ns", "a", 7);
    assert_eq!(bench.agent(2, "other", "a", 7).1, None);
    assert_eq!(bench.agent(3, "ns", "b", 7).1, None);
    assert_eq!(bench.replica.agents(), (3, 0));
    assert_eq!(bench.agent(4, "ns", "a", 7).1, Some(first));
    assert_eq!(bench.replica.agents(), (3, 0));
}

/// A copy of the first generation.
pub(super) fn held() -> Holding {
    Holding {
        uid: UID,
        generation: 1,
        digest: Digest::of(&Metadata::new()),
        resource_version: ResourceVersion(10),
        since: 1,
    }
}

#[test]
fn a_pod_and_a_namespace_have_their_parts_of_the_copies() {
    let mut bench = Bench::new(16, 16);
    let (pod, _) = bench.agent(1, "ns", "a", 1);
    let (again, _) = bench.agent(2, "ns", "a", 2);
    let (peer, _) = bench.agent(3, "ns", "b", 3);
    let (elsewhere, _) = bench.agent(4, "other", "a", 4);
    let hold = |bench: &mut Bench, stream, namespace, names: std::ops::Range<u32>| {
        let copy = |n: u32| (SessionKey::new(namespace, n.to_string()), Report::Held(held()));
        let within = bench.replica.reported(stream, names.map(copy).collect(), Some(100), bench.now);
        bench.replica.heartbeat(stream, 1, bench.now);
        let covers = loop {
            if let Some(Outgoing::Lease { covers, .. }) = bench.replica.drain(stream, 100) {
                break covers;
            }
        };
        (within, covers)
    };
    // Two processes of one pod have together what it may have.
    assert_eq!(hold(&mut bench, pod, "ns", 0..6), (Ok(()), 100));
    assert_eq!(hold(&mut bench, again, "ns", 0..4), (Ok(()), 100));
    assert_eq!(hold(&mut bench, again, "ns", 4..5), (Err(Full::Pod), 100), "what was there before stays covered");
    assert_eq!(hold(&mut bench, pod, "ns", 0..6), (Ok(()), 100), "these are no more than before");
    // 20 of 25, and then what there is for others.
    assert_eq!(hold(&mut bench, peer, "ns", 0..10), (Ok(()), 100));
    let (last, _) = bench.agent(5, "ns", "c", 5);
    assert_eq!(hold(&mut bench, last, "ns", 0..1), (Err(Full::Namespace), 0));
    assert_eq!(hold(&mut bench, elsewhere, "other", 0..4), (Ok(()), 100));
    assert_eq!(bench.replica.holdings(), 24);
    // Who leaves makes room.
    bench.replica.stream_closed(again, bench.now);
    bench.replica.reported(pod, vec![(SessionKey::new("ns", "0"), Report::Released)], None, bench.now).unwrap();
    assert_eq!(bench.replica.holdings(), 19);
    assert_eq!(hold(&mut bench, pod, "ns", 6..8).0, Ok(()));
}

#[test]
fn a_pod_that_asks_for_confirmations_without_end_is_told_to_wait_and_others_are_not() {
    let mut bench = Bench::new(4_096, 512);
    // Nobody has a lease: each is confirmed at once, and read.
    let open = |bench: &mut Bench, stream: u32, pod: &str| {
        let hello = Hello { instance: InstanceId(stream.into()), namespace: "ns".into(), name: pod.into() };
        assert_eq!(bench.replica.stream_opened(StreamId(stream), hello, bench.now), None);
        StreamId(stream)
    };
    let (first, again, other) = (open(&mut bench, 1, "a"), open(&mut bench, 2, "a"), open(&mut bench, 3, "b"));
    bench.pass(LEASE);
    let mut ask = |stream, many| {
        let mut confirmed = 0;
        for _ in 0..many {
            confirmed += u32::from(bench.confirm(stream, 10).is_ok());
            bench.replica.poll(bench.now);
            bench.answers(stream);
            bench.answers(first);
            bench.answers(again);
            bench.answers(other);
            bench.pass(Duration::from_micros(25));
        }
        confirmed
    };
    assert!((1_200..1_300).contains(&ask(first, 2_000)), "1,024, and four in each of 50 ms");
    assert!((200..210).contains(&ask(again, 2_000)), "another process of the pod has no more");
    assert!((1_200..1_300).contains(&ask(other, 2_000)));
}
