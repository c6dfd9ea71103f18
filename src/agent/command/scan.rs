//! `SCAN` and `DBSIZE`: the sessions that this agent holds.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Flow;
use super::args::{integer, is};
use super::context::Context;
use super::glob;
use super::refusal::{Refusal, bounded};
use crate::agent::sessions::Form;
use crate::resp::Reply;

/// How many keys a call looks at if nothing is said.
const COUNT: usize = 10;
/// How many it looks at, at most.
const MOST: usize = 10_000;

/// How many keys times bytes of a pattern it looks at, at most.
const MOST_MATCHING: usize = 1 << 18;

/// How long a list of the keys is good for the calls of one iteration.
const FRESH: Duration = Duration::from_secs(5);

/// The order in which keys are listed: by a hash that others cannot guess, which stays the same while the agent runs. So a
/// key that is held from the beginning of an iteration to its end is listed, whatever comes and goes meanwhile.
#[derive(Debug, Default)]
pub struct Order {
    hasher: RandomState,
    /// The list that was made last, so that not each call of an iteration must look at all keys.
    last: Mutex<Option<(Instant, Arc<[Placed]>)>>,
}

/// A key and its place.
type Placed = (u64, Bytes);

impl Order {
    /// The place of a key: from 1, and small enough for clients that keep cursors in floating-point numbers.
    fn place(&self, key: &[u8]) -> u64 {
        (self.hasher.hash_one(key) >> 16) | 1
    }

    /// All keys in order. An iteration begins with what is there now.
    fn listed(&self, keys: impl FnOnce() -> Vec<Vec<u8>>, cursor: u64) -> Arc<[Placed]> {
        if let Some((at, list)) = &*self.last.lock()
            && cursor != 0
            && at.elapsed() < FRESH
        {
            return list.clone();
        }
        let mut list: Vec<Placed> = keys().into_iter().map(|key| (self.place(&key), key.into())).collect();
        list.sort_unstable();
        let list: Arc<[Placed]> = list.into();
        *self.last.lock() = Some((Instant::now(), list.clone()));
        list
    }

    /// The keys behind the cursor, `count` of them or a few more, since keys of the same place stay together; and the next
    /// cursor, 0 at the end.
    pub(super) fn page(&self, keys: impl FnOnce() -> Vec<Vec<u8>>, cursor: u64, count: usize) -> (Vec<Bytes>, u64) {
        let list = self.listed(keys, cursor);
        let rest = &list[list.partition_point(|(place, _)| *place <= cursor)..];
        let last = rest.get(count.saturating_sub(1)).map(|(place, _)| *place);
        let end = last.map_or(rest.len(), |last| rest.partition_point(|(place, _)| *place <= last));
        let page = rest[..end].iter().map(|(_, key)| key.clone()).collect();
        match last {
            Some(last) if end < rest.len() => (page, last),
            _ => {
                *self.last.lock() = None;
                (page, 0)
            }
        }
    }
}

/// What keys are asked for.
struct Filter<'a> {
    pattern: Option<&'a Bytes>,
    form: Option<&'a Bytes>,
    count: usize,
}

impl<'a> Filter<'a> {
    /// What these options ask for. Only keys have a form.
    fn parse(args: &'a [Bytes], of_keys: bool) -> Result<Self, Refusal> {
        let mut filter = Self { pattern: None, form: None, count: COUNT };
        for pair in args.chunks(2) {
            match pair {
                [option, count] if is(option, "COUNT") => {
                    let count = integer(count)?;
                    if count < 1 {
                        return Err(Refusal::Syntax);
                    }
                    filter.count = usize::try_from(count).unwrap_or(MOST).min(MOST);
                }
                [option, pattern] if is(option, "MATCH") => filter.pattern = Some(pattern),
                [option, form] if of_keys && is(option, "TYPE") => filter.form = Some(form),
                _ => return Err(Refusal::Syntax),
            }
        }
        Ok(filter)
    }
}

/// What fields the options of `HSCAN` ask for. So few fields are answered all at once, whatever is said of their number.
pub(super) fn fields(options: &[Bytes]) -> Result<Option<Bytes>, Refusal> {
    let filter = Filter::parse(options, false)?;
    filter.pattern.map_or(Ok(()), |pattern| bounded(pattern))?;
    Ok(filter.pattern.cloned())
}

/// A cursor, as C's `strtoul` reads it: it may have a sign.
pub(super) fn cursor(arg: &[u8]) -> Result<u64, Refusal> {
    let text = std::str::from_utf8(arg).map_err(|_| Refusal::Cursor)?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if text.is_empty() {
        return Ok(0);
    }
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(Refusal::Cursor);
    }
    let value: u64 = digits.parse().map_err(|_| Refusal::Cursor)?;
    Ok(if negative { value.wrapping_neg() } else { value })
}

