//! A pod acts in its own namespace only, and for itself only, whatever it says.

use std::time::{Duration, Instant};

use serde_json::json;
use vmcp_session::core::digest::{Digest, Metadata};
use vmcp_session::core::session::Uid;
use vmcp_session::proto::v1;
use vmcp_session::proto::v1::agent_message::Message as Said;
use vmcp_session::proto::v1::replica_message::Message as Heard;

use super::client::{Agent, confirm, instance};
use super::setup::{LEASE, OTHER, PATIENCE, on_shared, soon};

/// The report of a true copy.
async fn hold(agent: &Agent, object: &vmcp_session::api::VmcpSession, uid: Uid, through: u64) {
    let metadata: Metadata = object.spec.metadata.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let held = v1::Holding {
        session: object.metadata.name.clone().unwrap(),
        uid: uid.to_bytes().to_vec().into(),
        generation: object.metadata.generation.unwrap().try_into().unwrap(),
        digest: Digest::of(&metadata).as_bytes().to_vec().into(),
        resource_version: object.metadata.resource_version.as_deref().unwrap().parse().unwrap(),
        since: 0,
    };
    agent.say(Said::Reports(v1::Reports { held: vec![held], released: vec![], through, complete: true })).await;
}

#[test]
fn a_confirmation_or_a_report_touches_no_session_of_the_same_name_elsewhere() {
    on_shared(async |shared| {
        let here = shared.namespace();
        let (object, uid) = shared.session(here, "twin", &json!({"metadata": {"k": "1"}})).await;
        let (other, other_uid) = shared.session(OTHER, "twin", &json!({"metadata": {"k": "1"}})).await;
        let mut owner = shared.agent(here).await;
        hold(&owner, &object, uid, 1).await;
        owner.leased().await;
        let mut stranger = shared.agent(OTHER).await;
        hold(&stranger, &other, other_uid, 1).await;
        // It claims the other namespace's object too: for it, there is no such object.
        hold(&stranger, &object, uid, 2).await;
        let heard = stranger.signals().await;
        assert_eq!(heard.evictions.len(), 1, "{heard:?}");
        assert!(heard.evictions[0].gone && heard.evictions[0].uid == uid.to_bytes().to_vec(), "{heard:?}");

        // That the owner's session is gone, it says; nobody in the owner's namespace hears of it.
        let version = other.metadata.resource_version.unwrap().parse().unwrap();
        let Said::Confirm(mut gone) = confirm(1, "twin", uid, 0, version) else { unreachable!() };
        gone.state.as_mut().unwrap().gone = true;
        stranger.say(Said::Confirm(gone)).await;
        stranger.say(confirm(2, "twin", other_uid, 1, version)).await;
        let barriers = stranger.signals().await.barriers.len();
        assert!((1..=2).contains(&barriers), "{barriers} barriers");
        let heard = owner.signals().await;
        assert_eq!((heard.evictions.len(), heard.barriers.len()), (0, 0), "{heard:?}");

        // A change there is not told here, and a change here is not told there.
        let patch = kube::api::Patch::Merge(json!({"spec": {"metadata": {"k": "2"}}}));
        let params = kube::api::PatchParams::default();
        let there = kube::Api::<vmcp_session::api::VmcpSession>::namespaced(shared.world.plane.client(), OTHER);
        there.patch("twin", &params, &patch).await.unwrap();
        shared.world.merge("twin", &json!({"k": "3"})).await;
        let evictions = owner.next_signals().await.evictions;
        assert_eq!(evictions.len(), 1, "{evictions:?}");
        assert_eq!(evictions[0].uid, uid.to_bytes().to_vec());
        let heard = stranger.signals().await;
        assert!(heard.evictions.iter().all(|e| e.uid != uid.to_bytes().to_vec()), "{heard:?}");
    });
}

