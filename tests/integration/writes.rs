//! Writes: none is lost, none brings a storm, and those that ask for it are visible everywhere when they are answered.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};
use testkit::{ClusterOptions, PodClient, ProxyMode, Reply, Verb};
use tokio::time::Instant;

use crate::observer::Observer;
use crate::world::{Evictions, World, serves};

/// `spec.metadata` of session `s` as kubectl shows it.
async fn metadata(world: &World) -> Map<String, Value> {
    let text = world.kubectl(&["get", "vmcps", "s", "-o", "json"]).await.unwrap();
    let object: Value = serde_json::from_str(&text).unwrap();
    object["spec"]["metadata"].as_object().unwrap().clone()
}

fn written(reply: &Reply) {
    assert!((200..300).contains(&reply.status), "the write failed: {reply:?}");
}

/// 11. Two pods change different keys of one session at once, 100 times: nothing is lost (I7).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_change_different_keys_at_once_both_win() {
    let mut world = World::start(ClusterOptions::default().size(2, 2)).await;
    world.apply("s", &json!({"both": "0"})).await.unwrap();
    let change = async |pod: &PodClient, own: &str, n: u32| {
        // A key of its own that it changes each time, one more that stays, and one that goes again.
        let mut keys = json!({own: n.to_string(), format!("{own}-{n}"): "1", format!("{own}-passing"): n.to_string()});
        if n.is_multiple_of(2) {
            keys[format!("{own}-passing")] = Value::Null;
        }
        written(&pod.patch("s", &keys, "committed").await.unwrap());
    };
    for n in 1..=100 {
        tokio::join!(change(&world.pods[0], "a", n), change(&world.pods[1], "b", n));
    }
    let mut expected = BTreeMap::from([("both".to_owned(), "0".to_owned())]);
    for own in ["a", "b"] {
        expected.insert(own.to_owned(), "100".to_owned());
        expected.extend((1..=100).map(|n| (format!("{own}-{n}"), "1".to_owned())));
    }
    let expected: Map<String, Value> = expected.into_iter().map(|(k, v)| (k, v.into())).collect();
    assert_eq!(metadata(&world).await, expected);
    world.fence().await;
    for pod in &world.pods {
        let served = pod.get("s").await.unwrap().metadata();
        assert_eq!(served, Some(expected.clone().into()), "{} serves something else", pod.name);
    }
}

/// 12. Two pods that both keep pod-local values beside their copies: no storm.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_are_true_in_one_pod_only_disturb_no_other() {
    const ROUNDS: usize = 10;
    let mut world = World::start(ClusterOptions::default().size(2, 2)).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1]).await;
    let watchers = Evictions::of_all(&world.clients()).await;
    let mark = world.plane.audit().mark().unwrap();
    for round in 1..=ROUNDS {
        for pod in &world.pods {
            // As a vMCP server does: the connections that it has for the session.
            let value = json!(format!("connection of {} {round}", pod.name));
            written(&pod.call("PUT", "/local/s/connection", Some(&value)).await.unwrap());
            let beside = pod.call("GET", "/local/s", None).await.unwrap();
            assert!(beside.text.contains(&format!("{} {round}", pod.name)), "{beside:?}");
        }
        // A round that disturbed anybody would show by more evictions than there are changes.
        world.fence().await;
        world.patch("s", &json!({"n": round.to_string()})).await.unwrap();
        for (pod, watcher) in world.pods.iter().zip(&watchers) {
            watcher.wait("s", round).await;
            let beside = pod.call("GET", "/local/s", None).await.unwrap();
            assert_eq!(beside.json(), json!({}), "{}: the value outlived its copy", pod.name);
            serves(pod, "s", "n", &round.to_string()).await;
        }
    }
    world.fence().await;
    for watcher in &watchers {
        assert_eq!(watcher.of_session("s").await.len(), ROUNDS, "{}", watcher.pod());
        watcher.check_each_once().await;
    }
    world.plane.apiserver().audit_flush().await.unwrap();
    let by_pods = world.plane.audit().requests_since(mark).unwrap();
    let by_pods: Vec<_> = by_pods.iter().filter(|e| e.is_by("vmcp", "vmcp-server") && e.name == "s").collect();
    assert!(by_pods.iter().all(|e| e.verb == Verb::Get), "a pod wrote: {by_pods:?}");
    assert_eq!(by_pods.len(), 2 * ROUNDS, "one change costs each holder one restore");
    assert_eq!(metadata(&world).await, *json!({"n": ROUNDS.to_string()}).as_object().unwrap());
}

