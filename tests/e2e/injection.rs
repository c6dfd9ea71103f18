//! Who adds agents to pods: the API server by itself, which all other steps have, or a webhook of the controllers.

use crate::rights;
use crate::scene::{self, RELEASE, ROLLOUT, Scene};
use crate::story::Story;
use crate::workload::{self, PODS, leased};

const WEBHOOK: &str = "mutatingwebhookconfigurations";
const POLICY: &str = "mutatingadmissionpolicies";

/// From one to the other and back.
pub async fn by_webhook(story: &mut Story, scene: &Scene) {
    story.step("helm upgrade --set injection.mode=webhook: a controller gives the next pod its agent");
    scene.helm(&["upgrade"], &scene::chart(), &["injection.mode=webhook"]).await.unwrap();
    assert!(installed(scene, POLICY).await.is_empty() && !installed(scene, WEBHOOK).await.is_empty());
    replace_one(scene).await;
    rights::none_refused(scene).await;

    story.step("helm upgrade without it: the API server does");
    scene.helm(&["upgrade"], &scene::chart(), &[]).await.unwrap();
    assert!(installed(scene, WEBHOOK).await.is_empty() && !installed(scene, POLICY).await.is_empty());
    replace_one(scene).await;
}

/// Names of what the chart has installed of this kind.
async fn installed(scene: &Scene, kind: &str) -> String {
    let labels = format!("--selector=app.kubernetes.io/instance={RELEASE}");
    scene.node.kubectl(&["get", kind, &labels, "--output=name"]).await.unwrap()
}

/// Deletes a pod. The one that comes in its place is ready when its agent is.
async fn replace_one(scene: &Scene) {
    let before = workload::agents(scene).await;
    let (gone, _) = before.first_key_value().unwrap();
    scene.kubectl(&["delete", "pod", gone, ROLLOUT]).await;
    scene.kubectl(&["rollout", "status", "deployment/vmcp-server", ROLLOUT]).await;
    let new = scene::comes_to("another pod is there", async || {
        let pods = scene.pods(scene::TEAM, PODS).await;
        pods.into_iter().find(|pod| !before.contains_key(workload::text(&pod["metadata"]["name"])))
    });
    let new = new.await.unwrap();
    let sidecars = new["spec"]["initContainers"].as_array().unwrap();
    assert!(sidecars.len() == 1 && sidecars[0]["name"] == "vmcp-agent", "{sidecars:#?}");
    leased(scene, 2).await;
}
