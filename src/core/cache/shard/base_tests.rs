//! What clients last had, which a write that replaces the whole session takes its difference from.

use std::sync::Arc;

use super::beside_tests::{A, AGENT, B, World, at, copy, stale};
use super::*;
use crate::core::cache::copy::Observed;
use crate::core::session::ResourceVersion;
use crate::core::signal::{Barrier, Fate, Mark};

#[test]
fn a_difference_is_taken_from_what_a_client_had_until_one_has_the_new_state() {
    let mut world = World::new(AGENT);
    assert_eq!(world.base(), None);
    world.restore(copy(A, 1, "one"));
    world.base_is("one");
    world.give();
    world.evict(stale(&copy(A, 2, "two")));
    world.base_is("one");
    // Read for a command that shows nothing to the client.
    world.restore(copy(A, 2, "two"));
    world.base_is("one");
    world.evict(stale(&copy(A, 3, "three")));
    world.restore(copy(A, 3, "three"));
    world.base_is("one");
    world.give();
    world.base_is("three");
}

/// An answer is on its way to a client when a signal outdates it: what the client changes next, it changes in that answer.
#[test]
fn what_a_client_is_given_too_late_is_its_base_all_the_same() {
    let mut world = World::new(AGENT);
    let found: Vec<_> = (1..=4).map(|n| Arc::new(copy(A, n, &format!("v{n}")))).collect();
    world.restore(Copy::clone(&found[0]));
    world.give();
    world.evict(stale(&copy(A, 2, "v2")));
    world.restore(Copy::clone(&found[1]));
    world.evict(stale(&copy(A, 3, "v3")));
    world.base_is("v1");
    world.shard.given("s", &found[1], world.now);
    world.base_is("v2");
    // Also if there is another copy by now that nobody has,
    world.restore(Copy::clone(&found[2]));
    world.base_is("v2");
    world.evict(stale(&copy(A, 4, "v4")));
    world.restore(Copy::clone(&found[3]));
    world.shard.given("s", &found[2], world.now);
    world.base_is("v3");
    // but not if another client has it.
    world.give();
    world.shard.given("s", &found[2], world.now);
    world.base_is("v4");
}

#[test]
fn a_copy_that_no_client_had_and_that_may_be_behind_is_no_base() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.base_is("one");
    world.now = at(2 * 3_600);
    assert!(world.shard.get("s", world.now).is_none());
    assert_eq!(world.base(), None);
    // What one had, it had.
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    world.now = at(2 * 3_600);
    world.base_is("one");
}

#[test]
fn a_copy_that_no_client_had_is_not_remembered() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.evict(stale(&copy(A, 2, "two")));
    assert_eq!(world.base(), None);
}

#[test]
fn a_copy_that_is_replaced_without_a_signal_is_remembered_too() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    world.restore(copy(A, 2, "two"));
    world.base_is("one");
    world.restore(copy(A, 3, "two"));
    world.base_is("one");
}

#[test]
fn a_validated_copy_is_still_what_clients_have() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    world.restore(copy(A, 2, "one"));
    world.evict(stale(&copy(A, 3, "two")));
    world.base_is("one");
}

#[test]
fn what_a_client_wrote_is_what_it_has_also_when_more_is_in_the_answer() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    world.write(&copy(A, 2, "mine"), &copy(A, 2, "mine"));
    world.base_is("mine");
    let written = world.write(&copy(A, 4, "merged"), &copy(A, 4, "next"));
    assert_eq!(written.dropped.unwrap().reason, DropReason::Foreign);
    world.base_is("next");
    assert_eq!(world.give().metadata.get("k"), Some("merged"));
    world.base_is("merged");
}

#[test]
fn a_late_answer_to_an_older_write_is_not_what_clients_have() {
    let (older, newer) = (copy(A, 2, "older"), copy(A, 3, "newer"));
    for (knows_all, foreign, dropped) in
        [(false, false, false), (true, false, false), (false, true, false), (false, false, true)]
    {
        let mut world = World::new(AGENT);
        world.restore(copy(A, 1, "one"));
        world.give();
        let late = world.shard.write_sent("s", world.now);
        let meant = if foreign { "what the client meant" } else { "newer" };
        world.write(&newer, &copy(A, 3, meant));
        if dropped {
            world.shard.write_sent("s", world.now);
            world.evict(stale(&copy(A, 4, "four")));
        }
        let observed = Observed { copy: older.clone(), terminating: false };
        world.shard.write_answered("s", late, observed, older.digest, world.now, &mut world.reports);
        world.shard.wrote("s", &Arc::new(older.clone()), &["k"], knows_all);
        world.base_is(meant);
    }
}

#[test]
fn a_late_answer_shows_nobody_what_somebody_else_has_made_of_it_since() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    let late = world.shard.write_sent("s", world.now);
    world.evict(stale(&copy(A, 3, "of another pod")));
    world.restore(copy(A, 3, "of another pod"));
    let own = copy(A, 2, "own");
    let observed = Observed { copy: own.clone(), terminating: false };
    world.shard.write_answered("s", late, observed, own.digest, world.now, &mut world.reports);
    world.shard.wrote("s", &Arc::new(own), &["k"], false);
    world.base_is("own");
}

#[test]
fn another_session_of_the_name_has_another_base_and_a_session_that_is_gone_has_none() {
    let mut world = World::new(AGENT);
    world.restore(copy(A, 1, "one"));
    world.give();
    world.restore(copy(B, 9, "other"));
    world.base_is("other");
    world.give();
    let gone = Mark { uid: B, fate: Fate::Gone, resource_version: ResourceVersion(10) };
    world.evict(Barrier { mark: gone, digest: None });
    assert_eq!(world.base(), None);

    world.restore(copy(A, 11, "again"));
    world.give();
    world.evict(stale(&copy(A, 12, "newer")));
    world.shard.forget_base("s", &copy(B, 1, ""));
    world.base_is("again");
    world.shard.forget_base("s", &copy(A, 1, ""));
    assert_eq!(world.base(), None);
}
