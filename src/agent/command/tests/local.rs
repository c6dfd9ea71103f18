//! What is true only in this pod concerns no other one.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::agent::testing::{Bench, Guest, Writes, bulk};
use crate::cache::CacheConfig;
use crate::resp::Reply;

/// How long the answer to a command takes.
async fn takes(guest: &mut Guest, command: &str) -> Duration {
    let begun = Instant::now();
    let answer = guest.asks(command).await;
    assert!(!matches!(answer, Reply::Error(_)), "{command}: {answer:?}");
    begun.elapsed()
}

/// Nobody can be asked here: what is confirmed takes as long as leases last.
#[tokio::test(start_paused = true)]
async fn a_write_of_what_is_true_only_in_this_pod_waits_for_nobody() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::with_pod_local_keys(&["conn"]);
    let mut guest = bench.guest();
    assert!(takes(&mut guest, r#"SET k {"a":"1","conn":"1"}"#).await >= lease);
    let before = bench.api.object("k");
    for (command, conn) in [
        ("HSET k conn 2", r#","conn":"2""#),
        ("HSET k conn 2", r#","conn":"2""#),
        ("HINCRBY k conn 1", r#","conn":"3""#),
        (r#"SET k {"a":"1","conn":"4"}"#, r#","conn":"4""#),
        ("HDEL k conn", ""),
        ("HSETNX k conn 5", r#","conn":"5""#),
        (r#"SET k {"a":"1"} GET"#, ""),
    ] {
        assert_eq!(takes(&mut guest, command).await, Duration::ZERO, "{command}");
        assert_eq!(guest.asks("GET k").await, bulk(&format!(r#"{{"a":"1"{conn}}}"#)), "{command}");
    }
    for command in ["MULTI", "HSET k conn 6", "HSET k a 1", "EXEC"] {
        assert_eq!(takes(&mut guest, command).await, Duration::ZERO, "{command}");
    }
    assert_eq!(bench.api.object("k"), before);
    assert!(takes(&mut guest, r#"SET k {"a":"2","conn":"6"}"#).await >= lease);
}

/// What commands do not name, they do not rely on.
#[tokio::test(start_paused = true)]
async fn so_does_one_beside_what_others_wrote_if_it_names_only_such_fields() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::with_pod_local_keys(&["conn"]);
    bench.api.put("k", &json!({"a": "1"}));
    let mut guest = bench.guest();
    for command in ["HSET k conn 1", "HSET k conn 1", "HINCRBY k conn 1", "HDEL k conn", "HSETNX k conn 5"] {
        assert_eq!(takes(&mut guest, command).await, Duration::ZERO, "{command}");
    }
    for command in ["HSET k conn 8 a 1", "HDEL k conn none"] {
        bench.api.merge("k", &json!({"spec": {"metadata": {"by": command}}}));
        guest.asks("TTL k").await;
        assert_eq!(takes(&mut guest, "HSET k conn 7").await, Duration::ZERO);
        assert!(takes(&mut guest, command).await >= lease, "{command}");
    }
}

/// Who repeats a write relies on all of it.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_attempt_has_written_is_waited_for_beside_what_is_true_only_in_this_pod() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::with_pod_local_keys(&["conn"]);
    let mut guest = bench.guest();
    guest.asks("HSET k a 1").await;
    for (n, command) in ["HSET k a 2 conn 2", r#"SET k {"a":"3","conn":"3"}"#].into_iter().enumerate() {
        bench.api.answers(Writes::Unanswered);
        assert!(matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        bench.api.answers(Writes::Answered);
        assert_eq!(bench.api.object("k").unwrap()["spec"]["metadata"]["a"], (n + 2).to_string());
        assert!(takes(&mut guest, command).await >= lease, "{command}");
        assert_eq!(takes(&mut guest, command).await, Duration::ZERO, "{command}");
    }
    // Nor has one whose client has gone been confirmed before leases are over.
    for command in ["HSET k a 4 conn 4", r#"SET k {"a":"5","conn":"5"}"#] {
        assert!(timeout(lease / 2, guest.asks(command)).await.is_err(), "{command}");
        assert!(takes(&mut guest, command).await >= lease / 2, "{command}");
    }
}
