//! Sessions as hashes: the fields are `spec.metadata`.

use std::collections::HashMap;

use bytes::{BufMut, Bytes, BytesMut};

use super::decide::{Decision, State};
use super::{HSet, Op, Plan, checked};
use crate::agent::command::args::{Clock, integer, parse_integer, text};
use crate::agent::command::glob;
use crate::agent::command::refusal::Refusal;
use crate::agent::command::scan::{cursor, fields};
use crate::agent::sessions::Exact;
use crate::cache::Metadata;
use crate::resp::Reply;

/// Bytes of names times bytes of a pattern that `HSCAN` looks at, at most: a pattern costs its length for each byte of a name, at
/// worst, and no other client of the thread is served meanwhile.
const MOST_MATCHING: usize = 1 << 24;

/// Whether this pattern is not looked for among names that have so many bytes together.
pub fn is_too_long(pattern: &[u8], names: usize) -> bool {
    pattern.len().saturating_mul(names) > MOST_MATCHING
}

fn bulk(text: &str) -> Reply {
    Reply::Bulk(Bytes::copy_from_slice(text.as_bytes()))
}

/// A field of the state. What is no text cannot be one.
pub fn field<'a, S: State>(state: Option<&'a S>, field: &[u8]) -> Option<&'a str> {
    state?.get(std::str::from_utf8(field).ok()?)
}

/// What `HGET` says.
pub fn value<S: State>(state: Option<&S>, name: &[u8]) -> Reply {
    field(state, name).map_or(Reply::Null, bulk)
}

/// What `HMGET` says. A field that is asked for again and again is copied once.
pub fn values<S: State>(state: Option<&S>, fields: &[Bytes]) -> Reply {
    let mut known: HashMap<&[u8], Reply> = HashMap::new();
    let values = fields.iter().map(|name| known.entry(name).or_insert_with(|| value(state, name)).clone());
    Reply::Array(values.collect())
}

/// What `HGETALL` says.
pub fn all<S: State>(state: Option<&S>) -> Reply {
    let Some(state) = state else {
        return Reply::Map(Vec::new());
    };
    let mut length = 0;
    state.each(&mut |field, value| length += field.len() + value.len());
    // All in one piece of memory, of which each is a part: a piece for each would take longer than all the rest.
    let mut text = BytesMut::with_capacity(length);
    let mut part = |bytes: &str| {
        text.put_slice(bytes.as_bytes());
        Reply::Bulk(text.split().freeze())
    };
    let mut pairs = Vec::with_capacity(state.len());
    state.each(&mut |field, value| pairs.push((part(field), part(value))));
    Reply::Map(pairs)
}

/// What `HSCAN` says: all fields that match, and that this was the end.
pub fn scan<S: State>(state: Option<&S>, pattern: &Result<Option<Bytes>, Refusal>) -> Result<Reply, Refusal> {
    let mut list = Vec::new();
    if let Some(state) = state {
        let pattern = pattern.as_ref().map_err(Refusal::clone)?.as_ref();
        if let Some(pattern) = pattern {
            let mut names = 0;
            state.each(&mut |field, _| names += field.len());
            if is_too_long(pattern, names) {
                return Err(Refusal::Text("ERR the pattern is too long for names that have so many bytes together"));
            }
        }
        state.each(&mut |field, value| {
            if pattern.is_none_or(|pattern| glob::matches(pattern, field.as_bytes())) {
                list.extend([bulk(field), bulk(value)]);
            }
        });
    }
    Ok(Reply::Array(vec![bulk("0"), Reply::Array(list)]))
}

/// What `HKEYS` and `HVALS` say.
pub fn list<S: State>(state: Option<&S>, which: for<'a> fn(&'a str, &'a str) -> &'a str) -> Reply {
    let mut list = Vec::with_capacity(state.map_or(0, State::len));
    if let Some(state) = state {
        state.each(&mut |field, value| list.push(bulk(which(field, value))));
    }
    Reply::Array(list)
}

fn map_of<S: State>(state: Option<&S>) -> Metadata {
    state.map(State::to_map).unwrap_or_default()
}

/// `HSET`, `HMSET`
pub fn set<S: State>(state: Option<&S>, set: &HSet) -> Result<Decision, Refusal> {
    let mut map = map_of(state);
    let (mut new, mut exact) = (0, Exact::No);
    for pair in set.pairs.chunks_exact(2) {
        let value = text(&pair[1])?;
        match map.insert(text(&pair[0])?.to_owned(), value.to_owned()) {
            None => new += 1,
            // What is so already is not sent, so it must still be so.
            Some(before) if before == value => exact = Exact::Yes,
            Some(_) => {}
        }
    }
    let reply = if set.answers_ok { Reply::Simple("OK".into()) } else { Reply::Int(new) };
    Ok(Decision::put(reply, checked(map)?, exact, &["hset"]))
}

