//! Commands whose answer depends on what they found, and others who are faster.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::agent::sessions::now_millis;
use crate::agent::testing::{Bench, bulk};
use crate::resp::Reply;

/// Just before `k` is first written or deleted, somebody else changes it.
fn somebody_is_faster(bench: &Bench, change: Value) {
    let (api, mut change) = (bench.api.clone(), Some(change));
    bench.api.before_each(move |method, name| {
        if name == "k"
            && *method != Method::GET
            && let Some(change) = change.take()
        {
            api.merge("k", &change);
        }
    });
}

/// A timeout that ends at this instant.
fn ends_at(instant: u64) -> Value {
    let annotations = json!({"vmcp.dev/expires-at": instant.to_string()});
    json!({"metadata": {"annotations": annotations}, "spec": {"idleTimeoutSeconds": 100_000}})
}

fn in_a_day() -> u64 {
    now_millis() + 86_400_000
}

#[tokio::test]
async fn a_timeout_on_a_condition_is_set_only_if_that_is_still_met() {
    for (first, commands, answer) in [
        ("HSET k a 1", &["EXPIRE k 100 NX"][..], Reply::Int(0)),
        ("HSET k a 1", &["EXPIRE k -1 NX"], Reply::Int(0)),
        ("SET k {} EX 100", &["EXPIRE k 200 GT"], Reply::Int(0)),
        ("HSET k a 1", &["MULTI", "EXPIRE k 100 NX", "EXEC"], Reply::Array(vec![Reply::Int(0)])),
        ("HSET k a 1", &["MULTI", "EXPIRE k -1 NX", "EXEC"], Reply::Array(vec![Reply::Int(0)])),
        (
            "HSET k a 1",
            &["MULTI", "HSET k b 1", "EXPIRE k 100 NX", "EXEC"],
            Reply::Array(vec![Reply::Int(1), Reply::Int(0)]),
        ),
    ] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.asks(first).await;
        let at = in_a_day();
        somebody_is_faster(&bench, ends_at(at));
        let mut last = Reply::Null;
        for command in commands {
            last = guest.asks(command).await;
        }
        assert_eq!(last, answer, "{commands:?}");
        let object = bench.api.object("k").expect("it is there");
        assert_eq!(object["metadata"]["annotations"]["vmcp.dev/expires-at"], at.to_string(), "{commands:?}");
    }
}

#[tokio::test]
async fn who_removes_a_timeout_that_is_gone_by_then_has_removed_none() {
    for (commands, answer) in
        [(&["PERSIST k"][..], Reply::Int(0)), (&["MULTI", "PERSIST k", "EXEC"], Reply::Array(vec![Reply::Int(0)]))]
    {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.asks("SET k {} EX 100").await;
        somebody_is_faster(&bench, json!({"spec": {"idleTimeoutSeconds": null}}));
        let mut last = Reply::Null;
        for command in commands {
            last = guest.asks(command).await;
        }
        assert_eq!(last, answer, "{commands:?}");
    }
}

