//! The main job: a change of a session's metadata, whichever key, costs each pod that holds a copy one eviction and nobody
//! else anything.

use serde_json::json;
use testkit::{AuditEntry, ClusterOptions, PodClient, Verb};

use crate::observer::Observer;
use crate::world::{Evictions, World, serves};

const ALL: &[usize] = &[0, 1, 2];

/// What every pod has seen of session `s` since some moment.
struct Watchers(Vec<Evictions>);

impl Watchers {
    async fn new(world: &World) -> Self {
        Self(Evictions::of_all(&world.clients()).await)
    }

    /// Waits until each of these pods has been told that its copy is stale, and the other pods' turn has passed.
    async fn expect(&self, world: &mut World, evicted: &[usize], reason: &str) {
        for at in evicted {
            self.0[*at].wait("s", 1).await;
        }
        world.fence().await;
        for (at, watcher) in self.0.iter().enumerate() {
            let seen = watcher.of_session("s").await;
            assert_eq!(seen.len(), usize::from(evicted.contains(&at)), "{}: {seen:?}", watcher.pod());
            assert!(seen.iter().all(|e| e.reason == reason), "{}: {seen:?}", watcher.pod());
        }
    }
}

/// 1. Any key added, changed, removed: all holders are evicted once, the writer and those who hold no copy are not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_change_of_metadata_evicts_every_holder_once_and_never_the_writer() {
    let mut world = World::start(ClusterOptions::default().size(2, 4)).await;
    world.apply("s", &json!({"a": "1", "b": "2"})).await.unwrap();

    let changes = [
        ("a key is added", json!({"c": "3"}), "c", Some("3")),
        ("a key is changed", json!({"a": "4"}), "a", Some("4")),
        ("a key is removed", json!({"b": null}), "b", None),
        ("a key that nobody has ever heard of", json!({"x.y/z Ü \n": "5"}), "x.y/z Ü \n", Some("5")),
        ("a value becomes empty", json!({"c": ""}), "c", Some("")),
    ];
    for (what, patch, key, value) in changes {
        println!("{what}");
        world.hold("s", ALL).await;
        let watchers = Watchers::new(&world).await;
        world.patch("s", &patch).await.unwrap();
        watchers.expect(&mut world, ALL, "stale").await;
        for pod in ALL.iter().map(|at| &world.pods[*at]) {
            let served = pod.get("s").await.unwrap().metadata().unwrap();
            assert_eq!(served.get(key).and_then(|v| v.as_str()), value, "{what}: {} serves {served}", pod.name);
        }
    }

    println!("a whole map is applied");
    world.hold("s", ALL).await;
    let watchers = Watchers::new(&world).await;
    world.apply("s", &json!({"d": "6"})).await.unwrap();
    watchers.expect(&mut world, ALL, "stale").await;

    for visibility in ["committed", "everywhere"] {
        println!("a pod writes: {visibility}");
        world.hold("s", ALL).await;
        let watchers = Watchers::new(&world).await;
        let reply = world.pods[0].patch("s", &json!({"by": visibility}), visibility).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        watchers.expect(&mut world, &[1, 2], "stale").await;
        let own = world.pods[0].get("s").await.unwrap();
        assert_eq!((own.from().as_str(), &own.metadata().unwrap()["by"]), ("cache", &json!(visibility)), "{own:?}");
    }
}

/// Requests for session `s` that the pods have sent to the API server.
fn by_pods(entry: &AuditEntry) -> bool {
    entry.is_by("vmcp", "vmcp-server") && entry.verb == Verb::Get && entry.name == "s"
}

