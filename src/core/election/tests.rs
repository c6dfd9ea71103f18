use std::time::Duration;

use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::history::{Broken, Fault, FaultKind, History, Net};
use super::simulation::World;
use super::{Answer, Election, Observed, Rule, Step, Timings, TimingsError};
use crate::core::time::Time;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn at(millis: u64) -> Time {
    Time::from_nanos(millis * 1_000_000)
}

fn timings() -> Timings {
    Timings::new(seconds(15), seconds(10), seconds(2)).unwrap()
}

fn ticks() -> impl Strategy<Value = u16> {
    prop_oneof![6 => Just(0_u16), 3 => 1_u16..8, 1 => 8_u16..160]
}

fn net() -> impl Strategy<Value = Net> {
    (ticks(), ticks(), prop::bool::weighted(0.05), prop::bool::weighted(0.15))
        .prop_map(|(to, back, lose_request, lose_answer)| Net { to, back, lose_request, lose_answer })
}

fn fault() -> impl Strategy<Value = Fault> {
    let kind = prop_oneof![
        3 => (1_u16..160).prop_map(FaultKind::Pause),
        3 => (1_u16..160).prop_map(FaultKind::Partition),
        2 => (0_u16..80).prop_map(|down_for| FaultKind::Crash { down_for }),
        1 => Just(FaultKind::Stop),
        1 => Just(FaultKind::Delete),
    ];
    (0_u16..800, 0_usize..3, kind).prop_map(|(at, replica, kind)| Fault { at, replica, kind })
}

fn history() -> impl Strategy<Value = History> {
    let other = Timings::new(seconds(30), seconds(20), seconds(4)).unwrap();
    let timings = prop_oneof![
        3 => Just(vec![timings(); 3]),
        1 => Just(vec![timings(), other, timings()]),
    ];
    (
        timings,
        prop::collection::vec(select(vec![1000_u64, 990, 1010]), 3),
        prop::bool::weighted(0.1),
        prop::collection::vec(net(), 0..40),
        prop::collection::vec(fault(), 0..12),
    )
        .prop_map(|(timings, rates, frozen, nets, faults)| History {
            timings,
            rates,
            frozen,
            nets,
            faults,
            ticks: 800,
        })
}

/// The outcome of `cases` histories, the same ones every time.
fn play(broken: Broken, cases: u32) -> Result<(), String> {
    let config = Config { cases, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&history(), |history| World::new(history, broken).play().map_err(TestCaseError::fail))
        .map_err(|failure| failure.to_string())
}

#[test]
fn never_two_leaders_and_always_one_in_the_end() {
    play(Broken::Nothing, 2000).unwrap();
}

#[test]
fn every_rule_is_needed() {
    let rules = [
        Broken::Inside(Rule::OwnPutOnly),
        Broken::Inside(Rule::ChangeRestartsTheCount),
        Broken::Inside(Rule::HoldersDuration),
        Broken::Inside(Rule::NewVersionOnly),
        Broken::Inside(Rule::AbsenceIsWaitedOut),
        Broken::Inside(Rule::StopBeforeRelease),
        Broken::CountFromTheAnswer,
        Broken::WatchFromTheSending,
        Broken::PutWithoutVersion,
        Broken::LeadUntilTold,
        Broken::DeadlineBeyondTheLease,
    ];
    for rule in rules {
        let outcome = play(rule, 20_000);
        let Err(failure) = outcome else { panic!("{rule:?}: nobody noticed") };
        assert!(failure.contains("lead at once"), "{rule:?}: {failure}");
    }
}

fn held_by(holder: &str, version: &str) -> Observed {
    Observed { holder: holder.to_owned(), resource_version: version.to_owned(), duration: seconds(15) }
}

fn stored(version: &str) -> Answer {
    Answer::Stored { resource_version: version.to_owned() }
}

/// A replica "a" that sent its winning PUT at 1,000 ms.
fn leader() -> Election {
    let mut election = Election::new("a".to_owned(), timings());
    assert_eq!(election.next(at(900)), Step::Read);
    election.observed(None, at(1000));
    assert_eq!(election.next(at(1000)), Step::Create);
    election.wrote(&Step::Create, at(1000), stored("1"), at(1400));
    election
}

#[test]
fn leads_from_the_answer_until_the_deadline_after_the_sending() {
    let election = leader();
    assert!(election.is_leader(at(1400)));
    assert!(election.is_leader(at(10_999)));
    assert!(!election.is_leader(at(11_000)));
    assert_eq!(election.next(at(1400)), Step::Wait { until: at(3000) });
    assert_eq!(election.next(at(3000)), Step::Renew { resource_version: "1".to_owned() });
}

#[test]
fn an_answer_that_comes_after_the_deadline_makes_no_leader() {
    let mut election = leader();
    let renew = Step::Renew { resource_version: "1".to_owned() };
    election.wrote(&renew, at(3000), stored("2"), at(60_000));
    assert!(!election.is_leader(at(60_000)));
    assert_eq!(election.next(at(60_000)), Step::Renew { resource_version: "2".to_owned() });
}

