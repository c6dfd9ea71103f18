//! `--hash-session-ids`: whoever sees objects, logs or the audit log learns no session id.

use std::process::Command;

use super::*;

/// A session's id. It is as good as a password.
const ID: &str = "canary-5e55-1d00-b0b0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_are_in_no_object_and_in_no_log_and_agents_agree() {
    let world = world().await;
    let file = world.plane.dir().join("hash-key");
    std::fs::write(&file, "0123456789abcdef0123456789abcdef\n").unwrap();
    let hashing = || AgentOptions::default().args(&[&format!("--hash-session-ids={}", file.display())]);
    let (first, second) = tokio::join!(agent(&world, "agent-1", hashing()), agent(&world, "agent-2", hashing()));
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    let mark = world.plane.audit().mark().unwrap();
    assert_eq!(ask(&mut a, &["SET", ID, r#"{"user":"alice"}"#, "EX", "1800", "NX"]).await, ok());
    assert_eq!(ask(&mut b, &["SET", ID, "{}", "NX"]).await, Resp::Null, "they agree on the name");
    assert_eq!(ask(&mut b, &["DBSIZE"]).await, Resp::Int(1));
    // A command that shows no field is enough for the agent to know whose copy it holds.
    assert_eq!(ask(&mut b, &["HSET", ID, "color", "red"]).await, Resp::Int(1));
    for client in [&mut a, &mut b] {
        assert!(ask(client, &["GET", ID]).await.is(r#"{"color":"red","user":"alice"}"#));
        let page = Resp::Array(vec!["0".into(), Resp::Array(vec![ID.into()])]);
        assert_eq!(ask(client, &["SCAN", "0"]).await, page);
        assert_eq!(ask(client, &["DBSIZE"]).await, Resp::Int(1));
    }
    for agent in [&first, &second] {
        let (program, args) = &agent.command;
        let listed = Command::new(program).args(args).arg("ls").output().unwrap();
        assert_eq!(String::from_utf8(listed.stdout).unwrap(), format!("{ID}\n"));
    }
    // A client that keeps copies is told of just this one.
    let mut keeper = second.client3().await.unwrap();
    ask(&mut keeper, &["CLIENT", "TRACKING", "ON"]).await;
    held(&second, &mut keeper, ID).await;
    ask(&mut keeper, &["GET", ID]).await;
    ask(&mut a, &["HSET", ID, "color", "blue"]).await;
    let told = |push: &Resp| matches!(push, Resp::Push(items) if items.contains(&Resp::Array(vec![ID.into()])));
    while !told(&keeper.push(PATIENCE).await.unwrap().expect("the client is not told which session has changed")) {}
    assert_eq!(ask(&mut b, &["DEL", ID]).await, Resp::Int(1));
    assert_eq!(ask(&mut a, &["GET", ID]).await, Resp::Null);
    ask(&mut a, &["SET", ID, "{}"]).await;

    let objects = world.kubectl(&["get", "vmcps", "-o", "yaml", "--show-managed-fields"]).await.unwrap();
    assert!(objects.contains("name: h--") && !objects.contains(ID), "{objects}");
    world.plane.apiserver().audit_flush().await.unwrap();
    let entries = world.plane.audit().requests_since(mark).unwrap();
    assert!(entries.iter().any(|e| e.name.starts_with("h--") && e.verb.is_write()));
    let audit = std::fs::read_to_string(world.plane.audit().path()).unwrap();
    assert!(!audit.contains(ID), "the id is in the audit log");
    let log = first.process.log() + &second.process.log();
    assert!(log.contains("h--") && !log.contains(ID), "{log}");
    for controller in &world.controllers {
        assert!(!controller.process.log().contains(ID));
    }
}