/// Reads that must see `n`, right after a write of it was answered.
async fn read_at_once(pods: &[PodClient], n: u64) {
    for pod in pods {
        let reply = pod.get("s").await.unwrap();
        let value = reply.metadata().map(|m| m["n"].clone());
        assert_eq!(value, Some(json!(n.to_string())), "{} after the write was visible everywhere: {reply:?}", pod.name);
    }
}

/// 19. I8: a pod writes with `everywhere`, others read right after the answer, 1,000 times, wherever they are: also one that
/// reaches only one of two replicas, also with a restore in flight, also while a replica is killed now and then; and
/// while nothing is broken the wait is a matter of milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_is_visible_everywhere_is_read_everywhere_right_after_its_answer() {
    let lease = Duration::from_secs(3);
    let mut world = World::start_alone(ClusterOptions::default().size(2, 2).lease(lease).proxied()).await;
    world.add_pod_reaching(&[0]).await.unwrap();
    world.pods[2].wait_leases(1).await.unwrap();
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.apply("plain", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1, 2]).await;
    let pods = world.clients();
    let observer = Observer::start(&pods, &[("s", 0)], lease);
    let (mut waits, mut plain) = (Vec::new(), Vec::new());
    for n in 1..=1000u64 {
        let (quiet, killing) = (n <= 600, n > 700 && n % 100 == 0);
        if n == 601 {
            // From here on every restore of the second pod is under way for a while.
            let late = Duration::from_millis(5);
            let slow = ProxyMode::Delay { to_server: late, to_client: late };
            world.pods[1].api.as_ref().unwrap().set(slow).await.unwrap();
        }
        if killing {
            world.controllers[1].process.kill9().await.unwrap();
        }
        let writer = &pods[usize::from(quiet && n % 2 == 1)];
        let started = Instant::now();
        written(&writer.patch("s", &json!({"n": n.to_string()}), "everywhere").await.unwrap());
        observer.confirmed("s", n);
        if quiet {
            waits.push(started.elapsed());
            let started = Instant::now();
            written(&writer.patch("plain", &json!({"n": n.to_string()}), "committed").await.unwrap());
            plain.push(started.elapsed());
        }
        read_at_once(&pods, n).await;
        if killing {
            world.controllers[1].restart().await.unwrap();
            world.controllers[1].wait_ready().await.unwrap();
            for pod in &pods[..2] {
                pod.wait_leases(2).await.unwrap();
            }
            // The dead one's registration goes when its leases have ended; until then each write waits for that.
            world.wait_registered(2).await;
        }
        observer.check();
    }
    waits.sort();
    plain.sort();
    println!("writes that are visible everywhere: median {:?}, p99 {:?}", waits[300], waits[594]);
    println!("writes that are committed: median {:?}, p99 {:?}", plain[300], plain[594]);
    // Milliseconds, where a plain write takes milliseconds: this machine may be slow, or busy.
    assert!(waits[300] < plain[300] * 8, "median of the writes: {:?}, of plain ones {:?}", waits[300], plain[300]);
    for (pod, seen) in observer.stop().await {
        assert!(seen.by("cache") > 0 && seen.by("restored") > 0, "{pod}: nothing was at stake: {seen:?}");
    }
}
