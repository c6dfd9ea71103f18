//! What commands leave behind in the agent, and what they say when nobody knows what they did.

mod caching;
mod deletions;
mod local;
mod memory;
mod races;
mod timeouts;
mod transactions;

use std::time::SystemTime;

use serde_json::json;

use crate::agent::server::Flow;
use crate::agent::testing::{Bench, Guest, Writes, bulk};
use crate::resp::Reply;

/// A client has read the session while it was `{a: 1}`; by now the agent's copy has a field `b` of another pod's, which no
/// client was shown.
async fn has_read_before_a_change(bench: &Bench) -> Guest {
    let mut guest = bench.guest();
    guest.asks("HSET k a 1").await;
    assert_eq!(guest.asks("GET k").await, bulk(r#"{"a":"1"}"#));
    bench.api.merge("k", &json!({"spec": {"metadata": {"b": "other"}}}));
    guest.asks("TTL k").await;
    guest
}

/// A client that has sent these commands may not have seen the other pod's field.
async fn does_not_show_all(commands: &[&str]) {
    let bench = Bench::new();
    let mut guest = has_read_before_a_change(&bench).await;
    for command in commands {
        assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
    }
    guest.asks(r#"SET k {"a":"2"}"#).await;
    let fields = &bench.api.object("k").unwrap()["spec"]["metadata"];
    assert_eq!(*fields, json!({"a": "2", "b": "other"}), "{commands:?}: a field was lost that its client never saw");
}

#[tokio::test]
async fn what_shows_no_field_does_not_count_as_shown() {
    let lengths = &["HLEN k", "HEXISTS k a", "STRLEN k", "HSTRLEN k a"][..];
    let looked = ["CLIENT NO-TOUCH ON", "HGETALL k", "GET k", "HGET k b", "CLIENT NO-TOUCH OFF"];
    let others = [&["INFO keyspace"][..], &["SCAN 0 TYPE hash"], &["WATCH k", "UNWATCH"], &["EXISTS k"]];
    let written = [&["HSET k c 3"][..], &["HINCRBY k n 1"], &["HSETNX k c 3"], &["HSET k c 3", "HDEL k c"]];
    let queued = [&["MULTI", "HSET k c 3", "HLEN k", "EXEC"][..], &["MULTI", "HSET k c 3", "HGET k c", "EXEC"]];
    // What is refused or not done beside what is done.
    let idle = ["GETEX k EX 99999999999", "SET k {} NX", "SETNX k {}", "HSETNX k b mine", "HINCRBY k b 1"];
    for idle in idle {
        does_not_show_all(&["MULTI", idle, "EXEC"]).await;
        does_not_show_all(&["MULTI", idle, "HSET k c 3", "EXEC"]).await;
        does_not_show_all(&["MULTI", idle, "EXPIRE k 100", "EXEC"]).await;
    }
    for commands in others.into_iter().chain([lengths, &looked]).chain(written).chain(queued) {
        does_not_show_all(commands).await;
    }
}

#[tokio::test]
async fn of_a_part_that_is_shown_the_rest_does_not_count_as_shown() {
    let plain = [&["HGET k a"][..], &["HMGET k a c"], &["HGET k a", "HGET k a"], &["HSCAN k 0 MATCH a*"]];
    let queued = [&["MULTI", "HGET k a", "EXEC"][..], &["MULTI", "HSCAN k 0 MATCH a*", "EXEC"]];
    for commands in plain.into_iter().chain(queued) {
        does_not_show_all(commands).await;
    }
}

#[tokio::test]
async fn to_go_back_from_a_part_that_is_shown_is_a_change() {
    for command in ["HGET k a", "HSCAN k 0 MATCH a", "HMGET k a b"] {
        let bench = Bench::new();
        let mut guest = has_read_before_a_change(&bench).await;
        bench.api.merge("k", &json!({"spec": {"metadata": {"a": "newer"}}}));
        guest.asks("TTL k").await;
        assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        guest.asks(r#"SET k {"a":"1"}"#).await;
        let fields = &bench.api.object("k").unwrap()["spec"]["metadata"];
        let stays = if command.ends_with('b') { json!({"a": "1"}) } else { json!({"a": "1", "b": "other"}) };
        assert_eq!(*fields, stays, "{command}");
    }
}

#[tokio::test]
async fn to_go_back_from_what_a_command_has_written_is_a_change() {
    for commands in [
        &["HSET k a newer"][..],
        &["HSET k a newer c 3", "HDEL k c"],
        &["MULTI", "HSET k a newer", "EXEC"],
        &["MULTI", "HGET k a", "HSET k c 3", "EXEC"],
        &["MULTI", "HGETALL k", "HSET k c 3", "EXEC"],
        &["MULTI", "HGETALL k", "EXPIRE k 100", "EXEC"],
        &["MULTI", "HGET k a", "EXPIRE k 100", "EXEC"],
        &["MULTI", "HGETALL k", "HSET k a newer", "EXEC"],
    ] {
        let bench = Bench::new();
        let mut guest = has_read_before_a_change(&bench).await;
        // What is so already, nobody need send.
        bench.api.merge("k", &json!({"spec": {"metadata": {"a": "newer"}}}));
        guest.asks("TTL k").await;
        for command in commands {
            assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        }
        guest.asks(r#"SET k {"a":"1"}"#).await;
        let fields = &bench.api.object("k").unwrap()["spec"]["metadata"];
        let stays =
            if commands[1..].contains(&"HGETALL k") { json!({"a": "1"}) } else { json!({"a": "1", "b": "other"}) };
        assert_eq!(*fields, stays, "{commands:?}");
    }
}

#[tokio::test]
async fn what_one_client_has_written_is_no_news_to_the_next_though_it_was_read_before() {
    let bench = Bench::new();
    let (mut one, mut other) = (bench.guest(), bench.guest());
    one.asks(r#"SET k {"state":"idle"}"#).await;
    let closed = bench.api.close().await;
    let set = tokio::spawn(async move {
        one.asks(r#"SET k {"state":"busy"}"#).await;
        one
    });
    let seen = tokio::spawn(async move { other.asks("HSET k seen 12").await });
    bench.api.await_waiting(&closed, 2).await;
    drop(closed);
    let mut one = set.await.unwrap();
    seen.await.unwrap();
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"state": "busy", "seen": "12"}));
    assert_eq!(one.asks(r#"SET k {"state":"idle"}"#).await, Reply::OK);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"state": "idle"}));
}

#[tokio::test]
async fn agents_say_the_same_of_when_a_new_session_ends() {
    let bench = Bench::new();
    bench.guest().asks("SET k {} EX 1800 NX").await;
    let (mut one, mut other) = (bench.guest(), bench.beside().guest());
    let ends = one.asks("PEXPIRETIME k").await;
    assert!(matches!(ends, Reply::Int(at) if at > 0), "{ends:?}");
    assert_eq!(other.asks("PEXPIRETIME k").await, ends);
}

/// Copies of an older generation can be told from it.
#[tokio::test]
async fn an_instant_as_far_away_as_the_timeout_was_long_is_a_new_generation() {
    for (seconds, written) in [(1_800_u64, 1_801), (31_536_000, 31_535_999)] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.asks(&format!("SET k {{}} EX {seconds}")).await;
        let before = bench.api.object("k").unwrap()["metadata"]["generation"].as_u64().unwrap();
        guest.asks(&format!("PEXPIRE k {}", seconds * 1_000 - 500)).await;
        let object = bench.api.object("k").unwrap();
        assert_eq!(object["metadata"]["generation"], before + 1);
        assert_eq!(object["spec"]["idleTimeoutSeconds"], written);
        let at = object["metadata"]["annotations"]["vmcp.dev/expires-at"].as_str().unwrap();
        assert_eq!(guest.asks("PEXPIRETIME k").await, Reply::Int(at.parse().unwrap()));
    }
}

#[tokio::test]
async fn what_is_shown_counts_as_shown_however_it_was_read() {
    let queued = [&["MULTI", "GET k", "TTL k", "EXEC"][..], &["MULTI", "HGETALL k", "EXEC"]];
    for commands in [&["GETEX k PERSIST"][..], &["HSCAN k 0 COUNT 1"]].into_iter().chain(queued) {
        let bench = Bench::new();
        let mut guest = has_read_before_a_change(&bench).await;
        for command in commands {
            assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        }
        guest.asks(r#"SET k {"a":"1"}"#).await;
        let fields = &bench.api.object("k").unwrap()["spec"]["metadata"];
        assert_eq!(*fields, json!({"a": "1"}), "{commands:?}: the client saw the field that it takes out");
    }
}

#[tokio::test]
async fn to_write_once_more_what_was_read_takes_nothing_from_others_however_often() {
    let bench = Bench::new();
    let mut guest = has_read_before_a_change(&bench).await;
    for _ in 0..3 {
        guest.asks(r#"SET k {"a":"1"}"#).await;
        assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "1", "b": "other"}));
    }
}

#[tokio::test]
async fn what_is_so_already_in_a_copy_that_is_behind_is_written_all_the_same() {
    for command in ["HSET k a 1", "HSET k a 1 c 3", r#"SET k {"a":"1"} GET"#] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.asks("HSET k a 1").await;
        bench.api.merge("k", &json!({"spec": {"metadata": {"a": "others"}}}));
        assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"]["a"], "1", "{command}");
    }
}

#[tokio::test]
async fn to_go_back_after_a_write_of_which_nobody_knows_is_a_write() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("HSET k a 1").await;
    guest.asks("GET k").await;
    bench.api.answers(Writes::Unanswered);
    let Reply::Error(unknown) = guest.asks(r#"SET k {"a":"2"}"#).await else { panic!("it was answered") };
    assert!(unknown.contains("it may have been"), "{unknown}");
    bench.api.answers(Writes::Answered);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"]["a"], "2");
    assert_eq!(guest.asks(r#"SET k {"a":"1"}"#).await, Reply::Simple("OK".into()));
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"]["a"], "1");
}

/// Which of the two came last is not known: to write the one that was answered once more is a write, too.
#[tokio::test]
async fn a_write_beside_one_of_which_nobody_knows_is_not_what_the_session_is() {
    let bench = Bench::new();
    let [mut guest, mut unknown, mut known] = [bench.guest(), bench.guest(), bench.guest()];
    guest.asks(r#"SET k {"a":"0"}"#).await;
    let closed = bench.api.close().await;
    let unknown = tokio::spawn(async move { unknown.asks(r#"SET k {"a":"2"}"#).await });
    bench.api.await_waiting(&closed, 1).await;
    let known = tokio::spawn(async move { known.asks(r#"SET k {"a":"1"}"#).await });
    bench.api.await_waiting(&closed, 2).await;
    let (api, mut how) = (bench.api.clone(), [Writes::Unanswered, Writes::Answered].into_iter());
    bench.api.before_each(move |_, _| how.next().into_iter().for_each(|how| api.answers(how)));
    drop(closed);
    assert!(matches!(unknown.await.unwrap(), Reply::Error(_)));
    assert_eq!(known.await.unwrap(), Reply::OK);
    // As if it had come last.
    bench.api.merge("k", &json!({"spec": {"metadata": {"a": "2"}}}));
    assert_eq!(guest.asks(r#"SET k {"a":"1"}"#).await, Reply::OK);
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "1"}));
}

#[tokio::test]
async fn a_timeout_of_which_nobody_knows_is_not_taken_for_the_one_before() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks(r#"SET k {"a":"1"} EX 1800"#).await;
    bench.api.answers(Writes::Unanswered);
    assert!(matches!(guest.asks("EXPIRE k 60").await, Reply::Error(_)));
    bench.api.answers(Writes::Answered);
    // What clients have seen is what it was.
    bench.api.merge("k", &json!({"spec": {"metadata": {"b": "other"}}}));
    assert_eq!(guest.asks("EXPIRE k 1800").await, Reply::Int(1));
    assert_eq!(bench.api.object("k").unwrap()["spec"]["idleTimeoutSeconds"], 1800);
    guest.asks(r#"SET k {"a":"2"} KEEPTTL"#).await;
    assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"], json!({"a": "2", "b": "other"}));
}

#[tokio::test]
async fn a_transaction_does_not_take_its_own_change_for_somebody_elses() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("HSET k1 a 1").await;
    guest.asks("HSET k2 a 1").await;
    // The copy of the second one is behind: it is read again when the first one has been written.
    bench.api.merge("k2", &json!({"spec": {"metadata": {"b": "other"}}}));
    for command in ["WATCH k1", "MULTI", "EXPIRE k1 100", "HSET k2 a 2"] {
        guest.asks(command).await;
    }
    assert_eq!(guest.asks("EXEC").await, Reply::Array(vec![Reply::Int(1), Reply::Int(0)]));
    assert_eq!(bench.api.object("k2").unwrap()["spec"]["metadata"], json!({"a": "2", "b": "other"}));
}

#[tokio::test]
async fn figures_are_no_hits() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("HSET k a 1").await;
    guest.asks(r#"SET s {"a":"1"} EX 100"#).await;
    let before = bench.agent.sessions.cache().state().hits;
    let Reply::Verbatim(_, text) = guest.asks("INFO keyspace").await else { panic!("no text") };
    assert!(text.contains("keys=2,expires=1"), "{text}");
    let Reply::Array(page) = guest.asks("SCAN 0 TYPE string").await else { panic!("no page") };
    assert_eq!(page[1], Reply::Array(vec![bulk("s")]));
    assert_eq!(bench.agent.sessions.cache().state().hits, before);
}

#[tokio::test]
async fn what_is_kept_for_a_client_is_bounded_in_bytes() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let (long, fits) = ("x".repeat(1_025), "x".repeat(1_024));
    let refused = Reply::Error("ERR a channel, pattern or prefix may have 1024 bytes at most".into());
    for command in ["SUBSCRIBE ok", "PSUBSCRIBE ok", "CLIENT TRACKING ON BCAST PREFIX", "SCAN 0 MATCH", "CONFIG GET"] {
        assert_eq!(guest.asks(&format!("{command} {long}")).await, refused, "{command}");
    }
    assert_eq!((guest.client.subscriptions(), bench.agent.pubsub.counts()), (0, (0, 0)), "all or nothing");
    for n in 0..17 {
        let flow = guest.sends(&["PSUBSCRIBE", &format!("{n:x<1024}")]).await;
        assert_eq!(matches!(flow, Flow::Replies(_)), n < 16, "{flow:?}");
    }
    guest.sends(&["PUNSUBSCRIBE"]).await;
    assert_eq!(guest.asks(&format!("CLIENT TRACKING ON BCAST PREFIX {fits}")).await, Reply::OK);
    // No session can have this key: it does not change, whatever happens.
    guest.asks("HSET k n 1").await;
    assert_eq!(guest.asks(&format!("WATCH {} k", "x".repeat(100_000))).await, Reply::OK);
    assert_eq!(guest.client.watched.len(), 1);
    guest.asks("MULTI").await;
    guest.asks("HINCRBY k n 1").await;
    assert_eq!(guest.asks("EXEC").await, Reply::Array(vec![Reply::Int(2)]));
    assert!(matches!(guest.sends(&["SUBSCRIBE", &fits]).await, Flow::Replies(_)));
}

#[tokio::test]
async fn clients_do_not_repeat_by_themselves_what_may_have_been_done_and_must_not_be_done_twice() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let once = [
        "HINCRBY n n 1",
        "HSETNX a f v",
        "SET b {} NX",
        "SETNX c {}",
        r#"SET d {"a":"2"} GET"#,
        "GETDEL e",
        "EXPIRE f 10 NX",
        "GETEX m PXAT 1",
        "SET p {} XX PXAT 1",
    ];
    let in_an_hour = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3_600;
    let harmless = [
        r#"SET g {"a":"2"}"#,
        r#"SET h {"a":"2"} XX"#,
        "HSET i a 2",
        "DEL j",
        "GETEX k EX 10",
        "HDEL l x",
        &format!("GETEX o EXAT {in_an_hour}"),
    ];
    for key in ["n", "a", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "o", "p"] {
        guest.asks(&format!("HSET {key} a 1 x y")).await;
    }
    bench.api.answers(Writes::Unanswered);
    for (commands, code) in [(&once[..], "ERR "), (&harmless[..], "TRYAGAIN ")] {
        for command in commands {
            let Reply::Error(text) = guest.asks(command).await else { panic!("{command}") };
            assert!(text.starts_with(code) && text.contains("not known whether"), "{command}: {text}");
        }
    }
    guest.asks("MULTI").await;
    guest.asks("HSET g b 1").await;
    let Reply::Error(text) = guest.asks("EXEC").await else { panic!("EXEC") };
    assert!(text.starts_with("ERR ") && text.contains("not known whether"), "{text}");
    // It was done, once.
    assert_eq!(bench.api.object("n").unwrap()["spec"]["metadata"]["n"], "1");
    // What was certainly not done can be repeated, whatever it is.
    bench.api.is_down(true);
    for command in once {
        let Reply::Error(text) = guest.asks(command).await else { panic!("{command}") };
        assert!(text.starts_with("TRYAGAIN "), "{command}: {text}");
    }
}

/// Sessions of the bench's API server were made long ago.
#[tokio::test]
async fn renewals_that_no_controller_hears_of_are_written_whichever_command_makes_them() {
    for command in ["EXPIRE k 60", "GETEX k EX 60"] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        bench.api.put("k", &json!({"a": "1"}));
        bench.api.merge("k", &json!({"spec": {"idleTimeoutSeconds": 60}}));
        guest.asks("GET k").await;
        let renewed = || bench.api.object("k").unwrap()["metadata"]["annotations"]["vmcp.dev/renewed-at"].clone();
        // A renewal in memory, which a stream would tell of.
        guest.asks(command).await;
        assert!(renewed().is_null(), "{command}");
        bench.agent.sessions.cache().unheard_for_tests();
        guest.asks(command).await;
        assert!(renewed().is_string(), "{command}");
    }
}

#[tokio::test]
async fn each_skip_is_about_the_command_after_it() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let skip = &["CLIENT", "REPLY", "SKIP"][..];
    for (commands, answered) in [
        (&[skip, &["PING"], &["PING"]][..], &[false, false, true][..]),
        (&[skip, skip, &["PING"], &["PING"]], &[false, false, false, true]),
        (&[skip, &["CLIENT", "REPLY", "ON"], &["PING"]], &[false, true, true]),
        (&[skip, &["NOSUCH"], &["PING"]], &[false, false, true]),
        (&[skip, &["CLIENT", "REPLY", "OFF"], &["PING"], &["CLIENT", "REPLY", "ON"]], &[false, false, false, true]),
    ] {
        for (command, answered) in commands.iter().zip(answered) {
            let flow = guest.sends(command).await;
            assert_eq!(matches!(flow, Flow::Reply(_)), *answered, "{commands:?}: {command:?}");
        }
    }
}
