//! What the leading replica does, on a real API server, with replicas that may do just what deploy/rbac says.

mod agent;
mod setup;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use agent::make_up_uses;
use serde_json::{Value, json};
use setup::{SOON, Setup};
use testkit::{eventually, policy_rule};

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_do_not_answer_are_waited_for_and_named() {
    let mut setup = Setup::new(1, 1, &[]).await;
    let created = setup.create("s", json!({"k": "1"}), json!({}), json!({})).await;
    let mut stubborn = setup.agent(0, false).await;
    let mut dying = setup.agent(0, false).await;
    stubborn.hold(&created).await;
    dying.hold(&created).await;
    let held = async || (setup.replicas[0].metric("vmcp_session_holdings").await == Some(2.0)).then_some(());
    eventually(SOON, "two copies are held", held).await.unwrap();
    setup.change("s", "k", "2").await;
    let told = async || (dying.heard.lock().evictions == 1).then_some(());
    eventually(SOON, "the eviction is heard", told).await.unwrap();
    drop(dying);

    // One is gone, and its lease ends; the other has leases, and does not obey.
    let status = setup.status("s", 2).await;
    let message = "2 pods have not confirmed that they have dropped their old copies";
    assert_eq!(condition(&status), ("False", "WaitingForPods", message, 2));
    stubborn.acknowledge("s").await;
    setup.plane.kubectl(&["wait", "--for=condition=Synced", "--timeout=10s", "vmcps/s"]).await.unwrap();
    let message = "2 pods dropped their old copies; 1 of them did not answer, but its lease has ended";
    assert_eq!(condition(&setup.status("s", 2).await), ("True", "AllPodsCurrent", message, 2));
    let told = async || setup.events("PodUnreachable").await.pop();
    let note = eventually(SOON, "an event", told).await.unwrap();
    // The first one tells of both while their leases run, the next one of whom is left.
    assert!(note.contains("pod-2") && note.contains("not confirmed an eviction after"), "{note}");
    assert_eq!(setup.status_patches().await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_is_told_once_with_the_keys_and_those_who_write_them() {
    let mut setup = Setup::new(1, 15, &[]).await;
    let mut object = setup.create("s", json!({"k": "canary"}), json!({}), json!({})).await;
    let mut agent = setup.agent(0, true).await;
    for round in 1..=15 {
        agent.hold(&object).await;
        let patch = json!({"spec": {"metadata": {"conn": format!("canary-{round}")}}}).to_string();
        let args =
            ["patch", "vmcps", "s", "--type=merge", "--field-manager=pod-local", "-o", "json", "-p", patch.as_str()];
        object = serde_json::from_str(&setup.plane.kubectl(&args).await.unwrap()).unwrap();
        let told = async || (agent.heard.lock().evictions == round).then_some(());
        eventually(SOON, "the eviction is heard", told).await.unwrap();
    }
    let told = async || setup.events("EvictionStorm").await.pop();
    let note = eventually(SOON, "an event", told).await.unwrap();
    assert!(note.starts_with("evicted 10 times in "), "{note}");
    assert!(note.ends_with("; changed keys: conn; written by: kubectl-create, pod-local"), "{note}");
    setup.status("s", 16).await;
    assert_eq!(setup.events("EvictionStorm").await.len(), 1);
    let told = setup.events("MetadataChanged").await;
    assert!(told.len() <= 6, "they come fast, so they are merged: {told:?}");
    assert!(!setup.replicas[0].process.log().contains("canary"), "a value was shown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_with_their_timeouts_and_not_while_they_are_used() {
    let mut setup = Setup::new(2, 15, &[]).await;
    let other = 1 - setup.leader().await;
    setup.create("stays", json!({}), json!({}), json!({})).await;
    setup.create("long", json!({}), json!({"maxLifetimeSeconds": 3600, "idleTimeoutSeconds": 3600}), json!({})).await;
    // Before it is created: each of these takes its time.
    let born = Instant::now();
    setup.create("short-lived", json!({}), json!({"maxLifetimeSeconds": 2}), json!({})).await;
    setup.create("unused", json!({}), json!({"idleTimeoutSeconds": 5}), json!({})).await;
    let used = setup.create("used", json!({}), json!({"idleTimeoutSeconds": 5}), json!({})).await;
    // Its agent speaks to the replica that does not lead.
    let agent = setup.agent(other, true).await;
    setup.gone("short-lived", SOON).await;
    assert!(born.elapsed() >= Duration::from_secs(2));
    let mut last_used = Instant::now();
    let begun = last_used;
    while setup.get("unused").await.is_some() || begun.elapsed() < Duration::from_secs(12) {
        assert!(begun.elapsed() < SOON, "unused is still there");
        agent.renew(&used).await;
        last_used = Instant::now();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(setup.get("used").await.is_some(), "it is in use");
    setup.gone("used", SOON).await;
    assert!(last_used.elapsed() >= Duration::from_secs(5), "{:?}", last_used.elapsed());
    assert!(setup.get("stays").await.is_some() && setup.get("long").await.is_some());
    let leader = &setup.replicas[1 - other];
    assert_eq!(leader.metric("vmcp_session_expired_total{reason=\"idle\"}").await, Some(2.0));
    assert_eq!(leader.metric("vmcp_session_expired_total{reason=\"lifetime\"}").await, Some(1.0));
    assert!(leader.process.log().contains("session expired"));
}

/// Uses go to the replica that a pod is connected to, and from there to the leader. Whoever makes them up faster than they are
/// taken keeps no session of others alive, and ends none that is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_uses_of_one_namespace_change_nothing_for_another() {
    let mut setup = Setup::new(2, 15, &[]).await;
    let other = 1 - setup.leader().await;
    setup.plane.create_namespace("hostile").await.unwrap();
    setup.plane.create_service_account("hostile", "vmcp").await.unwrap();
    let rules = vec![policy_rule("vmcp.dev", &["vmcpsessions"], &["get"])];
    setup.plane.bind_role("hostile", "vmcp", rules).await.unwrap();
    let (liar, agent) = (setup.agent_in("hostile", other, true).await, setup.agent(other, true).await);
    let said = AtomicUsize::new(0);
    let watched = async {
        // More than may wait, before there is anything to lose.
        eventually(SOON, "many uses are made up", async || (said.load(Ordering::Relaxed) > 200_000).then_some(()))
            .await
            .unwrap();
        setup.create("unused", json!({}), json!({"idleTimeoutSeconds": 4}), json!({})).await;
        let used = setup.create("used", json!({}), json!({"idleTimeoutSeconds": 4}), json!({})).await;
        let begun = Instant::now();
        while setup.get("unused").await.is_some() || begun.elapsed() < Duration::from_secs(9) {
            assert!(begun.elapsed() < SOON, "unused is still there");
            agent.renew(&used).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        assert!(setup.get("used").await.is_some(), "it is in use");
    };
    tokio::select! {
        () = watched => {}
        () = make_up_uses(&liar, &said) => {}
    }
    println!("{} uses were made up", said.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_expires_early_because_the_leader_changed() {
    let setup = Setup::new(2, 2, &[]).await;
    let leader = setup.leader().await;
    let spec = json!({"idleTimeoutSeconds": 8});
    setup.create("s", json!({}), spec, json!({})).await;
    setup.replicas[leader].process.kill9().await.unwrap();
    // The last moment at which nobody led, for certain: the next leader is found a little after it has begun.
    let nobody = Cell::new(Instant::now());
    eventually(SOON, "the other replica leads", async || {
        let asked = Instant::now();
        let leads = setup.replicas[1 - leader].leads().await;
        if !leads {
            nobody.set(asked);
        }
        leads.then_some(())
    })
    .await
    .unwrap();
    setup.gone("s", Duration::from_mins(1)).await;
    // The next leader must hear everybody for the whole timeout before it may know that nobody used it.
    let heard = nobody.get().elapsed();
    assert!(heard >= Duration::from_secs(8), "{heard:?} after the failover");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_is_confirmed_by_all_replicas_and_pods() {
    let mut setup = Setup::new(2, 60, &[]).await;
    let finalizers = || json!({"finalizers": ["example.com/other", "vmcp.dev/confirm-eviction"]});
    setup.create("nobody", json!({}), json!({}), finalizers()).await;
    let held = setup.create("held", json!({}), json!({}), finalizers()).await;
    setup.plane.kubectl(&["delete", "vmcps", "nobody", "--wait=false"]).await.unwrap();
    // Leases are long: whatever is quick was confirmed.
    setup.let_go("nobody").await;

    let other = 1 - setup.leader().await;
    let mut agent = setup.agent(other, false).await;
    agent.hold(&held).await;
    setup.plane.kubectl(&["delete", "vmcps", "held", "--wait=false"]).await.unwrap();
    let asked = async || {
        let heard = agent.heard.lock();
        (heard.evictions == 1 && heard.barriers == 1).then_some(())
    };
    eventually(SOON, "the agent is told to drop it, and to confirm", asked).await.unwrap();
    setup.plane.apiserver().audit_flush().await.unwrap();
    let object = setup.get("held").await.unwrap();
    assert_eq!(object["metadata"]["finalizers"], finalizers()["finalizers"], "the pod has not confirmed");
    agent.acknowledge("held").await;
    setup.let_go("held").await;
    assert_eq!(setup.forbidden().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_does_not_wait_for_a_replica_whose_marker_is_removed() {
    let setup = Setup::new(2, 60, &[]).await;
    let leader = setup.leader().await;
    let dead = 1 - leader;
    setup.replicas[dead].process.kill9().await.unwrap();
    setup.create("s", json!({}), json!({}), json!({"finalizers": ["vmcp.dev/confirm-eviction"]})).await;
    setup.plane.kubectl(&["delete", "vmcps", "s", "--wait=false"]).await.unwrap();
    let log = async || setup.replicas[leader].process.log().contains("no stream to the peer").then_some(());
    eventually(SOON, "the leader finds the other replica dead", log).await.unwrap();
    assert!(setup.get("s").await.is_some(), "it may have granted leases");

    // As the leader itself does when these are over.
    let markers = setup.markers().await;
    let marker = markers.iter().find(|name| name.contains(&format!("controller-{dead}-"))).unwrap();
    setup.plane.kubectl(&["delete", "-n", "vmcp-system", marker]).await.unwrap();
    // Leases are long: whatever is quick was not waited for.
    setup.gone("s", SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_deletion_hangs_when_everybody_is_dead() {
    let mut setup = Setup::new(2, 3, &[]).await;
    let meta = json!({"finalizers": ["vmcp.dev/confirm-eviction"]});
    let held = setup.create("s", json!({}), json!({}), meta.clone()).await;
    let leader = setup.leader().await;
    let mut agents = [setup.agent(0, false).await, setup.agent(1, false).await];
    for agent in &mut agents {
        agent.hold(&held).await;
    }
    drop(agents);
    setup.plane.kubectl(&["delete", "vmcps", "s", "--wait=false"]).await.unwrap();
    let deleted = Instant::now();
    setup.replicas[leader].process.kill9().await.unwrap();
    // The next leader has seen it from the beginning: a lease, an election and a moment.
    setup.gone("s", SOON).await;
    println!("gone after {:?}", deleted.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_marker_of_a_killed_replica_is_removed_and_the_next_leader_goes_on() {
    let mut setup = Setup::new(2, 2, &[]).await;
    assert_eq!(setup.markers().await.len(), 2);
    setup.create("s", json!({"k": "1"}), json!({}), json!({})).await;
    setup.status("s", 1).await;
    let leader = setup.leader().await;
    setup.replicas[leader].process.kill9().await.unwrap();
    // Nobody leads now.
    setup.change("s", "k", "2").await;
    let next = setup.leader().await;
    assert_ne!(next, leader);
    let status = setup.status("s", 2).await;
    assert_eq!(condition(&status), ("True", "NoHolders", "no pod holds a copy", 2));
    assert_eq!(setup.status_patches().await, 2);
    let one = async || (setup.markers().await.len() == 1).then_some(());
    eventually(SOON, "the dead replica's marker is removed", one).await.unwrap();
    let removed = "vmcp_session_markers_removed_total";
    assert_eq!(setup.replicas[next].metric(removed).await, Some(1.0));

    // One that starts anew, in generation 2 and with nobody to ask, waits for leases it does not know of.
    setup.add_replica().await;
    setup.replicas[2].ready().await;
    let status = setup.replicas[next].process.terminate(Duration::from_secs(10)).await.unwrap();
    assert!(status.success());
    assert_eq!(setup.leader().await, 2, "the lease was given back");
    setup.change("s", "k", "3").await;
    setup.status("s", 3).await;
    assert_eq!(setup.markers().await.len(), 1, "who stops in order takes its marker along");
    assert_eq!(setup.status_patches().await, 3);
    assert_eq!(setup.forbidden().await, Vec::<String>::new());
}
