//! From one release of the chart to the next and back, while pods hold sessions.
//!
//! There is no earlier release yet. So this makes one: the chart as it is, with another version, a definition without one of its
//! columns, and another setting, so that each of definition, objects and pods changes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::scene::{self, CONTROLLER, OPERATOR, RELEASE, ROLLOUT, Scene};
use crate::story::Story;
use crate::workload::{self, leased};

/// What it says of itself.
const PREVIOUS: &str = "0.0.9";
/// The column that its definition lacks.
const COLUMN: &str = "Pods-Evicted";
/// What its pods have and those of the release do not.
const SETTING: &str = "controller.podAnnotations.previous=yes";
/// Sessions that are held meanwhile.
const SESSIONS: usize = 5;

/// Installs the release before this one.
pub async fn install_previous(story: &mut Story, scene: &Scene) {
    story.step("helm install --wait of the release before");
    let chart = previous(&scene.node.dir().join("previous"));
    scene.helm(&["install"], &chart, &[SETTING]).await.unwrap();
    assert!(!columns(scene).await.contains(COLUMN));
    assert_eq!(version(scene).await, PREVIOUS);
}

/// Upgrade and rollback evict nothing, and what is held is still known afterwards.
pub async fn there_and_back(story: &mut Story, scene: &Scene) {
    story.step("pods hold sessions");
    let sessions: Vec<String> = (0..SESSIONS).map(|n| format!("held-{n}")).collect();
    for session in &sessions {
        scene.apply(session, &json!({"state": "first"})).await;
    }
    workload::hold(scene, &sessions).await;
    let before = workload::evictions(scene).await;

    story.step("helm upgrade with sessions held: zero evictions, and the definition is upgraded too");
    scene.helm(&["upgrade"], &scene::chart(), &[]).await.unwrap();
    leased(scene, 2).await;
    assert!(columns(scene).await.contains(COLUMN));
    assert_eq!(version(scene).await, env!("CARGO_PKG_VERSION"));
    assert_eq!(workload::evictions(scene).await, before);

    story.step("helm rollback: zero evictions");
    scene.node.helm(&["rollback", RELEASE, "1", "--namespace", OPERATOR, "--wait", ROLLOUT]).await.unwrap();
    leased(scene, 2).await;
    assert_eq!(version(scene).await, PREVIOUS);
    assert_eq!(workload::evictions(scene).await, before);

    story.step("the upgrade again, and a change reaches all who hold a session since before");
    scene.helm(&["upgrade"], &scene::chart(), &[]).await.unwrap();
    leased(scene, 2).await;
    assert_eq!(workload::evictions(scene).await, before);
    scene.patch(&sessions[0], &json!({"state": "second"})).await;
    scene.session_comes_to(&sessions[0], "tells of three pods", |s| s["status"]["lastEviction"]["pods"] == 3).await;
    assert_eq!(workload::evictions(scene).await, before + 3);
    for session in &sessions {
        scene.kubectl(&["delete", "vmcps", session]).await;
    }
}

/// The columns of the definition that is installed.
async fn columns(scene: &Scene) -> String {
    scene.node.get(&["crd", "vmcpsessions.vmcp.dev"]).await.unwrap()["spec"]["versions"][0].to_string()
}

/// The version that the installed Deployment has.
async fn version(scene: &Scene) -> String {
    let deployment = scene.node.get(&["deployment", CONTROLLER, "--namespace", OPERATOR]).await.unwrap();
    deployment["metadata"]["labels"]["app.kubernetes.io/version"].as_str().unwrap().to_owned()
}

/// Makes the release before this one in a folder.
fn previous(to: &Path) -> PathBuf {
    copy(&scene::chart(), to);
    let edit = |file: &str, edit: &dyn Fn(&str) -> String| {
        let before = fs::read_to_string(to.join(file)).unwrap();
        let after = edit(&before);
        assert_ne!(before, after, "{file}");
        fs::write(to.join(file), after).unwrap();
    };
    edit("Chart.yaml", &|text| {
        text.replace(concat!("ersion: ", env!("CARGO_PKG_VERSION")), &format!("ersion: {PREVIOUS}"))
    });
    edit("files/vmcpsessions.vmcp.dev.yaml", &|text| {
        let mut crd: Value = serde_norway::from_str(text).unwrap();
        let columns = crd["spec"]["versions"][0]["additionalPrinterColumns"].as_array_mut().unwrap();
        columns.retain(|column| column["name"] != COLUMN);
        serde_norway::to_string(&crd).unwrap()
    });
    to.to_owned()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
