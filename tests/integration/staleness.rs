//! Bounded staleness (I1), whatever is silent, stale, asleep or gone; and that nobody pays for it with copies that were good
//! (I2).

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;
use testkit::{ClusterOptions, PodClient, ProxyMode, TcpProxy, eventually};

use crate::balancer::Balancer;
use crate::observer::Observer;
use crate::world::{Evictions, PATIENCE, World, serves};

const LEASE: Duration = Duration::from_secs(3);

/// Waits until a pod has no lease in force.
async fn unleased(pod: &PodClient) {
    pod.wait_leases(0).await.unwrap();
}

/// Waits until a pod answers in this way.
async fn answers(pod: &PodClient, name: &str, origin: &str) {
    let what = format!("{} answers with what is {origin}", pod.name);
    eventually(PATIENCE, &what, async || (pod.get(name).await.ok()?.from() == origin).then_some(())).await.unwrap();
}

/// The pod refuses to serve, and says why.
async fn refuses(pod: &PodClient, name: &str) {
    let what = format!("{} refuses", pod.name);
    let reply =
        eventually(PATIENCE, &what, async || pod.get(name).await.ok().filter(|r| r.status != 200)).await.unwrap();
    assert_eq!(reply.status, 503, "{}: {reply:?}", pod.name);
    let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.starts_with("the session cannot be served now: ") && error.len() > 40, "{}: {error}", pod.name);
}

/// 5. A holding that is newer than the replicas' watch (which is held back): no eviction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_is_newer_than_the_watch_is_kept() {
    let mut world = World::start(ClusterOptions { api_proxies: true, ..ClusterOptions::default() }).await;
    for name in ["changed", "recreated"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
        world.hold(name, &[1]).await;
    }
    // The replicas are connected to the pods as before, but hear nothing of the API server.
    for controller in &world.controllers {
        controller.api.as_ref().unwrap().set(ProxyMode::BlackholeToClient).await.unwrap();
    }
    let watchers = Evictions::of_all(&world.clients()).await;
    let [writer, holder, reader] = &world.clients()[..] else { panic!("three pods") };
    serves(writer, "changed", "n", "0").await;
    let reply = writer.patch("changed", &json!({"n": "1"}), "committed").await.unwrap();
    assert_eq!(reply.status, 200, "{reply:?}");
    serves(writer, "recreated", "n", "0").await;
    assert_eq!(writer.delete("recreated", "committed").await.unwrap().status, 200);
    assert_eq!(writer.create("recreated", &json!({"n": "1"}), "committed").await.unwrap().status, 200);
    for name in ["changed", "recreated"] {
        serves(reader, name, "n", "1").await;
        answers(reader, name, "cache").await;
        let old = holder.get(name).await.unwrap();
        assert_eq!(
            (old.from().as_str(), &old.metadata().unwrap()["n"]),
            ("cache", &json!("0")),
            "the watch told of it"
        );
    }
    for controller in &world.controllers {
        controller.api.as_ref().unwrap().set(ProxyMode::Pass).await.unwrap();
    }
    world.fence().await;
    for name in ["changed", "recreated"] {
        assert_eq!(watchers[1].of_session(name).await.len(), 1, "{} held an old copy", holder.name);
        assert_eq!(watchers[2].of_session(name).await, [], "{} held a new copy", reader.name);
        serves(holder, name, "n", "1").await;
    }
    assert_eq!(watchers[0].of_session("changed").await, [], "{} wrote it", writer.name);
    // It has deleted the first of that name, and with it its copy.
    assert_eq!(watchers[0].of_session("recreated").await.len(), 1, "{}", writer.name);
}

