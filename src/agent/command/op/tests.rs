//! Decisions, held against what Redis answered.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::{Keys, Made, apply};
use crate::agent::command::args::Clock;
use crate::agent::command::table::{Run, lookup};
use crate::resp::{Protocol, Reply};

/// What redis-server answered; the file says how to read it.
const RECORDED: &str = include_str!("redis7.txt");
/// The time from which the recording counts.
const START: u64 = 1_795_000_000_000;

/// Keys in memory, as a transaction has them.
#[derive(Default)]
struct Keyspace(BTreeMap<Bytes, Made>);

impl Keyspace {
    fn run(&mut self, now: u64, request: &str) -> Reply {
        let argument = |arg: &str| match arg {
            r#""""# => Bytes::new(),
            arg => Bytes::from(arg.replace('~', " ")),
        };
        let args: Vec<Bytes> = request.split(' ').map(argument).collect();
        let clock = Clock::at(now);
        let command = lookup(&args[0]).unwrap();
        if !command.takes_arguments(args.len()) {
            return crate::agent::command::refusal::Refusal::Arity(command.full_name).reply();
        }
        let Run::Keys(parse) = command.run else { panic!("{request}") };
        let plan = match parse(&args, &clock) {
            Ok(plan) => plan,
            Err(refusal) => return refusal.reply(),
        };
        let on_key = |key: &Bytes| {
            let state = self.0.get(key);
            match plan.op.decide(state, &clock) {
                Ok(decision) => {
                    match apply(state, &decision.change, &clock) {
                        Some(made) => self.0.insert(key.clone(), made),
                        None => self.0.remove(key),
                    };
                    decision.reply
                }
                Err(refusal) => refusal.reply(),
            }
        };
        let mut answers: Vec<Reply> = plan.keys.as_slice().iter().map(on_key).collect();
        match plan.keys {
            Keys::One(_) => plan.alone(answers.remove(0)),
            Keys::Many(_) => plan.gather(answers),
        }
    }
}

fn on_the_wire(reply: &Reply) -> String {
    let mut out = BytesMut::new();
    reply.encode(Protocol::Resp2, &mut out);
    String::from_utf8(out.to_vec()).unwrap().replace('\\', r"\\").replace("\r\n", "|")
}

#[test]
fn redis_answers_the_same() {
    let mut keyspace = Keyspace::default();
    let mut lines = RECORDED.lines().filter(|line| !line.starts_with('#'));
    let (mut count, mut wrong) = (0, Vec::new());
    while let (Some(request), Some(expected)) = (lines.next(), lines.next()) {
        let (at, request) = request.strip_prefix("> ").unwrap().split_once(' ').unwrap();
        let now = START.checked_add_signed(at.parse().unwrap()).unwrap();
        let mut answer = on_the_wire(&keyspace.run(now, request));
        // Redis keeps the order in which fields came; the recording is sorted, and so must values be.
        if request.starts_with("hvals ") {
            answer = sorted(&answer);
        }
        if answer != expected {
            wrong.push(format!("{request}\n  redis: {expected}\n  here:  {answer}"));
        }
        count += 1;
    }
    assert!(count > 1_000);
    assert!(wrong.is_empty(), "{} of {count} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A flat array of strings, sorted.
fn sorted(array: &str) -> String {
    let mut parts = array.split('|');
    let count = parts.next().unwrap_or_default();
    let parts: Vec<&str> = parts.collect();
    let mut pairs: Vec<&[&str]> = parts.chunks_exact(2).collect();
    pairs.sort_by_key(|pair| pair[1]);
    let pairs: String = pairs.iter().flat_map(|pair| [pair[0], "|", pair[1], "|"]).collect();
    format!("{count}|{pairs}")
}

#[test]
fn what_is_no_session_is_refused_and_nothing_changes() {
    let mut keyspace = Keyspace::default();
    keyspace.run(START, r#"set k {"a":"1"}"#);
    for bad in ["x", "1", "[]", r#"{"a":1}"#, r#"{"a":"1","a":"2"}"#, r#"{"a":{}}"#, r#"{"a":"1""#, r#""""#] {
        let reply = keyspace.run(START, &format!("set k {bad}"));
        let Reply::Error(text) = reply else { panic!("{bad}: {reply:?}") };
        assert!(text.starts_with("ERR "), "{bad}: {text}");
    }
    assert_eq!(on_the_wire(&keyspace.run(START, "get k")), r#"$9|{"a":"1"}|"#);
    // The other mistakes of the request come first.
    let reply = keyspace.run(START, "set k x EX 0");
    assert_eq!(reply, Reply::Error("ERR invalid expire time in 'set' command".into()));
}

#[test]
fn a_session_is_a_string_and_a_hash_whatever_it_was_written_as() {
    let mut keyspace = Keyspace::default();
    let mut run = |request: &str| on_the_wire(&keyspace.run(START, request));
    run(r#"set k {"b":"2","a":"1"}"#);
    assert_eq!(run("type k"), "+string|");
    assert_eq!(run("hset k c 3"), ":1|");
    assert_eq!(run("type k"), "+string|");
    assert_eq!(run("hgetall k"), "*6|$1|a|$1|1|$1|b|$1|2|$1|c|$1|3|");
    assert_eq!(run("get k"), r#"$25|{"a":"1","b":"2","c":"3"}|"#);
    run("hset h a 1");
    assert_eq!(run("type h"), "+hash|");
    assert_eq!(run("get h"), r#"$9|{"a":"1"}|"#);
    assert_eq!(run("strlen h"), ":9|");
    assert_eq!(run("set h {} GET"), r#"$9|{"a":"1"}|"#);
    assert_eq!(run("type h"), "+string|");
    assert_eq!(run("exists h"), ":1|");
    assert_eq!(run("hlen h"), ":0|");
}

#[test]
fn a_session_does_not_go_with_the_last_field_of_this_pod_alone() {
    let mut keyspace = Keyspace::default();
    let key = Bytes::from("k");
    for (more, fields, stays) in [(None, "mine", true), (Some("hset k all 1"), "mine all", false)] {
        keyspace.run(START, "hset k mine 1");
        // As if it had been read beside the copy.
        keyspace.0.get_mut(&key).unwrap().local.insert("mine".into());
        more.map(|more| keyspace.run(START, more));
        keyspace.run(START, "expire k 10");
        keyspace.run(START, &format!("hdel k {fields}"));
        assert_eq!(keyspace.0.remove(&key).map(|made| made.map.len()), stays.then_some(0), "{fields}");
    }
}
