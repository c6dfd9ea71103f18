//! The status of sessions on a real API server: what is sent, how often, and what becomes of what cannot be.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{AuditMark, ControlPlane, ControlPlaneOptions, Verb, eventually, policy_rule};
use tokio_util::sync::CancellationToken;
use vmcp_session::controller::election::LeadershipGuard;
use vmcp_session::controller::status_writer::{
    KubeStatus, Seen, SessionStatusWriter, StatusLimits, StatusPatch, StatusWriter,
};
use vmcp_session::core::session::{ResourceVersion, SessionKey, Uid};
use vmcp_session::core::session_ref::SessionRef;

const SOON: Duration = Duration::from_secs(20);
const CRD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/crds/vmcpsessions.vmcp.dev.yaml");
const FIRST: Seen<'static, Value> = Seen { status: &Value::Null, resource_version: ResourceVersion(1) };

struct Setup {
    plane: ControlPlane,
    writer: SessionStatusWriter,
    start: AuditMark,
}

impl Setup {
    /// A writer whose account may patch statuses and no more.
    async fn new(guard: LeadershipGuard) -> Self {
        let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
        plane.apply_crds(CRD).await.unwrap();
        plane.create_service_account("default", "controller").await.unwrap();
        let rules = vec![
            policy_rule("vmcp.dev", &["vmcpsessions/status"], &["patch"]),
            policy_rule("vmcp.dev", &["vmcpsessions"], &["get"]),
        ];
        plane.bind_role("default", "controller", rules).await.unwrap();
        let token = plane.token_for_account("default", "controller", &[], Duration::from_hours(1)).await.unwrap();
        let client = plane.client_for_token(plane.url(), &token).await.unwrap();
        let writer = StatusWriter::new(KubeStatus::new(client), guard, StatusLimits::default());
        tokio::spawn(writer.clone().run(CancellationToken::new()));
        let start = plane.audit().mark().unwrap();
        Self { plane, writer, start }
    }

    async fn session(&self, name: &str) -> SessionRef {
        let object = json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
            "metadata": {"name": name}, "spec": {"metadata": {"k": "canary"}},
        });
        let args = ["create", "-o", "json", "-f", "-"];
        let created = self.plane.kubectl_with_input(&args, &object.to_string()).await.unwrap();
        let created: Value = serde_json::from_str(&created).unwrap();
        let uid = created["metadata"]["uid"].as_str().unwrap().parse().unwrap();
        SessionRef { key: SessionKey::new("default", name), uid }
    }

    async fn object(&self, session: &SessionRef) -> Value {
        let text = self.plane.kubectl(&["get", "vmcps", session.key.name(), "-o", "json"]).await.unwrap();
        serde_json::from_str(&text).unwrap()
    }

    async fn idle(&self) {
        let idle = async || (self.writer.depth() == 0).then_some(());
        eventually(SOON, "all statuses written", idle).await.unwrap();
    }

    /// The codes of the answers to the writer's patches.
    async fn answers(&self) -> Vec<u16> {
        self.plane.apiserver().audit_flush().await.unwrap();
        let entries = self.plane.audit().requests_since(self.start).unwrap();
        let ours = entries.iter().filter(|entry| entry.is_by("default", "controller") && entry.verb != Verb::Get);
        ours.map(|entry| {
            assert_eq!((entry.verb, entry.subresource.as_str()), (Verb::Patch, "status"), "{entry:?}");
            entry.code
        })
        .collect()
    }
}

fn patch(value: Value) -> StatusPatch {
    match value {
        Value::Object(fields) => StatusPatch::new(fields),
        other => panic!("not an object: {other}"),
    }
}

