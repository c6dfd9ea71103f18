//! Timeouts that other agents must be told of, and of which nobody knows whether they were.

use std::time::Duration;

use serde_json::json;
use tokio::join;
use tokio::time::{Instant, sleep, timeout};

use crate::agent::testing::{Bench, Guest, Writes};
use crate::cache::{CacheConfig, Visibility};
use crate::resp::Reply;

/// How long others may go by what they have: nobody can be asked here, so to tell them takes that long.
fn lease() -> Duration {
    CacheConfig::new("", "").lease_upper_bound
}

/// How long the answer to a command takes.
async fn takes(guest: &mut Guest, command: &str) -> Duration {
    let begun = Instant::now();
    let answer = guest.asks(command).await;
    assert!(!matches!(answer, Reply::Error(_)), "{command}: {answer:?}");
    begun.elapsed()
}

/// A session with a timeout of half an hour.
async fn has_a_timeout() -> (Bench, Guest) {
    let bench = Bench::showing(Visibility::Everywhere);
    let mut guest = bench.guest();
    guest.asks(r#"SET k {"a":"1"} EX 1800"#).await;
    (bench, guest)
}

async fn loses_the_answer(bench: &Bench, guest: &mut Guest, command: &str) {
    bench.api.answers(Writes::Unanswered);
    let Reply::Error(text) = guest.asks(command).await else { panic!("{command}: it was answered") };
    assert!(text.contains("not known whether"), "{command}: {text}");
    bench.api.answers(Writes::Answered);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_may_have_been_set_is_told_when_it_is_set_once_more_or_asked_for() {
    for (lost, again) in [
        ("EXPIRE k 60", "EXPIRE k 60"),
        ("EXPIRE k 60", "GETEX k EX 60"),
        ("GETEX k EX 60", "EXPIRE k 60"),
        ("EXPIRE k 60 LT", "TTL k"),
        ("PERSIST k", "PERSIST k"),
        (r#"SET k {"a":"2"} EX 60"#, "EXPIRE k 60"),
    ] {
        let (bench, mut guest) = has_a_timeout().await;
        loses_the_answer(&bench, &mut guest, lost).await;
        // It is as it was meant to be, as far as this agent knows.
        assert_eq!(takes(&mut guest, "GET k").await, Duration::ZERO);
        assert!(takes(&mut guest, again).await >= lease(), "{lost}, {again}");
        assert_eq!(takes(&mut guest, again).await, Duration::ZERO, "{lost}, {again}: once is enough");
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_was_set_and_not_told_yet_is_told_to_whoever_sets_it_then() {
    let (bench, mut guest) = has_a_timeout().await;
    assert!(timeout(lease() / 2, guest.asks("EXPIRE k 60")).await.is_err());
    assert_eq!(bench.api.object("k").unwrap()["spec"]["idleTimeoutSeconds"], 60);
    assert!(takes(&mut bench.guest(), "EXPIRE k 60").await >= lease() / 2);
    assert_eq!(takes(&mut bench.guest(), "EXPIRE k 60").await, Duration::ZERO);
}

/// Else two clients that renew one session would keep each other writing, and waiting.
#[tokio::test(start_paused = true)]
async fn what_sets_a_timeout_once_more_makes_nobody_else_do_so() {
    let (bench, mut setter) = has_a_timeout().await;
    let [mut repeater, mut last] = [(); 2].map(|()| bench.guest());
    let repeated = async {
        sleep(lease() / 2).await;
        takes(&mut repeater, "GETEX k EX 60").await
    };
    let when_it_was_told = async {
        sleep(lease() * 5 / 4).await;
        takes(&mut last, "GETEX k EX 60").await
    };
    let (set, repeated, last) = join!(takes(&mut setter, "EXPIRE k 60"), repeated, when_it_was_told);
    assert!(set < lease() * 5 / 4 && repeated >= lease());
    assert_eq!(last, Duration::ZERO);
}

/// It says all that the first one did.
#[tokio::test(start_paused = true)]
async fn what_sets_a_timeout_once_more_is_sent_once_more() {
    let (bench, mut guest) = has_a_timeout().await;
    let set = r#"SET k {"a":"2"} EX 60"#;
    loses_the_answer(&bench, &mut guest, set).await;
    let version = || bench.api.object("k").unwrap()["metadata"]["resourceVersion"].clone();
    for is_sent in [true, false] {
        let before = version();
        takes(&mut guest, set).await;
        assert_eq!(version() != before, is_sent);
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_that_was_refused_keeps_nobody_from_renewing_in_memory() {
    let (bench, mut guest) = has_a_timeout().await;
    bench.api.is_down(true);
    assert!(matches!(guest.asks("EXPIRE k 60").await, Reply::Error(_)));
    assert_eq!(takes(&mut guest, "GETEX k EX 1800").await, Duration::ZERO);
    bench.api.is_down(false);
    assert_eq!(bench.api.object("k").unwrap()["spec"], json!({"metadata": {"a": "1"}, "idleTimeoutSeconds": 1800}));
}
