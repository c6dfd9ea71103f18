//! Sessions as the agent's commands use them: keys, timeouts, values of this pod alone, and writes that lose nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use testkit::{Cluster, ClusterOptions, ProxyMode, TcpProxy, Verb, eventually};
use vmcp_session::agent::sessions::{
    Condition, Entry, Exact, Failure, Form, Sessions, SessionsConfig, TimeoutOutcome, Ttl, now_millis, parse_value,
};
use vmcp_session::api::{LABEL_REPLICA, VmcpSession, VmcpSessionSpec};
use vmcp_session::cache::{Known, Metadata, Visibility};

use super::{CANARY, SOON, bare, cached, leased, map, next, objects, pod, with_controllers, without_controller};

const HOUR: Ttl = Ttl::Millis(3_600_000);

fn config() -> SessionsConfig {
    SessionsConfig {
        prefix: "mcp:".into(),
        pod_local_keys: Vec::new(),
        hash_key_file: None,
        visibility: Visibility::Everywhere,
    }
}

async fn sessions_at(cluster: &Cluster, name: &str, url: &str, config: &SessionsConfig) -> Sessions {
    let (client, cache) = pod(cluster, name, url).await;
    Sessions::connect(client, cache, config).unwrap()
}

/// The sessions of a pod under a lease of each replica.
async fn sessions_with(cluster: &Cluster, name: &str, config: &SessionsConfig) -> Sessions {
    let sessions = sessions_at(cluster, name, cluster.plane.url(), config).await;
    leased(sessions.cache(), cluster.controllers.len()).await;
    sessions
}

async fn sessions(cluster: &Cluster, name: &str) -> Sessions {
    sessions_with(cluster, name, &config()).await
}

/// Without a controller there is nobody to confirm that a write is visible.
fn committed() -> SessionsConfig {
    SessionsConfig { visibility: Visibility::Committed, ..config() }
}

fn fields(entry: &Entry) -> Vec<(&str, &str)> {
    entry.fields().collect()
}

async fn set(sessions: &Sessions, key: &str, json: &str, ttl: Ttl) -> Entry {
    let map = parse_value(json.as_bytes()).unwrap();
    sessions.set(key.as_bytes(), map, Form::String, ttl, Condition::Always).await.unwrap().unwrap()
}

/// The session that was given a timeout.
fn lives(expired: TimeoutOutcome) -> Entry {
    match expired {
        TimeoutOutcome::Begins(entry) => entry,
        over => panic!("it has ended, or the machine stood still: {over:?}"),
    }
}

async fn get(sessions: &Sessions, key: &str) -> Option<Entry> {
    sessions.get(key.as_bytes()).await.unwrap()
}

