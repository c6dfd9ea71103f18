//! Deletions whose answer was lost, and that are repeated.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use crate::agent::testing::{Bench, Guest, Writes};
use crate::cache::{CacheConfig, Visibility};
use crate::resp::Reply;

/// A session `a` is made and ended by this command, whose answer is lost; a signal has dropped the copy by then.
async fn loses_the_answer_to_a_deletion(bench: &Bench, guest: &mut Guest, command: &str) {
    bench.api.put("a", &json!({"f": "v"}));
    bench.api.answers(Writes::Unanswered);
    let Reply::Error(text) = guest.asks(command).await else { panic!("{command}") };
    assert!(text.starts_with("TRYAGAIN "), "{command}: {text}");
    assert_eq!(bench.api.object("a"), None);
    bench.api.answers(Writes::Answered);
    assert_eq!(guest.asks("TTL a").await, Reply::Int(-2));
}

/// Nobody can be asked here: what is confirmed takes as long as leases last.
#[tokio::test(start_paused = true)]
async fn what_ends_a_session_and_is_repeated_after_a_lost_answer_is_confirmed() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::showing(Visibility::Everywhere);
    let mut guest = bench.guest();
    let ends = ["DEL a", "UNLINK a", "HDEL a f", "EXPIRE a 0", "PEXPIREAT a 1"];
    for command in ends {
        // What nobody has deleted need not be waited for.
        let begun = Instant::now();
        assert_eq!(guest.asks(command).await, Reply::Int(0));
        assert_eq!(begun.elapsed(), Duration::ZERO, "{command}");

        loses_the_answer_to_a_deletion(&bench, &mut guest, command).await;
        let begun = Instant::now();
        assert_eq!(guest.asks(command).await, Reply::Int(0), "{command}");
        assert!(begun.elapsed() >= lease, "{command}: {:?}", begun.elapsed());
    }
    // Also what clients do not repeat by themselves.
    for repeated in ["GETDEL a", "GETEX a PXAT 1", "SET a {} PXAT 1", "SET a {} XX PXAT 1"] {
        loses_the_answer_to_a_deletion(&bench, &mut guest, "DEL a").await;
        let begun = Instant::now();
        guest.asks(repeated).await;
        assert!(begun.elapsed() >= lease, "{repeated}: {:?}", begun.elapsed());
    }
    loses_the_answer_to_a_deletion(&bench, &mut guest, "DEL a").await;
    let begun = Instant::now();
    guest.asks("MULTI").await;
    guest.asks("DEL a").await;
    assert_eq!(guest.asks("EXEC").await, Reply::Array(vec![Reply::Int(0)]));
    assert!(begun.elapsed() >= lease, "EXEC: {:?}", begun.elapsed());
}

/// What a later attempt is answered says nothing of an earlier one whose answer was lost.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_may_have_been_done_before_it_was_refused_is_not_known() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::showing(Visibility::Everywhere);
    let mut guest = bench.guest();
    for (command, code) in [("DEL a", "TRYAGAIN "), ("GETDEL a", "ERR ")] {
        bench.api.put("a", &json!({"f": "v"}));
        guest.asks("GET a").await;
        bench.api.answers(Writes::LastUnanswered);
        let Reply::Error(text) = guest.asks(command).await else { panic!("{command}") };
        assert!(text.starts_with(code) && text.contains("not known whether"), "{command}: {text}");
        assert_eq!(bench.api.object("a"), None);
        // The copy that is still there leads to one more that is refused.
        assert!(matches!(guest.asks(command).await, Reply::Error(_)), "{command}");
        bench.api.is_down(false);
        bench.api.answers(Writes::Answered);
        assert_eq!(guest.asks("TTL a").await, Reply::Int(-2));
        let begun = Instant::now();
        guest.asks(command).await;
        assert!(begun.elapsed() >= lease, "{command}: {:?}", begun.elapsed());
    }
}

/// A client that goes away while its deletion is being confirmed, and comes back.
#[tokio::test(start_paused = true)]
async fn a_deletion_that_nobody_waited_for_is_confirmed_when_it_is_repeated() {
    let lease = CacheConfig::new("", "").lease_upper_bound;
    let bench = Bench::showing(Visibility::Everywhere);
    bench.api.put("a", &json!({"f": "v"}));
    let mut guest = bench.guest();
    assert!(tokio::time::timeout(lease / 2, guest.asks("DEL a")).await.is_err());
    assert_eq!(bench.api.object("a"), None);
    let begun = Instant::now();
    assert_eq!(bench.guest().asks("DEL a").await, Reply::Int(0));
    let waited = begun.elapsed();
    assert!(waited >= lease / 2 && waited < lease, "a lease since the first, not another one: {waited:?}");
    let begun = Instant::now();
    assert_eq!(bench.guest().asks("DEL a").await, Reply::Int(0));
    assert_eq!(begun.elapsed(), Duration::ZERO, "once is enough");
}
