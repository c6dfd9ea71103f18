//! What is said of a transaction that cannot be finished.

use http::Method;
use serde_json::json;

use crate::agent::testing::{Bench, Guest, bulk};
use crate::resp::Reply;

/// A client is about to add one to a field of `a` and of `b`, each with one `EXEC`.
async fn counts_in_both() -> (Bench, Guest) {
    let bench = Bench::new();
    let mut guest = bench.guest();
    for command in ["HSET a n 0", "HSET b n 0", "MULTI", "HINCRBY a n 1", "HINCRBY b n 1"] {
        guest.asks(command).await;
    }
    (bench, guest)
}

fn counted(bench: &Bench) -> [String; 2] {
    ["a", "b"].map(|name| bench.api.object(name).unwrap()["spec"]["metadata"]["n"].as_str().unwrap().to_owned())
}

fn is_done_in_part(answer: &Reply) -> bool {
    matches!(answer, Reply::Error(text) if text.starts_with("ERR ") && text.contains("done in part"))
}

#[tokio::test(start_paused = true)]
async fn a_transaction_of_which_a_part_is_done_is_not_repeated_by_clients_when_the_rest_loses_all_races() {
    let (bench, mut guest) = counts_in_both().await;
    let (api, mut changes) = (bench.api.clone(), 0);
    bench.api.before_each(move |method, name| {
        if *method == Method::PATCH && name == "b" {
            changes += 1;
            api.merge("b", &json!({"spec": {"metadata": {"other": changes.to_string()}}}));
        }
    });
    let answer = guest.asks("EXEC").await;
    assert!(is_done_in_part(&answer), "{answer:?}");
    assert_eq!(counted(&bench), ["1", "0"]);
}

#[tokio::test(start_paused = true)]
async fn nor_when_the_api_server_goes_away_in_between() {
    let (bench, mut guest) = counts_in_both().await;
    let (api, mut reads) = (bench.api.clone(), 0);
    bench.api.before_each(move |method, name| {
        if *method == Method::PATCH && name == "b" {
            api.merge("b", &json!({"spec": {"metadata": {"other": "1"}}}));
        } else if name == "b" {
            // The first one finds out that it is a conflict. What is to be read then cannot be.
            reads += 1;
            api.is_down(reads > 1);
        }
    });
    let answer = guest.asks("EXEC").await;
    assert!(is_done_in_part(&answer), "{answer:?}");
    assert_eq!(counted(&bench), ["1", "0"]);
}

#[tokio::test(start_paused = true)]
async fn nor_when_the_answer_becomes_too_large_meanwhile() {
    let (bench, mut guest) = counts_in_both().await;
    for _ in 0..100 {
        guest.asks("HGETALL b").await;
    }
    let api = bench.api.clone();
    bench.api.before_each(move |method, name| {
        if *method == Method::PATCH && name == "b" {
            api.merge("b", &json!({"spec": {"metadata": {"other": "x".repeat(60_000)}}}));
        }
    });
    let answer = guest.asks("EXEC").await;
    assert!(is_done_in_part(&answer), "{answer:?}");
    assert_eq!(counted(&bench), ["1", "0"]);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_written_beside_what_was_is_no_reason_to_repeat_the_transaction() {
    let (bench, mut guest) = counts_in_both().await;
    let api = bench.api.clone();
    bench.api.before_each(move |method, name| api.is_down(*method == Method::PATCH && name == "b"));
    let Reply::Array(answers) = guest.asks("EXEC").await else { panic!("no array") };
    assert_eq!(answers[0], Reply::Int(1));
    assert!(matches!(&answers[1], Reply::Error(text) if text.starts_with("ERR ")), "{answers:?}");
    assert_eq!(counted(&bench), ["1", "0"]);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_of_which_nothing_is_done_may_be_repeated() {
    let (bench, mut guest) = counts_in_both().await;
    bench.api.is_down(true);
    let answer = guest.asks("EXEC").await;
    assert!(matches!(&answer, Reply::Error(text) if text.starts_with("TRYAGAIN ")), "{answer:?}");
    bench.api.is_down(false);
    assert_eq!(counted(&bench), ["0", "0"]);
    assert_eq!(guest.asks("HGET a n").await, bulk("0"));
}

#[tokio::test]
async fn a_watch_that_fails_watches_nothing_more_than_before() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    guest.asks("WATCH before").await;
    let api = bench.api.clone();
    bench.api.before_each(move |_, name| api.is_down(name == "b"));
    let Reply::Error(text) = guest.asks("WATCH a b").await else { panic!("it was answered") };
    assert!(text.starts_with("TRYAGAIN "), "{text}");
    let watched: Vec<_> = guest.client.watched.iter().map(|watched| watched.key.clone()).collect();
    assert_eq!(watched, ["before"]);
}

#[tokio::test]
async fn a_timeout_that_is_too_long_is_refused_and_the_rest_of_the_transaction_is_not() {
    for refused in ["EXPIRE k 99999999999", "GETEX k EX 99999999999", "SET k {} EX 99999999999"] {
        let bench = Bench::new();
        let mut guest = bench.guest();
        for command in ["HSET k n 0", "MULTI", "HINCRBY k n 1", refused, "HINCRBY k n 1"] {
            guest.asks(command).await;
        }
        let Reply::Array(answers) = guest.asks("EXEC").await else { panic!("{refused}: no array") };
        assert_eq!((&answers[0], &answers[2]), (&Reply::Int(1), &Reply::Int(2)));
        assert!(matches!(&answers[1], Reply::Error(text) if text.starts_with("ERR ")), "{refused}: {answers:?}");
        assert_eq!(bench.api.object("k").unwrap()["spec"], json!({"metadata": {"n": "2"}}), "{refused}");
    }
}
