//! Timeouts that one pod changes while another holds a copy from before: no copy is dropped for a timeout by itself, so
//! whoever changes one tells the others.

use super::*;

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
