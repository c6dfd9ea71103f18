use proptest::prelude::*;

use super::*;
use crate::core::notes::EventType;
use crate::core::session::SessionKey;

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

/// An event on a session that is known by one letter or number.
fn event(session: &str, reason: &'static str, text: &str) -> PendingEvent {
    let uid = Uid::from_u128(session.bytes().fold(0, |sum, byte| sum << 8 | u128::from(byte)));
    let session = SessionRef { key: SessionKey::new("ns", format!("session-{session}")), uid };
    let note = Note { kind: EventType::Normal, reason, action: "Evict", text: text.to_owned() };
    PendingEvent { session, note, occurred_micros: 0, merged: 0 }
}

fn limits() -> EventLimits {
    EventLimits {
        capacity: 4,
        burst: 3,
        interval: Duration::from_secs(1),
        longest_wait: Duration::from_secs(100),
        burst_per_session: 1,
        interval_per_session: Duration::from_secs(10),
    }
}

fn taken(queue: &mut EventQueue, now: Time) -> Option<String> {
    let taken = queue.take(now)?;
    queue.finish(&taken.key);
    Some(taken.value.text())
}

#[test]
fn the_latest_note_wins_and_says_how_many_it_stands_for() {
    let mut queue = EventQueue::new(limits());
    for text in ["one", "two", "three"] {
        queue.offer(event("a", "Changed", text), at(0));
    }
    assert_eq!(taken(&mut queue, at(0)).as_deref(), Some("three (and 2 earlier notes like this)"));
    queue.offer(event("a", "Changed", "four"), at(1));
    assert_eq!(taken(&mut queue, at(9_999)), None, "the session's bucket is empty");
    assert_eq!(queue.next_ready(at(1)), Some(at(10_000)));
    queue.offer(event("a", "Changed", "five"), at(9_999));
    assert_eq!(taken(&mut queue, at(10_000)).as_deref(), Some("five (and 1 earlier note like this)"));
}

#[test]
fn a_warning_does_not_wait_behind_what_is_normal() {
    let mut queue = EventQueue::new(limits());
    queue.offer(event("a", "Changed", "one"), at(0));
    taken(&mut queue, at(0)).unwrap();
    queue.offer(event("a", "Changed", "two"), at(1));
    queue.offer(event("a", "Storm", "storm"), at(2));
    assert_eq!(taken(&mut queue, at(2)).as_deref(), Some("storm"));
}

#[test]
fn a_namespace_with_many_events_waits_for_itself_only() {
    let limits = EventLimits { capacity: 100, longest_wait: Duration::from_secs(10), ..limits() };
    let mut queue = EventQueue::new(limits);
    let offered = |queue: &mut EventQueue, namespace: &str, n: u32, now| {
        let mut event = event(&n.to_string(), "Changed", &format!("{namespace} {n}"));
        event.session.uid = Uid::from_u128(u128::from(n) << 8 | u128::from(namespace.as_bytes()[0]));
        event.session.key = SessionKey::new(namespace, n.to_string());
        queue.offer(event, now)
    };
    let taken_by_many = (0..50).filter(|n| offered(&mut queue, "many", *n, at(0)) == Offered::Queued).count();
    assert_eq!(taken_by_many, 3 + 10, "at once, and in the time that they may wait");
    assert!((0..3).all(|_| taken(&mut queue, at(0)).unwrap().starts_with("many")));
    assert_eq!(offered(&mut queue, "few", 1, at(500)), Offered::Queued);
    assert_eq!(taken(&mut queue, at(1000)).as_deref(), Some("few 1"));
    // What waits is merged for nothing.
    assert_eq!(offered(&mut queue, "many", 5, at(1000)), Offered::Merged);
    assert_eq!(taken(&mut queue, at(2000)).as_deref(), Some("many 3"));
}

