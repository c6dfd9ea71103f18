use super::*;

const A: Uid = Uid::from_u128(1);
const B: Uid = Uid::from_u128(2);
const LEASE: Duration = Duration::from_secs(10);

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn key() -> SessionKey {
    SessionKey::new("ns", "s")
}

fn progress() -> Progress {
    Progress::new(LEASE)
}

fn settled(object: Uid, generation: u64, pods: &[&str]) -> Settled {
    Settled {
        key: key(),
        uid: object,
        object: Some(object),
        generation: Some(generation),
        changed_keys: (0..20).map(|i| Arc::from(format!("k{i:02}"))).collect(),
        pods: pods.iter().map(|name| Arc::from(*name)).collect(),
        silent: Vec::new(),
        took: Duration::from_millis(1),
    }
}

fn next(progress: &mut Progress, millis: u64) -> Option<(u64, Verdict)> {
    progress.next(at(millis)).map(|due| (due.generation, due.verdict))
}

fn done(progress: &mut Progress, generation: u64, millis: u64) {
    progress.settled(&settled(A, generation, &[]), at(millis), Timestamp::UNIX_EPOCH);
}

const NOBODY: Verdict = Verdict::Settled(None);

#[test]
fn a_new_session_is_settled_at_once_and_said_so_once() {
    let mut progress = progress();
    progress.changed(&key(), A, 1, true, at(0));
    assert_eq!(next(&mut progress, 0), None);
    done(&mut progress, 1, 0);
    assert_eq!(next(&mut progress, 0), Some((1, NOBODY)));
    done(&mut progress, 1, 1);
    assert_eq!(next(&mut progress, 59_000), None);
    assert_eq!(next(&mut progress, 60_000), Some((1, NOBODY)), "it was lost");
    progress.forget(&key());
    assert!(progress.is_empty() && progress.due.is_empty() && progress.later.is_empty());
}

/// The leader reads the clock, then waits for the lock, while the watch tells of a session at a later time.
#[test]
fn who_asks_with_a_time_of_before_loses_nothing() {
    let mut progress = progress();
    progress.changed(&key(), A, 1, true, at(10));
    done(&mut progress, 1, 10);
    assert_eq!(next(&mut progress, 9), None);
    assert_eq!(next(&mut progress, 10), Some((1, NOBODY)));
    progress.forget(&key());
    assert!(progress.is_empty() && progress.due.is_empty() && progress.later.is_empty());
}

#[test]
fn only_the_latest_generation_counts_but_an_eviction_on_the_way_is_not_lost() {
    let mut progress = progress();
    progress.changed(&key(), A, 1, true, at(0));
    progress.changed(&key(), A, 2, false, at(5));
    progress.settled(&settled(A, 2, &["p", "q"]), at(6), Timestamp::UNIX_EPOCH);
    progress.changed(&key(), A, 3, false, at(7));
    assert_eq!(next(&mut progress, 7), None, "the third is not settled");
    done(&mut progress, 3, 8);
    let Some((3, Verdict::Settled(Some(eviction)))) = next(&mut progress, 8) else { panic!("nothing") };
    assert_eq!((eviction.generation, eviction.pods, eviction.keys.len()), (2, 2, MAX_CHANGED_KEYS));
    done(&mut progress, 2, 9);
    assert_eq!(next(&mut progress, 9), None, "late news of an older one");
}

#[test]
fn a_later_generation_that_is_seen_first_may_have_older_copies() {
    let mut progress = progress();
    progress.changed(&key(), A, 4, true, at(0));
    done(&mut progress, 4, 0);
    assert_eq!(next(&mut progress, 10_099), None);
    assert_eq!(progress.next_look(), Some(at(10_100)));
    assert_eq!(next(&mut progress, 10_100), Some((4, NOBODY)));
}

#[test]
fn who_does_not_obey_is_waited_for_and_then_named_once() {
    let mut progress = progress();
    progress.changed(&key(), A, 2, false, at(0));
    assert_eq!(next(&mut progress, 1_999), None);
    assert_eq!(next(&mut progress, 2_000), Some((2, Verdict::Waiting)), "a fifth of a lease");
    assert_eq!(next(&mut progress, 10_100), None);
    done(&mut progress, 2, 10_101);
    assert_eq!(next(&mut progress, 10_101), Some((2, NOBODY)), "it is corrected at once");
    assert_eq!(next(&mut progress, 11_000), None);
}

#[test]
fn a_generation_that_a_restore_of_etcd_brings_back_is_what_is_waited_for() {
    let mut progress = progress();
    progress.changed(&key(), A, 5, false, at(0));
    done(&mut progress, 5, 1);
    assert_eq!(next(&mut progress, 1), Some((5, NOBODY)));
    progress.changed(&key(), A, 4, false, at(10));
    assert_eq!(next(&mut progress, 10), None, "nothing is settled");
    done(&mut progress, 4, 11);
    assert_eq!(next(&mut progress, 11), Some((4, NOBODY)));
}

#[test]
fn news_of_another_object_of_that_name_does_not_count() {
    let mut progress = progress();
    progress.changed(&key(), A, 5, false, at(0));
    progress.changed(&key(), B, 1, true, at(1));
    progress.settled(&settled(A, 5, &["p"]), at(2), Timestamp::UNIX_EPOCH);
    let gone = Settled { object: None, ..settled(B, 5, &["p"]) };
    progress.settled(&gone, at(2), Timestamp::UNIX_EPOCH);
    assert_eq!(next(&mut progress, 2), None);
    let both = Settled { uid: A, ..settled(B, 1, &["p"]) };
    progress.settled(&both, at(3), Timestamp::UNIX_EPOCH);
    assert!(matches!(next(&mut progress, 3), Some((1, Verdict::Settled(Some(_))))));
}

#[test]
fn whoever_begins_to_lead_finds_everything() {
    let mut progress = progress();
    for number in 0..100 {
        let key = SessionKey::new("ns", format!("s{number}"));
        progress.changed(&key, A, 1, true, at(0));
        progress.settled(&Settled { key, ..settled(A, 1, &[]) }, at(0), Timestamp::UNIX_EPOCH);
    }
    let all = |progress: &mut Progress, millis| std::iter::from_fn(|| progress.next(at(millis))).count();
    assert_eq!(all(&mut progress, 0), 100);
    progress.look_at_all(at(1));
    assert_eq!(all(&mut progress, 1), 0, "offered already");
    assert_eq!(all(&mut progress, 60_001), 100);
    progress.withdrawn(&SessionKey::new("ns", "s7"));
    assert_eq!(all(&mut progress, 60_002), 0, "there is no news");
    progress.look_at_all(at(60_002));
    assert_eq!(all(&mut progress, 60_002), 1);
    progress.retain(|_| false);
    assert!(progress.is_empty() && progress.due.is_empty() && progress.later.is_empty());
}

#[test]
fn a_status_that_somebody_has_changed_is_put_right() {
    let mut progress = progress();
    progress.behind(&key(), A, 3, at(0));
    assert_eq!(next(&mut progress, 0), Some((3, NOBODY)));
    progress.changed(&key(), A, 4, false, at(1));
    progress.behind(&key(), A, 4, at(2));
    assert_eq!(next(&mut progress, 2), None, "something goes on");
}
