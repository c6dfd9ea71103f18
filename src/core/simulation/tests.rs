//! The promises, over many random histories.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::generate::history;
use super::history::play;
use super::shrink::{shrink, told};

/// How many histories are played, unless the environment says otherwise.
const HISTORIES: u64 = 10_000;

#[test]
fn all_promises_hold_over_random_histories() {
    let number = |name: &str, default| {
        let set = std::env::var(name).ok().and_then(|v| v.parse().ok());
        set.unwrap_or(default)
    };
    let histories = number("VMCP_HISTORIES", HISTORIES);
    let first = number("VMCP_FIRST_HISTORY", 0);
    let next = AtomicU64::new(first);
    let counts = Mutex::new(BTreeMap::<&'static str, u64>::new());
    let failed = Mutex::new(None::<u64>);
    let work = || {
        let mut mine = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + histories || failed.lock().unwrap().is_some() {
                break;
            }
            let sim = play(&history(seed), false);
            for (what, n) in &sim.checks.counts {
                *mine.entry(*what).or_insert(0) += n;
            }
            if sim.checks.broken.is_some() {
                let mut failed = failed.lock().unwrap();
                *failed = Some(failed.map_or(seed, |f| f.min(seed)));
            }
        }
        for (what, n) in mine {
            *counts.lock().unwrap().entry(what).or_default() += n;
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    println!("{:?}", counts.lock().unwrap());
    if let Some(seed) = *failed.lock().unwrap() {
        let history = history(seed);
        let broken = play(&history, false).checks.broken;
        let broken = broken.expect("a history fails each time, or never");
        let short = shrink(history, broken.promise);
        panic!("seed {seed} breaks {broken:?}\n{}", told(&short));
    }
}
