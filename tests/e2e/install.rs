//! Helm installs it, and it works.

use serde_json::json;

use crate::scene::{self, CONTROLLER, OPERATOR, RELEASE, Scene, TEAM};
use crate::story::Story;

/// When the command has ended it is ready, with the rights that the chart grants and no others.
pub async fn works(story: &mut Story, scene: &Scene) {
    story.step("two replicas are ready, and none has been restarted");
    let pods = scene.pods(OPERATOR, "app.kubernetes.io/component=controller").await;
    assert_eq!(pods.len(), 2);
    for pod in &pods {
        let status = &pod["status"]["containerStatuses"][0];
        assert!(status["ready"] == true && status["restartCount"] == 0, "{status:#}");
    }

    story.step("helm test");
    scene.node.helm(&["test", RELEASE, "--namespace", OPERATOR]).await.unwrap();

    story.step("the namespace of the agents is told whom to believe");
    scene::comes_to("the bundle is there", async || {
        let bundle = scene.node.get(&["configmap", "vmcp-session-ca", "--namespace", TEAM]).await.ok()?;
        bundle["data"]["ca.crt"].as_str()?.contains("BEGIN CERTIFICATE").then_some(())
    })
    .await
    .unwrap();
}

/// A session that nobody holds yet.
pub async fn a_session(story: &mut Story, scene: &Scene) {
    story.step("a session is applied, and its status follows");
    scene.apply("by-hand", &json!({"user": "alice"})).await;
    let current = |generation: u64| {
        move |session: &serde_json::Value| {
            let synced = session["status"]["conditions"].as_array().into_iter().flatten();
            session["status"]["observedGeneration"] == generation
                && synced.into_iter().any(|c| c["type"] == "Synced" && c["status"] == "True")
        }
    };
    scene.session_comes_to("by-hand", "is synced", current(1)).await;
    scene.patch("by-hand", &json!({"user": "bob"})).await;
    scene.session_comes_to("by-hand", "is synced again", current(2)).await;
    scene.kubectl(&["delete", "vmcps", "by-hand"]).await;
    let log =
        scene.node.kubectl(&["logs", &format!("deployment/{CONTROLLER}"), "--namespace", OPERATOR]).await.unwrap();
    assert!(!log.contains("alice") && !log.contains("bob"), "a value is in the log:\n{log}");
}
