//! When two answers are the same.
//!
//! Everything counts: type, value and error text. What is left out is listed here, and in docs/commands.md:
//! - the order of a hash's fields, which Redis does not promise;
//! - version and connection id in the answer to HELLO;
//! - addresses, times, sizes and what is not of Redis 7.0 in the answer to CLIENT INFO, and all but which fields there are in
//!   that to CLIENT LIST;
//! - when and how often a client is told to drop a key that it keeps: what counts is that it keeps nothing that Redis would have
//!   told it to drop;
//! - in which order those who listen are told of what one command has done, and when that a key has expired;
//! - what is left of a timeout, up to [`LATE`].

use super::step::{Command, name, word};
use crate::agent::wire::Value;

/// Seconds by which remaining times may differ: the two servers are asked one after the other. Timeouts of a sequence are
/// further apart than this.
const LATE: i64 = 400;

/// Answers without what does not count. `queued` are the commands that EXEC answers.
pub fn normal(command: &Command, queued: &[Command], answer: Value) -> Value {
    match (name(command).as_str(), answer) {
        ("exec", Value::Array(items)) if items.len() == queued.len() => {
            Value::Array(items.into_iter().zip(queued).map(|(item, of)| normal(of, &[], item)).collect())
        }
        ("hgetall", Value::Array(items)) => Value::Array(sorted_pairs(&items)),
        ("hscan", Value::Array(mut page)) => {
            if let Some(Value::Array(items)) = page.get_mut(1) {
                *items = sorted_pairs(items);
            }
            Value::Array(page)
        }
        ("hgetall", Value::Map(mut entries)) => {
            entries.sort();
            Value::Map(entries)
        }
        ("hkeys" | "hvals", Value::Array(mut items)) => {
            items.sort();
            Value::Array(items)
        }
        ("hello", Value::Map(mut entries)) => {
            entries.retain(|(key, _)| !is_about_the_server(key));
            entries.sort();
            Value::Map(entries)
        }
        ("hello", Value::Array(items)) => {
            let mut pairs: Vec<_> = items.chunks(2).map(<[Value]>::to_vec).collect();
            pairs.retain(|pair| !is_about_the_server(&pair[0]));
            pairs.sort();
            Value::Array(pairs.concat())
        }
        ("client", Value::Int(_)) if word(command, 1) == "id" => Value::Int(0),
        ("client", Value::Bulk(line)) if word(command, 1) == "info" => Value::Bulk(about_the_client(&line)),
        ("client", Value::Verbatim(line)) if word(command, 1) == "info" => Value::Verbatim(about_the_client(&line)),
        ("client", Value::Bulk(lines)) if word(command, 1) == "list" => Value::Bulk(fields_of(&lines)),
        ("client", Value::Verbatim(lines)) if word(command, 1) == "list" => Value::Verbatim(fields_of(&lines)),
        ("time", Value::Array(items)) => Value::Array(vec![Value::Bulk(Vec::new()); items.len()]),
        (_, answer) => answer,
    }
}

fn sorted_pairs(items: &[Value]) -> Vec<Value> {
    let mut pairs: Vec<&[Value]> = items.chunks(2).collect();
    pairs.sort();
    pairs.concat()
}

fn is_about_the_server(key: &Value) -> bool {
    ["version", "id"].contains(&key.text().as_str())
}

/// What CLIENT INFO says of a client, and not of its connection.
const ABOUT_THE_CLIENT: [&str; 11] =
    ["name", "flags", "db", "sub", "psub", "multi", "events", "cmd", "user", "redir", "resp"];

/// Which of these the lines of CLIENT LIST have. Who else is connected, and since when, is not the same.
fn fields_of(lines: &[u8]) -> Vec<u8> {
    let lines = String::from_utf8_lossy(lines);
    let has = |line: &str, name: &str| line.split_whitespace().any(|field| field.starts_with(&format!("{name}=")));
    let named = |line: &str| ABOUT_THE_CLIENT.map(|name| if has(line, name) { name } else { "" }).join(" ");
    let shapes: std::collections::BTreeSet<String> = lines.lines().map(named).collect();
    shapes.into_iter().collect::<Vec<_>>().join("\n").into_bytes()
}

