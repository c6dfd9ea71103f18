//! What is true only in this pod concerns no other one.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

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
async fn a_command_of_what_is_true_only_in_this_pod_waits_for_nobody() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::with_pod_local_keys(&["conn"]);
    let mut guest = bench.guest();
    assert!(takes(&mut guest, r#"SET k {"a":"1","conn":"1"}"#).await >= lease);
    let before = bench.api.object("k");
    for (command, conn) in [
        ("HSET k conn 2", r#","conn":"2""#),
        ("HSET k conn 2", r#","conn":"2""#),
        ("HINCRBY k conn 1", r#","conn":"3""#),
        ("HDEL k conn", ""),
        ("HSETNX k conn 5", r#","conn":"5""#),
    ] {
        assert_eq!(takes(&mut guest, command).await, Duration::ZERO, "{command}");
        assert_eq!(guest.asks("GET k").await, bulk(&format!(r#"{{"a":"1"{conn}}}"#)), "{command}");
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

/// With another pod's change, a copy comes without what was true in this pod before. What is written is true all the same.
#[tokio::test(start_paused = true)]
async fn what_is_written_anew_beside_somebody_elses_change_is_there() {
    for command in [r#"SET k {"a":"2","conn":"1"}"#, r#"SET k {"a":"2","conn":"1"} XX"#] {
        let bench = Bench::with_pod_local_keys(&["conn*"]);
        let mut guest = bench.guest();
        guest.asks(r#"SET k {"a":"1","conn":"1","conn-2":"1"}"#).await;
        bench.api.merge("k", &json!({"spec": {"metadata": {"b": "other"}}}));
        assert_eq!(guest.asks(command).await, Reply::OK);
        assert_eq!(guest.asks("GET k").await, bulk(r#"{"a":"2","b":"other","conn":"1"}"#), "{command}");
    }
}

#[tokio::test]
async fn a_renewal_of_which_nobody_knows_whether_it_was_written_takes_nothing_away() {
    let bench = Bench::with_pod_local_keys(&["conn*"]);
    let mut guest = bench.guest();
    bench.api.put("k", &json!({"a": "1"}));
    bench.api.merge("k", &json!({"spec": {"idleTimeoutSeconds": 60}}));
    guest.asks("HSET k conn 17").await;
    bench.agent.sessions.cache().unheard_for_tests();
    bench.api.answers(Writes::Unanswered);
    assert!(matches!(guest.asks("EXPIRE k 60").await, Reply::Error(_)));
    assert_eq!(guest.asks("HGET k conn").await, bulk("17"));
    // Another timeout is another matter.
    assert!(matches!(guest.asks("PEXPIRE k 90500").await, Reply::Error(_)));
    assert_eq!(guest.asks("HGET k conn").await, Reply::Null);
}
