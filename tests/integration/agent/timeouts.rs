//! Timeouts that one pod changes while another holds a copy from before: no copy is dropped for a timeout by itself, so
//! whoever changes one tells the others.

use std::time::Instant;

use testkit::{AuditEntry, ProxyMode, Verb};

use super::*;

const MINUTE: Duration = Duration::from_mins(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_after_another_pods_change_of_the_timeout_counts() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    let changes: [&[&str]; 4] = [
        &["EXPIRE", "KEY", "30"],
        &["PERSIST", "KEY"],
        &["GETEX", "KEY", "EX", "60"],
        &["SET", "KEY", r#"{"user":"alice"}"#, "EX", "30"],
    ];
    let renewals: [&[&str]; 3] = [
        &["GETEX", "KEY", "EX", "1800"],
        &["EXPIRE", "KEY", "1800"],
        &["SET", "KEY", r#"{"user":"alice"}"#, "EX", "1800"],
    ];
    for (c, change) in changes.iter().enumerate() {
        for (r, renewal) in renewals.iter().enumerate() {
            let key = format!("s{c}{r}");
            let with_key = |command: &[&str]| -> Vec<String> {
                command.iter().map(|word| if *word == "KEY" { key.clone() } else { (*word).to_owned() }).collect()
            };
            ask(&mut a, &["SET", &key, r#"{"user":"alice"}"#, "EX", "1800"]).await;
            held(&first, &mut a, &key).await;
            held(&second, &mut b, &key).await;
            for (client, command) in [(&mut b, change), (&mut a, renewal)] {
                let answer = client.call(&with_key(command)).await.unwrap();
                assert_eq!(answer.error(), None, "{command:?}");
            }
            let Resp::Int(left) = ask(&mut b, &["TTL", &key]).await else { panic!("no time") };
            assert!((1_700..=1_800).contains(&left), "{change:?}, then {renewal:?}: {left} seconds are left");
        }
    }
}

/// The controllers decide that nobody uses a session, by what they are told. An agent that reaches none of them writes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewals_that_no_controller_hears_of_are_written_a_few_times() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions { proxied: true, ..AgentOptions::default() }).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["SET", "s1", r#"{"user":"alice"}"#, "EX", "60"]).await;
    let written = async || {
        let at = r"jsonpath={.metadata.annotations.vmcp\.dev/renewed-at}";
        world.kubectl(&["get", "vmcps", "s1", "-o", at]).await.unwrap()
    };
    for stream in &agent.streams {
        stream.set(ProxyMode::Cut).await.unwrap();
    }
    let (mark, begun, before) = (world.plane.audit().mark().unwrap(), Instant::now(), written().await);
    let (mut asked, mut renewed) = (0, 0);
    while renewed < 2 {
        for renewal in [&["GETEX", "s1", "EX", "60"][..], &["EXPIRE", "s1", "60"]] {
            ask(&mut client, renewal).await;
            asked += 1;
        }
        assert!(begun.elapsed() < MINUTE * 3, "{asked} renewals, and none is written");
        tokio::time::sleep(Duration::from_millis(200)).await;
        world.plane.apiserver().audit_flush().await.unwrap();
        let is_write = |e: &AuditEntry| e.name == "s1" && e.verb == Verb::Patch && e.is_by("vmcp", "vmcp-server");
        renewed = world.plane.audit().count_since(mark, is_write).unwrap();
    }
    let took = begun.elapsed();
    let most = usize::try_from(took.as_secs() / 15).unwrap() + 1;
    assert!(renewed <= most, "{renewed} writes for {asked} renewals in {took:?}");
    assert!(asked > 10 * renewed, "{asked} renewals");
    assert_ne!(written().await, before);
}
