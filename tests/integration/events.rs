//! Events on a session, as the API server takes them and kubectl shows them.

use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use testkit::{ControlPlane, ControlPlaneOptions, eventually, policy_rule};
use tokio_util::sync::CancellationToken;
use vmcp_session::controller::election::LeadershipGuard;
use vmcp_session::controller::events::{EventWriter, REPORTING_CONTROLLER};
use vmcp_session::core::notes::Note;
use vmcp_session::core::session::SessionKey;
use vmcp_session::core::session_ref::SessionRef;

const SOON: Duration = Duration::from_secs(20);
const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");

async fn session(plane: &ControlPlane, name: &str) -> SessionRef {
    let object = json!({
        "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
        "metadata": {"name": name}, "spec": {"metadata": {"k": "canary"}},
    });
    let created = plane.kubectl_with_input(&["create", "-o", "json", "-f", "-"], &object.to_string()).await.unwrap();
    let created: Value = serde_json::from_str(&created).unwrap();
    let uid = created["metadata"]["uid"].as_str().unwrap().parse().unwrap();
    SessionRef { key: SessionKey::new("default", name), uid }
}

/// A client that may create events and no more.
async fn client(plane: &ControlPlane) -> kube::Client {
    plane.create_service_account("default", "controller").await.unwrap();
    let rules = vec![policy_rule("events.k8s.io", &["events"], &["create"])];
    plane.bind_role("default", "controller", rules).await.unwrap();
    let token = plane.token_for_account("default", "controller", &[], Duration::from_hours(1)).await.unwrap();
    plane.client_for_token(plane.url(), &token).await.unwrap()
}

async fn notes(plane: &ControlPlane, session: &SessionRef, reason: &str) -> Vec<String> {
    let events: Api<Event> = Api::default_namespaced(plane.client());
    let fields = format!("regarding.uid={},reason={reason}", session.uid);
    let listed = events.list(&ListParams::default().fields(&fields)).await.unwrap();
    listed.items.into_iter().filter_map(|event| event.note).collect()
}

#[tokio::test]
async fn events_are_taken_shown_merged_and_limited() {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    plane.apply_crds(CRD).await.unwrap();
    let shutdown = CancellationToken::new();
    let instance = "i".repeat(300);
    let writer = EventWriter::new(client(&plane).await, REPORTING_CONTROLLER, &instance, LeadershipGuard::always());
    let running = tokio::spawn(writer.clone().run(shutdown.clone()));
    let idle = async || {
        eventually(SOON, "all events written", async || (writer.depth() == 0).then_some(())).await.unwrap();
    };

    // The longest name that a session can have, the longest keys, every kind of note.
    let name = ["a".repeat(63), "b".repeat(63), "c".repeat(63), "d".repeat(61)].join(".");
    let longest = session(&plane, &name).await;
    let keys: Vec<String> = (0..256).map(|n| format!("{n:03}{}", "ключ".repeat(62))).collect();
    let keys = || keys.iter().map(String::as_str);
    writer.note(longest.clone(), Note::metadata_changed(keys(), 3, 0, Duration::from_micros(1900)));
    let managers = ["kubectl-edit", "agent"];
    writer.note(longest.clone(), Note::eviction_storm(12, Duration::from_mins(1), keys(), managers));
    writer.note(longest.clone(), Note::pods_unreachable(["pod-0"], Duration::from_secs(5), Duration::from_secs(10)));
    idle().await;
    assert_eq!((writer.written(), writer.failed()), (3, 0));
    let changed = notes(&plane, &longest, "MetadataChanged").await;
    assert!(changed[0].starts_with("3 pods dropped their copies in 1.9 ms; changed keys: 000ключ"), "{changed:?}");
    assert!(notes(&plane, &longest, "EvictionStorm").await[0].ends_with("; written by: kubectl-edit, agent"));
    assert_eq!(notes(&plane, &longest, "PodUnreachable").await.len(), 1);
    let described = plane.kubectl(&["describe", "vmcps", &name]).await.unwrap();
    assert!(described.contains("MetadataChanged") && described.contains("Warning"), "{described}");

    // Far too many at once: a few are written, the rest is told by as many more as time allows.
    let busy = session(&plane, "busy").await;
    for change in 0..100 {
        writer.note(busy.clone(), Note::metadata_changed([format!("k{change}").as_str()], 1, 0, Duration::ZERO));
    }
    eventually(SOON, "the last change is told", async || {
        notes(&plane, &busy, "MetadataChanged").await.iter().any(|note| note.contains("keys: k99")).then_some(())
    })
    .await
    .unwrap();
    let told = notes(&plane, &busy, "MetadataChanged").await;
    assert!(told.len() <= 6, "{told:?}");
    assert!(told.iter().any(|note| note.contains("earlier notes like this)")), "{told:?}");
    assert_eq!(u64::try_from(told.len()).unwrap() + writer.suppressed(), 100);

    // An API server that is away costs events, not the controller.
    plane.apiserver().stop().await.unwrap();
    writer.note(longest.clone(), Note::pods_unreachable(["pod-1"], Duration::from_secs(5), Duration::ZERO));
    idle().await;
    assert!(writer.failed() >= 3);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
