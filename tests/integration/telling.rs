//! What people are told: statuses and events; and what nobody is told: values.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use testkit::{AuditMark, ClusterOptions, PodClient, Verb, eventually};
use tokio::task::JoinSet;
use tokio::time::sleep;
use vmcp_session::runtime::clock::boottime_nanos;

use crate::world::{Evictions, PATIENCE, World};

/// Does what made the whole-map comparison fail before: writes what is true only in this pod into the shared map, each
/// time that it restores the session.
async fn writes_its_own(pod: PodClient) {
    let own = format!("backend-of-{}", pod.name);
    loop {
        if let Ok(reply) = pod.get("s").await
            && reply.metadata().is_some_and(|m| m["connection"] != own.as_str())
        {
            let _ = pod.patch("s", &json!({"connection": own}), "committed").await;
        }
        sleep(Duration::from_millis(1)).await;
    }
}

/// 13. Two pods write values of their own into `spec.metadata`: the storm is detected, one event tells of it, the cluster
/// stays responsive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_told_once_and_disturbs_nobody_else() {
    const OTHERS: usize = 8;
    let mut world = World::start(ClusterOptions::default()).await;
    world.apply("s", &json!({"connection": ""})).await.unwrap();
    world.apply("other", &json!({"n": "0"})).await.unwrap();
    let pods = world.clients();
    let watchers = Evictions::of_all(&pods).await;
    let mut storm = JoinSet::new();
    for pod in &pods[..2] {
        storm.spawn(writes_its_own(pod.clone()));
    }
    watchers[0].wait("s", 30).await;

    println!("another session, meanwhile");
    let mut slowest = Duration::ZERO;
    for n in 1..=OTHERS {
        world.hold("other", &[0, 1, 2]).await;
        world.merge("other", &json!({"n": n.to_string()})).await;
        let committed = boottime_nanos();
        for watcher in &watchers {
            let seen = watcher.wait("other", n).await;
            slowest = slowest.max(Duration::from_nanos(seen[n - 1].at.saturating_sub(committed)));
        }
    }
    println!("slowest signal: {slowest:?}");
    // Far more than it takes on a busy machine, and less than if a signal were lost: then a lease would have to end.
    assert!(slowest < world.options.lease / 2, "{slowest:?}");

    println!("the event");
    while world.events("s", "EvictionStorm").await.is_empty() {
        let so_far = watchers[0].of_session("s").await.len();
        watchers[0].wait("s", so_far + 5).await;
    }
    let so_far = watchers[0].of_session("s").await.len();
    watchers[0].wait("s", so_far + 30).await;
    storm.shutdown().await;
    world.fence().await;
    let events = world.events("s", "EvictionStorm").await;
    assert_eq!(events.len(), 1, "{events:?}");
    let (event, note) = (&events[0], events[0]["message"].as_str().unwrap());
    assert_eq!((&event["type"], &event["involvedObject"]["kind"]), (&json!("Warning"), &json!("VmcpSession")));
    // The API server knows only who wrote a key last.
    let manager = ["vmcp/pod-1", "vmcp/pod-2"].iter().any(|manager| note.contains(manager));
    assert!(manager && note.contains("connection"), "{note}");
    assert!(!note.contains("backend-of"), "a value is in: {note}");
    assert!(world.events("other", "EvictionStorm").await.is_empty(), "{OTHERS} changes are no storm");
}

