//! What stands beside copies: pod-local values and renewals.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::core::cache::copy::{Answer, LocalValues, Observed};
use crate::core::cache::facts::Facts;
use crate::core::cache::renewed::Renewal;
use crate::core::cache::reports::Reports;
use crate::core::digest::{Digest, Metadata};
use crate::core::fields::Fields;
use crate::core::session::{ResourceVersion, Uid};
use crate::core::signal::{Barrier, Fate, Mark};

pub(super) const A: Uid = Uid::from_u128(1);
pub(super) const B: Uid = Uid::from_u128(2);
pub(super) const AGENT: Habits = Habits { uses_renew: false, remember_given: true };
pub(super) const LIMITS: Limits = Limits { entries: 1_000, bytes: 1 << 20 };

pub(super) fn at(seconds: u64) -> Time {
    Time::from_nanos(seconds * 1_000_000_000)
}

pub(super) fn copy(uid: Uid, generation: u64, value: &str) -> Copy {
    let metadata = Metadata::from([("k".into(), value.into())]);
    Copy {
        name: "s".into(),
        uid,
        generation,
        resource_version: ResourceVersion(generation),
        digest: Digest::of(&metadata),
        metadata: Fields::of(&metadata),
        facts: Facts::default(),
    }
}

pub(super) fn stale(of: &Copy) -> Barrier {
    let fate = Fate::Stale { below: of.generation };
    Barrier { mark: Mark { uid: of.uid, fate, resource_version: of.resource_version }, digest: Some(of.digest) }
}

/// A shard, its reports, and the time.
pub(super) struct World {
    pub(super) shard: Shard,
    pub(super) reports: Reports,
    pub(super) now: Time,
}

impl World {
    pub(super) fn new(habits: Habits) -> Self {
        let mut shard = Shard::new(LIMITS);
        shard.set_habits(habits, Formers::of(LIMITS, habits));
        shard.set_lease_length(Duration::from_hours(1));
        let grant = Grant { sent: at(1), age: Duration::ZERO, covers: u64::MAX };
        shard.grant(StreamId(1), Duration::from_hours(1), grant, at(1));
        Self { shard, reports: Reports::default(), now: at(10) }
    }

    pub(super) fn restore(&mut self, found: Copy) -> Restored {
        let Join::Lead(id) = self.shard.join_anew("s") else { panic!("nobody else asks") };
        self.shard.restore_sent("s", id, self.now);
        let answer = Answer::Found(Observed { copy: found, terminating: false });
        self.shard.restore_answered("s", id, answer, self.now, &mut self.reports)
    }

    pub(super) fn evict(&mut self, state: Barrier) -> Option<Dropped> {
        self.shard.evict("s", state, &mut self.reports)
    }

    /// A client gets the copy that is held.
    pub(super) fn give(&mut self) -> Arc<Copy> {
        self.shard.get("s", self.now).unwrap().clone()
    }

    /// A client writes `wrote`, and the object is `answer` then.
    pub(super) fn write(&mut self, answer: &Copy, wrote: &Copy) -> Written {
        let id = self.shard.write_sent("s", self.now);
        let observed = Observed { copy: answer.clone(), terminating: false };
        let written = self.shard.write_answered("s", id, observed, wrote.digest, self.now, &mut self.reports);
        self.shard.wrote("s", &Arc::new(wrote.clone()), &["k"], false);
        written
    }

    pub(super) fn base(&self) -> Option<String> {
        self.shard.base("s", self.now).map(|copy| copy.metadata.get("k").unwrap().to_owned())
    }

    pub(super) fn base_is(&self, value: &str) {
        assert_eq!(self.base().as_deref(), Some(value));
    }

    pub(super) fn put_local(&mut self, of: &Copy, value: &str) -> bool {
        self.change_local(of, &[], &[("connection", value)], false) == LocalChange::Done
    }

    pub(super) fn change_local(
        &mut self,
        of: &Copy,
        base: &[(&str, &str)],
        new: &[(&str, &str)],
        exact: bool,
    ) -> LocalChange {
        let values = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<LocalValues>()
        };
        self.shard.change_local("s", of, (&values(base), &values(new)), exact, &mut self.reports)
    }
}