/// 7. A silent watch: leases end in time, copies are validated or refused, and the recovery is automatic (I1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_watch_ends_the_leases_in_time() {
    let world = World::start(ClusterOptions::default().lease(LEASE).proxied()).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.apply("quiet", &json!({"n": "0"})).await.unwrap();
    world.hold("quiet", &[0, 1, 2]).await;
    let pods = world.clients();
    let observer = Observer::start(&pods, &[("s", 0)], LEASE);
    let writer = observer.write(world.sessions(), "s");
    for silence in [ProxyMode::Blackhole, ProxyMode::BlackholeToClient] {
        println!("the replicas' API server: {silence:?}");
        for controller in &world.controllers {
            controller.api.as_ref().unwrap().set(silence).await.unwrap();
        }
        for pod in &pods {
            unleased(pod).await;
            answers(pod, "quiet", "validated").await;
            answers(pod, "s", "restored").await;
        }
        observer.outdated("s").await;
        for controller in &world.controllers {
            controller.api.as_ref().unwrap().set(ProxyMode::Pass).await.unwrap();
        }
        for pod in &pods {
            pod.wait_leases(2).await.unwrap();
            answers(pod, "quiet", "cache").await;
        }
        observer.check();
    }

    println!("one pod hears nothing of the replicas, then nothing of the API server either");
    let last = &world.pods[2];
    for stream in &last.streams {
        stream.set(ProxyMode::Blackhole).await.unwrap();
    }
    unleased(last).await;
    answers(last, "quiet", "validated").await;
    last.api.as_ref().unwrap().set(ProxyMode::Blackhole).await.unwrap();
    refuses(last, "quiet").await;
    observer.outdated("s").await;
    for proxy in last.streams.iter().chain(&last.api) {
        proxy.set(ProxyMode::Pass).await.unwrap();
    }
    last.wait_leases(2).await.unwrap();
    let n = writer.stop().await;
    for pod in &pods {
        serves(pod, "s", "n", &n.to_string()).await;
    }
    observer.stop().await;
}

/// 7. Two API servers on one etcd, of which one is stale: leases end in time, copies are validated or refused, and the
/// recovery is automatic (I1).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_api_server_is_noticed_and_left() {
    let options = ClusterOptions::default().size(0, 0).lease(LEASE);
    let mut world = World::start(ClusterOptions { api_proxies: true, ..options }).await;
    let etcd = world.plane.etcd().url().trim_start_matches("http://").parse().unwrap();
    let etcd = TcpProxy::start(etcd).await.unwrap();
    let second = world.plane.start_second_apiserver_behind(&etcd).await.unwrap();
    let balancer = Balancer::start(vec![world.plane.apiserver().address(), second.address()]).await;

    // The replicas and one pod use the second one, the other pods the first.
    balancer.only(1);
    world.options.api_server = Some(balancer.address());
    for _ in 0..2 {
        world.add_controller().await.unwrap().wait_ready().await.unwrap();
    }
    world.add_pod().await.unwrap();
    world.options.api_server = None;
    world.add_pod().await.unwrap();
    world.add_pod().await.unwrap();
    let pods = world.clients();
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    for name in ["s", "quiet"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
        world.hold(name, &[0, 1, 2]).await;
    }
    let observer = Observer::start(&pods, &[("s", 0)], LEASE);
    let writer = observer.write(world.sessions(), "s");

    println!("it goes stale, and the replicas reach no other");
    etcd.set(ProxyMode::Blackhole).await.unwrap();
    for pod in &pods {
        unleased(pod).await;
    }
    refuses(&pods[0], "quiet").await;
    for pod in &pods[1..] {
        answers(pod, "quiet", "validated").await;
    }
    observer.outdated("s").await;

    println!("new connections reach the other one, every second time");
    balancer.in_turn(2);
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    for pod in &pods[1..] {
        answers(pod, "quiet", "cache").await;
    }
    observer.outdated("s").await;

    println!("it knows everything again, late");
    etcd.set(ProxyMode::Pass).await.unwrap();
    answers(&pods[0], "quiet", "cache").await;
    let n = writer.stop().await;
    for pod in &pods {
        serves(pod, "s", "n", &n.to_string()).await;
    }
    observer.stop().await;
}

