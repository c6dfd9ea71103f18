//! What clients take is in their account, also what is not sent yet.

use serde_json::json;
use tokio::task::yield_now;

use crate::agent::server::Flow;
use crate::agent::testing::{Bench, Guest, bulk};
use crate::resp::Reply;

/// What clients of the bench may take.
const MEMORY: usize = 40_000;
/// Bytes of each of three sessions, which together are just less than half of that.
const EACH: usize = 6_000;
const ALL: [&str; 5] = ["MGET", "s1", "s2", "s3", "none"];

/// Three sessions that are held.
async fn bench() -> Bench {
    let bench = Bench::with_clients_memory(MEMORY);
    for name in ["s1", "s2", "s3"] {
        bench.api.put(name, &json!({"a": "x".repeat(EACH)}));
        bench.guest().asks(&format!("GET {name}")).await;
    }
    assert_eq!(bench.agent.clients.memory_bytes(), 0);
    bench
}

fn is_refused(reply: &Reply) -> bool {
    matches!(reply, Reply::Error(text) if text.starts_with("TRYAGAIN ") && text.contains("--clients-memory"))
}

/// Waits until requests take so much.
async fn taken(bench: &Bench, bytes: usize) {
    // Time stands still while this goes on, so it is turns that are counted.
    for _ in 0..100_000 {
        if bench.agent.clients.memory_bytes() >= bytes {
            return;
        }
        yield_now().await;
    }
    panic!("{} bytes in the account, and not {bytes}", bench.agent.clients.memory_bytes());
}

async fn wants(guest: &mut Guest, commands: &[&[&str]]) -> Reply {
    let mut last = Reply::Null;
    for command in commands {
        let Flow::Reply(reply) = guest.sends(command).await else { panic!("{command:?}") };
        last = reply;
    }
    last
}

/// Two clients want the same, which waits for the API server: there is room for one, but also if it takes more than half of all.
async fn only_one_at_a_time(bench: &Bench, commands: &'static [&'static [&'static str]]) {
    let (mut first, mut second) = (bench.guest(), bench.guest());
    let closed = bench.api.close().await;
    let waits = tokio::spawn(async move { wants(&mut first, commands).await });
    taken(bench, 3 * EACH).await;
    assert!(is_refused(&wants(&mut second, commands).await), "{commands:?}");
    drop(closed);
    let answer = waits.await.unwrap();
    assert!(matches!(answer, Reply::Array(_)), "{answer:?}");
    assert_eq!(bench.agent.clients.memory_bytes(), 0, "{commands:?}");
}

#[tokio::test(start_paused = true)]
async fn answers_that_wait_for_the_rest_of_them_are_in_the_account() {
    only_one_at_a_time(&bench().await, &[&ALL]).await;
}

#[tokio::test(start_paused = true)]
async fn so_is_what_a_transaction_has_read_and_made() {
    only_one_at_a_time(
        &bench().await,
        &[&["MULTI"], &["HLEN", "s1"], &["HLEN", "s2"], &["HLEN", "s3"], &["HLEN", "t"], &["EXEC"]],
    )
    .await;
    only_one_at_a_time(&bench().await, &[&["MULTI"], &["HSET", "s1", "b", ""], &["GET", "s1"], &["EXEC"]]).await;
}

#[tokio::test(start_paused = true)]
async fn a_single_request_is_carried_out_however_large_its_answer_is() {
    let bench = bench().await;
    let mut guest = bench.guest();
    let many = [&ALL[..], &ALL[1..], &ALL[1..]].concat();
    let Flow::Reply(Reply::Array(answers)) = guest.sends(&many).await else { panic!("it was refused") };
    assert_eq!(answers.len(), 12);
    assert_eq!(bench.agent.clients.memory_bytes(), 0);
}

/// A write that is to answer what was there before has that in its hands while it waits.
#[tokio::test(start_paused = true)]
async fn so_is_the_former_value_that_a_write_answers() {
    let bench = bench().await;
    let mut guest = bench.guest();
    let closed = bench.api.close().await;
    let waits = tokio::spawn(async move { guest.asks("SET s1 {} GET").await });
    taken(&bench, EACH).await;
    drop(closed);
    assert!(matches!(waits.await.unwrap(), Reply::Bulk(_)));
    assert_eq!(bench.agent.clients.memory_bytes(), 0);
}

#[tokio::test]
async fn what_is_kept_for_a_client_is_in_the_account_until_it_is_not_kept() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let long = "x".repeat(200);
    let kept = || bench.agent.clients.memory_bytes();
    for (keep, forget) in [
        (format!("CLIENT TRACKING ON BCAST PREFIX {long}"), "CLIENT TRACKING OFF"),
        (format!("WATCH {long}"), "UNWATCH"),
        (format!("WATCH {long}"), "RESET"),
        (format!("CLIENT SETNAME {long}"), "RESET"),
        (format!("HELLO 3 SETNAME {long}"), "RESET"),
    ] {
        assert!(!matches!(guest.asks(&keep).await, Reply::Error(_)), "{keep}");
        assert!(kept() >= 200, "{keep}");
        guest.asks(forget).await;
        assert_eq!(kept(), 0, "{keep}, {forget}");
    }
    for (keep, forget) in [("SUBSCRIBE", "UNSUBSCRIBE"), ("PSUBSCRIBE", "PUNSUBSCRIBE"), ("SUBSCRIBE", "RESET")] {
        guest.sends(&[keep, &long]).await;
        assert!(kept() >= 200, "{keep}");
        guest.sends(&[forget]).await;
        assert_eq!(kept(), 0, "{keep}, {forget}");
    }
    // Whoever goes takes all of it along.
    guest.asks(&format!("CLIENT SETINFO LIB-NAME {long}")).await;
    guest.sends(&["SUBSCRIBE", &long]).await;
    let handle = guest.client.handle().clone();
    bench.agent.clients.unregister(handle.id());
    crate::agent::command::disconnected(&bench.agent, &mut guest.client);
    assert_eq!((kept(), handle.memory_bytes()), (0, 0));
}