/// 16. At most one status patch for each change, from the audit log; and what it says is right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_costs_one_status_patch_at_most() {
    let mut world = World::start(ClusterOptions::default()).await;
    for name in ["slow", "quick", "alone"] {
        world.apply(name, &json!({"n": "0"})).await.unwrap();
    }
    for n in 1..=5 {
        world.hold("slow", &[0, 1, 2]).await;
        world.patch("slow", &json!({"n": n.to_string()})).await.unwrap();
        // As people do: it must wait for the new generation, not be content with the old one.
        world.kubectl(&["wait", "--for=condition=Synced", "--timeout=30s", "vmcps/slow"]).await.unwrap();
        let text = world.kubectl(&["get", "vmcps", "slow", "-o", "json"]).await.unwrap();
        let session: Value = serde_json::from_str(&text).unwrap();
        let (generation, status) = (session["metadata"]["generation"].as_u64().unwrap(), &session["status"]);
        assert_eq!(generation, n + 1);
        assert_eq!(status["conditions"][0]["observedGeneration"], generation, "{status}");
        assert_eq!(status["lastEviction"]["generation"], generation, "{status}");
        assert_eq!(status["lastEviction"]["changedKeys"], json!(["n"]), "{status}");
    }
    world.hold("quick", &[0, 1]).await;
    for n in 1..=100 {
        world.merge("quick", &json!({"n": n.to_string()})).await;
    }
    for label in ["a", "b", "c"] {
        world
            .kubectl(&["label", "--overwrite", "vmcps", "slow", "quick", "alone", &format!("team={label}")])
            .await
            .unwrap();
    }
    world.fence().await;
    let sessions = world.settled().await;
    world.plane.apiserver().audit_flush().await.unwrap();
    let mut patches = BTreeMap::<String, u64>::new();
    for entry in world.plane.audit().requests_since(AuditMark::default()).unwrap() {
        if entry.subresource == "status" && entry.resource == "vmcpsessions" {
            assert!(entry.verb == Verb::Patch && entry.is_success(), "{entry:?}");
            *patches.entry(entry.name).or_default() += 1;
        }
    }
    for session in &sessions {
        let name = session["metadata"]["name"].as_str().unwrap();
        let (patches, changes) = (patches[name], session["metadata"]["generation"].as_u64().unwrap());
        println!("{name}: {patches} patches for {changes} changes");
        assert!(patches <= changes, "{name}: {patches} patches for {changes} changes");
        let column = world.kubectl(&["get", "vmcps", name, "--no-headers"]).await.unwrap();
        assert!(column.contains("True"), "{column}");
    }
    assert_eq!(patches["slow"], 6, "each change was waited for");
}

const CANARY: &str = "canary7f3a9";

fn canary(n: u32) -> Value {
    json!({"token": format!("{CANARY}-{n}"), "other": format!("x{CANARY}")})
}

