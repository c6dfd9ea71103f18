//! Clients that keep copies of their own: what they may keep, and what they are told to drop.
//!
//! Compared is what a client keeps: nothing that Redis would have told it to drop. It may be told earlier and more often, and is
//! then only slower.

use std::collections::BTreeSet;

use super::step::{Command, name, word};
use crate::agent::wire::Value;

/// Stands for all keys where some are named.
const EVERYTHING: &[u8] = b"";

/// The keys that a client has read and was not told to drop.
#[derive(Clone, Debug, Default)]
pub struct ClientCache {
    kept: BTreeSet<Vec<u8>>,
    /// Those that it was told to drop since this was last looked at.
    dropped: BTreeSet<Vec<u8>>,
}

impl ClientCache {
    /// Does what a message says; false: it says nothing of keys to be dropped.
    pub fn hear(&mut self, message: &Value) -> bool {
        let Value::Push(items) = message else { return false };
        match items.as_slice() {
            [kind, Value::Array(keys)] if kind.text() == "invalidate" => {
                for key in keys {
                    let Value::Bulk(key) = key else { panic!("a key: {key}") };
                    self.kept.remove(key);
                    self.dropped.insert(key.clone());
                }
                true
            }
            [kind, _] if kind.text() == "invalidate" => {
                self.kept.clear();
                self.dropped.insert(EVERYTHING.to_vec());
                true
            }
            _ => false,
        }
    }

    /// The client has read these anew, and keeps them.
    pub fn keep(&mut self, keys: &[Vec<u8>]) {
        for key in keys {
            self.dropped.remove(key);
            self.kept.insert(key.clone());
        }
    }

    /// The client keeps nothing.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What it was told to drop since this was last asked.
    pub fn take_dropped(&mut self) -> BTreeSet<Vec<u8>> {
        std::mem::take(&mut self.dropped)
    }

    /// Those of these keys that it keeps.
    pub fn kept_of<'a>(&'a self, keys: &'a BTreeSet<Vec<u8>>) -> impl Iterator<Item = &'a Vec<u8>> {
        self.kept.intersection(keys)
    }
}

/// What a client reads that is remembered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Registers {
    Everything,
    OptIn,
    OptOut,
}

/// Follows `CLIENT TRACKING` and `CLIENT CACHING` of a connection by what the reference answers.
#[derive(Clone, Debug, Default)]
pub struct Tracking {
    registers: Option<Registers>,
    /// `CLIENT CACHING` was about the next command.
    said: bool,
}

impl Tracking {
    /// Whether the client is told of anything.
    pub fn is_on(&self) -> bool {
        self.registers.is_some()
    }

    /// Whether the next command counts as the one that `CLIENT CACHING` spoke of.
    pub fn is_about_the_next(&self) -> bool {
        self.said
    }

    /// A command was answered. Returns the keys that the client has read and may keep by that.
    pub fn follow(&mut self, command: &Command, transaction: Option<&[Command]>, answer: &Value) -> Vec<Vec<u8>> {
        let done = matches!(answer, Value::Simple(text) if text != "QUEUED");
        let name = name(command);
        match (name.as_str(), word(command, 1).as_str()) {
            ("client", "tracking") if done => {
                let has = |option: &str| (3..command.len()).any(|at| word(command, at) == option);
                let registers = match (has("optin"), has("optout")) {
                    (true, _) => Registers::OptIn,
                    (_, true) => Registers::OptOut,
                    _ => Registers::Everything,
                };
                *self = Self { registers: (word(command, 2) == "on").then_some(registers), said: false };
                return Vec::new();
            }
            ("client", "caching") if done => self.said = true,
            ("reset" | "quit", _) if done => *self = Self::default(),
            _ => {}
        }
        let (Some(registers), false) = (self.registers, name == "client") else { return Vec::new() };
        let read: Vec<Vec<u8>> = match (transaction, answer) {
            // Which of a transaction's reads are remembered is another question where that is an option.
            (Some(queued), Value::Array(_)) if name == "exec" && registers == Registers::Everything => {
                queued.iter().flat_map(read_keys).cloned().collect()
            }
            (Some(_), _) | (None, Value::Error(_)) => Vec::new(),
            (None, _) => read_keys(command).to_vec(),
        };
        let remembered = match registers {
            Registers::Everything => true,
            Registers::OptIn => self.said,
            Registers::OptOut => !self.said,
        };
        if transaction.is_none() || matches!(name.as_str(), "exec" | "discard") {
            self.said = false;
        }
        if remembered { read } else { Vec::new() }
    }
}

/// The keys that a command reads, and that a client may keep the answer of.
fn read_keys(command: &Command) -> &[Vec<u8>] {
    let end = match name(command).as_str() {
        "mget" | "exists" | "touch" => command.len(),
        "get" | "strlen" | "ttl" | "pttl" | "expiretime" | "pexpiretime" | "type" | "hget" | "hmget" | "hgetall"
        | "hscan" | "hkeys" | "hvals" | "hlen" | "hexists" | "hstrlen" => 2,
        _ => 1,
    };
    command.get(1..end).unwrap_or_default()
}

#[test]
fn a_client_keeps_what_is_remembered_for_it_until_it_is_told() {
    let of = |line: &str| -> Command { line.split(' ').map(|w| w.as_bytes().to_vec()).collect() };
    let ok = || Value::Simple("OK".into());
    let mut tracking = Tracking::default();
    let mut reads = |line: &str, answer: Value| tracking.follow(&of(line), None, &answer).len();
    assert_eq!(reads("get k", Value::NullBulk), 0, "it keeps nothing");
    assert_eq!(reads("client tracking on", ok()), 0);
    assert_eq!((reads("mget k l", Value::NullArray), reads("get", Value::Error("ERR".into()))), (2, 0));
    for (mode, without, with) in [("optin", 0, 1), ("optout", 1, 0)] {
        reads(&format!("client tracking on {mode}"), ok());
        assert_eq!(reads("get k", Value::NullBulk), without);
        reads("client caching yes", ok());
        assert_eq!((reads("get k", Value::NullBulk), reads("get k", Value::NullBulk)), (with, without));
    }
    reads("reset", Value::Simple("RESET".into()));
    assert_eq!(reads("get k", Value::NullBulk), 0);

    let mut cache = ClientCache::default();
    let key = b"k".to_vec();
    let told = |keys: Value| Value::Push(vec![Value::Bulk(b"invalidate".to_vec()), keys]);
    let keys = || BTreeSet::from([key.clone()]);
    cache.keep(std::slice::from_ref(&key));
    assert!(!cache.hear(&Value::Push(vec![Value::Bulk(b"message".to_vec()), Value::Null])));
    assert_eq!(cache.kept_of(&keys()).count(), 1);
    assert!(cache.hear(&told(Value::Array(vec![Value::Bulk(key.clone())]))));
    assert_eq!((cache.kept_of(&keys()).count(), cache.take_dropped()), (0, keys()));
    cache.keep(std::slice::from_ref(&key));
    assert!(cache.hear(&told(Value::Null)));
    assert_eq!(cache.kept_of(&keys()).count(), 0);
}
