//! Client-side caching: who keeps copies of its own is told when they are over.

use serde_json::json;
use testkit::ProxyMode;

use super::*;

/// What is told of a key; all keys, if there is none.
fn invalidate(key: Option<&str>) -> Resp {
    let keys = key.map_or(Resp::Null, |key| Resp::Array(vec![key.into()]));
    Resp::Push(vec!["invalidate".into(), keys])
}

/// Waits for the next message, and says what it is.
async fn told(client: &mut RespClient) -> Resp {
    client.push(PATIENCE).await.unwrap().expect("nothing came")
}

/// A client that speaks RESP3 and tracks.
async fn tracking(agent: &AgentPod, options: &[&str]) -> RespClient {
    let mut client = agent.client3().await.unwrap();
    assert_eq!(ask(&mut client, &[&["CLIENT", "TRACKING", "ON"], options].concat()).await, ok());
    client
}

/// Reads a key, covered by a lease, so that the client may keep it. What it was told before is forgotten.
async fn keep(agent: &AgentPod, client: &mut RespClient, key: &str) {
    held(agent, client, key).await;
    client.pushes().await.unwrap();
    ask(client, &["GET", key]).await;
    assert_eq!(client.pushes().await.unwrap(), [], "{key} is covered");
}

#[tokio::test]
async fn what_was_read_is_told_of_wherever_it_changes() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let mut client = tracking(&first, &[]).await;
    let mut other = first.client().await.unwrap();
    let mut elsewhere = second.client().await.unwrap();
    for key in ["s1", "s2"] {
        ask(&mut other, &["HSET", key, "n", "0"]).await;
    }
    assert_eq!(client.pushes().await.unwrap(), [], "nothing was read");

    // By another client of this pod, of another pod, and of Kubernetes. Once, until it is read again.
    keep(&first, &mut client, "s1").await;
    ask(&mut other, &["HSET", "s1", "n", "1"]).await;
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));
    ask(&mut other, &["HSET", "s1", "n", "2"]).await;
    ask(&mut other, &["HSET", "s2", "n", "2"]).await;
    assert_eq!(client.pushes().await.unwrap(), []);
    keep(&first, &mut client, "s1").await;
    ask(&mut elsewhere, &["HSET", "s1", "n", "3"]).await;
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));
    keep(&first, &mut client, "s1").await;
    world.patch("s1", &json!({"n": "4"})).await.unwrap();
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));

    // By itself, unless it asked not to be told.
    keep(&first, &mut client, "s1").await;
    ask(&mut client, &["HSET", "s1", "n", "5"]).await;
    // When it takes effect, and perhaps again behind the answer.
    let mut pushes = client.pushes().await.unwrap();
    pushes.dedup();
    assert_eq!(pushes, [invalidate(Some("s1"))]);
    ask(&mut client, &["CLIENT", "TRACKING", "ON", "NOLOOP"]).await;
    keep(&first, &mut client, "s1").await;
    ask(&mut client, &["HSET", "s1", "n", "6"]).await;
    assert_eq!(client.pushes().await.unwrap(), []);
    // It may keep what it wrote, so it is told of what comes next.
    world.patch("s1", &json!({"n": "7"})).await.unwrap();
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));

    // Nobody would say that a session has come, so that there is none must not be kept.
    assert_eq!(ask(&mut client, &["GET", "s3"]).await, Resp::Null);
    assert_eq!(client.pushes().await.unwrap(), [invalidate(Some("s3"))]);

    // The end of a session.
    keep(&first, &mut client, "s1").await;
    world.kubectl(&["delete", "vmcps", "s1"]).await.unwrap();
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));

    // Not any more.
    keep(&first, &mut client, "s2").await;
    ask(&mut client, &["CLIENT", "TRACKING", "OFF"]).await;
    ask(&mut other, &["HSET", "s2", "n", "8"]).await;
    assert_eq!(client.pushes().await.unwrap(), []);
}

