//! Counters of commands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::table::{COMMANDS, Command, TABLE};

/// Bounds of the buckets that durations are counted in, in microseconds. What takes longer counts in one more.
pub const BUCKETS: [u64; 11] = [1, 4, 16, 64, 256, 1_024, 4_096, 16_384, 65_536, 262_144, 1_048_576];

/// Counters of one command, on cache lines of its own.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Counters {
    nanoseconds: AtomicU64,
    errors: AtomicU64,
    buckets: [AtomicU64; BUCKETS.len() + 1],
}

/// What was counted of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandStats {
    /// Its name.
    pub name: &'static str,
    /// Calls, by how long they took: up to each of [`BUCKETS`], and longer. Those of one bucket are in no other one.
    pub buckets: [u64; BUCKETS.len() + 1],
    /// How long all of them took.
    pub total: Duration,
    /// Calls that were answered with an error.
    pub errors: u64,
}

impl CommandStats {
    /// All calls.
    pub fn calls(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Counters of all commands. Subcommands count as their container.
#[derive(Debug)]
pub struct Stats {
    commands: Box<[Counters]>,
    unknown: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        let commands = std::iter::repeat_with(Counters::default).take(COMMANDS).collect();
        Self { commands, unknown: AtomicU64::new(0) }
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Stats {
    /// Counts a call.
    #[inline]
    pub(super) fn done(&self, command: &Command, took: Duration, is_error: bool) {
        let Some(counters) = self.commands.get(command.index()) else {
            return;
        };
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS.partition_point(|bound| nanoseconds > bound * 1_000);
        counters.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        counters.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        if is_error {
            counters.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a request for a command that does not exist.
    pub(super) fn unknown(&self) {
        self.unknown.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests for commands that do not exist.
    pub fn unknown_commands(&self) -> u64 {
        load(&self.unknown)
    }

    /// What was counted of each command that was called.
    pub fn by_command(&self) -> impl Iterator<Item = CommandStats> {
        let all = TABLE.iter().zip(&self.commands).map(|(command, counters)| CommandStats {
            name: command.name,
            buckets: counters.buckets.each_ref().map(load),
            total: Duration::from_nanos(load(&counters.nanoseconds)),
            errors: load(&counters.errors),
        });
        all.filter(|stats| stats.calls() > 0)
    }

    /// All requests, and those among them that were answered with an error.
    pub fn totals(&self) -> (u64, u64) {
        let unknown = self.unknown_commands();
        self.by_command()
            .fold((unknown, unknown), |(calls, errors), stats| (calls + stats.calls(), errors + stats.errors))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::command::table::lookup;

    #[test]
    fn calls_are_counted_by_command_and_duration() {
        let stats = Stats::default();
        let get = lookup(b"get").unwrap();
        stats.done(get, Duration::from_micros(1), false);
        stats.done(get, Duration::from_nanos(1_001), false);
        stats.done(get, Duration::from_secs(5), true);
        stats.unknown();
        let of_get: Vec<_> = stats.by_command().collect();
        let [of_get] = &of_get[..] else { panic!("{of_get:?}") };
        assert_eq!((of_get.name, of_get.calls(), of_get.errors), ("get", 3, 1));
        assert_eq!(of_get.buckets[..3], [1, 1, 0], "bounds belong to the bucket below");
        assert_eq!(of_get.buckets.last(), Some(&1));
        assert_eq!(stats.totals(), (4, 2));
    }
}
