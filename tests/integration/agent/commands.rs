//! Commands where more than one client, or more than one pod, is at work; and what the state of a connection allows.

use std::collections::BTreeSet;
use std::fs;

use super::*;

const OLD: &str = r#"{"a":"1"}"#;
const NEW: &str = r#"{"a":"2"}"#;

fn text(text: &str) -> Resp {
    Resp::Text(text.into())
}

/// Sends a command until nobody else is in its way, as clients that know `TRYAGAIN` do.
async fn insist(client: &mut RespClient, args: &[&str]) -> Resp {
    let asked = async {
        loop {
            let answer = client.call(args).await.unwrap();
            if !answer.error().is_some_and(|text| text.starts_with("TRYAGAIN ")) {
                return answer;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("{args:?} is never done"))
}

/// Queues these commands after `MULTI`, and carries them out.
async fn exec(client: &mut RespClient, commands: &[&[&str]]) -> Resp {
    assert_eq!(ask(client, &["MULTI"]).await, ok());
    for command in commands {
        assert!(ask(client, command).await.is("QUEUED"));
    }
    ask(client, &["EXEC"]).await
}

/// Whether an answer is that of the one who was first.
type Won = fn(&Resp) -> bool;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_sees_its_own_changes_and_is_written_once() {
    let world = world().await;
    let agent = agent(&world, "agent-1", AgentOptions::default()).await;
    let mut client = agent.client().await.unwrap();
    ask(&mut client, &["SET", "k", OLD]).await;
    let mark = world.plane.audit().mark().unwrap();
    let answers = exec(
        &mut client,
        &[
            &["HSET", "k", "b", "1"],
            &["HINCRBY", "k", "b", "x"],
            &["HINCRBY", "k", "b", "41"],
            &["GET", "k"],
            &["HDEL", "k", "a", "none"],
            &["EXPIRE", "k", "500"],
            &["TTL", "k"],
            &["SET", "k", "{}", "NX"],
            &["MGET", "k"],
        ],
    )
    .await;
    let whole = r#"{"a":"1","b":"42"}"#;
    let left = r#"{"b":"42"}"#;
    let not_a_number = Resp::Error("ERR value is not an integer or out of range".into());
    let expected = vec![
        Resp::Int(1),
        not_a_number,
        Resp::Int(42),
        text(whole),
        Resp::Int(1),
        Resp::Int(1),
        Resp::Int(500),
        Resp::Null,
        Resp::Array(vec![text(left)]),
    ];
    assert_eq!(answers, Resp::Array(expected));
    assert!(ask(&mut client, &["GET", "k"]).await.is(left));
    assert_eq!(ask(&mut client, &["TTL", "k"]).await, Resp::Int(500));
    world.plane.apiserver().audit_flush().await.unwrap();
    let requests = world.plane.audit().requests_since(mark).unwrap();
    let ours = requests.iter().filter(|e| e.name == "k" && e.user.ends_with(":vmcp-server"));
    assert_eq!(ours.filter(|e| e.verb.is_write()).count(), 1, "one write for all of it");

    // A command that was refused when it was queued is the end of all.
    ask(&mut client, &["MULTI"]).await;
    assert!(ask(&mut client, &["DEL", "k"]).await.is("QUEUED"));
    let refused = client.call(&["EVAL", "return 1", "0"]).await.unwrap();
    assert!(refused.error().unwrap().starts_with("ERR scripts are not supported"), "{refused:?}");
    let refused = client.call(&["EXEC"]).await.unwrap();
    assert_eq!(refused.error(), Some("EXECABORT Transaction discarded because of previous errors."));
    assert_eq!(ask(&mut client, &["EXISTS", "k"]).await, Resp::Int(1));

    // What was deleted and made again within a transaction is there; what was made and deleted never was.
    let remade = exec(&mut client, &[&["DEL", "k"], &["EXISTS", "k"], &["SET", "k", NEW], &["TTL", "k"]]).await;
    assert_eq!(remade, Resp::Array(vec![Resp::Int(1), Resp::Int(0), ok(), Resp::Int(-1)]));
    assert!(ask(&mut client, &["GET", "k"]).await.is(NEW));
    assert_eq!(ask(&mut client, &["TTL", "k"]).await, Resp::Int(-1));
    let never = exec(&mut client, &[&["SET", "n", NEW], &["GETDEL", "n"], &["EXISTS", "n"]]).await;
    assert_eq!(never, Resp::Array(vec![ok(), text(NEW), Resp::Int(0)]));
    assert!(world.kubectl(&["get", "vmcps", "n"]).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_watched_and_changed_in_another_pod_aborts() {
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());
    ask(&mut a, &["SET", "k", OLD]).await;
    held(&first, &mut a, "k").await;

    for set in [["SET", "k", NEW], ["HSET", "k", "b"], ["DEL", "k", "x"], ["SET", "k", OLD]] {
        ask(&mut a, &["WATCH", "k"]).await;
        match set {
            ["HSET", key, field] => ask(&mut b, &["HSET", key, field, "1"]).await,
            other => ask(&mut b, &other).await,
        };
        assert_eq!(exec(&mut a, &[&["HSET", "k", "mine", "1"]]).await, Resp::Null, "after {set:?}");
        assert_ne!(ask(&mut a, &["HEXISTS", "k", "mine"]).await, Resp::Int(1));
    }

    // Also if it is only looked at, or if what is set makes no difference.
    for command in [["GET", "k"].as_slice(), &["SET", "k", OLD], &["EXISTS", "other"]] {
        ask(&mut b, &["SET", "k", OLD]).await;
        ask(&mut a, &["GET", "k"]).await;
        ask(&mut a, &["WATCH", "k"]).await;
        ask(&mut b, &["HSET", "k", "theirs", "1"]).await;
        assert_eq!(exec(&mut a, &[command]).await, Resp::Null, "{command:?}");
        ask(&mut b, &["HDEL", "k", "theirs"]).await;
    }

    // What is not watched any more, or did not change, is no reason.
    ask(&mut a, &["WATCH", "k"]).await;
    ask(&mut b, &["SET", "k", NEW]).await;
    ask(&mut a, &["UNWATCH"]).await;
    assert_eq!(exec(&mut a, &[&["GET", "k"]]).await, Resp::Array(vec![text(NEW)]));
    ask(&mut a, &["WATCH", "k"]).await;
    ask(&mut b, &["SET", "other", NEW]).await;
    assert_eq!(exec(&mut a, &[&["SET", "k", OLD]]).await, Resp::Array(vec![ok()]));
    assert!(ask(&mut b, &["GET", "k"]).await.is(OLD));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_pods_never_both_win_what_one_can_win() {
    const ROUNDS: i64 = 15;
    let world = world().await;
    let (first, second) = tokio::join!(
        agent(&world, "agent-1", AgentOptions::default()),
        agent(&world, "agent-2", AgentOptions::default())
    );
    let (mut a, mut b) = (first.client().await.unwrap(), second.client().await.unwrap());

    let count = async |client: &mut RespClient| {
        let mut seen = Vec::new();
        for _ in 0..ROUNDS {
            let Resp::Int(n) = insist(client, &["HINCRBY", "counter", "n", "1"]).await else { panic!("no number") };
            seen.push(n);
        }
        seen
    };
    let (mut seen, others) = tokio::join!(count(&mut a), count(&mut b));
    seen.extend(others);
    let all: BTreeSet<i64> = seen.iter().copied().collect();
    assert_eq!(all, (1..=2 * ROUNDS).collect(), "each number is answered once: {seen:?}");
    assert!(ask(&mut a, &["HGET", "counter", "n"]).await.is(&(2 * ROUNDS).to_string()));

    for round in 0..ROUNDS {
        let key = format!("once-{round}");
        let races: [(&[&str], Won); 5] = [
            (&["SET", &key, "{}", "NX"], |answer| answer.is("OK")),
            (&["HSETNX", &key, "f", "1"], |answer| *answer == Resp::Int(1)),
            (&["HSETNX", &key, "g", "1"], |answer| *answer == Resp::Int(1)),
            (&["HDEL", &key, "f"], |answer| *answer == Resp::Int(1)),
            (&["GETDEL", &key], |answer| answer.text().is_some()),
        ];
        for (command, won) in races {
            let (one, other) = tokio::join!(insist(&mut a, command), insist(&mut b, command));
            assert!(won(&one) != won(&other), "{command:?}: {one:?} and {other:?}");
        }
        assert_eq!(ask(&mut a, &["EXISTS", &key]).await, Resp::Int(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_may_do_what_its_state_allows() {
    let world = world().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, "open sesame\n").unwrap();
    let options = AgentOptions::default().args(&[&format!("--password-file={}", file.display())]);
    let agent = world.agent("agent-1", options).await.unwrap();
    let mut client = agent.client().await.unwrap();
    let error = async |client: &mut RespClient, args: &[&str]| {
        client.call(args).await.unwrap().error().map(str::to_owned).unwrap_or_default()
    };

    assert_eq!(error(&mut client, &["GET", "k"]).await, "NOAUTH Authentication required.");
    assert_eq!(error(&mut client, &["PING"]).await, "NOAUTH Authentication required.");
    assert!(error(&mut client, &["HELLO", "3"]).await.starts_with("NOAUTH HELLO must be called"));
    let wrong = "WRONGPASS invalid username-password pair or user is disabled.";
    assert_eq!(error(&mut client, &["AUTH", "open"]).await, wrong);
    assert_eq!(error(&mut client, &["AUTH", "admin", "open sesame"]).await, wrong);
    assert_eq!(error(&mut client, &["HELLO", "3", "AUTH", "default", "no"]).await, wrong);
    assert_eq!(ask(&mut client, &["AUTH", "default", "open sesame"]).await, ok());
    assert_eq!(ask(&mut client, &["RESET"]).await, Resp::Simple("RESET".into()));
    assert_eq!(error(&mut client, &["PING"]).await, "NOAUTH Authentication required.");
    let hello = ask(&mut client, &["HELLO", "3", "AUTH", "default", "open sesame", "SETNAME", "me"]).await;
    let Resp::Map(hello) = hello else { panic!("{hello:?}") };
    assert!(hello.contains(&(text("proto"), Resp::Int(3))), "{hello:?}");
    assert!(ask(&mut client, &["CLIENT", "GETNAME"]).await.is("me"));
    let settings = ask(&mut client, &["CONFIG", "GET", "*"]).await;
    assert!(!format!("{settings:?}").contains("sesame"), "{settings:?}");

    // In RESP2, whoever listens may do nothing else.
    ask(&mut client, &["HELLO", "2"]).await;
    let subscribed = ask(&mut client, &["SUBSCRIBE", "x"]).await;
    assert_eq!(subscribed, Resp::Array(vec![text("subscribe"), text("x"), Resp::Int(1)]));
    let refused = error(&mut client, &["CLIENT", "ID"]).await;
    assert!(refused.starts_with("ERR Can't execute 'client|id': only (P|S)SUBSCRIBE"), "{refused}");
    assert_eq!(ask(&mut client, &["PING"]).await, Resp::Array(vec![text("pong"), text("")]));
    let left = ask(&mut client, &["UNSUBSCRIBE"]).await;
    assert_eq!(left, Resp::Array(vec![text("unsubscribe"), text("x"), Resp::Int(0)]));

    // Replies can be turned off, and skipped.
    client.send(&["CLIENT", "REPLY", "SKIP"]).await.unwrap();
    client.send(&["PING", "skipped"]).await.unwrap();
    assert!(ask(&mut client, &["PING", "heard"]).await.is("heard"));
    client.send(&["CLIENT", "REPLY", "OFF"]).await.unwrap();
    client.send(&["PING", "unheard"]).await.unwrap();
    assert_eq!(ask(&mut client, &["CLIENT", "REPLY", "ON"]).await, ok());
    assert!(ask(&mut client, &["ECHO", "again"]).await.is("again"));

    // What it is and does is there for others to see, without what it said.
    let mut other = agent.client().await.unwrap();
    ask(&mut other, &["AUTH", "open sesame"]).await;
    let list = ask(&mut other, &["CLIENT", "LIST"]).await;
    let list = list.text().unwrap();
    assert!(list.contains(" name=me ") && list.contains(" cmd=echo "), "{list}");
    assert!(!list.contains("again") && !list.contains("sesame"), "{list}");
    let processed = ask(&mut other, &["INFO", "stats", "commandstats"]).await;
    assert!(processed.text().unwrap().contains("cmdstat_auth:calls=4,"), "{processed:?}");
    assert_eq!(ask(&mut other, &["QUIT"]).await, ok());
    assert!(other.call(&["PING"]).await.is_err(), "the connection has ended");
}
