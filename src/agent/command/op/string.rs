//! Sessions as strings: JSON objects of strings.

use bytes::Bytes;

use super::decide::{Change, Decision, Put, State};
use super::expire::timeout;
use super::{Gather, GetExpire, Op, Plan};
use crate::agent::command::args::{Clock, When, integer, is};
use crate::agent::command::refusal::Refusal;
use crate::agent::sessions::{Condition, Exact, Form, Ttl, parse_value};
use crate::cache::Metadata;
use crate::resp::Reply;

/// A `SET` that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct SetOptions {
    /// The value.
    pub map: Metadata,
    /// The timeout.
    pub ttl: Ttl,
    /// `NX`, `XX`.
    pub condition: Condition,
    /// `GET`: the answer is the value before.
    pub answers_old: bool,
    /// The answer is a number (`SETNX`).
    pub answers_number: bool,
}

impl SetOptions {
    /// Whether what is set has ended already (`EXAT` in the past): then there is no key afterwards.
    pub fn has_ended(&self, now: &Clock) -> bool {
        matches!(self.ttl, Ttl::At(at) if at <= now.millis())
    }

    /// The answer, if it was set or the condition was not met.
    pub fn reply(&self, was_set: bool) -> Reply {
        match (self.answers_number, was_set) {
            (true, was_set) => Reply::Int(was_set.into()),
            (false, true) => Reply::Simple("OK".into()),
            (false, false) => Reply::Null,
        }
    }

    /// The keyspace events that follow.
    pub fn events(&self) -> &'static [&'static str] {
        match self.ttl {
            Ttl::Millis(_) | Ttl::At(_) => &["set", "expire"],
            Ttl::Keep | Ttl::Clear => &["set"],
        }
    }
}

/// What `GET` says.
pub fn value<S: State>(state: Option<&S>) -> Reply {
    state.map_or(Reply::Null, |state| Reply::Bulk(state.json()))
}

/// `SET`
pub fn set<S: State>(state: Option<&S>, options: &SetOptions, now: &Clock) -> Decision {
    let met = match options.condition {
        Condition::Always => true,
        Condition::Absent => state.is_none(),
        Condition::Present => state.is_some(),
    };
    let reply = if options.answers_old { value(state) } else { options.reply(met) };
    if !met {
        // `XX`, and what it would have ended is gone.
        let stays_gone = state.is_none() && options.has_ended(now);
        return if stays_gone { Decision::stays_gone(reply) } else { Decision::read(reply) };
    }
    let exact = if options.answers_old { Exact::Yes } else { Exact::No };
    if options.has_ended(now) {
        return match state {
            Some(_) => Decision::delete(reply, exact, &["set", "expire", "expired"]),
            None => Decision::stays_gone(reply),
        };
    }
    let put = Put { map: options.map.clone(), form: Some(Form::String), ttl: options.ttl, exact };
    Decision { reply, change: Change::Put(put), events: options.events() }
}

/// `GETDEL`
pub fn get_delete<S: State>(state: Option<&S>) -> Decision {
    match state {
        None => Decision::stays_gone(Reply::Null),
        Some(_) => Decision::delete(value(state), Exact::Yes, &["del"]),
    }
}

/// `GETEX`
pub fn get_expire<S: State>(state: Option<&S>, what: &GetExpire, now: &Clock) -> Result<Decision, Refusal> {
    let Some(state) = state else {
        let ends = has_ended(what, now);
        return Ok(if ends { Decision::stays_gone(Reply::Null) } else { Decision::read(Reply::Null) });
    };
    let reply = value(Some(state));
    let (change, events): (_, &[_]) = match what {
        GetExpire::Keep => (Change::Nothing, &[]),
        GetExpire::Clear if state.deadline().is_none() => (Change::Nothing, &[]),
        // As `PERSIST` does.
        GetExpire::Clear => (Change::Expire(Ttl::Clear, Exact::Whole), &["persist"]),
        GetExpire::At(when, value) => match positive(*when, value, "getex", now)? {
            Ttl::At(at) if at <= now.millis() => (Change::Delete(Exact::No), &["del"]),
            ttl => (Change::Expire(ttl, Exact::No), &["expire"]),
        },
    };
    Ok(Decision { reply, change, events })
}

/// Whether `GETEX` deletes what it answers: its time is over.
pub fn has_ended(what: &GetExpire, now: &Clock) -> bool {
    let GetExpire::At(when, value) = what else { return false };
    matches!(positive(*when, value, "getex", now), Ok(Ttl::At(at)) if at <= now.millis())
}