fn synced(generation: u64) -> StatusPatch {
    patch(json!({
        "observedGeneration": generation,
        "conditions": [{
            "type": "Synced", "status": "True", "reason": "AllPodsCurrent", "message": "",
            "observedGeneration": generation, "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }))
}

#[tokio::test]
async fn only_differences_are_sent_and_only_once() {
    let setup = Setup::new(LeadershipGuard::always()).await;
    let session = setup.session("s").await;
    assert!(setup.writer.offer(session.clone(), synced(1), &FIRST));
    // Offered again and again before the watch shows what was written.
    assert!(setup.writer.offer(session.clone(), synced(1), &FIRST));
    setup.idle().await;
    assert!(!setup.writer.offer(session.clone(), synced(1), &FIRST));
    let wait = ["wait", "--for=condition=Synced", "vmcps/s", "--timeout=5s"];
    setup.plane.kubectl(&wait).await.unwrap();

    let object = setup.object(&session).await;
    let version = object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    let seen = Seen { status: &object["status"], resource_version: version };
    assert!(!setup.writer.offer(session.clone(), synced(1), &seen));
    // Another part of the controller cares for another field.
    let renewed = patch(json!({"lastRenewTime": "2026-01-01T00:00:01Z"}));
    assert!(setup.writer.offer(session.clone(), renewed, &seen));
    setup.idle().await;
    let object = setup.object(&session).await;
    assert_eq!(object["status"]["lastRenewTime"], "2026-01-01T00:00:01Z");
    assert_eq!(object["status"]["observedGeneration"], 1);
    assert_eq!(object["metadata"]["generation"], 1);
    assert_eq!(setup.answers().await, [200, 200]);
    assert_eq!((setup.writer.patched(), setup.writer.failed()), (2, 0));
}

#[tokio::test]
async fn what_cannot_be_written_is_dropped_and_what_may_be_waits() {
    let setup = Setup::new(LeadershipGuard::always()).await;
    let session = setup.session("s").await;
    let successor = SessionRef { uid: Uid::from_u128(7), ..session.clone() };
    let missing = SessionRef { key: SessionKey::new("default", "missing"), ..session.clone() };
    let invalid = patch(json!({"observedGeneration": -1}));
    for (key, status) in [(successor, synced(1)), (missing, synced(1)), (session.clone(), invalid)] {
        setup.writer.offer(key, status, &FIRST);
        setup.idle().await;
    }
    // Where a test has failed, the status may be another one by now. What is invalid stays so.
    assert_eq!(setup.answers().await, [422, 422, 404, 422]);
    assert_eq!((setup.writer.failed(), setup.writer.given_up()), (3, 2));
    assert_eq!(setup.object(&session).await["status"], Value::Null);

    // While the API server is away, what waits is merged; then it is written.
    let server = setup.plane.apiserver();
    server.stop().await.unwrap();
    setup.writer.offer(session.clone(), synced(1), &FIRST);
    let failed = async || (setup.writer.failed() > 4).then_some(());
    eventually(SOON, "an attempt while the server is away", failed).await.unwrap();
    setup.writer.offer(session.clone(), synced(2), &FIRST);
    server.launch().await.unwrap();
    server.wait_ready().await.unwrap();
    setup.idle().await;
    assert_eq!(setup.object(&session).await["status"]["observedGeneration"], 2);
    assert_eq!(setup.writer.patched(), 1);
}

#[tokio::test]
async fn who_does_not_lead_sends_nothing() {
    let setup = Setup::new(LeadershipGuard::default()).await;
    let session = setup.session("s").await;
    setup.writer.offer(session.clone(), synced(1), &FIRST);
    setup.idle().await;
    assert!(setup.answers().await.is_empty());
    assert_eq!(setup.writer.not_leading(), 1);
}

/// A list is written as a whole: what others have put there since it was seen must be in it.
#[tokio::test]
async fn conditions_of_others_are_kept_whatever_the_watch_has_shown_of_them() {
    let setup = Setup::new(LeadershipGuard::always()).await;
    let other = |name: &str, status: &str| {
        json!({"type": name, "status": status, "reason": "R", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"})
    };
    let put = async |name: &str, conditions: Value| {
        let live = json!({"status": {"conditions": conditions}}).to_string();
        let args = ["patch", "vmcps", name, "--subresource=status", "--type=merge", "-p", &live];
        setup.plane.kubectl(&args).await.unwrap();
    };
    let status = async |session: &SessionRef, name: &str| {
        let object = setup.object(session).await;
        let conditions = object["status"]["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == name).map(|c| c["status"].clone())
    };

    let session = setup.session("some").await;
    put("some", json!([other("Audited", "False"), other("Approved", "True")])).await;
    // As it was a moment ago.
    let mut offered = synced(1).fields().clone();
    offered["conditions"].as_array_mut().unwrap().insert(0, other("Audited", "True"));
    setup.writer.offer(session.clone(), StatusPatch::new(offered), &FIRST);
    setup.idle().await;
    assert_eq!(status(&session, "Synced").await, Some(json!("True")));
    assert_eq!(status(&session, "Audited").await, Some(json!("False")));
    assert_eq!(status(&session, "Approved").await, Some(json!("True")));

    // What others put there first is not known yet: where there was no status, none of ours, and nothing but ours.
    let own = synced(1).fields()["conditions"][0].clone();
    let only = json!({"observedGeneration": 1, "conditions": [own]});
    let renewed = json!({"lastRenewTime": "2026-01-01T00:00:01Z"});
    let first = other("Audited", "False");
    for (name, seen, live) in [
        ("nothing", Value::Null, json!([first])),
        ("renewed", renewed, json!([first])),
        ("behind", only.clone(), json!([own, first])),
        ("before", only, json!([first, own])),
    ] {
        let session = setup.session(name).await;
        put(name, live).await;
        setup.writer.offer(session.clone(), synced(2), &Seen { status: &seen, resource_version: ResourceVersion(1) });
        setup.idle().await;
        assert_eq!(setup.object(&session).await["status"]["observedGeneration"], 2, "{name}");
        assert_eq!(status(&session, "Synced").await, Some(json!("True")), "{name}");
        assert_eq!(status(&session, "Audited").await, Some(json!("False")), "{name}");
    }
}