#[test]
fn nobody_acknowledges_for_another() {
    on_shared(async |shared| {
        let here = shared.namespace();
        let (object, uid) = shared.session(here, "owed", &json!({"metadata": {}})).await;
        let version = object.metadata.resource_version.unwrap().parse().unwrap();
        let mut silent = shared.agent(here).await;
        silent.leased().await;
        let mut asker = shared.agent(here).await;
        let mut stranger = shared.agent(OTHER).await;
        let mut neighbour = shared.agent(here).await;
        let begun = Instant::now();
        asker.say(confirm(1, "owed", uid, 1, version)).await;
        // The barriers of all have the same id: everybody else acknowledges that, and many more.
        let signal = silent.next_signals().await.barriers[0].signal;
        let near = (signal.saturating_sub(500)..signal + 500).chain([u64::MAX]);
        let done: Vec<_> =
            near.map(|signal| v1::Acknowledgement { session: "owed".into(), signal, kept: false }).collect();
        for other in [&mut stranger, &mut neighbour, &mut asker] {
            other.say(Said::Acknowledgements(v1::Acknowledgements { done: done.clone() })).await;
            other.leased().await;
        }
        let confirmed = soon("the confirmation", async {
            loop {
                if let Heard::Confirmed(confirmed) = asker.hear().await.unwrap() {
                    return confirmed;
                }
            }
        });
        assert_eq!(confirmed.await.number, 1);
        let took = begun.elapsed();
        // The silent one's lease was granted before, so it ends a little before a lease from here.
        assert!(took > LEASE / 2, "confirmed after {took:?}, though one has not acknowledged");
    });
}

#[test]
fn who_says_it_is_another_pods_process_takes_nothing_from_it() {
    on_shared(async |shared| {
        let process = instance();
        let pods =
            [shared.pod(shared.namespace()).await, shared.pod(OTHER).await, shared.pod(shared.namespace()).await];
        let mut victim = Agent::connect_as(shared.address(), &pods[0].token, process).await;
        let (object, uid) = shared.session(shared.namespace(), "kept", &json!({"metadata": {}})).await;
        hold(&victim, &object, uid, 1).await;
        // What is newer than the watch has shown is not covered yet.
        while victim.leased().await.covers < 1 {}
        for pod in &pods[1..] {
            let mut thief = Agent::connect_as(shared.address(), &pod.token, process).await;
            thief.leased().await;
            assert_eq!(victim.leased().await.covers, 1);
        }
        shared.world.merge("kept", &json!({"k": "2"})).await;
        assert_eq!(victim.next_signals().await.evictions.len(), 1);
    });
}

#[test]
fn nobody_keeps_a_session_of_another_namespace_alive() {
    on_shared(async |shared| {
        let spec = json!({"metadata": {}, "idleTimeoutSeconds": 3});
        let (_, uid) = shared.session(shared.namespace(), "idle", &spec).await;
        let renewal = v1::Renewal { session: "idle".into(), uid: uid.to_bytes().to_vec().into(), idle_millis: 0 };
        let stranger = shared.agent(OTHER).await;
        let sessions = shared.world.sessions();
        let begun = Instant::now();
        while sessions.get_opt("idle").await.unwrap().is_some() {
            assert!(begun.elapsed() < PATIENCE, "it is kept alive from another namespace");
            stranger.say(Said::Renewals(v1::Renewals { used: vec![renewal.clone()] })).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("it expired after {:?}", begun.elapsed());
    });
}

/// Whether a session exists in another namespace is not to be learned: neither by saying that one holds it, nor by asking who
/// else does.
#[test]
fn what_exists_elsewhere_cannot_be_told_from_what_does_not() {
    on_shared(async |shared| {
        let (there, uid) = shared.session(shared.namespace(), "elsewhere", &json!({"metadata": {"k": "1"}})).await;
        let mut owner = shared.agent(shared.namespace()).await;
        hold(&owner, &there, uid, 1).await;
        owner.leased().await;
        let version: u64 = there.metadata.resource_version.as_deref().unwrap().parse().unwrap();
        let mut answers = Vec::new();
        for name in ["elsewhere", "nowhere"] {
            let mut stranger = shared.agent(OTHER).await;
            let mut claimed = there.clone();
            claimed.metadata.name = Some(name.to_owned());
            hold(&stranger, &claimed, uid, 1).await;
            let evictions = stranger.signals().await.evictions;
            let told: Vec<_> = evictions.iter().map(|e| (e.gone, e.below, e.uid.clone())).collect();
            stranger.say(confirm(1, name, uid, 1, version)).await;
            let confirmed = soon("an answer", async {
                loop {
                    match stranger.hear().await.unwrap() {
                        Heard::Confirmed(confirmed) => return format!("{confirmed:?}"),
                        Heard::ConfirmRefused(refused) => return format!("{refused:?}"),
                        _ => {}
                    }
                }
            });
            answers.push((told, confirmed.await));
        }
        assert_eq!(answers[0], answers[1]);
        let heard = owner.signals().await;
        assert_eq!((heard.evictions.len(), heard.barriers.len()), (0, 0), "{heard:?}");
    });
}