/// Refused half way, it would have been done in part.
#[tokio::test(start_paused = true)]
async fn a_deletion_of_several_for_which_there_is_no_room_deletes_none() {
    let bench = Bench::with_clients_memory(MEMORY);
    let names: Vec<String> = (0..100).map(|n| format!("d{n}")).collect();
    for name in &names {
        bench.api.put(name, &json!({"a": "1"}));
    }
    let (other, mut guest) = (bench.guest(), bench.guest());
    let all: Vec<&str> = std::iter::once("DEL").chain(names.iter().map(String::as_str)).collect();
    let taken = MEMORY / 2 - 100 * size_of::<Reply>();
    let others = other.client.handle().carry(taken).unwrap();
    let Flow::Reply(reply) = guest.sends(&all).await else { panic!("no reply") };
    assert!(is_refused(&reply), "{reply:?}");
    assert!(names.iter().all(|name| bench.api.object(name).is_some()));
    drop(others);
    assert!(matches!(guest.sends(&all).await, Flow::Reply(Reply::Int(100))));
}

#[tokio::test]
async fn a_pattern_for_many_long_names_is_bounded() {
    let bench = Bench::new();
    let mut guest = bench.guest();
    let fields: serde_json::Map<_, _> = (0..256).map(|n| (format!("{n:a>250}"), json!("v"))).collect();
    bench.api.put("k", &json!(fields));
    let answer = guest.asks(&format!("HSCAN k 0 MATCH {}", "*a".repeat(512))).await;
    assert!(matches!(answer, Reply::Error(text) if text.contains("too long for names")));
    let Reply::Array(page) = guest.asks("HSCAN k 0 MATCH *a2").await else { panic!("no page") };
    assert!(matches!(&page[1], Reply::Array(fields) if fields.len() == 2));
}

/// A write that waits for leases to end keeps what it takes until it is answered.
#[tokio::test(start_paused = true)]
async fn requests_beyond_what_may_be_carried_out_at_once_are_refused_until_others_are_done() {
    const MEMORY: usize = 20_000;
    let value = format!(r#"{{"a":"{}"}}"#, "x".repeat(3_000));
    let bench = Bench::with_clients_memory(MEMORY);
    bench.api.put("held", &json!({"f": "v"}));
    let (mut first, mut second) = (bench.guest(), bench.guest());
    assert_eq!(second.asks("HGET held f").await, bulk("v"));
    let waits = tokio::spawn(async move { first.asks(&format!("SET k {value}")).await });
    while bench.agent.clients.memory_bytes() == 0 {
        yield_now().await;
    }
    let refused = |reply: Reply| {
        let Reply::Error(text) = reply else { panic!("{reply:?}") };
        assert!(text.starts_with("TRYAGAIN ") && text.contains("--clients-memory"), "{text}");
    };
    let more = format!("HSET other f {}", "x".repeat(1_000));
    refused(second.asks(&more).await);
    assert_eq!(bench.api.object("other"), None);
    // What has been queued is a request that is carried out, too.
    second.asks("MULTI").await;
    second.asks(&more).await;
    refused(second.asks("EXEC").await);
    assert_eq!(second.client.transaction_len(), None, "nobody waits for a transaction that is still open");
    assert_eq!(bench.api.object("other"), None);
    assert_eq!(second.asks("HGET held f").await, bulk("v"), "what is held takes nothing");

    assert_eq!(waits.await.unwrap(), Reply::OK);
    assert_eq!(bench.agent.clients.memory_bytes(), 0);
    assert_eq!(second.asks(&more).await, Reply::Int(1));
    second.asks("MULTI").await;
    second.asks("HSET other f v").await;
    assert_eq!(second.asks("EXEC").await, Reply::Array(vec![Reply::Int(0)]));
    assert_eq!(bench.agent.clients.memory_bytes(), 0);
}

/// A monitor that divides the one by the other is told how full the cache is, whatever the process takes besides.
#[tokio::test]
async fn what_is_used_is_told_of_what_maxmemory_bounds() {
    let bench = bench().await;
    let Reply::Verbatim(_, text) = bench.guest().asks("INFO memory").await else { panic!("INFO") };
    let figure = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("{name}: {text}")).parse::<usize>().unwrap()
    };
    let copies = bench.agent.sessions.cache().state().bytes;
    assert!(copies >= 3 * EACH);
    assert_eq!((figure("used_memory"), figure("used_memory_dataset")), (copies, copies));
    assert!(figure("used_memory_rss") > copies);
}