#[test]
fn a_copy_outlives_what_an_own_write_carries_on_and_nothing_else() {
    let (one, two) = (copy(A, 1, "one"), copy(A, 2, "two"));
    let evicted = |world: &mut World| {
        let dropped = world.evict(stale(&two)).is_some();
        (dropped, world.shard.outlives("s", stale(&two).mark))
    };
    let restored = || {
        let mut world = World::new(AGENT);
        world.restore(one.clone());
        world
    };
    assert_eq!(evicted(&mut restored()), (true, false));
    let mut written = restored();
    written.write(&two, &two);
    assert_eq!(evicted(&mut written), (false, true));
    let mut under_way = restored();
    under_way.shard.write_sent("s", under_way.now);
    assert_eq!(evicted(&mut under_way), (false, true));
    let mut foreign = restored();
    foreign.write(&two, &copy(A, 2, "what the client meant"));
    assert_eq!(evicted(&mut foreign), (false, false), "clients have seen an eviction");
    let mut again = restored();
    // Another replica was faster.
    again.evict(stale(&two));
    again.restore(two.clone());
    assert_eq!(evicted(&mut again), (false, false));
}

/// What other pods say of a state is hearsay: it keeps a copy that equals it, and brings none back.
#[test]
fn a_barrier_does_not_bring_back_what_waits_for_the_answer_to_an_own_write() {
    let mut world = World::new(AGENT);
    let (one, two) = (copy(A, 1, "one"), copy(A, 2, "two"));
    world.restore(one.clone());
    world.shard.write_sent("s", world.now);
    world.shard.barrier("s", stale(&two), &mut world.reports);
    assert!(world.shard.get("s", world.now).is_none());
    let again = Barrier { digest: Some(one.digest), ..stale(&copy(A, 3, "one")) };
    assert!(world.shard.barrier("s", again, &mut world.reports).is_none());
    assert!(world.shard.get("s", world.now).is_none(), "somebody said so");
    world.evict(again);
    assert!(world.shard.get("s", world.now).is_some(), "a replica has compared");
}

#[test]
fn what_the_annotations_of_a_copy_take_is_counted_when_they_change() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    let before = world.shard.bytes();
    let mut found = copy(A, 1, "one");
    found.resource_version = ResourceVersion(2);
    found.facts.annotations = [("vmcp.dev/session-id".into(), "x".repeat(10_000).into())].into_iter().collect();
    world.restore(found);
    assert!(world.shard.bytes() >= before + 10_000);
    world.restore(copy(A, 2, "two"));
    world.evict(stale(&copy(A, 3, "three")));
    assert!(world.shard.bytes() < before + 10_000);
}

#[test]
fn clients_that_keep_sessions_themselves_cost_nothing() {
    let mut world = World::new(Habits::default());
    world.restore(copy(A, 1, "one"));
    world.give();
    world.evict(stale(&copy(A, 2, "two")));
    assert_eq!(world.base(), None);
    world.restore(copy(A, 2, "two"));
    world.write(&copy(A, 4, "merged"), &copy(A, 4, "next"));
    world.base_is("merged");
}

#[test]
fn a_use_is_a_renewal_only_if_it_is_said_to_be_one() {
    for habits in [Habits::default(), AGENT] {
        let mut world = World::new(habits);
        world.restore(copy(A, 1, "one"));
        world.now = at(20);
        world.give();
        let told: Vec<Time> = world.shard.used_since(at(20)).map(|(_, _, at)| at).collect();
        assert_eq!(told.len(), usize::from(habits.uses_renew), "{habits:?}");
        let all = world.shard.used_since(Time::ZERO).count();
        assert_eq!(all, usize::from(habits.uses_renew), "also when all are told: {habits:?}");
    }
}

#[test]
fn a_renewal_is_told_and_outlives_the_copy() {
    let mut world = World::new(AGENT);
    let (one, two) = (copy(A, 1, "one"), copy(A, 2, "two"));
    let renewal = Renewal { at: at(15), wall: 15_000 };
    assert!(!world.shard.renew("s", &one, renewal), "no copy is held");
    world.restore(one.clone());
    world.give();
    assert!(world.shard.renew("s", &one, renewal));
    let told: Vec<Time> = world.shard.used_since(at(15)).map(|(_, _, at)| at).collect();
    assert_eq!(told, [at(15)]);
    let dropped = world.evict(stale(&two)).unwrap();
    assert_eq!(dropped.used, at(15), "it must still be told");
    world.restore(two.clone());
    assert_eq!(world.shard.renewal("s", &two), Some(renewal));
    world.restore(copy(A, 3, "three"));
    assert_eq!(world.shard.renewal("s", &two), Some(renewal));
    world.restore(copy(B, 9, "other"));
    assert_eq!(world.shard.renewal("s", &copy(B, 9, "other")), None, "it was another session");
}

