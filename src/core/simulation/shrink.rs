//! Cuts a failing history down to a short one that fails in the same way.

use std::fmt::Write as _;

use super::LEASE;
use super::history::{History, play};

/// The promise that the history breaks, if any.
pub fn breaks(history: &History) -> Option<&'static str> {
    play(history, false).checks.broken.map(|b| b.promise)
}

/// A shorter history that breaks the same promise.
pub fn shrink(mut history: History, promise: &'static str) -> History {
    let fails = |h: &History| breaks(h) == Some(promise);
    loop {
        let before = (history.actions.len(), total(&history));
        // Parts of it, the longest first.
        let mut part = history.actions.len() / 2;
        while part > 0 {
            let mut at = 0;
            while at < history.actions.len() {
                let mut less = history.clone();
                let end = (at + part).min(less.actions.len());
                let pauses: u64 = less.actions[at..end].iter().map(|a| a.0).sum();
                less.actions.drain(at..end);
                let mut waits = less.clone();
                if let Some(next) = waits.actions.get_mut(at) {
                    next.0 += pauses;
                }
                if fails(&less) {
                    history = less;
                } else if fails(&waits) {
                    history = waits;
                } else {
                    at += part;
                }
            }
            part /= 2;
        }
        for at in 0..history.actions.len() {
            for divisor in [u64::MAX, 8, 2] {
                let mut less = history.clone();
                less.actions[at].0 /= divisor;
                if less.actions[at].0 < history.actions[at].0 && fails(&less) {
                    history = less;
                    break;
                }
            }
        }
        for simpler in simpler_setups(&history) {
            if fails(&simpler) {
                history = simpler;
            }
        }
        if before == (history.actions.len(), total(&history)) {
            return history;
        }
    }
}

fn total(history: &History) -> u64 {
    history.actions.iter().map(|a| a.0).sum()
}

fn simpler_setups(history: &History) -> Vec<History> {
    let with = |change: &dyn Fn(&mut History)| {
        let mut simpler = history.clone();
        change(&mut simpler);
        simpler
    };
    vec![
        with(&|h| h.setup.leases.fill(LEASE)),
        with(&|h| h.setup.drift = false),
        with(&|h| h.setup.entries = 100),
        with(&|h| h.setup.holdings = 100),
    ]
}

/// The history and what happens in it, to be read by a person.
pub fn told(history: &History) -> String {
    let sim = play(history, true);
    let mut text = format!("{:?}\n", history.setup);
    for (pause, action) in &history.actions {
        let _ = writeln!(text, "  after {pause}: {action:?}");
    }
    text += &sim.story.unwrap_or_default().join("\n");
    text
}
