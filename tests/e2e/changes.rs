//! Parts are replaced while clients go on.

use serde_json::Value;

use crate::load::Load;
use crate::scene::{CONTROLLER, OPERATOR, ROLLOUT, Scene, TEAM};
use crate::story::Story;
use crate::workload::{self, PODS, leased};

/// New pods of the operator.
pub async fn operator(story: &mut Story, scene: &Scene) {
    story.step("rolling update of the operator under load: no stale answer, no failed call");
    let load = Load::default().agents(scene).await.mcp(scene).await;
    let before = scene.pods(OPERATOR, "app.kubernetes.io/component=controller").await;
    let deployment = format!("deployment/{CONTROLLER}");
    let operator = ["--namespace", OPERATOR];
    scene.node.kubectl(&[&operator[..], &["rollout", "restart", &deployment]].concat()).await.unwrap();
    scene.node.kubectl(&[&operator[..], &["rollout", "status", &deployment, ROLLOUT]].concat()).await.unwrap();
    for pod in &before {
        let name = format!("pod/{}", workload::text(&pod["metadata"]["name"]));
        let gone = [&operator[..], &["wait", "--for=delete", &name, ROLLOUT]].concat();
        scene.node.kubectl(&gone).await.unwrap();
    }
    leased(scene, 2).await;
    story.note(&format!("answers: {}", load.end().await));
}

/// New pods of the workload, of which clients notice nothing.
pub async fn workload(story: &mut Story, scene: &Scene) {
    story.step("rolling update of the workload: the client's session goes on in new pods, no failed call");
    let load = Load::default().mcp(scene).await;
    let before = workload::agents(scene).await;
    scene.kubectl(&["rollout", "restart", "deployment/vmcp-server"]).await;
    scene.kubectl(&["rollout", "status", "deployment/vmcp-server", ROLLOUT]).await;
    for name in before.keys() {
        scene.kubectl(&["wait", "--for=delete", &format!("pod/{name}"), ROLLOUT]).await;
    }
    let after = workload::agents(scene).await;
    assert!(after.len() == 3 && after.keys().all(|name| !before.contains_key(name)), "{:?}", after.keys());
    leased(scene, 2).await;
    story.note(&format!("answers: {}", load.end().await));
}

/// The kubelet goes and comes.
pub async fn kubelet(story: &mut Story, scene: &mut Scene) {
    story.step("the node's kubelet is restarted under load: nobody notices");
    // Not through kubectl port-forward, which goes through the kubelet.
    let load = Load::default().mcp(scene).await;
    let before = containers(scene).await;
    scene.node.restart_kubelet().await.unwrap();
    // It takes up the pods that it finds before it starts another one, which shows that it works again.
    scene.idle_pod("after-the-restart").await;
    story.note(&format!("answers: {}", load.end().await));
    assert_eq!(before, containers(scene).await, "containers that run");
}

/// Ids of all containers, of operator and workload.
async fn containers(scene: &Scene) -> Vec<String> {
    let mut all = scene.pods(OPERATOR, "app.kubernetes.io/component=controller").await;
    all.extend(scene.pods(TEAM, PODS).await);
    let statuses = all.iter().flat_map(|pod| {
        ["containerStatuses", "initContainerStatuses"].map(|list| pod["status"][list].as_array().cloned())
    });
    let mut ids: Vec<String> =
        statuses.flatten().flatten().map(|s: Value| workload::text(&s["containerID"]).to_owned()).collect();
    ids.sort();
    ids
}