/// `SCAN cursor [MATCH pattern] [COUNT count] [TYPE type]`
pub fn scan(context: &mut Context<'_>, args: &[Bytes]) -> Result<Flow, Refusal> {
    let (Some(from), Some(options)) = (args.get(1), args.get(2..)) else {
        return Err(Refusal::Arity("scan"));
    };
    let from = cursor(from)?;
    let mut filter = Filter::parse(options, true)?;
    // A pattern costs its length for each byte of a key, at worst.
    if let Some(pattern) = filter.pattern {
        bounded(pattern)?;
        filter.count = filter.count.min(MOST_MATCHING / pattern.len().max(1));
    }
    let agent = context.agent;
    let (mut keys, next) = agent.commands.order.page(|| agent.sessions.known(), from, filter.count);
    keys.retain(|key| filter.pattern.is_none_or(|pattern| glob::matches(pattern, key)));
    if let Some(wanted) = filter.form {
        keys.retain(|key| {
            let form = agent.sessions.held(key).map(|entry| entry.form());
            match form {
                Some(Form::String) => is(wanted, "string"),
                Some(Form::Hash) => is(wanted, "hash"),
                None => false,
            }
        });
    }
    let keys = keys.into_iter().map(Reply::Bulk).collect();
    Ok(Flow::Reply(Reply::Array(vec![Reply::Bulk(next.to_string().into()), Reply::Array(keys)])))
}

/// `DBSIZE`
pub fn dbsize(context: &mut Context<'_>, _: &[Bytes]) -> Result<Flow, Refusal> {
    let (held, _) = context.agent.sessions.counts();
    Ok(Flow::Reply(Reply::Int(i64::try_from(held).unwrap_or(i64::MAX))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(range: std::ops::Range<u32>) -> Vec<Vec<u8>> {
        range.map(|n| format!("session:{n}").into_bytes()).collect()
    }

    #[test]
    fn what_is_there_all_the_time_is_listed_once_whatever_comes_and_goes() {
        let order = Order::default();
        let lasting: BTreeSet<Vec<u8>> = names(0..100).into_iter().collect();
        let mut seen = Vec::new();
        let (mut cursor, mut calls) = (0, 0);
        loop {
            // Each list finds others beside them.
            let coming_and_going = names(1_000 + 50 * calls..1_050 + 50 * calls);
            let keys = || lasting.iter().cloned().chain(coming_and_going).collect();
            if calls % 3 == 2 {
                // Too old.
                *order.last.lock() = None;
            }
            let (page, next) = order.page(keys, cursor, 7);
            assert!(page.len() >= 7 || next == 0);
            seen.extend(page.into_iter().map(Vec::from).filter(|key| lasting.contains(key)));
            (cursor, calls) = (next, calls + 1);
            if cursor == 0 {
                break;
            }
        }
        assert_eq!(seen.len(), lasting.len(), "each once");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), lasting);
        assert!(order.last.lock().is_none(), "nothing is kept longer than it takes");
        assert_eq!(order.page(Vec::new, 0, 10), (Vec::new(), 0));
        assert_eq!(order.page(|| names(0..10), u64::MAX, 10), (Vec::new(), 0));
        let (all, end) = order.page(|| names(0..10), 0, 10);
        assert_eq!((all.len(), end), (10, 0), "no empty page at the end");
    }

    #[test]
    fn an_iteration_begins_with_what_is_there() {
        let order = Order::default();
        let (_, next) = order.page(|| names(0..100), 0, 10);
        assert_ne!(next, 0);
        let (page, _) = order.page(|| names(0..200), 0, 1_000);
        assert_eq!(page.len(), 200);
    }

    #[test]
    fn cursors_are_what_redis_takes_for_one() {
        assert_eq!(cursor(b"0"), Ok(0));
        assert_eq!(cursor(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(cursor(b"-1"), Ok(u64::MAX));
        assert_eq!(cursor(b""), Ok(0));
        for bad in [&b"x"[..], b"-", b"18446744073709551616", b"1x", b"--1", b"\xff"] {
            assert_eq!(cursor(bad), Err(Refusal::Cursor));
        }
    }

    #[test]
    fn a_pattern_that_would_take_long_is_refused_for_fields_too() {
        let asked = |pattern: &str| fields(&[Bytes::from("match"), Bytes::from(pattern.to_owned())]);
        assert_eq!(asked("a*"), Ok(Some(Bytes::from("a*"))));
        assert!(asked(&"*".repeat(1_025)).is_err());
    }
}
