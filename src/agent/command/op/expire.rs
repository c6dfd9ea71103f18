//! Timeouts.

use bytes::Bytes;

use super::decide::{Change, Decision, State};
use super::{Op, Plan};
use crate::agent::command::args::{Clock, Unit, When, integer, is};
use crate::agent::command::refusal::{Refusal, quoted};
use crate::agent::sessions::{Exact, Ttl};
use crate::resp::Reply;

/// On what condition a timeout is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Only {
    /// `NX`: if it has none.
    pub absent: bool,
    /// `XX`: if it has one.
    pub present: bool,
    /// `GT`: if it is later than the one it has. None is later than any.
    pub later: bool,
    /// `LT`: if it is earlier.
    pub earlier: bool,
}

impl Only {
    fn parse(options: &[Bytes]) -> Result<Self, Refusal> {
        let mut only = Self::default();
        for option in options {
            match option {
                option if is(option, "NX") => only.absent = true,
                option if is(option, "XX") => only.present = true,
                option if is(option, "GT") => only.later = true,
                option if is(option, "LT") => only.earlier = true,
                option => return Err(Refusal::quoting(format!("ERR Unsupported option {}", quoted(option, 512)))),
            }
        }
        if only.absent && (only.present || only.later || only.earlier) {
            return Err(Refusal::Text("ERR NX and XX, GT or LT options at the same time are not compatible"));
        }
        if only.later && only.earlier {
            return Err(Refusal::Text("ERR GT and LT options at the same time are not compatible"));
        }
        Ok(only)
    }

    fn allows(self, before: Option<u64>, at: i64) -> bool {
        let before = before.map(|at| i64::try_from(at).unwrap_or(i64::MAX));
        !(self.absent && before.is_some()
            || self.present && before.is_none()
            || self.later && before.is_none_or(|before| at <= before)
            || self.earlier && before.is_some_and(|before| at >= before))
    }
}

/// A new timeout, and on what condition it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expire {
    /// When it ends, in milliseconds since 1970. May well be in the past, or before 1970.
    pub at: i64,
    /// The same, as sessions are told.
    pub ttl: Ttl,
    /// The condition.
    pub only: Only,
}

/// The timeout that ends at `at`, in milliseconds since 1970. One that was given as a length stays one: that is what an
/// idle timeout is.
pub fn timeout(when: When, at: i64, now: &Clock) -> Ttl {
    if when.absolute {
        return Ttl::At(u64::try_from(at).unwrap_or(0));
    }
    let length = at.saturating_sub_unsigned(now.millis());
    Ttl::Millis(u64::try_from(length).unwrap_or(0))
}

/// The deadline after a change at `now`.
pub fn deadline(before: Option<u64>, ttl: Ttl, now: &Clock) -> Option<u64> {
    match ttl {
        Ttl::Keep => before,
        Ttl::Clear => None,
        Ttl::Millis(millis) => Some(now.millis().saturating_add(millis)),
        Ttl::At(at) => Some(at),
    }
}

fn rounded(millis: u64, unit: Unit) -> i64 {
    let value = match unit {
        Unit::Milliseconds => millis,
        Unit::Seconds => millis.saturating_add(500) / 1_000,
    };
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// What `TTL` says.
pub fn remaining<S: State>(state: Option<&S>, unit: Unit, now: &Clock) -> i64 {
    let Some(state) = state else { return -2 };
    state.deadline().map_or(-1, |at| rounded(at.saturating_sub(now.millis()), unit))
}

/// What `EXPIRETIME` says.
pub fn time<S: State>(state: Option<&S>, unit: Unit) -> i64 {
    let Some(state) = state else { return -2 };
    state.deadline().map_or(-1, |at| rounded(at, unit))
}

/// `EXPIRE` and the like.
pub fn expire<S: State>(state: Option<&S>, expire: Expire, now: &Clock) -> Decision {
    let Expire { at, ttl, only } = expire;
    let is_over = at <= i64::try_from(now.millis()).unwrap_or(i64::MAX);
    let Some(state) = state else {
        return if is_over { Decision::stays_gone(Reply::Int(0)) } else { Decision::read(Reply::Int(0)) };
    };
    if !only.allows(state.deadline(), at) {
        return Decision::read(Reply::Int(0));
    }
    // The condition is one on the timeout that was there.
    let exact = if only == Only::default() { Exact::No } else { Exact::Whole };
    if is_over {
        return Decision::delete(Reply::Int(1), exact, &["del"]);
    }
    Decision { reply: Reply::Int(1), change: Change::Expire(ttl, exact), events: &["expire"] }
}

/// `PERSIST`
pub fn persist<S: State>(state: Option<&S>) -> Decision {
    if state.and_then(State::deadline).is_none() {
        return Decision::read(Reply::Int(0));
    }
    // The answer is right only as long as the timeout that was there is. And whom its end is told to depends on what it
    // was: others would go on by one that was set meanwhile.
    Decision { reply: Reply::Int(1), change: Change::Expire(Ttl::Clear, Exact::Whole), events: &["persist"] }
}

fn parse(args: &[Bytes], when: When, name: &'static str, now: &Clock) -> Result<Plan, Refusal> {
    let (Some(value), Some(options)) = (args.get(2), args.get(3..)) else {
        return Err(Refusal::Arity(name));
    };
    let only = Only::parse(options)?;
    let at = when.at(integer(value)?, now.millis()).ok_or(Refusal::ExpireTime(name))?;
    Plan::one(args, Op::Expire(Expire { at, ttl: timeout(when, at, now), only }))
}

/// `EXPIRE key seconds [NX | XX | GT | LT]`
pub fn expire_in_seconds(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    parse(args, When::EX, "expire", now)
}

/// `PEXPIRE key milliseconds [NX | XX | GT | LT]`
pub fn pexpire(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    parse(args, When::PX, "pexpire", now)
}

/// `EXPIREAT key unix-time-seconds [NX | XX | GT | LT]`
pub fn expireat(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    parse(args, When::EXAT, "expireat", now)
}

/// `PEXPIREAT key unix-time-milliseconds [NX | XX | GT | LT]`
pub fn pexpireat(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    parse(args, When::PXAT, "pexpireat", now)
}

/// `TTL key`
pub fn ttl(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::Ttl(Unit::Seconds))
}

/// `PTTL key`
pub fn pttl(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::Ttl(Unit::Milliseconds))
}

/// `EXPIRETIME key`
pub fn expiretime(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::ExpireTime(Unit::Seconds))
}

/// `PEXPIRETIME key`
pub fn pexpiretime(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::ExpireTime(Unit::Milliseconds))
}

/// `PERSIST key`
pub fn parse_persist(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::Persist)
}