#[tokio::test]
async fn who_reads_and_removes_a_timeout_reads_what_it_was_removed_from() {
    for commands in [&["GETEX k PERSIST"][..], &["MULTI", "GETEX k PERSIST", "EXEC"]] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        guest.asks(r#"SET k {"a":"1"} EX 100"#).await;
        somebody_is_faster(&bench, json!({"spec": {"metadata": {"a": "2"}}}));
        let mut last = Reply::Null;
        for command in commands {
            last = guest.asks(command).await;
        }
        let read = Reply::Bulk(r#"{"a":"2"}"#.into());
        assert_eq!(last, if commands.len() == 1 { read } else { Reply::Array(vec![read]) }, "{commands:?}");
        assert_eq!(bench.api.object("k").unwrap()["spec"], json!({"metadata": {"a": "2"}}), "{commands:?}");
    }
}

#[tokio::test]
async fn what_ends_while_its_command_waits_was_there_for_that() {
    let value = Reply::Bulk(r#"{"a":"1"}"#.into());
    for (commands, answer) in [
        (&["GETEX k PXAT"][..], value.clone()),
        (&["PEXPIREAT k"], Reply::Int(1)),
        (&["MULTI", "GETEX k PXAT", "EXEC"], Reply::Array(vec![value])),
    ] {
        let bench = Bench::new();
        bench.api.put("k", &json!({"a": "1"}));
        let (mut guest, mut listener) = (bench.guest(), bench.guest());
        listener.sends(&["PSUBSCRIBE", "__keyevent@0__:*"]).await;
        let closed = bench.api.close().await;
        let at = now_millis() + 300;
        let waits = tokio::spawn(async move {
            let mut last = Reply::Null;
            for command in commands {
                let instant = if command.contains(' ') { format!(" {at}") } else { String::new() };
                last = guest.asks(&format!("{command}{instant}")).await;
            }
            last
        });
        bench.api.await_waiting(&closed, 1).await;
        while now_millis() <= at {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        drop(closed);
        assert_eq!(waits.await.unwrap(), answer, "{commands:?}");
        assert_eq!(bench.api.object("k"), None);
        let heard = listener.heard();
        assert!(heard.contains("__keyevent@0__:del\r\n") && !heard.contains(":expire\r\n"), "{commands:?}: {heard}");
    }
}

#[tokio::test]
async fn what_somebody_else_changes_besides_does_not_keep_a_timeout_from_being_set() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("HSET k a 1").await;
    somebody_is_faster(&bench, json!({"spec": {"metadata": {"b": "other"}}}));
    assert_eq!(guest.asks("EXPIRE k 100 NX").await, Reply::Int(1));
    assert_eq!(
        bench.api.object("k").unwrap()["spec"],
        json!({"metadata": {"a": "1", "b": "other"}, "idleTimeoutSeconds": 100})
    );
}

#[tokio::test(start_paused = true)]
async fn who_loses_again_and_again_makes_pauses_and_who_has_lost_once_does_not() {
    for (races, least, most) in [(1, 0, 0), (u32::MAX, 500, 1_500)] {
        for commands in [&["HINCRBY k n 1"][..], &["MULTI", "HINCRBY k n 1", "EXEC"]] {
            let bench = Bench::new();
            let mut guest = bench.guest();
            guest.asks("HSET k n 0").await;
            let (api, mut lost) = (bench.api.clone(), 0);
            bench.api.before_each(move |method, _| {
                if *method == Method::PATCH && lost < races {
                    lost += 1;
                    api.merge("k", &json!({"spec": {"metadata": {"other": lost.to_string()}}}));
                }
            });
            let begun = Instant::now();
            for command in commands {
                guest.asks(command).await;
            }
            let took = begun.elapsed();
            let bounds = Duration::from_millis(least)..=Duration::from_millis(most);
            assert!(bounds.contains(&took), "{commands:?}: {took:?}");
        }
    }
}

#[tokio::test]
async fn a_session_that_has_ended_by_the_clock_of_this_machine_alone_is_there() {
    for (ahead, is_there) in [(0, false), (600, true)] {
        let bench = Bench::new();
        bench.api.is_behind(Duration::from_secs(ahead));
        bench.api.put("k", &json!({"a": "1"}));
        bench.api.merge("k", &ends_at(now_millis() - 1));
        let mut guest = bench.guest();
        assert_eq!(guest.asks("HGET k a").await, if is_there { bulk("1") } else { Reply::Null });
        assert_eq!(bench.api.object("k").is_some(), is_there, "others may use it");
        if is_there {
            assert_eq!(guest.asks("PTTL k").await, Reply::Int(0));
            assert_eq!(guest.asks("SET k {} NX").await, Reply::Null);
            // A revocation ends it for all.
            assert_eq!(guest.asks("DEL k").await, Reply::Int(1));
            assert_eq!(bench.api.object("k"), None);
        }
    }
}