/// The timeout that `value` is. Zero and below are refused here, unlike in `EXPIRE`.
fn positive(when: When, value: &[u8], name: &'static str, now: &Clock) -> Result<Ttl, Refusal> {
    let value = integer(value)?;
    let at = if value > 0 { when.at(value, now.millis()) } else { None };
    Ok(timeout(when, at.ok_or(Refusal::ExpireTime(name))?, now))
}

/// The options behind `SET key value` and `GETEX key`, as Redis reads them.
#[derive(Default)]
struct Options<'a> {
    absent: bool,
    present: bool,
    get: bool,
    keep: bool,
    persist: bool,
    when: Option<(When, &'a Bytes)>,
}

impl<'a> Options<'a> {
    fn parse(args: &'a [Bytes], is_set: bool) -> Result<Self, Refusal> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            // Repeating one is fine in Redis; for times, the last one counts.
            let when = |name: &str, when: When| is(arg, name).then_some(when);
            let time = when("EX", When::EX).or_else(|| when("PX", When::PX));
            let time = time.or_else(|| when("EXAT", When::EXAT)).or_else(|| when("PXAT", When::PXAT));
            match time {
                Some(time) if !options.keep && !options.persist && options.when.is_none_or(|(w, _)| w == time) => {
                    options.when = Some((time, rest.next().ok_or(Refusal::Syntax)?));
                }
                None if is_set && is(arg, "NX") && !options.present => options.absent = true,
                None if is_set && is(arg, "XX") && !options.absent => options.present = true,
                None if is_set && is(arg, "GET") => options.get = true,
                None if is_set && is(arg, "KEEPTTL") && options.when.is_none() => options.keep = true,
                None if !is_set && is(arg, "PERSIST") && options.when.is_none() => options.persist = true,
                _ => return Err(Refusal::Syntax),
            }
        }
        Ok(options)
    }
}

fn set_plan(
    args: &[Bytes],
    value: &Bytes,
    ttl: Ttl,
    condition: Condition,
    answers: (bool, bool),
) -> Result<Plan, Refusal> {
    let (answers_old, answers_number) = answers;
    let map = parse_value(value)?;
    Plan::one(args, Op::Set(Box::new(SetOptions { map, ttl, condition, answers_old, answers_number })))
}

/// `SET key value [NX | XX] [GET] [EX seconds | PX milliseconds | EXAT seconds | PXAT milliseconds | KEEPTTL]`
pub fn parse_set(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    let (Some(value), Some(options)) = (args.get(2), args.get(3..)) else {
        return Err(Refusal::Arity("set"));
    };
    let options = Options::parse(options, true)?;
    let ttl = match options.when {
        Some((when, time)) => positive(when, time, "set", now)?,
        None if options.keep => Ttl::Keep,
        None => Ttl::Clear,
    };
    let condition = match (options.absent, options.present) {
        (true, _) => Condition::Absent,
        (_, true) => Condition::Present,
        _ => Condition::Always,
    };
    set_plan(args, value, ttl, condition, (options.get, false))
}

fn set_for(args: &[Bytes], when: When, name: &'static str, now: &Clock) -> Result<Plan, Refusal> {
    let (Some(time), Some(value)) = (args.get(2), args.get(3)) else {
        return Err(Refusal::Arity(name));
    };
    set_plan(args, value, positive(when, time, name, now)?, Condition::Always, (false, false))
}

/// `SETEX key seconds value`
pub fn setex(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    set_for(args, When::EX, "setex", now)
}

/// `PSETEX key milliseconds value`
pub fn psetex(args: &[Bytes], now: &Clock) -> Result<Plan, Refusal> {
    set_for(args, When::PX, "psetex", now)
}

/// `SETNX key value`
pub fn setnx(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    let value = args.get(2).ok_or(Refusal::Arity("setnx"))?;
    set_plan(args, value, Ttl::Clear, Condition::Absent, (false, true))
}

/// `GET key`
pub fn get(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::Get)
}

/// `MGET key ...`
pub fn mget(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Ok(Plan::many(args, Op::Get, Gather::List))
}

/// `STRLEN key`
pub fn strlen(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::StrLen)
}

/// `GETDEL key`
pub fn getdel(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::GetDelete)
}

/// `GETEX key [EX seconds | PX milliseconds | EXAT seconds | PXAT milliseconds | PERSIST]`
pub fn getex(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    let options = Options::parse(args.get(2..).ok_or(Refusal::Arity("getex"))?, false)?;
    let what = match options.when {
        Some((when, value)) => GetExpire::At(when, value.clone()),
        None if options.persist => GetExpire::Clear,
        None => GetExpire::Keep,
    };
    Plan::one(args, Op::GetExpire(what))
}