#[test]
fn a_renewal_whose_answer_was_lost_is_found_and_renewed() {
    let mut election = leader();
    let renew = Step::Renew { resource_version: "1".to_owned() };
    election.wrote(&renew, at(3000), Answer::Unknown, at(6000));
    assert_eq!(election.next(at(6000)), Step::Wait { until: at(6500) });
    assert_eq!(election.next(at(6500)), Step::Read);
    election.observed(Some(held_by("a", "2")), at(6600));
    assert_eq!(election.leads_until(), Some(at(11_000)), "seeing the own name must prolong nothing");
    assert_eq!(election.next(at(6600)), Step::Renew { resource_version: "2".to_owned() });
}

#[test]
fn another_holder_ends_leadership_at_once() {
    let mut election = leader();
    election.observed(Some(held_by("b", "2")), at(4000));
    assert!(!election.is_leader(at(4000)));
    assert_eq!(election.holder(), Some("b"));
}

#[test]
fn anothers_lease_is_taken_after_its_duration_unchanged() {
    let mut election = Election::new("a".to_owned(), timings());
    election.observed(Some(held_by("b", "7")), at(0));
    assert_eq!(election.next(at(1999)), Step::Wait { until: at(2000) });
    assert_eq!(election.next(at(2000)), Step::Read);
    election.observed(Some(held_by("b", "8")), at(2000));
    for second in 1..=7 {
        election.observed(Some(held_by("b", "8")), at(2000 + 2000 * second));
    }
    assert_eq!(election.next(at(16_500)), Step::Wait { until: at(17_000) });
    assert_eq!(election.next(at(17_000)), Step::Acquire { resource_version: "8".to_owned() });
}

#[test]
fn a_released_lease_is_taken_at_once() {
    let mut election = Election::new("a".to_owned(), timings());
    election.observed(Some(held_by("", "7")), at(0));
    assert_eq!(election.next(at(0)), Step::Acquire { resource_version: "7".to_owned() });
}

#[test]
fn a_stopping_leader_stops_first_and_then_gives_back() {
    let mut election = leader();
    election.stop(at(2000));
    assert!(!election.is_leader(at(2000)));
    let release = election.next(at(2000));
    assert_eq!(release, Step::Release { resource_version: "1".to_owned() });
    election.wrote(&release, at(2000), stored("2"), at(2010));
    assert_eq!(election.next(at(2010)), Step::Done);
}

#[test]
fn a_stopping_replica_looks_after_a_write_it_is_unsure_of() {
    let mut election = Election::new("a".to_owned(), timings());
    election.observed(Some(held_by("", "7")), at(0));
    let acquire = election.next(at(0));
    election.stop(at(10));
    election.wrote(&acquire, at(0), Answer::Unknown, at(10));
    assert_eq!(election.next(at(510)), Step::Read);
    election.observed(Some(held_by("a", "8")), at(520));
    assert_eq!(election.next(at(520)), Step::Release { resource_version: "8".to_owned() });
}

#[test]
fn a_stopping_follower_is_done_at_once() {
    let mut election = Election::new("a".to_owned(), timings());
    election.observed(Some(held_by("b", "7")), at(0));
    election.stop(at(10));
    assert_eq!(election.next(at(10)), Step::Done);
    let mut knows_nothing = Election::new("a".to_owned(), timings());
    knows_nothing.stop(at(10));
    assert_eq!(knows_nothing.next(at(10)), Step::Done);
}

#[test]
fn a_deleted_lease_is_put_back_by_its_holder_only() {
    let mut holder = leader();
    holder.observed(None, at(3000));
    assert_eq!(holder.next(at(3000)), Step::Create);
    let mut other = Election::new("b".to_owned(), timings());
    other.observed(Some(held_by("a", "1")), at(2000));
    other.observed(None, at(3000));
    assert_eq!(other.next(at(5000)), Step::Read);
    assert_eq!(other.next(at(18_000)), Step::Create);
}

#[test]
fn an_absurd_duration_written_by_another_is_bounded() {
    let mut election = Election::new("a".to_owned(), timings());
    let duration = seconds(u64::MAX / 1_000_000_000);
    let lease = Observed { holder: "b".to_owned(), resource_version: "1".to_owned(), duration };
    election.observed(Some(lease), at(0));
    let step = election.next(at(3_600_000));
    assert_eq!(step, Step::Acquire { resource_version: "1".to_owned() });
}

#[test]
fn periods_that_do_not_fit_are_refused() {
    let bad = |lease, renew, retry| Timings::new(lease, renew, retry).unwrap_err();
    assert!(matches!(bad(seconds(0), seconds(0), seconds(0)), TimingsError::LeaseDuration(_)));
    assert!(matches!(bad(seconds(3601), seconds(9), seconds(2)), TimingsError::LeaseDuration(_)));
    assert!(matches!(bad(seconds(10), seconds(10), seconds(2)), TimingsError::RenewDeadline { .. }));
    assert!(matches!(bad(seconds(15), seconds(10), seconds(6)), TimingsError::RetryPeriod { .. }));
    assert!(matches!(bad(seconds(15), seconds(10), seconds(0)), TimingsError::RetryPeriod { .. }));
}
