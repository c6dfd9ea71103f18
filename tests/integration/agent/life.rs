//! From start to end: sessions written and read through two agents, changed behind their backs, and an orderly stop.

use std::process::Command;

use serde_json::json;
use testkit::ProxyMode;

use super::*;

#[tokio::test]
async fn what_one_pod_writes_another_reads_and_kubectl_changes_for_both() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());

    let value = r#"{"backends":"weather","user":"alice"}"#;
    assert_eq!(ask(&mut a, &["SET", "s1", r#"{"user":"alice","backends":"weather"}"#, "EX", "1800", "NX"]).await, ok());
    assert_eq!(ask(&mut a, &["SET", "s1", "{}", "NX"]).await, Resp::Null, "it exists");
    // What was answered is visible everywhere: no waiting.
    assert_eq!(ask(&mut b, &["GET", "s1"]).await, value.into());
    assert_eq!(ask(&mut b, &["GETEX", "s1", "EX", "1800"]).await, value.into());
    assert_eq!(ask(&mut b, &["TYPE", "s1"]).await, Resp::Simple("string".into()));
    assert_eq!(ask(&mut b, &["HGET", "s1", "user"]).await, "alice".into());
    assert_eq!(ask(&mut b, &["HSET", "s1", "user", "bob"]).await, Resp::Int(0));
    assert_eq!(ask(&mut a, &["HGET", "s1", "user"]).await, "bob".into());

    held(&first, &mut a, "s1").await;
    held(&second, &mut b, "s1").await;
    world.patch("s1", &json!({"backends": "search"})).await.unwrap();
    let changed = r#"{"backends":"search","user":"bob"}"#;
    until(&mut a, &["GET", "s1"], |answer| answer.is(changed)).await;
    until(&mut b, &["GET", "s1"], |answer| answer.is(changed)).await;

    assert_eq!(ask(&mut a, &["DEL", "s1"]).await, Resp::Int(1));
    assert_eq!(ask(&mut b, &["GET", "s1"]).await, Resp::Null);
    assert_eq!(ask(&mut b, &["SET", "s1", "{}", "XX"]).await, Resp::Null, "a session that has ended stays so");

    // The object says who wrote it, and for which server.
    ask(&mut a, &["SET", "s2", r#"{"user":"carol"}"#]).await;
    let object = world.kubectl(&["get", "vmcps", "s2", "-o", "json", "--show-managed-fields"]).await.unwrap();
    let object: serde_json::Value = serde_json::from_str(&object).unwrap();
    assert_eq!(object["spec"]["server"], "demo");
    assert_eq!(object["spec"]["metadata"], json!({"user": "carol"}));
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(managers.iter().any(|m| m["manager"] == "vmcp/agent-1"), "{managers:?}");
}

#[tokio::test]
async fn it_says_how_it_is_and_people_can_look_into_it() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default().args(&["--key-prefix=mcp:"])).await;
    let mut client = RespClient::connect_unix(&agent.socket).await.unwrap();
    ask(&mut client, &["SET", "mcp:s1", r#"{"user":"canary-7f3a"}"#]).await;
    ask(&mut client, &["GET", "mcp:s1"]).await;
    // That a session is there already, or is not, is no failure.
    for declined in [&["SET", "mcp:s1", "{}", "NX"][..], &["SET", "mcp:none", "{}", "XX"]] {
        assert_eq!(ask(&mut client, declined).await, Resp::Null);
    }
    world.apply("theirs", &json!({"user": "bob"})).await.unwrap();
    ask(&mut client, &["SET", "mcp:theirs", r#"{"user":"carol"}"#]).await;

    assert_eq!(agent.admin("/livez").await.unwrap().0, 200);
    assert_eq!(agent.admin("/readyz").await.unwrap().0, 200);
    let metrics = agent.metrics().await.unwrap();
    for expected in [
        "vmcp_agent_clients 1",
        "vmcp_agent_writes_total{outcome=\"written\"} 2",
        "vmcp_agent_writes_total{outcome=\"failed\"} 0",
        "vmcp_agent_command_duration_seconds_count{command=\"get\"} 1",
        "vmcp_agent_command_duration_seconds_bucket{le=\"+Inf\",command=\"set\"} 4",
        "vmcp_agent_controllers{state=\"leasing\"} 2",
        "vmcp_agent_evictions_total{reason=\"stale\"} 0",
    ] {
        assert!(metrics.lines().any(|line| line == expected), "no {expected} in\n{metrics}");
    }
    assert!(!metrics.contains("canary") && !metrics.contains("s1"), "{metrics}");

    let (program, args) = &agent.command;
    let look = |look: &[&str]| {
        let output = Command::new(program).args(args).args(look).env("KUBECONFIG", &agent.access.kubeconfig).output();
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout) + &text(output.stderr))
    };
    assert_eq!(look(&["ls"]), (true, "mcp:s1\nmcp:theirs\n".to_owned()));
    let (found, text) = look(&["get", "mcp:s1"]);
    assert!(found && text.contains("string, no timeout, 1 fields") && text.contains("user = canary-7f3a"), "{text}");
    let (found, text) = look(&["get", "mcp:none"]);
    assert!(!found && text.contains("there is no session"), "{text}");

    assert!(!agent.process.log().contains("canary"), "values must not be in logs");
}

#[tokio::test]
async fn a_stop_lets_go_of_what_is_held_and_is_no_failure() {
    // Nobody waits for such a lease to end.
    let lease = PATIENCE * 8;
    let world = World::start(ClusterOptions::default().size(2, 0).lease(lease)).await;
    let agent = agent(&world, "agent-1", AgentOptions::default()).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["HSET", "s1", "n", "0"]).await;
    held(&agent, &mut client, "s1").await;
    let known = async |line: &str| {
        for controller in &world.controllers {
            eventually(PATIENCE, &format!("{}: {line}", controller.name), async || {
                controller.metrics().await.ok()?.lines().any(|l| l == line).then_some(())
            })
            .await
            .unwrap();
        }
    };
    known("vmcp_session_holdings 1").await;

    let status = agent.process.terminate(PATIENCE).await.unwrap();
    assert!(status.success(), "{status}: {}", agent.process.log_tail());
    assert!(!agent.socket.exists(), "its socket goes with it");
    assert!(client.call(&["PING"]).await.is_err());
    known("vmcp_session_holdings 0").await;
    known("vmcp_session_agents{state=\"remembered\"} 0").await;
}

#[tokio::test]
async fn a_stop_finishes_what_runs() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default().proxied()).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["PING"]).await;
    // The API server's answer takes its time; meanwhile the agent is told to stop.
    let slow = ProxyMode::Delay { to_server: Duration::ZERO, to_client: Duration::from_secs(1) };
    agent.api.as_ref().unwrap().set(slow).await.unwrap();
    let sessions = world.sessions();
    client.send(&["SET", "s1", "{}"]).await.unwrap();
    eventually(PATIENCE, "the write is committed", async || sessions.get_opt("s1").await.ok()?).await.unwrap();
    let (status, answer) = tokio::join!(agent.process.terminate(PATIENCE), client.answer());
    assert_eq!(answer.unwrap(), ok());
    assert!(status.unwrap().success(), "{}", agent.process.log_tail());
    assert!(client.call(&["PING"]).await.is_err(), "the connection is closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_copies_hears_of_changes_while_the_last_requests_are_finished() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default().proxied()).await;
    let mut client = agent.client3().await.unwrap();
    ask(&mut client, &["CLIENT", "TRACKING", "ON"]).await;
    ask(&mut client, &["HSET", "kept", "n", "1"]).await;
    held(&agent, &mut client, "kept").await;
    ask(&mut client, &["GET", "kept"]).await;
    let slow = ProxyMode::Delay { to_server: Duration::ZERO, to_client: Duration::from_secs(3) };
    agent.api.as_ref().unwrap().set(slow).await.unwrap();
    let sessions = world.sessions();
    client.send(&["SET", "s1", "{}"]).await.unwrap();
    eventually(PATIENCE, "the write is committed", async || sessions.get_opt("s1").await.ok()?).await.unwrap();
    client.pushes_so_far();
    // It has told everybody to go before the session is changed.
    let change = async {
        eventually(PATIENCE, "nobody is let in any more", async || agent.client().await.is_err().then_some(()))
            .await
            .unwrap();
        world.merge("kept", &json!({"n": "2"})).await;
    };
    let ((), status, answer) = tokio::join!(change, agent.process.terminate(PATIENCE), client.answer());
    assert_eq!(answer.unwrap(), ok());
    assert!(status.unwrap().success(), "{}", agent.process.log_tail());
    let kept = Resp::Array(vec!["kept".into()]);
    let pushes = client.pushes_so_far();
    assert!(pushes.iter().any(|p| matches!(p, Resp::Push(items) if items.contains(&kept))), "{pushes:?}");
}

#[tokio::test]
async fn who_does_not_know_the_password_gets_nothing_and_nobody_is_one_too_many() {
    let world = World::start(ClusterOptions::default().size(0, 0)).await;
    let file = world.plane.dir().join("password");
    std::fs::write(&file, "canary-9c2e\n").unwrap();
    let password = format!("--password-file={}", file.display());
    let agent = world.agent("agent-1", AgentOptions::default().args(&[&password, "--max-clients=3"])).await.unwrap();
    let refused = |answer: Resp| answer.error().unwrap_or_default().to_owned();
    // Who looked whether it listens may still be counted, and then this one is one too many.
    let (mut client, answer) = eventually(PATIENCE, "there is room", async || {
        let mut client = agent.client().await.ok()?;
        let answer = client.call(&["GET", "s1"]).await.ok()?;
        (answer.error() != Some("ERR max number of clients reached")).then_some((client, answer))
    })
    .await
    .unwrap();
    assert!(refused(answer).starts_with("NOAUTH"));
    assert!(refused(client.call(&["HELLO", "3", "AUTH", "default", "canary"]).await.unwrap()).starts_with("WRONGPASS"));
    ask(&mut client, &["HELLO", "3", "AUTH", "default", "canary-9c2e"]).await;
    ask(&mut client, &["SET", "s1", "{}"]).await;
    let (program, args) = &agent.command;
    let output = Command::new(program).args(args).arg("ls").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "s1\n", "it reads the same file");

    // The connections of before are gone by now, or soon.
    let mut others = Vec::new();
    eventually(PATIENCE, "three are connected", async || {
        (agent.metric("vmcp_agent_clients").await.ok()? < 2.0).then_some(())
    })
    .await
    .unwrap();
    for _ in 0..2 {
        let mut other = agent.client().await.unwrap();
        ask(&mut other, &["AUTH", "canary-9c2e"]).await;
        others.push(other);
    }
    let mut one_too_many = agent.client().await.unwrap();
    assert_eq!(one_too_many.next().await.unwrap().error(), Some("ERR max number of clients reached"));
    ask(&mut client, &["PING"]).await;
    assert!(!agent.process.log().contains("canary"), "passwords must not be in logs");
}