/// 17. No metadata value in any log, event, metric or status of a whole run (I6), in which much goes wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_appear_nowhere_but_in_the_object_and_the_copies() {
    let mut options = ClusterOptions::default().lease(Duration::from_secs(3)).controller_args(&["--renewal-seconds=1"]);
    options.log_level = "debug,vmcp_session=trace".into();
    let mut world = World::start(options).await;
    let pods = world.clients();
    let mut replies = Vec::new();

    println!("much goes right");
    let guarded = json!({
        "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
        "metadata": {"name": "guarded", "namespace": "vmcp", "finalizers": ["vmcp.dev/confirm-eviction"]},
        "spec": {"metadata": canary(0)},
    });
    let args = ["apply", "--server-side", "-f", "-"];
    world.plane.kubectl_with_input(&args, &guarded.to_string()).await.unwrap();
    world.hold("guarded", &[0, 1, 2]).await;
    assert_eq!(pods[0].create("s", &canary(0), "everywhere").await.unwrap().status, 200);
    let expiring = pods[0].call("POST", "/sessions/expiring?idle=1", Some(&canary(0))).await.unwrap();
    assert_eq!(expiring.status, 200);
    let watchers = Evictions::of_all(&pods).await;
    for n in 1..=12 {
        world.hold("s", &[0, 1, 2]).await;
        world.merge("s", &canary(n)).await;
        watchers[2].wait("s", n.try_into().unwrap()).await;
    }
    assert_eq!(pods[1].get("s").await.unwrap().metadata(), Some(canary(12)), "the canary is not alive");
    pods[1].call("PUT", "/local/s/connection", Some(&json!(CANARY))).await.unwrap();
    world.kubectl(&["delete", "vmcps", "guarded"]).await.unwrap();

    println!("much is refused");
    let long = json!({"token": format!("{CANARY}{}", "x".repeat(65_536))});
    let strange = json!({"": CANARY});
    for bad in [&long, &strange] {
        replies.push(pods[1].patch("s", bad, "committed").await.unwrap());
        replies.push(pods[1].create("new", bad, "everywhere").await.unwrap());
    }
    replies.push(pods[1].create("s", &canary(99), "committed").await.unwrap());
    replies.push(pods[1].call("PATCH", "/sessions/s", Some(&json!({"k": [CANARY]}))).await.unwrap());
    assert!(replies.iter().all(|r| (400..500).contains(&r.status)), "{replies:?}");

    println!("much breaks");
    world.hold("s", &[0, 1, 2]).await;
    world.pods[2].process.pause().await.unwrap();
    world.merge("s", &canary(13)).await;
    eventually(PATIENCE, "a pod is unreachable", async || world.events("s", "PodUnreachable").await.pop())
        .await
        .unwrap();
    world.pods[2].process.resume().unwrap();
    world.plane.apiserver().kill9().await.unwrap();
    replies.extend(join_all(pods.iter().map(async |pod| pod.get("missing").await.unwrap())).await);
    replies
        .extend(join_all(pods.iter().map(async |pod| pod.patch("s", &canary(14), "everywhere").await.unwrap())).await);
    world.plane.apiserver().restart().await.unwrap();
    for pod in &pods {
        pod.wait_leases(2).await.unwrap();
    }
    world.merge("s", &canary(15)).await;
    world.fence().await;
    world.settled().await;
    eventually(PATIENCE, "a session expires", async || {
        world.sessions().get_opt("expiring").await.ok()?.is_none().then_some(())
    })
    .await
    .unwrap();

    println!("what is to be seen of it");
    let mut told: Vec<(String, String)> = replies.into_iter().map(|r| ("a pod's reply".into(), r.text)).collect();
    for controller in &world.controllers {
        told.push((format!("the metrics of {}", controller.name), controller.metrics().await.unwrap()));
    }
    for what in ["events.events.k8s.io", "leases", "pods"] {
        let text = world.plane.kubectl(&["get", what, "-A", "-o", "yaml"]).await.unwrap();
        told.push((what.into(), text));
    }
    let text = world.plane.kubectl(&["get", "vmcps", "-A", "-o", "json", "--show-managed-fields"]).await.unwrap();
    let mut list: Value = serde_json::from_str(&text).unwrap();
    assert!(text.contains(CANARY), "the canary is not alive");
    for session in list["items"].as_array_mut().unwrap() {
        session["spec"]["metadata"].take();
        assert!(session["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].is_null());
    }
    told.push(("the sessions but for spec.metadata".into(), list.to_string()));
    for at in 0..world.controllers.len() {
        let ended = world.controllers[at].process.terminate(Duration::from_secs(10)).await.unwrap();
        assert!(ended.success(), "{ended:?}");
        told.push((format!("the log of {}", world.controllers[at].name), world.controllers[at].process.log()));
    }
    for pod in &world.pods {
        pod.process.terminate(Duration::from_secs(10)).await.unwrap();
        told.push((format!("the log of {}", pod.name), pod.process.log()));
    }
    for (what, text) in &told {
        let line = text.lines().find(|line| line.contains(CANARY));
        assert_eq!(line, None, "a value is in {what}");
    }
    let all: String = told.into_iter().map(|(_, text)| text).collect();
    for expected in
        ["MetadataChanged", "EvictionStorm", "PodUnreachable", "\"evicted\"", "session expired", "\"DEBUG\""]
    {
        assert!(all.contains(expected), "nothing of {expected} was seen, so this test shows little");
    }
}
