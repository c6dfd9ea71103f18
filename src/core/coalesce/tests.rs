use std::collections::BTreeMap as Model;

use proptest::prelude::*;

use super::*;

/// Work that remembers everything it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trail(Vec<u32>);

impl Coalesce for Trail {
    fn absorb(&mut self, newer: Self) {
        self.0.extend(newer.0);
    }
}

const BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1) };

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn trail(number: u32) -> Trail {
    Trail(vec![number])
}

#[test]
fn one_piece_of_work_per_key_oldest_key_first() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    assert_eq!(queue.insert("a", trail(1), at(0)), Offered::Queued);
    assert_eq!(queue.insert("b", trail(2), at(1)), Offered::Queued);
    assert_eq!(queue.insert("a", trail(3), at(2)), Offered::Merged);
    let first = queue.take(at(2)).unwrap();
    assert_eq!((first.key, first.value), ("a", Trail(vec![1, 3])));
    assert_eq!(queue.take(at(2)).unwrap().key, "b");
    assert_eq!(queue.take(at(2)), None);
    assert_eq!((queue.len(), queue.in_flight()), (2, 2));
}

#[test]
fn work_for_a_key_in_flight_waits_for_it() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    queue.insert("a", trail(1), at(0));
    queue.take(at(0)).unwrap();
    assert_eq!(queue.insert("a", trail(2), at(0)), Offered::Queued);
    assert_eq!(queue.take(at(0)), None);
    queue.finish(&"a");
    assert_eq!(queue.take(at(0)).unwrap().value, trail(2));
    queue.finish(&"a");
    assert!(queue.is_empty());
}

#[test]
fn failed_work_backs_off_and_takes_newer_work_along() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    queue.insert("a", trail(1), at(0));
    let mut now = at(0);
    for wait in [100, 200, 400, 800, 1000, 1000] {
        let taken = queue.take(now).unwrap();
        queue.insert("a", trail(2), now);
        assert!(queue.retry(&"a", taken.value, now));
        let ready = now + Duration::from_millis(wait);
        assert_eq!(queue.next_ready(), Some(ready));
        now = ready;
    }
    let taken = queue.take(now).unwrap();
    assert_eq!((taken.value, taken.failures), (Trail(vec![1, 2, 2, 2, 2, 2, 2]), 6));
    queue.insert("a", trail(3), now);
    queue.finish(&"a");
    assert_eq!(queue.take(now).unwrap().failures, 0, "a success ends the backoff");
}

#[test]
fn what_was_removed_in_flight_is_not_tried_again() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    queue.insert("a", trail(1), at(0));
    let taken = queue.take(at(0)).unwrap();
    queue.insert("a", trail(2), at(0));
    queue.remove(&"a");
    assert!(!queue.retry(&"a", taken.value, at(0)));
    assert!(queue.is_empty());
}

#[test]
fn what_came_after_a_removal_stays() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    queue.insert("a", trail(1), at(0));
    let taken = queue.take(at(0)).unwrap();
    queue.remove(&"a");
    queue.insert("a", trail(2), at(0));
    assert!(!queue.retry(&"a", taken.value, at(0)));
    assert_eq!(queue.take(at(100)).unwrap().value, trail(2));
}

#[test]
fn a_full_queue_takes_more_for_the_keys_it_has() {
    let mut queue = CoalescingQueue::new(1, BACKOFF);
    queue.insert("a", trail(1), at(0));
    assert_eq!(queue.insert("b", trail(1), at(0)), Offered::Full);
    assert_eq!(queue.insert("a", trail(1), at(0)), Offered::Merged);
    queue.take(at(0)).unwrap();
    assert_eq!(queue.insert("b", trail(1), at(0)), Offered::Full);
    assert_eq!(queue.insert("a", trail(1), at(0)), Offered::Queued);
}