/// Requests for the object since `mark`, but for those of controllers.
async fn requests(cluster: &Cluster, mark: testkit::AuditMark, name: &str) -> Vec<(Verb, u16)> {
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let entries = cluster.plane.audit().requests_since(mark).unwrap();
    let ours = entries.into_iter().filter(|e| e.name == name && e.user.ends_with(":vmcp-server"));
    ours.map(|e| (e.verb, e.code)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_lives_as_in_redis_and_is_an_object_of_kubernetes() {
    let cluster = with_controllers(1).await;
    let (a, b) = (sessions(&cluster, "a").await, sessions(&cluster, "b").await);
    let map_ = |json: &str| parse_value(json.as_bytes()).unwrap();
    assert!(get(&a, "mcp:s1").await.is_none());
    let absent = async |sessions: &Sessions| {
        sessions.set(b"mcp:s1", map_("{}"), Form::String, HOUR, Condition::Absent).await.unwrap()
    };
    let present = async |key: &[u8]| a.set(key, map_("{}"), Form::String, HOUR, Condition::Present).await.unwrap();
    assert!(present(b"mcp:s1").await.is_none(), "XX makes nothing");
    assert!(absent(&a).await.is_some());
    let mark = cluster.plane.audit().mark().unwrap();
    assert!(absent(&b).await.is_none(), "NX takes nothing away");
    let asked = requests(&cluster, mark, "s1").await;
    assert_eq!(asked.iter().filter(|(verb, _)| verb.is_write()).count(), 1, "one create: {asked:?}");

    let written = set(&a, "mcp:s1", r#"{"user":"u","backends":"b"}"#, HOUR).await;
    assert_eq!(written.json(), r#"{"backends":"b","user":"u"}"#);
    let seen = get(&b, "mcp:s1").await.unwrap();
    assert_eq!((seen.json(), seen.form()), (written.json(), Form::String), "I8");
    let object = objects(&cluster).get("s1").await.unwrap();
    assert_eq!(object.spec.metadata, map([("user", "u"), ("backends", "b")]));
    assert_eq!(object.spec.idle_timeout_seconds, Some(3_600));
    assert_eq!(object.metadata.annotations.unwrap()["vmcp.dev/form"], "string");

    // As a hash: only what differs is sent, and the form follows.
    let mut more = seen.to_map();
    more.insert("team".into(), "t".into());
    let hash = b.replace(&seen, more, Some(Form::Hash), Ttl::Keep, Exact::No, Known::All).await.unwrap().unwrap();
    assert_eq!((hash.len(), hash.get("team"), hash.form()), (3, Some("t"), Form::Hash));
    let seen = a.fresh(b"mcp:s1").await.unwrap().unwrap();
    assert_eq!((seen.form(), seen.session().digest()), (Form::Hash, hash.session().digest()));

    assert!(a.delete(&seen).await.unwrap());
    assert!(get(&b, "mcp:s1").await.is_none(), "I8 holds for deletions too");
    assert!(!b.delete(&hash).await.unwrap());
    assert!(b.replace(&hash, Metadata::new(), None, Ttl::Keep, Exact::No, Known::All).await.unwrap().is_none());
    assert!(matches!(b.expire(&hash, Ttl::Millis(90_000), Exact::No).await.unwrap(), TimeoutOutcome::Gone));

    // What nobody here knows is made without a look-up, of which there may be a few only.
    let mark = cluster.plane.audit().mark().unwrap();
    set(&b, "mcp:new", "{}", HOUR).await;
    let asked = requests(&cluster, mark, "new").await;
    assert!(matches!(asked[..], [(verb, 201)] if verb.is_write()), "{asked:?}");
    // It may be there all the same.
    let a_user = set(&a, "mcp:new", r#"{"user":"u"}"#, HOUR).await;
    assert_eq!(a_user.json(), r#"{"user":"u"}"#);

    let refused = a.set(b"other", map_("{}"), Form::String, HOUR, Condition::Always).await.unwrap_err();
    assert!(refused.text().starts_with("ERR ") && refused.text().contains("'mcp:'"), "{refused}");
    assert!(get(&a, "other").await.is_none());
    let too_long = a.set(b"mcp:s1", map_("{}"), Form::String, Ttl::Millis(u64::MAX), Condition::Always).await;
    assert!(matches!(too_long, Err(Failure::Invalid(_))), "{too_long:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_values_written_at_the_same_time_lose_nothing() {
    const ROUNDS: usize = 100;
    let cluster = with_controllers(2).await;
    let (a, b) = (sessions(&cluster, "a").await, sessions(&cluster, "b").await);
    set(&a, "mcp:s", r#"{"shared":"x"}"#, HOUR).await;
    // Each server keeps its own idea of the session, and writes all of it, as it would with Redis.
    let server = async |sessions: &Sessions, own: &str| {
        let mut idea = get(sessions, "mcp:s").await.unwrap().to_map();
        for round in 0..ROUNDS {
            idea.insert(format!("{own}{}", round % 10), round.to_string());
            let written =
                sessions.set(b"mcp:s", idea.clone(), Form::String, HOUR, Condition::Present).await.unwrap().unwrap();
            for (field, value) in idea.iter().filter(|(field, _)| field.starts_with(own)) {
                assert_eq!(written.get(field), Some(value.as_str()), "round {round}");
            }
            if round % 7 == 0 {
                idea = get(sessions, "mcp:s").await.unwrap().to_map();
            }
        }
    };
    tokio::join!(server(&a, "a"), server(&b, "b"));
    let mut expected = map([("shared", "x")]);
    for digit in 0..10 {
        for own in ["a", "b"] {
            expected.insert(format!("{own}{digit}"), (ROUNDS - 10 + digit).to_string());
        }
    }
    let end = objects(&cluster).get("s").await.unwrap();
    assert_eq!(end.spec.metadata, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_writes_nothing_and_keeps_the_session_alive() {
    let cluster = with_controllers(1).await;
    let a = sessions(&cluster, "a").await;
    set(&a, "mcp:s", r#"{"k":"1"}"#, HOUR).await;
    cached(a.cache(), "s").await;
    let mark = cluster.plane.audit().mark().unwrap();
    for _ in 0..1_000 {
        let entry = a.hit(b"mcp:s").unwrap();
        let now = now_millis();
        let renewed = a.renew(&entry, HOUR).unwrap();
        let left = renewed.deadline().unwrap() - now;
        assert!(left >= 3_600_000, "{left}");
        assert_eq!(a.hit(b"mcp:s").unwrap().deadline(), renewed.deadline(), "the next reader sees it");
        lives(a.expire(&entry, HOUR, Exact::No).await.unwrap());
    }
    assert_eq!(requests(&cluster, mark, "s").await, [], "neither read nor written");

    // A read is no renewal: this session ends though it is read all the time. The other one is renewed.
    let patch = json!({"spec": {"idleTimeoutSeconds": 4}});
    for name in ["read", "renewed"] {
        set(&a, &format!("mcp:{name}"), r#"{"k":"1"}"#, HOUR).await;
        objects(&cluster).patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    }
    let lived = Cell::new(0);
    eventually(SOON * 2, "the session that is only read ends", async || {
        let kept = a.find(b"mcp:renewed").await.unwrap().expect("it is renewed");
        a.cache().renew(kept.session(), now_millis());
        lived.set(lived.get() + 1);
        get(&a, "mcp:read").await.is_none().then_some(())
    })
    .await
    .unwrap();
    assert!(lived.get() > 1 && objects(&cluster).get_opt("renewed").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_timeout_is_exact_on_every_pod() {
    let cluster = with_controllers(1).await;
    let (a, b) = (sessions(&cluster, "a").await, sessions(&cluster, "b").await);
    let before = now_millis();
    let entry = set(&a, "mcp:s", r#"{"k":"1"}"#, Ttl::Millis(1_500)).await;
    let ends = entry.deadline().unwrap();
    assert!(ends >= before + 1_500 && ends <= now_millis() + 1_500);
    let at_b = get(&b, "mcp:s").await.expect("it has not ended, unless the machine stood still");
    assert_eq!(at_b.deadline(), Some(ends), "to the millisecond, on each pod");
    assert_eq!(objects(&cluster).get("s").await.unwrap().spec.idle_timeout_seconds, Some(2));

    // More time, from the other pod: no copy is dropped for that, and the first one hears of it when it must.
    let mut at_a = a.cache().subscribe();
    let longer = lives(b.expire(&at_b, Ttl::At(ends + 2_000), Exact::No).await.unwrap());
    assert_eq!(longer.deadline(), Some(ends + 2_000));
    eventually(SOON, "the first instant has passed", async || (now_millis() > ends).then_some(())).await.unwrap();
    let still = get(&a, "mcp:s").await.expect("it was given more time");
    assert_eq!(still.deadline(), Some(ends + 2_000));
    assert_eq!(a.fresh(b"mcp:s").await.unwrap().unwrap().deadline(), Some(ends + 2_000));

    let gone = eventually(SOON, "it ends", async || {
        let asked = now_millis();
        get(&a, "mcp:s").await.is_none().then_some(asked)
    });
    gone.await.unwrap();
    assert!(now_millis() >= ends + 2_000, "not a millisecond early");
    assert_eq!(next(&mut at_a).await.0, "s");
    eventually(SOON, "the object is deleted", async || {
        objects(&cluster).get_opt("s").await.unwrap().is_none().then_some(())
    })
    .await
    .unwrap();
    assert!(get(&b, "mcp:s").await.is_none());

    // What has ended can be made anew at once, whoever deletes it.
    let gone = set(&a, "mcp:t", "{}", Ttl::Millis(200)).await;
    eventually(SOON, "it has ended", async || (now_millis() >= gone.deadline().unwrap()).then_some(())).await.unwrap();
    let again = b.set(b"mcp:t", Metadata::new(), Form::String, HOUR, Condition::Absent).await.unwrap();
    assert_ne!(again.expect("it has ended").session().uid(), gone.session().uid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_knows_of_a_later_end_goes_when_the_session_ends() {
    let cluster = with_controllers(1).await;
    let (a, b) = (sessions(&cluster, "a").await, sessions(&cluster, "b").await);
    set(&a, "mcp:s", r#"{"k":"1"}"#, HOUR).await;
    cached(b.cache(), "s").await;
    let mut at_b = b.cache().subscribe();
    let mark = cluster.plane.audit().mark().unwrap();
    let base = get(&a, "mcp:s").await.unwrap();
    let shorter = lives(a.expire(&base, Ttl::Millis(300), Exact::No).await.unwrap());
    // The copy of before would be renewed in memory, to a timeout that is no more.
    assert_eq!(next(&mut at_b).await.0, "s", "who changes a timeout of whole seconds tells those who hold it");
    assert!(b.hit(b"mcp:s").is_none(), "the answer comes when all were told");
    assert_eq!(b.fresh(b"mcp:s").await.unwrap().map(|e| e.deadline()), Some(shorter.deadline()));
    assert_eq!(next(&mut at_b).await.0, "s", "who set the instant deletes the session then");
    assert!(now_millis() >= shorter.deadline().unwrap());
    let asked = requests(&cluster, mark, "s").await;
    assert!(asked.contains(&(Verb::Delete, 200)), "not only the controller, which comes later: {asked:?}");
    assert!(get(&b, "mcp:s").await.is_none());

    // PERSIST takes an end away, from wherever it was set.
    let base = set(&a, "mcp:t", "{}", Ttl::Millis(700)).await;
    let base = b.expire(&b.fresh(b"mcp:t").await.unwrap().unwrap_or(base), Ttl::Clear, Exact::No).await.unwrap();
    let base = lives(base);
    assert_eq!(base.deadline(), None);
    let object = objects(&cluster).get("t").await.unwrap();
    assert_eq!(object.spec.idle_timeout_seconds, None);
    let annotations = object.metadata.annotations.unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["vmcp.dev/form"]);
    // A new timeout that is not exact tells every pod when it was set.
    let set_at = now_millis();
    lives(a.expire(&base, Ttl::Millis(120_000), Exact::No).await.unwrap());
    let at_b = b.fresh(b"mcp:t").await.unwrap().unwrap().deadline().unwrap();
    assert!(at_b >= set_at + 120_000 && at_b <= now_millis() + 120_000, "{at_b}");
    let over = a.expire(&base, Ttl::At(1), Exact::No).await.unwrap();
    assert!(matches!(over, TimeoutOutcome::Over), "the past ends it at once: {over:?}");
    assert!(get(&b, "mcp:t").await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_one_pod_evict_nobody_and_reach_nobody() {
    let cluster = with_controllers(1).await;
    let config = SessionsConfig { pod_local_keys: vec!["conn-*".into()], ..config() };
    let (a, b) = (sessions_with(&cluster, "a", &config).await, sessions_with(&cluster, "b", &config).await);
    set(&a, "mcp:s", &format!(r#"{{"user":"u","conn-x":"{CANARY}"}}"#), HOUR).await;
    let object = serde_json::to_string(&objects(&cluster).get("s").await.unwrap()).unwrap();
    assert!(!object.contains("conn-") && !object.contains(CANARY), "never written to the object");
    let (mut at_a, mut at_b) = (a.cache().subscribe(), b.cache().subscribe());
    let mark = cluster.plane.audit().mark().unwrap();
    for round in 0..50 {
        for (sessions, own) in [(&a, "a"), (&b, "b")] {
            let mut idea = get(sessions, "mcp:s").await.unwrap().to_map();
            idea.insert("conn-x".into(), format!("{own}{round}"));
            let written = sessions.set(b"mcp:s", idea, Form::String, HOUR, Condition::Present).await.unwrap().unwrap();
            assert_eq!(written.json(), format!(r#"{{"conn-x":"{own}{round}","user":"u"}}"#));
            let seen = get(sessions, "mcp:s").await.unwrap();
            assert_eq!(fields(&seen), [("conn-x", &*format!("{own}{round}")), ("user", "u")]);
        }
    }
    let asked = requests(&cluster, mark, "s").await;
    assert!(asked.iter().all(|(verb, _)| !verb.is_write()), "{asked:?}");

    // A field that one pod takes away is away in that pod.
    let mut idea = get(&a, "mcp:s").await.unwrap().to_map();
    idea.remove("conn-x");
    a.set(b"mcp:s", idea, Form::String, HOUR, Condition::Present).await.unwrap().unwrap();
    assert_eq!(get(&a, "mcp:s").await.unwrap().json(), r#"{"user":"u"}"#);
    assert_eq!(get(&b, "mcp:s").await.unwrap().get("conn-x"), Some("b49"));

    // Two clients of one pod that change different ones at once both win; counting is a compare-and-set there too.
    let base = get(&b, "mcp:s").await.unwrap();
    let with = |field: &str, value: &str| {
        let mut idea = base.to_map();
        idea.insert(field.into(), value.into());
        idea
    };
    b.replace(&base, with("conn-y", "1"), None, Ttl::Keep, Exact::No, Known::All).await.unwrap().unwrap();
    b.replace(&base, with("conn-z", "1"), None, Ttl::Keep, Exact::No, Known::All).await.unwrap().unwrap();
    let both = get(&b, "mcp:s").await.unwrap();
    assert_eq!((both.get("conn-y"), both.get("conn-z")), (Some("1"), Some("1")));
    assert_ne!(both.local_digest(), base.local_digest());
    let late = b.replace(&base, with("conn-y", "2"), None, Ttl::Keep, Exact::Yes, Known::All).await;
    assert_eq!(late.unwrap_err(), Failure::Conflict);

    // They go with the copy: what they stood beside is not true any more. Nothing was evicted before that.
    cluster.patch("s", &json!({"user": "other"})).await.unwrap();
    assert_eq!(next(&mut at_a).await.0, "s");
    assert_eq!(next(&mut at_b).await.0, "s");
    assert_eq!(get(&b, "mcp:s").await.unwrap().json(), r#"{"user":"other"}"#);
    assert_eq!((a.cache().state().evictions, b.cache().state().evictions).0.iter().map(|(_, n)| n).sum::<u64>(), 1);

    // What others have put into the object under such a key stays there, and does not become this pod's by being seen.
    cluster.patch("s", &json!({"conn-q": "theirs"})).await.unwrap();
    assert_eq!(next(&mut at_b).await.0, "s");
    let mut idea = get(&b, "mcp:s").await.unwrap().to_map();
    assert_eq!(idea["conn-q"], "theirs");
    idea.insert("user".into(), "third".into());
    b.set(b"mcp:s", idea, Form::String, HOUR, Condition::Present).await.unwrap().unwrap();
    let object = objects(&cluster).get("s").await.unwrap();
    assert_eq!(object.spec.metadata, map([("conn-q", "theirs"), ("user", "third")]));
    cluster.patch("s", &json!({"conn-q": "theirs, anew"})).await.unwrap();
    assert_eq!(next(&mut at_b).await.0, "s");
    assert_eq!(get(&b, "mcp:s").await.unwrap().get("conn-q"), Some("theirs, anew"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compare_and_set_is_one_whatever_else_of_the_object_changes() {
    let cluster = without_controller().await;
    let (a, b) = (
        sessions_at(&cluster, "a", cluster.plane.url(), &committed()).await,
        sessions_at(&cluster, "b", cluster.plane.url(), &committed()).await,
    );
    let base = set(&a, "mcp:s", r#"{"n":"0"}"#, HOUR).await;
    let api = objects(&cluster);
    let label = json!({"metadata": {"labels": {"team": "a"}}});
    api.patch("s", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let n = |n: u32| map([("n", &*n.to_string())]);
    let one = a.replace(&base, n(1), None, Ttl::Keep, Exact::Yes, Known::All).await.unwrap().unwrap();
    assert_eq!(one.get("n"), Some("1"), "a label is no change of the session");
    assert_eq!(b.replace(&base, n(7), None, Ttl::Keep, Exact::Yes, Known::All).await.unwrap_err(), Failure::Conflict);
    assert_eq!(b.delete_exact(&base, Exact::Yes).await.unwrap_err(), Failure::Conflict);
    assert_eq!(get(&b, "mcp:s").await.unwrap().get("n"), Some("1"), "nothing was written");

    // Counting from two pods at once, nothing is counted twice and nothing is lost.
    let count = async |sessions: &Sessions| {
        let mut counted = 0;
        while counted < 25 {
            let base = get(sessions, "mcp:s").await.unwrap();
            let next = n(base.get("n").unwrap().parse::<u32>().unwrap() + 1);
            match sessions.replace(&base, next, None, Ttl::Keep, Exact::Yes, Known::All).await {
                Ok(Some(_)) => counted += 1,
                Err(Failure::Conflict) => {}
                other => panic!("{other:?}"),
            }
        }
    };
    tokio::join!(count(&a), count(&b));
    let end = get(&a, "mcp:s").await.unwrap();
    assert_eq!(end.get("n"), Some("51"));
    api.patch("s", &PatchParams::default(), &Patch::Merge(&json!({"metadata": {"labels": null}}))).await.unwrap();
    assert!(a.delete_exact(&end, Exact::Yes).await.unwrap());
    assert!(!a.delete_exact(&end, Exact::Yes).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_id_is_a_session_and_a_hashed_one_is_nowhere_to_be_seen() {
    let cluster = without_controller().await;
    let (a, b) = (
        sessions_at(&cluster, "a", cluster.plane.url(), &committed()).await,
        sessions_at(&cluster, "b", cluster.plane.url(), &committed()).await,
    );
    let long = [b"mcp:".to_vec(), vec![b'x'; 512]].concat();
    let keys: [&[u8]; 6] = [b"mcp:plain", b"mcp:Upper_Case", b"mcp:\xff\x00", b"mcp:x--a", "mcp:é ".as_bytes(), &long];
    for (n, key) in keys.into_iter().enumerate() {
        let map = map([("n", &*n.to_string())]);
        assert!(a.create(key, map, Form::Hash, HOUR).await.unwrap().is_some(), "{n}");
    }
    for (n, key) in keys.into_iter().enumerate() {
        let seen = b.get(key).await.unwrap().unwrap();
        assert_eq!(seen.get("n"), Some(&*n.to_string()));
        assert_eq!(b.key(seen.session().name()).as_deref(), Some(key));
        assert_eq!(b.name(key).as_deref(), Some(seen.session().name()));
    }
    let known = |sessions: &Sessions| {
        let mut known = sessions.known();
        known.sort_unstable();
        known
    };
    let mut expected: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
    expected.sort_unstable();
    assert_eq!(known(&b), expected);

    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    let hashing = SessionsConfig { hash_key_file: Some(secret.path().to_path_buf()), ..committed() };
    let c = sessions_at(&cluster, "c", cluster.plane.url(), &hashing).await;
    let d = sessions_at(&cluster, "d", cluster.plane.url(), &hashing).await;
    let mark = cluster.plane.audit().mark().unwrap();
    let key = format!("mcp:{CANARY}");
    let made = c.create(key.as_bytes(), map([("k", "1")]), Form::Hash, HOUR).await.unwrap().unwrap();
    assert_eq!(get(&d, &key).await.unwrap().session().uid(), made.session().uid(), "agents agree");
    assert_eq!(known(&d), [key.as_bytes()], "who knows the id is told it");
    let stolen = format!("mcp:{}", made.session().name());
    assert!(get(&a, &stolen).await.is_none(), "a name is no id, also where ids are not hashed");
    let object = serde_json::to_string(&objects(&cluster).get(made.session().name()).await.unwrap()).unwrap();
    assert!(!object.contains(CANARY), "{object}");
    cluster.plane.apiserver().audit_flush().await.unwrap();
    let seen = cluster.plane.audit().entries_since(mark).unwrap();
    assert!(seen.iter().all(|entry| !format!("{entry:?}").contains(CANARY)));
    assert!(get(&a, &key).await.is_none(), "where ids are not hashed, that is another session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_of_others_are_sessions_too() {
    let cluster = bare(ClusterOptions::default().without_policies()).await;
    let a = sessions_at(&cluster, "a", cluster.plane.url(), &committed()).await;
    let spec = VmcpSessionSpec { metadata: map([("k", "1")]), ..VmcpSessionSpec::default() };
    objects(&cluster).create(&PostParams::default(), &VmcpSession::new("applied", spec)).await.unwrap();
    let seen = get(&a, "mcp:applied").await.unwrap();
    assert_eq!((seen.form(), seen.deadline(), seen.json()), (Form::Hash, None, r#"{"k":"1"}"#.into()));
    let nonsense = json!({"metadata": {"annotations": {"vmcp.dev/form": "list", "vmcp.dev/expires-at": "soon"}},
        "spec": {"idleTimeoutSeconds": 90}});
    objects(&cluster).patch("applied", &PatchParams::default(), &Patch::Merge(&nonsense)).await.unwrap();
    let seen = a.fresh(b"mcp:applied").await.unwrap().unwrap();
    assert_eq!(seen.form(), Form::Hash);
    let left = seen.remaining(now_millis()).unwrap();
    assert!(left <= Duration::from_secs(90), "{left:?}");

    // What a replica says of itself, where sessions and replicas share a namespace, is out of reach.
    let mut marker = VmcpSession::new("replica-1", VmcpSessionSpec::default());
    marker.metadata.labels = Some([(LABEL_REPLICA.to_owned(), "true".to_owned())].into());
    objects(&cluster).create(&PostParams::default(), &marker).await.unwrap();
    assert!(get(&a, "mcp:replica-1").await.is_none());
    let present = a.set(b"mcp:replica-1", Metadata::new(), Form::String, Ttl::Clear, Condition::Present).await;
    assert!(present.unwrap().is_none());
    let made = a.set(b"mcp:replica-1", Metadata::new(), Form::String, Ttl::Clear, Condition::Always).await;
    assert!(matches!(made, Err(Failure::TryAgain(_))), "{made:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_api_server_nothing_is_missing_and_nothing_is_written() {
    let cluster = without_controller().await;
    let proxy = TcpProxy::start(cluster.plane.apiserver().address()).await.unwrap();
    let a = sessions_at(&cluster, "a", &proxy.https_url(), &committed()).await;
    let base = set(&a, "mcp:s", &format!(r#"{{"k":"{CANARY}"}}"#), HOUR).await;
    proxy.set(ProxyMode::Cut).await.unwrap();
    let begun = Instant::now();
    let mut failures = vec![a.get(b"mcp:s").await.map(drop).unwrap_err(), a.get(b"mcp:t").await.map(drop).unwrap_err()];
    failures.push(a.create(b"mcp:t", Metadata::new(), Form::Hash, HOUR).await.map(drop).unwrap_err());
    let other = map([("k", "2")]);
    failures.push(a.set(b"mcp:s", other.clone(), Form::String, HOUR, Condition::Always).await.map(drop).unwrap_err());
    failures.push(a.replace(&base, other, None, Ttl::Keep, Exact::Yes, Known::All).await.map(drop).unwrap_err());
    failures.push(a.expire(&base, Ttl::Millis(500), Exact::No).await.map(drop).unwrap_err());
    failures.push(a.delete(&base).await.map(drop).unwrap_err());
    for failure in failures {
        let text = failure.text();
        assert!(text.starts_with("TRYAGAIN ") && text.contains("reached"), "{text}");
        assert!(!text.contains(CANARY), "{text}");
    }
    println!("all refused after {:?}", begun.elapsed());
    proxy.set(ProxyMode::Pass).await.unwrap();
    let back = eventually(SOON, "it recovers by itself", async || a.get(b"mcp:s").await.ok()).await.unwrap();
    assert_eq!(back.unwrap().json(), base.json());
}
