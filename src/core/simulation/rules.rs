//! Every rule switched off in turn: which promise breaks without it.

use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::generate::Rng;
use super::scripts::scripted;
use super::shrink::breaks;
use crate::core::rules::Rule;

/// Histories that are tried for one rule.
const MOST: u64 = 2_000;

/// What is switched off together, and the promises of which one must be seen to break.
const CAUGHT: &[(&[Rule], &[&str])] = &[
    (&[Rule::LeaseFromSend], &["I1"]),
    (&[Rule::LeaseMinusAge], &["I1"]),
    (&[Rule::ProofBeforeLease], &["I1"]),
    (&[Rule::ProofFromSend], &["I1"]),
    (&[Rule::EvictionsBeforeLease], &["I1"]),
    (&[Rule::CoverBySequence], &["I1"]),
    (&[Rule::NewCopyNewSequence], &["I1"]),
    (&[Rule::CoverFromSend], &["I1"]),
    (&[Rule::CoverByLeasesInForce], &["I4", "I8"]),
    (&[Rule::FenceRestores], &["I5", "I8"]),
    (&[Rule::FenceWrites], &["I5", "I8"]),
    (&[Rule::NoLateJoin], &["I1", "I8"]),
    (&[Rule::TerminatingIsGone], &["I1", "I8"]),
    (&[Rule::GoneByUid], &["I4", "I5"]),
    (&[Rule::GoneOutranks], &["I3", "I4", "I5"]),
    (&[Rule::WaitForPosition], &["I2"]),
    (&[Rule::CompareDigest], &["I2"]),
    (&[Rule::CompareGeneration], &["I2", "I3"]),
    (&[Rule::OwnWriteDecides], &["I3"]),
    (&[Rule::DiscardStaleList], &["I2"]),
    (&[Rule::BarrierToAll], &["I8"]),
    (&[Rule::RememberAgents], &["I8"]),
    (&[Rule::BarrierToNewStreams], &["I8"]),
    (&[Rule::AskEveryReplica], &["I8"]),
    (&[Rule::NewProcessNewReplica], &["I8"]),
    (&[Rule::RecheckWaiting], &["I1"]),
    (&[Rule::ConfirmWhenSeen], &["I8"]),
    (&[Rule::WaitWholeLease], &["I8"]),
    (&[Rule::ReadClockLate], &["I1"]),
    (&[Rule::StayRegistered], &["I8"]),
    (&[Rule::WritesMark], &["I5"]),
    (&[Rule::MarkedAbsence], &["I2"]),
    (&[Rule::AdoptGeneration], &["I2"]),
    (&[Rule::CompareOnReport], &["I1"]),
    (&[Rule::RefusedEndsCover], &["I1"]),
    (&[Rule::ReturnOwnLease], &["I4", "I8"]),
    (&[Rule::BehindIsRestored], &["I1"]),
    (&[Rule::FirstIsDoubted], &["I1"]),
    (&[Rule::LongAgoIsDoubted], &["I1"]),
    (&[Rule::CoverWhatIsCompared], &["I1"]),
    (&[Rule::ShownIsReached], &["I1"]),
    (&[Rule::UnknownVoids], &["I5"]),
    (&[Rule::LengthOfItsReplica], &["I4", "I8"]),
    (&[Rule::WaitLongestLease], &["I4", "I8"]),
    (&[Rule::RegisteredLength], &["I4", "I8"]),
    (&[Rule::NeverGoBack, Rule::WritesMark], &["I5"]),
    (&[Rule::RemovedIsDoubted, Rule::FirstIsDoubted], &["I1"]),
];

/// Rules without which no promise was seen to break, and why.
const NOT_CAUGHT: &[(Rule, &str)] = &[
    (
        Rule::NeverGoBack,
        "a second line: whatever brings a newer copy marks the answers in flight (WritesMark); caught with that off, too",
    ),
    (
        Rule::RemovedIsDoubted,
        "a second line: the marker that is made instead is a first one (FirstIsDoubted); caught with that off, too",
    ),
];

fn without<T>(rules: &[Rule], body: impl FnOnce() -> T) -> T {
    match rules {
        [] => body(),
        [first, rest @ ..] => first.without(|| without(rest, body)),
    }
}

/// How many histories it takes to break one of these promises, and which one it is.
fn search(rules: &[Rule], promises: &[&str]) -> Option<(u64, &'static str)> {
    (0..MOST).find_map(|seed| {
        let history = scripted(rules[0], &mut Rng::new(seed));
        let broken = without(rules, || breaks(&history))?;
        promises.contains(&broken).then_some((seed + 1, broken))
    })
}

#[test]
fn switched_off_rules_are_caught() {
    for rule in Rule::ALL {
        let caught = CAUGHT.iter().any(|(rules, _)| *rules == [*rule]);
        let not = NOT_CAUGHT.iter().any(|(r, _)| r == rule);
        assert!(caught != not, "{rule:?} must stand in exactly one list");
    }
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; CAUGHT.len()]);
    let work = || {
        while let Some((rules, promises)) = CAUGHT.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = search(rules, promises);
            let at = CAUGHT.iter().position(|c| c.0 == *rules);
            found.lock().unwrap()[at.unwrap()] = result;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut table = String::from("| rule left out | promise that breaks | histories until caught |\n|---|---|---|\n");
    let mut missed = Vec::new();
    for ((rules, _), result) in CAUGHT.iter().zip(found.into_inner().unwrap()) {
        let names: Vec<String> = rules.iter().map(|r| format!("{r:?}")).collect();
        match result {
            Some((n, promise)) => {
                let _ = writeln!(table, "| {} | {promise} | {n} |", names.join(" and "));
            }
            None => missed.push(names.join(" and ")),
        }
    }
    for (rule, why) in NOT_CAUGHT {
        let _ = writeln!(table, "| {rule:?} | not caught | {why} |");
    }
    println!("{table}");
    assert!(missed.is_empty(), "not caught: {missed:?}");
}