#[test]
fn a_copy_that_was_replaced_is_no_use_of_the_session() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    let Restored::Serve { dropped: Some(dropped), .. } = world.restore(copy(A, 2, "two")) else { panic!("replaced") };
    assert_eq!(dropped.used, Time::ZERO);
    let written = world.write(&copy(A, 4, "merged"), &copy(A, 4, "mine"));
    assert_eq!(written.dropped.unwrap().used, Time::ZERO);
}

#[test]
fn pod_local_values_stay_as_long_as_the_metadata_is_what_they_were_written_beside() {
    let mut world = World::new(AGENT);
    let one = copy(A, 1, "one");
    assert!(!world.put_local(&one, "17"));
    world.restore(one.clone());
    assert!(world.put_local(&one, "17"));
    let local = |world: &World, of: &Copy| world.shard.local("s", of).and_then(|l| l.get("connection").cloned());
    assert_eq!(local(&world, &one).as_deref(), Some("17"));
    world.restore(copy(A, 2, "one"));
    assert_eq!(local(&world, &one).as_deref(), Some("17"), "a validated copy is the same copy");
    world.write(&copy(A, 3, "mine"), &copy(A, 3, "mine"));
    assert_eq!(local(&world, &copy(A, 3, "mine")).as_deref(), Some("17"), "an own write takes nothing away");
    assert!(!world.put_local(&one, "18"), "that copy is not held any more");
    world.write(&copy(A, 5, "merged"), &copy(A, 5, "next"));
    assert_eq!(local(&world, &copy(A, 5, "merged")), None, "somebody else's change does");
}

#[test]
fn pod_local_values_that_two_clients_change_at_once_both_stay() {
    let mut world = World::new(AGENT);
    let one = copy(A, 1, "one");
    world.restore(one.clone());
    let local = |world: &World| -> Vec<(String, String)> {
        let local = world.shard.local("s", &one);
        local.into_iter().flat_map(|l| l.iter().map(|(k, v)| (k.clone(), v.clone()))).collect()
    };
    let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    let base = [("a", "1"), ("b", "1"), ("gone", "1")];
    assert_eq!(world.change_local(&one, &[], &base, true), LocalChange::Done);
    assert_eq!(world.change_local(&one, &base, &[("a", "2"), ("b", "1")], false), LocalChange::Done);
    assert_eq!(world.change_local(&one, &base, &[("a", "1"), ("b", "3"), ("gone", "1")], false), LocalChange::Done);
    assert_eq!(local(&world), pairs(&[("a", "2"), ("b", "3")]));
    assert_eq!(world.change_local(&one, &base, &[], true), LocalChange::Changed);
    assert_eq!(local(&world), pairs(&[("a", "2"), ("b", "3")]), "nothing was changed");
    assert_eq!(world.change_local(&one, &[("a", "2"), ("b", "3")], &[], true), LocalChange::Done);
    assert!(world.shard.local("s", &one).is_none());
    assert_eq!(world.change_local(&copy(A, 1, "two"), &[], &base, false), LocalChange::NotHeld);
}

#[test]
fn pod_local_values_take_room_and_give_it_back() {
    let mut world = World::new(AGENT);
    let one = copy(A, 1, "one");
    world.restore(one.clone());
    let bytes = world.shard.bytes();
    assert!(world.put_local(&one, &"x".repeat(10_000)));
    assert!(world.shard.bytes() > bytes + 10_000);
    assert!(world.shard.set_local("s", &one, "connection", "1", &mut world.reports));
    assert!(world.shard.bytes() < bytes + 1_000);
    assert!(world.put_local(&one, &"x".repeat(10_000)));
    world.write(&copy(A, 2, "mine"), &copy(A, 2, "mine"));
    assert!(world.shard.bytes() > bytes + 10_000, "they go over to the new copy");
    let mine = copy(A, 2, "mine");
    assert!(!world.put_local(&mine, &"x".repeat(LIMITS.bytes)), "there is no room for that");
    assert_eq!((world.shard.bytes(), world.shard.take_crowded_out().len()), (0, 1));
}

#[test]
fn facts_are_those_of_the_latest_answer() {
    let mut world = World::new(AGENT);
    let with = |generation, rv, idle| Copy {
        resource_version: ResourceVersion(rv),
        facts: Facts { idle_timeout_seconds: Some(idle), ..Facts::default() },
        ..copy(A, generation, "one")
    };
    let idle = |world: &mut World| world.give().facts.idle_timeout_seconds;
    world.restore(with(1, 10, 60));
    world.restore(with(1, 12, 70));
    assert_eq!(idle(&mut world), Some(70));
    world.restore(with(1, 11, 80));
    assert_eq!(idle(&mut world), Some(70), "an answer that was overtaken");
    world.restore(with(2, 13, 90));
    assert_eq!(idle(&mut world), Some(90));
    world.restore(with(2, 14, 90));
    assert_eq!(world.give().resource_version, ResourceVersion(14), "only a label changed");
}

