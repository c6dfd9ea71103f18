//! What the leading replica does, on a real API server, with replicas that may do just what deploy/rbac says.

#[path = "reconcile/agent.rs"]
mod agent;
#[path = "reconcile/setup.rs"]
mod setup;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use setup::{SOON, Setup};
use testkit::eventually;

fn condition(status: &Value) -> (&str, &str, &str, u64) {
    let condition = &status["conditions"][0];
    let text = |name: &str| condition[name].as_str().unwrap_or_default();
    (text("status"), text("reason"), text("message"), condition["observedGeneration"].as_u64().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_is_written_once_for_each_change() {
    let mut setup = Setup::new(1, 15, &[]).await;
    setup.create("s", json!({"k": "canary-1"}), json!({}), json!({})).await;
    setup.plane.kubectl(&["wait", "--for=condition=Synced", "--timeout=10s", "vmcps/s"]).await.unwrap();
    let status = setup.status("s", 1).await;
    assert_eq!(condition(&status), ("True", "NoHolders", "no pod holds a copy", 1));
    assert_eq!(setup.status_patches().await, 1);
    let since = status["conditions"][0]["lastTransitionTime"].clone();

    let changed = setup.change("s", "k", "canary-2").await;
    let status = setup.status("s", 2).await;
    assert_eq!(condition(&status), ("True", "NoHolders", "no pod holds a copy", 2));
    assert_eq!(setup.status_patches().await, 2);

    let mut agents = [setup.agent(0, true).await, setup.agent(0, true).await];
    for agent in &mut agents {
        agent.hold(&changed).await;
    }
    let held = async || (setup.replicas[0].metric("vmcp_session_holdings").await == Some(2.0)).then_some(());
    eventually(SOON, "two copies are held", held).await.unwrap();
    setup.patch("s", &json!({"metadata": {"labels": {"team": "x"}}})).await;
    setup.patch("s", &json!({"spec": {"idleTimeoutSeconds": 3600}})).await;
    let status = setup.status("s", 3).await;
    assert_eq!(condition(&status), ("True", "AllPodsCurrent", "2 pods hold copies, and all are current", 3));
    assert_eq!(status["lastEviction"], Value::Null);
    assert_eq!(agents[0].heard.lock().evictions, 0);
    assert_eq!(setup.status_patches().await, 3);

    setup.patch("s", &json!({"spec": {"metadata": {"k": "canary-3", "new": "canary-4"}}})).await;
    let status = setup.status("s", 4).await;
    assert_eq!(condition(&status), ("True", "AllPodsCurrent", "2 pods dropped their old copies", 4));
    let evicted = &status["lastEviction"];
    assert_eq!((&evicted["generation"], &evicted["pods"]), (&json!(4), &json!(2)));
    assert_eq!(evicted["changedKeys"], json!(["k", "new"]));
    assert_eq!(status["conditions"][0]["lastTransitionTime"], since, "it was true all the time");
    assert_eq!(setup.status_patches().await, 4);
    let told = async || setup.events("MetadataChanged").await.pop();
    let note = eventually(SOON, "an event", told).await.unwrap();
    assert!(note.starts_with("2 pods dropped their copies in ") && note.ends_with("; changed keys: k, new"), "{note}");

    let metrics = setup.replicas[0].metrics().await;
    for expected in [
        "vmcp_session_sessions 1\n",
        "vmcp_session_agents{state=\"connected\"} 2\n",
        "vmcp_session_evictions_total{reason=\"stale\"} 2\n",
        "vmcp_session_status_patches_total{result=\"written\"} 4\n",
        "vmcp_session_events_total{result=\"written\"} 1\n",
        "vmcp_session_signal_to_ack_seconds_count 1\n",
        "vmcp_session_queue_depth{queue=\"status\"} 0\n",
        "vmcp_session_queue_depth{queue=\"status_behind\"} 0\n",
    ] {
        assert!(metrics.contains(expected), "{expected} is missing in {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(setup.forbidden().await, Vec::<String>::new());
    let log = setup.replicas[0].process.log();
    assert!(!log.contains("canary") && !metrics.contains("canary"), "a value was shown");
}
