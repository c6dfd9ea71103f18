//! What is left when it goes: nothing that cannot be deleted, and no namespace that hangs.

use serde_json::{Value, json};

use crate::scene::{self, OPERATOR, RELEASE, ROLLOUT, Scene, TEAM};
use crate::story::Story;
use crate::workload;

/// A namespace that nobody thinks of while uninstalling.
const FORGOTTEN: &str = "team-b";
/// Keeps a deleted session until a controller has seen that no pod can serve it.
const FINALIZER: &str = "vmcp.dev/confirm-eviction";
/// Somebody else's.
const FOREIGN: &str = "example.com/mine";

/// Uninstalls the chart while sessions wait for its finalizer.
pub async fn chart(story: &mut Story, scene: &Scene) {
    story.step("sessions with the finalizer are held, and one deletion with it is confirmed");
    scene.node.create_namespace(FORGOTTEN).await.unwrap();
    let session = |namespace: &str, name: &str, finalizers: &[&str]| {
        json!({
            "apiVersion": "vmcp.dev/v1alpha1", "kind": "VmcpSession",
            "metadata": {"name": name, "namespace": namespace, "finalizers": finalizers},
            "spec": {"metadata": {"state": "kept"}},
        })
        .to_string()
    };
    for (namespace, name, finalizers) in [
        (TEAM, "confirmed", &[FINALIZER][..]),
        (TEAM, "held", &[FINALIZER]),
        (FORGOTTEN, "forgotten", &[FINALIZER]),
        (FORGOTTEN, "foreign", &[FOREIGN, FINALIZER]),
    ] {
        scene.node.apply_yaml(&session(namespace, name, finalizers)).await.unwrap();
    }
    workload::hold(scene, &["confirmed".into(), "held".into()]).await;
    scene.kubectl(&["delete", "vmcps", "confirmed", "--timeout=60s"]).await;

    story.step("helm uninstall --wait");
    scene.node.helm(&["uninstall", RELEASE, "--namespace", OPERATOR, "--wait", ROLLOUT]).await.unwrap();
    let labels = format!("--selector=app.kubernetes.io/instance={RELEASE}");
    let kinds = "deployments,jobs,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                 networkpolicies,poddisruptionbudgets,validatingadmissionpolicies,validatingadmissionpolicybindings,\
                 mutatingadmissionpolicies,mutatingadmissionpolicybindings,mutatingwebhookconfigurations";
    let left = scene.node.kubectl(&["get", kinds, "--all-namespaces", &labels, "--output=name"]).await.unwrap();
    assert_eq!(left, "", "of the chart, and of the hook");
    scene::comes_to("no pod of the operator is left", async || {
        let pods = scene.node.kubectl(&["get", "pods", "--namespace", OPERATOR, "--output=name"]).await.ok()?;
        pods.is_empty().then_some(())
    })
    .await
    .unwrap();

    story.step("sessions are all there, and only their finalizer is gone");
    let sessions = scene.node.get(&["vmcps", "--all-namespaces"]).await.unwrap();
    let sessions = sessions["items"].as_array().unwrap();
    let finalizers = |name: &str| {
        let found = sessions.iter().find(|s| s["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("{name} is gone"))["metadata"]["finalizers"].clone()
    };
    assert_eq!(
        [finalizers("held"), finalizers("forgotten"), finalizers("foreign")],
        [Value::Null, Value::Null, json!([FOREIGN])]
    );

    story.step("a session can be deleted, and each namespace");
    scene.kubectl(&["delete", "vmcps", "held", "--timeout=30s"]).await;
    scene
        .node
        .kubectl(&["patch", "vmcps", "foreign", "--namespace", FORGOTTEN, "--type=merge", "--patch", NONE])
        .await
        .unwrap();
    for namespace in [FORGOTTEN, TEAM, OPERATOR] {
        scene.node.kubectl(&["delete", "namespace", namespace, ROLLOUT]).await.unwrap();
    }

    story.step("the definition and the bundle of the authorities were kept, and can be deleted too");
    let bundle = format!("vmcp.dev:session-controller:{OPERATOR}");
    scene.node.kubectl(&["delete", "clustertrustbundle", &bundle, "--timeout=30s"]).await.unwrap();
    scene.node.kubectl(&["delete", "crd", "vmcpsessions.vmcp.dev", "--timeout=60s"]).await.unwrap();
    let crds = scene::comes_to("no definition is left", async || {
        let crds = scene.node.kubectl(&["get", "crds", "--output=name"]).await.ok()?;
        (!crds.contains("vmcp.dev")).then_some(())
    });
    crds.await.unwrap();
}

/// What takes all finalizers away.
const NONE: &str = r#"{"metadata":{"finalizers":null}}"#;