/// `HSETNX`
pub fn set_absent<S: State>(state: Option<&S>, name: &Bytes, value: &Bytes) -> Result<Decision, Refusal> {
    if field(state, name).is_some() {
        return Ok(Decision::read(Reply::Int(0)));
    }
    let mut map = map_of(state);
    map.insert(text(name)?.to_owned(), text(value)?.to_owned());
    Ok(Decision::put(Reply::Int(1), checked(map)?, Exact::Yes, &["hset"]))
}

/// `HDEL`. The key goes with its last field, as in Redis, unless none of those that are taken out was everybody's: other pods
/// may have fields of their own.
pub fn delete<S: State>(state: Option<&S>, fields: &[Bytes]) -> Decision {
    let names = || fields.iter().filter_map(|field| std::str::from_utf8(field).ok());
    let Some(state) = state else {
        return Decision::stays_gone(Reply::Int(0));
    };
    if !names().any(|name| state.get(name).is_some()) {
        return Decision::read(Reply::Int(0));
    }
    let mut map = state.to_map();
    let removed = names().filter(|name| map.remove(*name).is_some()).count();
    let reply = Reply::Int(i64::try_from(removed).unwrap_or(i64::MAX));
    let local = state.local();
    if map.is_empty() && names().any(|name| state.get(name).is_some() && !local.contains(name)) {
        return Decision::delete(reply, Exact::Yes, &["hdel", "del"]);
    }
    Decision::put(reply, map, Exact::Yes, &["hdel"])
}

/// `HINCRBY`
pub fn increment<S: State>(state: Option<&S>, name: &Bytes, by: i64) -> Result<Decision, Refusal> {
    let before = match field(state, name) {
        None => 0,
        Some(value) => parse_integer(value.as_bytes()).ok_or(Refusal::FieldIsNotAnInteger)?,
    };
    let after = before.checked_add(by).ok_or(Refusal::Overflow)?;
    let mut map = map_of(state);
    map.insert(text(name)?.to_owned(), after.to_string());
    Ok(Decision::put(Reply::Int(after), checked(map)?, Exact::Yes, &["hincrby"]))
}

fn hset_plan(args: &[Bytes], answers_ok: bool, name: &'static str) -> Result<Plan, Refusal> {
    let pairs = args.get(2..).filter(|pairs| pairs.len() % 2 == 0).ok_or(Refusal::Arity(name))?;
    for arg in pairs {
        text(arg)?;
    }
    Plan::one(args, Op::HSet(HSet { pairs: pairs.to_vec(), answers_ok }))
}

/// `HSET key field value ...`
pub fn hset(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    hset_plan(args, false, "hset")
}

/// `HMSET key field value ...`
pub fn hmset(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    hset_plan(args, true, "hmset")
}

/// `HSETNX key field value`
pub fn hsetnx(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    let [_, _, field, value] = args else {
        return Err(Refusal::Arity("hsetnx"));
    };
    text(field)?;
    text(value)?;
    Plan::one(args, Op::HSetAbsent(field.clone(), value.clone()))
}

/// `HDEL key field ...`
pub fn hdel(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HDelete(args.get(2..).unwrap_or_default().to_vec()))
}

/// `HINCRBY key field increment`
pub fn hincrby(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    let [_, _, field, by] = args else {
        return Err(Refusal::Arity("hincrby"));
    };
    let by = integer(by)?;
    text(field)?;
    Plan::one(args, Op::HIncrement(field.clone(), by))
}

fn on_field(args: &[Bytes], op: fn(Bytes) -> Op) -> Result<Plan, Refusal> {
    let field = args.get(2).ok_or(Refusal::Syntax)?;
    Plan::one(args, op(field.clone()))
}

/// `HGET key field`
pub fn hget(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    on_field(args, Op::HGet)
}

/// `HEXISTS key field`
pub fn hexists(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    on_field(args, Op::HExists)
}

/// `HSTRLEN key field`
pub fn hstrlen(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    on_field(args, Op::HStrLen)
}

/// `HMGET key field ...`
pub fn hmget(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HMGet(args.get(2..).unwrap_or_default().to_vec()))
}

/// `HGETALL key`
pub fn hgetall(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HGetAll)
}

/// `HSCAN key cursor [MATCH pattern] [COUNT count]`
pub fn hscan(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    let [_, _, from, options @ ..] = args else {
        return Err(Refusal::Arity("hscan"));
    };
    // Any cursor is one of the only page, as in Redis.
    cursor(from)?;
    Plan::one(args, Op::HScan(fields(options)))
}

/// `HKEYS key`
pub fn hkeys(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HKeys)
}

/// `HVALS key`
pub fn hvals(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HVals)
}

/// `HLEN key`
pub fn hlen(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
    Plan::one(args, Op::HLen)
}