/// 2. Label, annotation, finalizer, status and timeout changes: nobody is evicted, nobody asks the API server again (I2).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_anything_but_metadata_evict_nobody() {
    let mut world = World::start(ClusterOptions::default()).await;
    world.apply("s", &json!({"a": "1"})).await.unwrap();
    world.hold("s", ALL).await;
    let watchers = Watchers::new(&world).await;
    let mark = world.plane.audit().mark().unwrap();

    let status = json!({"status": {"lastRenewTime": "2026-01-01T00:00:00Z"}}).to_string();
    let commands: &[&[&str]] = &[
        &["label", "vmcps", "s", "team=a"],
        &["label", "vmcps", "s", "team-"],
        &["annotate", "vmcps", "s", "note=a"],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"metadata":{"finalizers":["example.com/a"]}}"#],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#],
        &["patch", "vmcps", "s", "--subresource=status", "--type=merge", "-p", &status],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"spec":{"idleTimeoutSeconds":3600}}"#],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"spec":{"maxLifetimeSeconds":7200,"server":"weather"}}"#],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"spec":{"idleTimeoutSeconds":null}}"#],
        &["patch", "vmcps", "s", "--type=merge", "-p", r#"{"spec":{"metadata":{"a":"1"}}}"#],
    ];
    for command in commands {
        world.kubectl(command).await.unwrap();
    }
    let generation = world.sessions().get("s").await.unwrap().metadata.generation;
    assert_eq!(generation, Some(4), "the timeouts raise the generation");

    watchers.expect(&mut world, &[], "").await;
    for pod in &world.pods {
        assert_eq!(pod.get("s").await.unwrap().from(), "cache", "{}", pod.name);
    }
    world.plane.apiserver().audit_flush().await.unwrap();
    assert_eq!(world.plane.audit().count_since(mark, by_pods).unwrap(), 0, "somebody asked the API server");

    // And that this test would have seen an eviction:
    world.patch("s", &json!({"a": "2"})).await.unwrap();
    watchers.expect(&mut world, ALL, "stale").await;
}

async fn uid(pod: &PodClient) -> String {
    pod.get("s").await.unwrap().json()["uid"].as_str().unwrap().to_owned()
}

/// 3. Delete and recreate under the same name with an equal map: evicted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_recreated_with_an_equal_map_is_another_session() {
    let mut world = World::start(ClusterOptions::default()).await;
    let map = json!({"a": "1"});
    world.apply("s", &map).await.unwrap();
    for how in ["with a pause", "at once"] {
        println!("{how}");
        world.hold("s", ALL).await;
        let watchers = Watchers::new(&world).await;
        let old = uid(&world.pods[0]).await;
        world.kubectl(&["delete", "vmcps", "s"]).await.unwrap();
        if how == "with a pause" {
            watchers.expect(&mut world, ALL, "gone").await;
            for pod in &world.pods {
                assert_eq!(pod.get("s").await.unwrap().status, 404, "{}", pod.name);
            }
        }
        world.apply("s", &map).await.unwrap();
        watchers.expect(&mut world, ALL, "gone").await;
        for (at, pod) in world.pods.iter().enumerate() {
            assert_eq!(watchers.0[at].of_session("s").await[0].uid, old);
            let reply = pod.get("s").await.unwrap();
            assert_eq!(reply.metadata(), Some(map.clone()));
            assert_ne!(uid(pod).await, old, "{} serves the session that was deleted", pod.name);
        }
    }
}

/// 4. 100 rapid changes: each pod ends on the last, no pod ever goes back (I5), and no change costs two evictions (I3).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_rapid_changes_every_pod_ends_on_the_last_and_none_goes_back() {
    let mut world = World::start(ClusterOptions::default()).await;
    world.apply("s", &json!({"n": "0", "other": "1"})).await.unwrap();
    world.hold("s", ALL).await;
    let watchers = Watchers::new(&world).await;
    let observer = Observer::start(&world.clients(), &[("s", 0)], world.options.lease);
    for n in 1..=100u64 {
        world.merge("s", &json!({"n": n.to_string()})).await;
        observer.committed("s", n);
    }
    for pod in &world.pods {
        serves(pod, "s", "n", "100").await;
    }
    world.fence().await;
    for seen in observer.stop().await.into_values() {
        // How fast it is, is for the benchmark to say: on a busy machine a read may also come too late for a session
        // that goes on changing. What is promised is that nothing is older than a lease.
        assert_eq!(seen.lost, 0, "{seen:?}");
        assert!(seen.stalest <= world.options.lease, "{seen:?}");
    }
    for watcher in &watchers.0 {
        let count = watcher.of_session("s").await.len();
        assert!((1..=100).contains(&count), "{}: {count} evictions for 100 changes", watcher.pod());
        watcher.check_each_once().await;
    }
}
