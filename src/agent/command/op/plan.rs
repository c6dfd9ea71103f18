//! A request that was understood: what is done with which keys, and what one answer is made of.

use bytes::Bytes;

use super::Op;
use crate::agent::command::refusal::Refusal;
use crate::resp::Reply;

/// The keys that a plan speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One.
    One(Bytes),
    /// Any number, the same one more than once perhaps.
    Many(Vec<Bytes>),
}

impl Keys {
    /// As a slice.
    pub fn as_slice(&self) -> &[Bytes] {
        match self {
            Self::One(key) => std::slice::from_ref(key),
            Self::Many(keys) => keys,
        }
    }
}

/// How the answers for several keys become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    /// There is one key.
    Single,
    /// They are added up.
    Sum,
    /// They are listed.
    List,
}

/// A request that was understood.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The keys.
    pub keys: Keys,
    /// What to do with each.
    pub op: Op,
    /// What to make of the answers.
    pub gather: Gather,
}

impl Plan {
    pub(super) fn one(args: &[Bytes], op: Op) -> Result<Self, Refusal> {
        let key = args.get(1).ok_or(Refusal::Syntax)?.clone();
        Ok(Self { keys: Keys::One(key), op, gather: Gather::Single })
    }

    pub(super) fn many(args: &[Bytes], op: Op, gather: Gather) -> Self {
        let keys = match args {
            [_, key] => Keys::One(key.clone()),
            [_, keys @ ..] => Keys::Many(keys.to_vec()),
            [] => Keys::Many(Vec::new()),
        };
        Self { keys, op, gather }
    }

    /// The answer, if there is one key.
    #[inline]
    pub fn alone(&self, answer: Reply) -> Reply {
        match (self.gather, answer) {
            (Gather::List, answer) if !matches!(answer, Reply::Error(_)) => Reply::Array(vec![answer]),
            (_, answer) => answer,
        }
    }

    /// One answer out of those for each key, which are as many as there are keys.
    pub fn gather(&self, mut answers: Vec<Reply>) -> Reply {
        match self.gather {
            Gather::Single => answers.pop().unwrap_or(Reply::Null),
            Gather::List => match answers.iter().position(|a| matches!(a, Reply::Error(_))) {
                Some(error) => answers.swap_remove(error),
                None => Reply::Array(answers),
            },
            Gather::Sum => {
                let mut sum = 0;
                for answer in answers {
                    match answer {
                        Reply::Int(n) => sum += n,
                        other => return other,
                    }
                }
                Reply::Int(sum)
            }
        }
    }
}
