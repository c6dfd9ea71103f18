//! What a decision is made from, and what it says.

use std::collections::BTreeSet;

use bytes::Bytes;

use crate::agent::sessions::{Entry, Exact, Form, Ttl};
use crate::cache::Metadata;
use crate::resp::Reply;

/// The state of a key that exists.
pub trait State {
    /// The value of a field.
    fn get(&self, field: &str) -> Option<&str>;
    /// Calls `f` with each field and its value, sorted by field.
    fn each(&self, f: &mut dyn FnMut(&str, &str));
    /// How many fields there are.
    fn len(&self) -> usize;
    /// All fields.
    fn to_map(&self) -> Metadata;
    /// How it was written.
    fn form(&self) -> Form;
    /// As a string.
    fn json(&self) -> Bytes;
    /// Bytes of [`Self::json`].
    fn json_len(&self) -> usize;
    /// When it ends, in milliseconds since 1970.
    fn deadline(&self) -> Option<u64>;
    /// The fields that are true only in this pod: other pods may have some too, which are not seen here.
    fn local(&self) -> BTreeSet<String>;
}

impl State for Entry {
    fn get(&self, field: &str) -> Option<&str> {
        self.get(field)
    }

    fn each(&self, f: &mut dyn FnMut(&str, &str)) {
        self.fields().for_each(|(field, value)| f(field, value));
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn to_map(&self) -> Metadata {
        self.to_map()
    }

    fn form(&self) -> Form {
        self.form()
    }

    fn json(&self) -> Bytes {
        self.json()
    }

    fn json_len(&self) -> usize {
        self.json_len()
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline()
    }

    fn local(&self) -> BTreeSet<String> {
        self.local_names().map(str::to_owned).collect()
    }
}

/// A state that commands of a transaction have made, and nobody has written yet.
#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    /// The fields.
    pub map: Metadata,
    /// How it was written.
    pub form: Form,
    /// When it ends, in milliseconds since 1970.
    pub deadline: Option<u64>,
    /// The fields that were true only in this pod when it was read.
    pub local: BTreeSet<String>,
}

impl Made {
    /// A state of its own, from another one.
    pub fn of<S: State>(state: &S) -> Self {
        Self { map: state.to_map(), form: state.form(), deadline: state.deadline(), local: state.local() }
    }
}

impl Made {
    /// Bytes of its fields, about.
    pub fn weight(&self) -> usize {
        weight(&self.map)
    }
}

impl State for Made {
    fn get(&self, field: &str) -> Option<&str> {
        self.map.get(field).map(String::as_str)
    }

    fn each(&self, f: &mut dyn FnMut(&str, &str)) {
        self.map.iter().for_each(|(field, value)| f(field, value));
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn to_map(&self) -> Metadata {
        self.map.clone()
    }

    fn form(&self) -> Form {
        self.form
    }

    fn json(&self) -> Bytes {
        // A map of strings has nothing that could fail.
        serde_json::to_vec(&self.map).unwrap_or_default().into()
    }

    fn json_len(&self) -> usize {
        self.json().len()
    }

    fn deadline(&self) -> Option<u64> {
        self.deadline
    }

    fn local(&self) -> BTreeSet<String> {
        self.local.clone()
    }
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It stays.
    Nothing,
    /// It has these fields then.
    Put(Put),
    /// Only its timeout changes. The answer may be right only if the key was as it was read.
    Expire(Ttl, Exact),
    /// It goes, or is gone already.
    Delete(Exact),
}

impl Change {
    /// Bytes of the fields that are kept for it, about.
    pub fn weight(&self) -> usize {
        if let Self::Put(put) = self { weight(&put.map) } else { 0 }
    }
}

/// Bytes of fields, about.
fn weight(map: &Metadata) -> usize {
    map.iter().map(|(field, value)| field.len() + value.len()).sum()
}

/// New fields of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Put {
    /// All of them.
    pub map: Metadata,
    /// How it counts as written; `None`: as before, and as a hash if it is new.
    pub form: Option<Form>,
    /// What becomes of the timeout.
    pub ttl: Ttl,
    /// Whether the answer is right only if the key was as it was read.
    pub exact: Exact,
}

/// What to answer, and what to change first.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The answer, if the change could be made.
    pub reply: Reply,
    /// The change.
    pub change: Change,
    /// The keyspace events that follow.
    pub events: &'static [&'static str],
}

impl Decision {
    /// Nothing changes.
    pub fn read(reply: Reply) -> Self {
        Self { reply, change: Change::Nothing, events: &[] }
    }

    /// The key goes.
    pub fn delete(reply: Reply, exact: Exact, events: &'static [&'static str]) -> Self {
        Self { reply, change: Change::Delete(exact), events }
    }

    /// There is no such key, and there is to be none: nothing changes, but what an earlier deletion has done may have to be
    /// waited for.
    pub fn stays_gone(reply: Reply) -> Self {
        Self { reply, change: Change::Delete(Exact::No), events: &[] }
    }

    /// The key has these fields then, and the timeout and form that it had.
    pub fn put(reply: Reply, map: Metadata, exact: Exact, events: &'static [&'static str]) -> Self {
        Self { reply, change: Change::Put(Put { map, form: None, ttl: Ttl::Keep, exact }), events }
    }
}