#[tokio::test]
async fn each_way_to_track_is_told_of_what_it_asked_for() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default()).await;
    let mut other = agent.client().await.unwrap();
    for key in ["a1", "a2", "b1"] {
        ask(&mut other, &["HSET", key, "n", "0"]).await;
    }
    let change = async |other: &mut RespClient| {
        for key in ["a1", "a2", "b1"] {
            ask(other, &["HSET", key, "n", "1"]).await;
        }
    };

    let mut opt_in = tracking(&agent, &["OPTIN"]).await;
    let mut opt_out = tracking(&agent, &["OPTOUT"]).await;
    for client in [&mut opt_in, &mut opt_out] {
        held(&agent, client, "a1").await;
        held(&agent, client, "a2").await;
        client.pushes().await.unwrap();
    }
    ask(&mut opt_in, &["CLIENT", "CACHING", "YES"]).await;
    ask(&mut opt_in, &["GET", "a1"]).await;
    ask(&mut opt_in, &["GET", "a2"]).await;
    change(&mut other).await;
    assert_eq!(opt_in.pushes().await.unwrap(), [invalidate(Some("a1"))]);
    opt_out.pushes().await.unwrap();
    ask(&mut opt_out, &["GET", "a1"]).await;
    ask(&mut opt_out, &["CLIENT", "CACHING", "NO"]).await;
    ask(&mut opt_out, &["GET", "a2"]).await;
    change(&mut other).await;
    assert_eq!(opt_out.pushes().await.unwrap(), [invalidate(Some("a1"))]);

    // By prefix, whatever was read.
    let mut by_prefix = tracking(&agent, &["BCAST", "PREFIX", "a"]).await;
    let mut everything = tracking(&agent, &["BCAST"]).await;
    change(&mut other).await;
    assert_eq!(by_prefix.pushes().await.unwrap(), [invalidate(Some("a1")), invalidate(Some("a2"))]);
    assert_eq!(everything.pushes().await.unwrap().len(), 3);
    held(&agent, &mut other, "b1").await;
    world.patch("b1", &json!({"n": "2"})).await.unwrap();
    assert_eq!(told(&mut everything).await, invalidate(Some("b1")));
    assert_eq!(by_prefix.pushes().await.unwrap(), []);

    // RESP2, through another connection.
    let mut listener = agent.client().await.unwrap();
    let Resp::Int(id) = ask(&mut listener, &["CLIENT", "ID"]).await else { panic!("no id") };
    ask(&mut listener, &["SUBSCRIBE", "__redis__:invalidate"]).await;
    let mut old = agent.client().await.unwrap();
    ask(&mut old, &["CLIENT", "TRACKING", "ON", "REDIRECT", &id.to_string()]).await;
    held(&agent, &mut old, "a1").await;
    world.patch("a1", &json!({"n": "3"})).await.unwrap();
    let message =
        |key: &str| Resp::Array(vec!["message".into(), "__redis__:invalidate".into(), Resp::Array(vec![key.into()])]);
    loop {
        // What came while the copy was not covered yet is of the same form.
        let told = told(&mut listener).await;
        assert_eq!(told, message("a1"));
        if agent.metric("vmcp_agent_evictions_total{reason=\"stale\"}").await.unwrap() >= 2.0 {
            break;
        }
    }

    // RESP3, with a listener that goes away.
    let mut redirecting = tracking(&agent, &["REDIRECT", &id.to_string()]).await;
    held(&agent, &mut redirecting, "a2").await;
    drop(listener);
    until(&mut redirecting, &["CLIENT", "TRACKINGINFO"], |info| format!("{info:?}").contains("broken_redirect")).await;
    ask(&mut other, &["HSET", "a2", "n", "9"]).await;
    let broken = Resp::Push(vec!["tracking-redir-broken".into(), Resp::Int(id)]);
    while told(&mut redirecting).await != broken {}
}

#[tokio::test]
async fn nothing_is_kept_when_nobody_vouches_for_it() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default().proxied()).await;
    let mut client = tracking(&agent, &[]).await;
    let mut by_prefix = tracking(&agent, &["BCAST", "PREFIX", "zzz"]).await;
    ask(&mut client, &["HSET", "s1", "n", "0"]).await;
    keep(&agent, &mut client, "s1").await;
    by_prefix.pushes().await.unwrap();

    // Silence. The leases run out.
    for stream in &agent.streams {
        stream.set(ProxyMode::Blackhole).await.unwrap();
    }
    assert_eq!(told(&mut client).await, invalidate(None), "all of it is over");
    assert_eq!(told(&mut by_prefix).await, invalidate(None));
    let left = agent.metric("vmcp_agent_leased_seconds").await.unwrap();
    assert!(left < LEASE.as_secs_f64() / 10.0, "told too early: {left} s are left");

    // Without a lease it is served, but not to be kept.
    ask(&mut client, &["GET", "s1"]).await;
    assert_eq!(told(&mut client).await, invalidate(Some("s1")));
    // Nor by an application that reads on one connection and is told on another.
    let mut listener = tracking(&agent, &["BCAST", "PREFIX", "s"]).await;
    let mut reader = agent.client().await.unwrap();
    for read in [&[&["GET", "s1"][..]][..], &[&["MULTI"], &["HGETALL", "s1"], &["EXEC"]]] {
        for command in read {
            ask(&mut reader, command).await;
        }
        assert_eq!(told(&mut listener).await, invalidate(Some("s1")), "{read:?}");
    }

    // Without the API server it is not served, and that there is none is not said either.
    agent.api.as_ref().unwrap().set(ProxyMode::Blackhole).await.unwrap();
    for key in ["s1", "s2"] {
        let refused = |answer: &Resp| {
            assert_ne!(*answer, Resp::Null);
            answer.error().is_some_and(|text| text.starts_with("TRYAGAIN "))
        };
        // Clients are told a little ahead of the end.
        until(&mut client, &["GET", key], refused).await;
    }
    eventually(PATIENCE, "it is not ready", async || (agent.admin("/readyz").await.ok()?.0 == 503).then_some(()))
        .await
        .unwrap();
    assert_eq!(agent.admin("/livez").await.unwrap().0, 200);
}

#[tokio::test]
async fn who_writes_is_told_of_what_others_wrote_even_if_it_does_not_want_to_hear_of_itself() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default().proxied().args(&["--visibility=committed"])).await;
    let mut client = tracking(&agent, &["NOLOOP"]).await;
    ask(&mut client, &["HSET", "s1", "mine", "0", "theirs", "0"]).await;
    keep(&agent, &mut client, "s1").await;
    // The eviction does not arrive, and the answer to the next write is what tells of the change.
    for stream in &agent.streams {
        stream.set(ProxyMode::Blackhole).await.unwrap();
    }
    world.patch("s1", &json!({"theirs": "1"})).await.unwrap();
    ask(&mut client, &["HSET", "s1", "mine", "1"]).await;
    // That no lease covers anything any more may be told before it, and does not count.
    while told(&mut client).await != invalidate(Some("s1")) {}
}
