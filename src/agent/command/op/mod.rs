//! What commands on keys do, without I/O: a request becomes a [`Plan`], and a plan decides from the state of a key what
//! to answer and what to change.
//!
//! So a command can be carried out at once, tried again when somebody else was faster, or run inside `EXEC` against what
//! the commands before it have left, with the same code.

mod decide;
mod expire;
mod hash;
mod plan;
mod string;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use decide::{Change, Decision, Made, Put, State};
pub use expire::{Expire, Only};
pub use plan::{Gather, Keys, Plan};
pub use string::SetOptions;

use super::args::{Clock, Unit, When};
use super::glob;
use super::refusal::Refusal;
use crate::agent::sessions::{Condition, Entry, Exact, Failure, Form};
use crate::cache::{Known, Metadata};
use crate::resp::Reply;

/// What to do with one key. Arguments that depend on nothing else are checked already.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `EXISTS`, `TOUCH`.
    Exists,
    /// `TYPE`.
    Type,
    /// `TTL`, `PTTL`.
    Ttl(Unit),
    /// `EXPIRETIME`, `PEXPIRETIME`.
    ExpireTime(Unit),
    /// `EXPIRE` and the like.
    Expire(Expire),
    /// `PERSIST`.
    Persist,
    /// `DEL`, `UNLINK`.
    Delete,
    /// `GET`, `MGET`.
    Get,
    /// `STRLEN`.
    StrLen,
    /// `GETDEL`.
    GetDelete,
    /// `GETEX`: the time is read only if there is such a key, as in Redis.
    GetExpire(GetExpire),
    /// `SET`, `SETEX`, `PSETEX`, `SETNX`.
    Set(Box<SetOptions>),
    /// `HGET`.
    HGet(Bytes),
    /// `HMGET`.
    HMGet(Vec<Bytes>),
    /// `HGETALL`.
    HGetAll,
    /// `HSCAN`: the options are refused only if there is such a key, as in Redis.
    HScan(Result<Option<Bytes>, Refusal>),
    /// `HKEYS`.
    HKeys,
    /// `HVALS`.
    HVals,
    /// `HLEN`.
    HLen,
    /// `HEXISTS`.
    HExists(Bytes),
    /// `HSTRLEN`.
    HStrLen(Bytes),
    /// `HSET`, `HMSET`.
    HSet(HSet),
    /// `HSETNX`.
    HSetAbsent(Bytes, Bytes),
    /// `HDEL`.
    HDelete(Vec<Bytes>),
    /// `HINCRBY`.
    HIncrement(Bytes, i64),
}

/// What `GETEX` does to the timeout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GetExpire {
    /// Nothing.
    Keep,
    /// `PERSIST`.
    Clear,
    /// `EX`, `PX`, `EXAT`, `PXAT`.
    At(When, Bytes),
}

/// Fields that are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HSet {
    /// Field, value, field, value.
    pub pairs: Vec<Bytes>,
    /// The answer is `OK` and not the number of new fields.
    pub answers_ok: bool,
}

/// What a command needs to know of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Its state, which the client is not shown: what it saw last stays what its next `SET` changes.
    Unseen,
    /// Its state, of which the client is shown some fields: of others it saw what it saw before.
    Partly,
    /// Its state, which the client is shown.
    Seen,
    /// Its state with timeout and form as the API server has them now: copies know these only as of their last GET, since
    /// nobody is told when they change.
    FreshFacts,
}

impl Op {
    /// What must be known of the key.
    pub fn need(&self) -> Need {
        match self {
            Self::Type | Self::Ttl(_) | Self::ExpireTime(_) | Self::Persist | Self::GetExpire(GetExpire::Clear) => {
                Need::FreshFacts
            }
            Self::Expire(expire) if expire.only != Only::default() => Need::FreshFacts,
            Self::Exists
            | Self::HLen
            | Self::HExists(_)
            | Self::StrLen
            | Self::HStrLen(_)
            | Self::Delete
            | Self::Expire(_)
            | Self::HSet(_)
            | Self::HSetAbsent(..)
            | Self::HDelete(_)
            | Self::HIncrement(..) => Need::Unseen,
            Self::Set(options) if !options.answers_old => Need::Unseen,
            Self::HGet(_) | Self::HMGet(_) | Self::HScan(Ok(Some(_))) => Need::Partly,
            _ => Need::Seen,
        }
    }