fn about_the_client(line: &[u8]) -> Vec<u8> {
    let kept = ABOUT_THE_CLIENT;
    let line = String::from_utf8_lossy(line);
    let fields = line.split_whitespace().filter_map(|field| field.split_once('='));
    let kept = fields.filter(|(name, _)| kept.contains(name)).map(|(name, value)| match name {
        // A watched key has changed; NO-EVICT. Here the first is found out by EXEC, and the second changes nothing.
        "flags" => match value.replace(['d', 'e'], "") {
            flags if flags.is_empty() => format!("{name}=N"),
            flags => format!("{name}={flags}"),
        },
        _ => format!("{name}={value}"),
    });
    kept.collect::<Vec<_>>().join(" ").into_bytes()
}

/// Whether normal answers are the same to a client.
pub fn same(command: &Command, queued: &[Command], reference: &Value, subject: &Value) -> bool {
    match (name(command).as_str(), reference, subject) {
        ("exec", Value::Array(ours), Value::Array(theirs)) if ours.len() == queued.len() => {
            let all = ours.iter().zip(theirs).zip(queued);
            ours.len() == theirs.len() && all.fold(true, |so_far, ((a, b), of)| so_far && same(of, &[], a, b))
        }
        ("ttl" | "expiretime", Value::Int(a), Value::Int(b)) => near(*a, *b, 1),
        ("pttl" | "pexpiretime", Value::Int(a), Value::Int(b)) => near(*a, *b, 1_000),
        _ => reference == subject,
    }
}

fn near(a: i64, b: i64, unit: i64) -> bool {
    a == b || (a > 0 && b > 0 && a.abs_diff(b) <= LATE.unsigned_abs() * unit.unsigned_abs())
}

#[test]
fn types_values_and_texts_count() {
    let of = |line: &str| -> Command { line.split(' ').map(|w| w.as_bytes().to_vec()).collect() };
    let bulk = |text: &str| Value::Bulk(text.into());
    let same = |line: &str, a: Value, b: Value| {
        let command = of(line);
        let queued = [of("hgetall h"), of("ttl s")];
        same(&command, &queued, &normal(&command, &queued, a.clone()), &normal(&command, &queued, b.clone()))
    };
    assert!(same("get s", bulk("a"), bulk("a")));
    assert!(!same("get s", bulk("a"), bulk("b")));
    assert!(!same("get s", bulk("1"), Value::Int(1)));
    assert!(!same("get s", bulk("a"), Value::Simple("a".into())));
    assert!(!same("get s", Value::NullBulk, Value::Null));
    assert!(!same("exec", Value::NullBulk, Value::NullArray));
    assert!(!same("get s", Value::Error("ERR a".into()), Value::Error("ERR b".into())));
    assert!(!same("mget s t", Value::Array(vec![bulk("a"), bulk("b")]), Value::Array(vec![bulk("b"), bulk("a")])));
    let pairs = |of: [&str; 4]| Value::Array(of.map(bulk).to_vec());
    assert!(same("hgetall h", pairs(["a", "1", "b", "2"]), pairs(["b", "2", "a", "1"])));
    assert!(!same("hgetall h", pairs(["a", "1", "b", "2"]), pairs(["a", "2", "b", "1"])));
    assert!(!same("hgetall h", Value::Map(vec![(bulk("a"), bulk("1"))]), Value::Array(vec![bulk("a"), bulk("1")])));
    let exec = |fields: [&str; 4], ttl| Value::Array(vec![pairs(fields), Value::Int(ttl)]);
    assert!(same("exec", exec(["a", "1", "b", "2"], 5_000), exec(["b", "2", "a", "1"], 4_990)));
    assert!(!same("exec", exec(["a", "1", "b", "2"], 5_000), exec(["b", "2", "a", "1"], 4_000)));
    assert!(same("ttl s", Value::Int(5_000), Value::Int(4_999)));
    assert!(!same("ttl s", Value::Int(5_000), Value::Int(-1)));
    assert!(!same("ttl s", Value::Int(-2), Value::Int(-1)));
}
