//! What commands leave behind in the agent, and what they say when nobody knows what they did.

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

#[tokio::test]
async fn what_shows_no_field_does_not_count_as_shown() {
    for commands in [&["INFO keyspace"][..], &["SCAN 0 TYPE hash"], &["WATCH k", "UNWATCH"], &["EXISTS k"]] {
        let bench = Bench::new();
        let mut guest = has_read_before_a_change(&bench).await;
        for command in commands {
            assert!(!matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        }
        guest.asks(r#"SET k {"a":"2"}"#).await;
        let fields = &bench.api.object("k").unwrap()["spec"]["metadata"];
        assert_eq!(
            *fields,
            json!({"a": "2", "b": "other"}),
            "{commands:?}: a field was lost that its client never saw"
        );
    }
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
    ];
    let harmless = [r#"SET g {"a":"2"}"#, r#"SET h {"a":"2"} XX"#, "HSET i a 2", "DEL j", "GETEX k EX 10", "HDEL l x"];
    for key in ["n", "a", "d", "e", "f", "g", "h", "i", "j", "k", "l"] {
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