    /// The fields that the answer shows of this entry, if it shows some and not all.
    pub fn shown_fields<'a>(&'a self, entry: &'a Entry) -> Option<Vec<&'a str>> {
        let fields = match self {
            Self::HGet(field) => std::slice::from_ref(field),
            Self::HMGet(fields) => fields,
            Self::HScan(Ok(Some(pattern))) => {
                let names = || entry.fields().map(|(field, _)| field);
                // It was refused, and shows nothing.
                if hash::is_too_long(pattern, names().map(str::len).sum()) {
                    return Some(Vec::new());
                }
                return Some(names().filter(|field| glob::matches(pattern, field.as_bytes())).collect());
            }
            _ => return None,
        };
        // What is no text is the name of no field.
        Some(fields.iter().filter_map(|field| std::str::from_utf8(field).ok()).collect())
    }

    /// The fields that it changes, if it names them.
    pub fn named_fields(&self) -> Vec<&[u8]> {
        match self {
            Self::HSet(set) => set.pairs.iter().step_by(2).map(AsRef::as_ref).collect(),
            Self::HSetAbsent(field, _) | Self::HIncrement(field, _) => vec![field],
            Self::HDelete(fields) => fields.iter().map(AsRef::as_ref).collect(),
            _ => Vec::new(),
        }
    }

    /// What its client knows of what it makes of this entry, besides what it had before.
    pub fn known(&self, entry: &Entry) -> Known {
        let text = |field: &&[u8]| Some(str::from_utf8(field).ok()?.to_owned());
        match self.shown_fields(entry) {
            Some(fields) => Known::Only(fields.into_iter().map(str::to_owned).collect()),
            None if self.shows() || matches!(self, Self::Set(_)) => Known::All,
            None => Known::Only(self.named_fields().iter().filter_map(text).collect()),
        }
    }

    /// Whether the answer shows what the session has. What clients last saw is what the next `SET` of one takes its difference
    /// from.
    pub fn shows(&self) -> bool {
        matches!(self.need(), Need::Seen | Need::Partly) || matches!(self, Self::GetExpire(_))
    }

    /// Whether to do it twice comes to the same as to do it once. What does not must not be done again by a client that does
    /// not know whether it was done: it would count twice, or be told that somebody else has done it.
    pub fn is_repeatable(&self, now: &Clock) -> bool {
        match self {
            Self::HIncrement(..) | Self::HSetAbsent(..) | Self::GetDelete => false,
            Self::Set(options) => match options.condition {
                _ if options.answers_old => false,
                Condition::Absent => false,
                // What has ended by then is deleted, and the condition is not met a second time.
                Condition::Present => !options.has_ended(now),
                Condition::Always => true,
            },
            Self::Expire(expire) => expire.only == Only::default(),
            // What has ended by then is deleted, and its value is in no second answer.
            Self::GetExpire(what) => !string::has_ended(what, now),
            _ => true,
        }
    }

    /// What is set without looking at the key first.
    pub fn blind(&self, now: &Clock) -> Option<&SetOptions> {
        match self {
            Self::Set(options) if !options.answers_old && !options.has_ended(now) => Some(options),
            _ => None,
        }
    }

    /// What to answer, and what to change, if the key's state is this (`None`: there is no such key).
    pub fn decide<S: State>(&self, state: Option<&S>, now: &Clock) -> Result<Decision, Refusal> {
        match self {
            Self::Exists => Ok(Decision::read(Reply::Int(state.is_some().into()))),
            Self::Type => Ok(Decision::read(Reply::Simple(match state.map(State::form) {
                None => "none".into(),
                Some(Form::String) => "string".into(),
                Some(Form::Hash) => "hash".into(),
            }))),
            Self::Delete => Ok(match state {
                None => Decision::stays_gone(Reply::Int(0)),
                Some(_) => Decision::delete(Reply::Int(1), Exact::No, &["del"]),
            }),
            Self::Ttl(unit) => Ok(Decision::read(Reply::Int(expire::remaining(state, *unit, now)))),
            Self::ExpireTime(unit) => Ok(Decision::read(Reply::Int(expire::time(state, *unit)))),
            Self::Expire(what) => Ok(expire::expire(state, *what, now)),
            Self::Persist => Ok(expire::persist(state)),
            Self::Get => Ok(Decision::read(string::value(state))),
            Self::StrLen => {
                let length = state.map_or(0, State::json_len);
                Ok(Decision::read(Reply::Int(i64::try_from(length).unwrap_or(i64::MAX))))
            }
            Self::GetDelete => Ok(string::get_delete(state)),
            Self::GetExpire(what) => string::get_expire(state, what, now),
            Self::Set(options) => Ok(string::set(state, options, now)),
            _ => self.decide_hash(state),
        }
    }