/// 8. SIGSTOP of one replica, then of the API server, then of a pod that wakes up late: I1 holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_paused_serves_nothing_old_when_it_wakes_up() {
    let mut world = World::start(ClusterOptions::default().size(2, 2).lease(LEASE)).await;
    world.add_pod_reaching(&[0]).await.unwrap();
    let pods = world.clients();
    let [_, sleeper, with_one] = &pods[..] else { panic!("three pods") };
    with_one.wait_leases(1).await.unwrap();
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1, 2]).await;
    let observer = Observer::start(&pods, &[("s", 0)], LEASE);
    let writer = observer.write(world.sessions(), "s");

    println!("a replica");
    world.controllers[0].process.pause().await.unwrap();
    unleased(with_one).await;
    observer.outdated("s").await;
    let before = observer.seen(&pods[0]).by("cache");
    world.controllers[0].process.resume().unwrap();
    with_one.wait_leases(1).await.unwrap();
    assert!(before > 0 && observer.seen(&pods[0]).by("cache") > before, "the other replica's leases were of no use");
    observer.check();

    println!("all replicas");
    for controller in &world.controllers {
        controller.process.pause().await.unwrap();
    }
    for pod in &pods {
        unleased(pod).await;
    }
    observer.outdated("s").await;
    for controller in &world.controllers {
        controller.process.resume().unwrap();
    }
    for pod in &pods[..2] {
        pod.wait_leases(2).await.unwrap();
    }
    observer.check();

    println!("the API server");
    world.plane.apiserver().pause().await.unwrap();
    for pod in &pods {
        unleased(pod).await;
    }
    join_all(pods.iter().map(async |pod| refuses(pod, "s").await)).await;
    world.plane.apiserver().resume().await.unwrap();
    for pod in &pods[..2] {
        pod.wait_leases(2).await.unwrap();
    }
    with_one.wait_leases(1).await.unwrap();
    observer.check();

    println!("a pod");
    let before = observer.number("s");
    world.pods[1].process.pause().await.unwrap();
    // Longer than its leases; the observer's requests wait at its door.
    observer.outdated("s").await;
    world.pods[1].process.resume().unwrap();
    let reply = sleeper.get("s").await.unwrap();
    let n: u64 = reply.metadata().unwrap()["n"].as_str().unwrap().parse().unwrap();
    assert!(n > before, "{reply:?}");
    sleeper.wait_leases(2).await.unwrap();
    let n = writer.stop().await;
    for pod in &pods {
        serves(pod, "s", "n", &n.to_string()).await;
    }
    observer.stop().await;
}

/// 10. The controller is down altogether: pods validate each hit, and a change is seen; the API server too: they fail closed,
/// with a clear error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_controller_pods_ask_each_time_and_without_an_api_server_they_refuse() {
    let mut world = World::start(ClusterOptions::default().lease(LEASE)).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0, 1, 2]).await;
    let watchers = Evictions::of_all(&world.clients()).await;
    for controller in &world.controllers {
        controller.process.kill9().await.unwrap();
    }
    let pods = world.clients();
    for pod in &pods {
        unleased(pod).await;
    }
    for n in 1..=5 {
        for pod in &pods {
            for _ in 0..3 {
                assert_eq!(pod.get("s").await.unwrap().from(), "validated", "{}", pod.name);
            }
        }
        let n = n.to_string();
        world.patch("s", &json!({"n": n})).await.unwrap();
        for pod in &pods {
            let reply = pod.get("s").await.unwrap();
            assert_eq!(
                (reply.from().as_str(), &reply.metadata().unwrap()["n"]),
                ("restored", &json!(n)),
                "{}",
                pod.name
            );
        }
    }
    for watcher in &watchers {
        watcher.check_each_once().await;
    }

    println!("the API server too");
    world.plane.apiserver().stop().await.unwrap();
    for pod in &pods {
        refuses(pod, "s").await;
        let reply = pod.patch("s", &json!({"n": "6"}), "committed").await.unwrap();
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(reply.status >= 500 && error.contains("the API server cannot be reached"), "{}: {reply:?}", pod.name);
    }

    println!("and back");
    world.plane.apiserver().restart().await.unwrap();
    for pod in &pods {
        answers(pod, "s", "validated").await;
    }
    for controller in &mut world.controllers {
        controller.restart().await.unwrap();
    }
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
        answers(pod, "s", "cache").await;
    }
}