#[test]
fn copies_that_have_a_timeout_are_counted() {
    let mut world = World::new(AGENT);
    let with = |generation, value, idle_timeout_seconds| Copy {
        facts: Facts { idle_timeout_seconds, ..Facts::default() },
        ..copy(A, generation, value)
    };
    for (generation, value, idle) in [
        (1, "one", None),
        (2, "one", Some(60)),
        (3, "two", Some(70)),
        (4, "two", Some(80)),
        (5, "two", None),
        (6, "six", Some(60)),
    ] {
        world.restore(with(generation, value, idle));
        assert_eq!(world.shard.timed(), usize::from(idle.is_some()), "{generation}");
    }
    world.evict(stale(&copy(A, 7, "seven")));
    assert_eq!(world.shard.timed(), 0);
}

#[test]
fn what_is_asked_anew_is_asked_though_it_could_be_served() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    assert!(matches!(world.shard.join("s", world.now), Join::Serve(_)));
    world.evict(stale(&copy(A, 2, "two")));
    assert_eq!(world.base(), None, "being asked for by a command gives a client nothing");
    world.restore(copy(A, 2, "two"));
    assert!(matches!(world.shard.join_anew("s"), Join::Lead(_)));
}

#[test]
fn what_is_shown_of_a_shard_has_no_values() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "canary-copy"));
    let of = world.give();
    assert!(world.put_local(&of, "canary-local"));
    world.evict(stale(&copy(A, 2, "canary-newer")));
    world.restore(copy(A, 2, "canary-newer"));
    let of = world.give();
    assert!(world.put_local(&of, "canary-local"));
    let beside = format!("{:?}", world.shard.beside("s", &of));
    let shown = format!("{:?}", world.shard);
    assert!(beside.contains("connection") && shown.contains("connection"), "{beside}; {shown}");
    assert!(!beside.contains("canary") && !shown.contains("canary"), "{beside}; {shown}");
}

/// The answer to another write that is in flight may be long in coming, and none of it would be said of this one. It may be older, too,
/// and so does not become the copy.
#[test]
fn after_a_write_of_which_nobody_knows_the_copy_is_not_served_though_another_write_is_in_flight() {
    for of_metadata in [true, false] {
        let mut world = World::new(AGENT);
        world.restore(copy(A, 1, "one"));
        world.give();
        let [unknown, other] = [(); 2].map(|()| world.shard.write_sent("s", world.now));
        let dropped = world.shard.write_unknown("s", unknown, of_metadata, &mut world.reports);
        assert_eq!(dropped.map(|dropped| dropped.reason), Some(DropReason::Stale));
        assert!(world.shard.get("s", world.now).is_none());
        assert_eq!(world.base().as_deref(), (!of_metadata).then_some("one"));
        let two = copy(A, 2, "two");
        let observed = Observed { copy: two.clone(), terminating: false };
        let written = world.shard.write_answered("s", other, observed, two.digest, world.now, &mut world.reports);
        assert_eq!(written.session.as_ref().and_then(|copy| copy.metadata.get("k")), Some("two"));
        assert!(world.shard.is_empty());
        assert_eq!(written.overwritten, of_metadata, "to write it again may be a difference");
        let later = world.write(&copy(A, 3, "three"), &copy(A, 3, "three"));
        assert!(!later.overwritten);
    }
}

#[test]
fn a_write_after_which_no_copy_is_held_forgets_no_renewal() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    let of = world.give();
    let renewal = Renewal { at: at(10), wall: 7 };
    assert!(world.shard.renew("s", &of, renewal));
    let id = world.shard.write_sent("s", world.now);
    // What the write has made is outdated before it is answered.
    let mark = Mark { uid: A, fate: Fate::Stale { below: 9 }, resource_version: ResourceVersion(9) };
    world.evict(Barrier { mark, digest: None });
    let two = copy(A, 2, "two");
    let observed = Observed { copy: two.clone(), terminating: false };
    let dropped = world.shard.write_answered("s", id, observed, two.digest, world.now, &mut world.reports).dropped;
    assert!(dropped.is_some() && world.shard.is_empty());
    world.shard.wrote("s", &Arc::new(two), &["k"], false);
    world.base_is("two");
    world.restore(copy(A, 9, "nine"));
    let of = world.give();
    assert_eq!(world.shard.renewal("s", &of), Some(renewal));
}