    fn decide_hash<S: State>(&self, state: Option<&S>) -> Result<Decision, Refusal> {
        match self {
            Self::HGet(field) => Ok(Decision::read(hash::value(state, field))),
            Self::HMGet(fields) => Ok(Decision::read(hash::values(state, fields))),
            Self::HGetAll => Ok(Decision::read(hash::all(state))),
            Self::HScan(pattern) => hash::scan(state, pattern).map(Decision::read),
            Self::HKeys => Ok(Decision::read(hash::list(state, |field, _| field))),
            Self::HVals => Ok(Decision::read(hash::list(state, |_, value| value))),
            Self::HLen => {
                let length = state.map_or(0, State::len);
                Ok(Decision::read(Reply::Int(i64::try_from(length).unwrap_or(i64::MAX))))
            }
            Self::HExists(field) => Ok(Decision::read(Reply::Int(hash::field(state, field).is_some().into()))),
            Self::HStrLen(field) => {
                let length = hash::field(state, field).map_or(0, str::len);
                Ok(Decision::read(Reply::Int(i64::try_from(length).unwrap_or(i64::MAX))))
            }
            Self::HSet(set) => hash::set(state, set),
            Self::HSetAbsent(field, value) => hash::set_absent(state, field, value),
            Self::HDelete(fields) => Ok(hash::delete(state, fields)),
            Self::HIncrement(field, by) => hash::increment(state, field, *by),
            // The others are decided on above.
            _ => Err(Refusal::Syntax),
        }
    }
}

/// The state after `change`, if it were made at `now` to what `state` was.
pub fn apply<S: State>(state: Option<&S>, change: &Change, now: &Clock) -> Option<Made> {
    match change {
        Change::Nothing => state.map(Made::of),
        Change::Delete(_) => None,
        Change::Put(put) => {
            let before = state.and_then(State::deadline);
            let form = put.form.or_else(|| state.map(State::form)).unwrap_or(Form::Hash);
            let local = state.map(State::local).unwrap_or_default();
            Some(Made { map: put.map.clone(), form, deadline: expire::deadline(before, put.ttl, now), local })
        }
        Change::Expire(ttl, _) => state.map(|state| {
            let before = state.deadline();
            Made { deadline: expire::deadline(before, *ttl, now), ..Made::of(state) }
        }),
    }
}

/// A map within the limits of the resource.
fn checked(map: Metadata) -> Result<Metadata, Failure> {
    crate::agent::sessions::check_limits(&map)?;
    Ok(map)
}

/// Requests, to plans. Each is called with the number of arguments that the table asks for.
pub mod parse {
    pub use super::expire::{
        expire_in_seconds as expire, expireat, expiretime, parse_persist as persist, pexpire, pexpireat, pexpiretime,
        pttl, ttl,
    };
    pub use super::hash::{
        hdel, hexists, hget, hgetall, hincrby, hkeys, hlen, hmget, hmset, hscan, hset, hsetnx, hstrlen, hvals,
    };
    pub use super::string::{get, getdel, getex, mget, parse_set as set, psetex, setex, setnx, strlen};

    use super::{Bytes, Clock, Gather, Op, Plan, Refusal};

    /// `EXISTS key ...`, `TOUCH key ...`
    pub fn exists(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
        Ok(Plan::many(args, Op::Exists, Gather::Sum))
    }

    /// `DEL key ...`, `UNLINK key ...`
    pub fn del(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
        Ok(Plan::many(args, Op::Delete, Gather::Sum))
    }

    /// `TYPE key`
    pub fn type_of(args: &[Bytes], _: &Clock) -> Result<Plan, Refusal> {
        Plan::one(args, Op::Type)
    }
}