#[test]
fn all_sessions_together_are_limited() {
    let mut queue = EventQueue::new(limits());
    for uid in ["a", "b", "c", "d"] {
        queue.offer(event(uid, "Changed", uid), at(0));
    }
    assert_eq!((0..4).filter_map(|_| taken(&mut queue, at(0))).count(), 3);
    assert_eq!(queue.next_ready(at(0)), Some(at(1000)));
    assert_eq!(taken(&mut queue, at(999)), None);
    assert_eq!(taken(&mut queue, at(1000)).as_deref(), Some("d"));
}

#[test]
fn a_full_queue_drops_what_is_new() {
    let mut queue = EventQueue::new(limits());
    for uid in ["a", "b", "c", "d"] {
        assert_eq!(queue.offer(event(uid, "Changed", uid), at(0)), Offered::Queued);
    }
    assert_eq!(queue.offer(event("e", "Changed", "e"), at(0)), Offered::Full);
    assert_eq!(queue.offer(event("a", "Changed", "a"), at(0)), Offered::Merged);
}

#[test]
fn an_event_is_not_tried_for_ever() {
    let mut queue = EventQueue::new(limits());
    queue.offer(event("a", "Changed", "one"), at(0));
    let mut now = at(0);
    for again in [true, true, false] {
        let taken = queue.take(now).unwrap();
        assert_eq!(queue.retry(taken, now), again);
        now = now + Duration::from_mins(1);
    }
    assert!(queue.is_empty());
}

#[test]
fn buckets_are_bounded() {
    let mut queue = EventQueue::new(EventLimits { burst: 1000, ..limits() });
    for number in 0..100 {
        queue.offer(event(&number.to_string(), "Changed", "x"), at(0));
        taken(&mut queue, at(0)).unwrap();
        assert!(queue.each.len() <= 4);
    }
}

#[test]
fn a_name_is_the_same_at_every_attempt_and_another_for_another_event() {
    let one = event("a", "Changed", "one");
    assert_eq!(one.object_name("i"), one.clone().object_name("i"));
    assert!(one.object_name("i").starts_with("session-a."));
    let later = PendingEvent { occurred_micros: 1, ..one.clone() };
    let others = [later, event("b", "Changed", "one"), event("a", "Storm", "one")];
    for other in others {
        let hash = |event: &PendingEvent| event.object_name("i").split('.').next_back().unwrap().to_owned();
        assert_ne!(hash(&one), hash(&other));
    }
    assert_ne!(one.object_name("i"), one.object_name("j"));
}

#[test]
fn a_name_that_is_cut_ends_like_a_name() {
    let mut event = event("a", "Changed", "one");
    event.session.key = SessionKey::new("ns", format!("{}-.-{}", "a".repeat(233), "b".repeat(10)));
    let name = event.object_name("i");
    assert_eq!(name.len(), 233 + 1 + 16);
    assert!(name.starts_with(&format!("{}.", "a".repeat(233))), "{name}");
}

proptest! {
    /// Names of events are valid for every valid name of a session, and notes fit whatever they say.
    #[test]
    fn names_and_notes_keep_the_limits(
        name in "[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?(\\.[a-z0-9]([a-z0-9-]{0,60}[a-z0-9])?){0,3}",
        text in "\\PC{0,2000}",
        merged in prop_oneof![Just(0), Just(1), any::<u64>()],
    ) {
        prop_assume!(name.len() <= 253);
        let mut event = event("a", "Changed", &text);
        event.session.key = SessionKey::new("ns", name);
        event.merged = merged;
        let object = event.object_name("i");
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        prop_assert!(object.len() <= 253);
        for label in object.split('.') {
            prop_assert!(label.starts_with(alphanumeric) && label.ends_with(alphanumeric), "{}", object);
        }
        prop_assert!(event.text().len() <= 1024);
        if merged > 1 {
            let suffix = format!("(and {merged} earlier notes like this)");
            prop_assert!(event.text().ends_with(&suffix));
        }
    }
}