#[test]
fn clearing_leaves_only_what_is_in_flight() {
    let mut queue = CoalescingQueue::new(10, BACKOFF);
    queue.insert("a", trail(1), at(0));
    queue.insert("b", trail(1), at(0));
    let taken = queue.take(at(0)).unwrap();
    queue.insert("a", trail(2), at(0));
    queue.clear();
    assert_eq!((queue.len(), queue.next_ready()), (1, None));
    assert!(!queue.retry(&"a", taken.value, at(0)));
    assert!(queue.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Insert { key: u8, after: u64 },
    Take,
    Finish { which: usize },
    Retry { which: usize },
    Remove { key: u8 },
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u8..6, prop_oneof![Just(0_u64), 0_u64..300]).prop_map(|(key, after)| Step::Insert { key, after }),
        4 => Just(Step::Take),
        2 => any::<usize>().prop_map(|which| Step::Finish { which }),
        2 => any::<usize>().prop_map(|which| Step::Retry { which }),
        1 => (0_u8..6).prop_map(|key| Step::Remove { key }),
        2 => (0_u64..500).prop_map(Step::Wait),
    ]
}

proptest! {
    /// Against a plain model: everything that was accepted, and whose object stayed, is done once and in order, or
    /// still here; no key is in flight twice; the bound holds; the oldest ready place is taken first.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(steps in prop::collection::vec(step(), 0..200)) {
        let mut queue: CoalescingQueue<u8, Trail> = CoalescingQueue::new(4, BACKOFF);
        let mut owed: Model<u8, Vec<u32>> = Model::new();
        let mut in_flight: Vec<(Taken<u8, Trail>, bool)> = Vec::new();
        let mut now = at(0);
        let mut numbers = 0;
        for step in steps {
            match step {
                Step::Insert { key, after } => {
                    numbers += 1;
                    let known = owed.contains_key(&key) || in_flight.iter().any(|(taken, _)| taken.key == key);
                    let offered = queue.insert(key, trail(numbers), now + Duration::from_millis(after));
                    prop_assert!(!(known && offered == Offered::Full));
                    if offered != Offered::Full {
                        owed.entry(key).or_default().push(numbers);
                    }
                }
                Step::Take => {
                    let due = queue.next_ready().is_some_and(|ready| ready <= now);
                    let taken = queue.take(now);
                    prop_assert_eq!(taken.is_some(), due);
                    if let Some(taken) = taken {
                        prop_assert!(in_flight.iter().all(|(other, _)| other.key != taken.key));
                        let all = owed.remove(&taken.key).unwrap_or_default();
                        prop_assert_eq!(&all, &taken.value.0);
                        in_flight.push((taken, false));
                    }
                }
                Step::Finish { which } if !in_flight.is_empty() => {
                    let (taken, _) = in_flight.swap_remove(which % in_flight.len());
                    queue.finish(&taken.key);
                }
                Step::Retry { which } if !in_flight.is_empty() => {
                    let (taken, removed) = in_flight.swap_remove(which % in_flight.len());
                    let mut all = if removed { Vec::new() } else { taken.value.0.clone() };
                    all.extend(owed.remove(&taken.key).unwrap_or_default());
                    prop_assert_eq!(queue.retry(&taken.key, taken.value, now), !removed);
                    if !all.is_empty() {
                        owed.insert(taken.key, all);
                    }
                }
                Step::Remove { key } => {
                    queue.remove(&key);
                    owed.remove(&key);
                    for (taken, removed) in &mut in_flight {
                        *removed |= taken.key == key;
                    }
                }
                Step::Wait(millis) => now = now + Duration::from_millis(millis),
                Step::Finish { .. } | Step::Retry { .. } => {}
            }
            prop_assert!(queue.len() <= 4);
            prop_assert_eq!(queue.in_flight(), in_flight.len());
            let keys = owed.keys().chain(in_flight.iter().map(|(taken, _)| &taken.key));
            let keys: std::collections::BTreeSet<_> = keys.collect();
            prop_assert_eq!(queue.len(), keys.len());
            for (key, all) in &owed {
                prop_assert_eq!(queue.waiting(key).map(|waiting| &waiting.0), Some(all));
            }
        }
        for (taken, _) in in_flight {
            queue.finish(&taken.key);
        }
        let late = now + Duration::from_mins(1);
        let mut last = at(0);
        while let Some(ready) = queue.next_ready() {
            prop_assert!(ready >= last);
            last = ready;
            let taken = queue.take(late).unwrap();
            prop_assert_eq!(owed.remove(&taken.key), Some(taken.value.0));
            queue.finish(&taken.key);
        }
        prop_assert!(owed.is_empty() && queue.is_empty());
    }
}
