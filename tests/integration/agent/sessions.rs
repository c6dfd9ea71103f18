//! Sessions through agents as processes: what is written to etcd, what ends when, what is true in one pod only, and what is
//! said when nothing can be vouched for.

use std::time::Instant;

use testkit::{AuditMark, Verb, eventually};
use vmcp_session::agent::sessions::now_millis;

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

/// Requests of pods for the object since `mark`.
async fn requests(world: &World, mark: AuditMark, name: &str) -> Vec<Verb> {
    world.plane.apiserver().audit_flush().await.unwrap();
    let entries = world.plane.audit().requests_since(mark).unwrap();
    let ours = entries.into_iter().filter(|e| e.name == name && e.user.ends_with(":vmcp-server"));
    ours.map(|e| e.verb).collect()
}

async fn evictions(agent: &AgentPod) -> f64 {
    let mut sum = 0.0;
    for reason in ["stale", "gone", "foreign", "capacity", "reset"] {
        sum += agent.metric(&format!("vmcp_agent_evictions_total{{reason=\"{reason}\"}}")).await.unwrap();
    }
    sum
}

/// A vMCP server that restores its session, and writes the id of its own connection into it: all of it, as it would to Redis.
async fn restore_and_write(client: &mut RespClient, key: &str, connection: &str) {
    let session = ask(client, &["GET", key]).await;
    let mut session: serde_json::Value = serde_json::from_str(session.text().unwrap()).unwrap();
    session["conn-weather"] = connection.into();
    assert_eq!(ask(client, &["SET", key, &session.to_string(), "EX", "1800", "XX"]).await, ok());
    let seen = ask(client, &["HGET", key, "conn-weather"]).await;
    assert!(seen.text().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pod_local_keys_make_the_difference_between_quiet_and_a_storm() {
    const ROUNDS: usize = 30;
    let world = world().await;
    let local = || AgentOptions::default().args(&["--pod-local-keys=conn-*"]);
    let (first, second) = tokio::join!(agent(&world, "agent-1", local()), agent(&world, "agent-2", local()));
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    ask(&mut a, &["SET", "quiet", r#"{"user":"alice"}"#, "EX", "1800", "NX"]).await;
    held(&first, &mut a, "quiet").await;
    held(&second, &mut b, "quiet").await;
    let mark = world.plane.audit().mark().unwrap();
    for round in 0..ROUNDS {
        restore_and_write(&mut a, "quiet", &format!("a{round}")).await;
        restore_and_write(&mut b, "quiet", &format!("b{round}")).await;
    }
    assert_eq!((evictions(&first).await, evictions(&second).await), (0.0, 0.0), "with the option: no eviction at all");
    let writes = requests(&world, mark, "quiet").await.into_iter().filter(|verb| verb.is_write()).count();
    assert_eq!(writes, 0, "and nothing was written");
    assert!(ask(&mut a, &["HGET", "quiet", "conn-weather"]).await.is(&format!("a{}", ROUNDS - 1)));
    assert!(ask(&mut b, &["HGET", "quiet", "conn-weather"]).await.is(&format!("b{}", ROUNDS - 1)));
    let object = world.kubectl(&["get", "vmcps", "quiet", "-o", "json"]).await.unwrap();
    assert!(!object.contains("conn-"), "{object}");

    // Every key is shared: each write evicts the other pod's copy. It is told, with the key and who writes it.
    let (third, fourth) = tokio::join!(
        agent(&world, "agent-3", AgentOptions::default()),
        agent(&world, "agent-4", AgentOptions::default())
    );
    let (mut c, mut d) = (third.client().await.unwrap(), fourth.client().await.unwrap());
    ask(&mut c, &["SET", "storm", r#"{"user":"alice"}"#, "EX", "1800", "NX"]).await;
    let deadline = Instant::now() + MINUTE * 3;
    while world.events("storm", "EvictionStorm").await.is_empty() {
        assert!(Instant::now() < deadline, "the storm is not told");
        for round in 0..5 {
            restore_and_write(&mut c, "storm", &format!("c{round}")).await;
            restore_and_write(&mut d, "storm", &format!("d{round}")).await;
        }
    }
    let evicted = (evictions(&third).await, evictions(&fourth).await);
    // Each is told of the other's writes, but for those before it held a copy.
    assert!(evicted.0 >= 3.0 && evicted.1 >= 3.0, "{evicted:?}");
    let events = world.events("storm", "EvictionStorm").await;
    let note = events[0]["message"].as_str().unwrap();
    assert!(note.contains("conn-weather") && note.contains("vmcp/agent-"), "{note}");
    assert!(world.events("quiet", "EvictionStorm").await.is_empty());
    assert_eq!((evictions(&first).await, evictions(&second).await), (0.0, 0.0), "nobody else is disturbed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn getex_writes_nothing_to_etcd() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default()).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["SET", "s1", r#"{"user":"alice"}"#, "EX", "1800", "NX"]).await;
    held(&agent, &mut client, "s1").await;
    let mark = world.plane.audit().mark().unwrap();
    for _ in 0..500 {
        assert!(ask(&mut client, &["GETEX", "s1", "EX", "1800"]).await.is(r#"{"user":"alice"}"#));
    }
    assert_eq!(ask(&mut client, &["GETEX", "s1", "PX", "1800000"]).await, r#"{"user":"alice"}"#.into());
    // A lease may have ended meanwhile on a busy machine: a copy is then read again, but never written.
    let asked = requests(&world, mark, "s1").await;
    assert!(asked.iter().all(|verb| !verb.is_write()), "{asked:?}");
    assert!(asked.len() < 50, "{} requests for 501 GETEX", asked.len());

    // Another timeout must be written, once, and evicts nobody.
    let mark = world.plane.audit().mark().unwrap();
    for _ in 0..10 {
        ask(&mut client, &["GETEX", "s1", "EX", "3600"]).await;
    }
    let asked = requests(&world, mark, "s1").await;
    assert_eq!(asked.iter().filter(|verb| verb.is_write()).count(), 1, "{asked:?}");
    assert!(evictions(&agent).await < 1.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_timeout_is_kept_to_the_millisecond_on_both_pods() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    // As a server that reserves an id: the placeholder is there until its time is over, and then it is not.
    let begun = Instant::now();
    assert_eq!(ask(&mut a, &["SET", "s1", "{}", "PX", "1500", "NX"]).await, ok());
    let Resp::Int(ends) = ask(&mut a, &["PEXPIRETIME", "s1"]).await else { panic!("no time") };
    loop {
        let sent = i64::try_from(now_millis()).unwrap();
        let answer = ask(&mut b, &["GET", "s1"]).await;
        if answer == Resp::Null {
            assert!(begun.elapsed() >= Duration::from_millis(1_500), "it ended early");
            break;
        }
        assert!(answer.is("{}") && sent < ends, "served to a request that came {} ms after its end", sent - ends);
    }
    assert_eq!(ask(&mut a, &["SET", "s1", "{}", "PX", "1500", "NX"]).await, ok(), "the id is free again");

    assert_eq!(ask(&mut b, &["PEXPIRE", "s1", "90500"]).await, Resp::Int(1));
    let Resp::Int(at_a) = ask(&mut a, &["PEXPIRETIME", "s1"]).await else { panic!("no time") };
    let Resp::Int(at_b) = ask(&mut b, &["PEXPIRETIME", "s1"]).await else { panic!("no time") };
    assert_eq!(at_a, at_b);
    let Resp::Int(left) = ask(&mut a, &["PTTL", "s1"]).await else { panic!("no time") };
    assert!(left > 60_000 && left <= 90_500, "{left}");
    assert_eq!(ask(&mut a, &["PERSIST", "s1"]).await, Resp::Int(1));
    assert_eq!(ask(&mut b, &["TTL", "s1"]).await, Resp::Int(-1), "a client that goes round sees it at once");
    assert_eq!(ask(&mut b, &["EXPIREAT", "s1", "1"]).await, Resp::Int(1));
    assert_eq!(ask(&mut a, &["EXISTS", "s1"]).await, Resp::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_server_the_answer_is_to_try_again_and_never_that_a_session_is_missing() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default()).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["SET", "s1", r#"{"user":"canary-7f3a"}"#, "EX", "1800"]).await;
    held(&agent, &mut client, "s1").await;
    world.plane.apiserver().kill9().await.unwrap();
    let commands: [&[&str]; 8] = [
        &["GET", "s1"],
        &["GET", "s2"],
        &["HGETALL", "s1"],
        &["EXISTS", "s2"],
        &["TTL", "s1"],
        &["SET", "s1", r#"{"user":"bob"}"#, "XX"],
        &["SET", "s2", "{}", "NX"],
        &["DEL", "s1"],
    ];
    let refused = |answer: &Resp| answer.error().is_some_and(|text| text.starts_with("TRYAGAIN "));
    // Until the lease ends, what is held is served; from then on nothing is.
    let deadline = Instant::now() + MINUTE;
    loop {
        let answer = client.call(&["GET", "s1"]).await.unwrap();
        if refused(&answer) {
            break;
        }
        assert!(answer.is(r#"{"user":"canary-7f3a"}"#), "{answer:?}");
        assert!(Instant::now() < deadline, "it is served although nobody vouches for it");
    }
    for command in commands {
        let answer = client.call(command).await.unwrap();
        assert!(refused(&answer), "{command:?}: {answer:?}");
        assert!(!answer.error().unwrap().contains("canary"), "{answer:?}");
    }
    world.plane.apiserver().restart().await.unwrap();
    until(&mut client, &["GET", "s1"], |answer| answer.text().is_some()).await;
    eventually(PATIENCE, "the session can be deleted", async || {
        let mut client = agent.client().await.ok()?;
        client.call(&["DEL", "s1"]).await.ok()?.error().is_none().then_some(())
    })
    .await
    .unwrap();
    until(&mut client, &["GET", "s1"], |answer| *answer == Resp::Null).await;
    let log = agent.process.log();
    for kind in ["reads", "writes"] {
        let said = |what: &str| log.lines().filter(|line| line.contains(what) && line.contains(kind)).count();
        let (failing, answered) = (said("requests to the API server fail"), said("are answered again"));
        assert!(
            (1..=5).contains(&failing) && (1..=failing).contains(&answered),
            "{kind}: {failing}, {answered}\n{log}"
        );
    }
    assert!(!log.contains("canary"));
}
