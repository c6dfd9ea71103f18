//! The node, and what all steps ask of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Error, RealNode, eventually};

/// Where the operator is installed.
pub const OPERATOR: &str = "vmcp-system";
/// Name of its Deployment, its Service and its account.
pub const CONTROLLER: &str = "vmcp-session-controller";
/// Whose pods hold sessions.
pub const TEAM: &str = "team-a";
/// Name of the release.
pub const RELEASE: &str = "vmcp";
/// How long anything may take on a machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Long enough for a rollout, and shorter than a command may take.
pub const ROLLOUT: &str = "--timeout=110s";
/// Leases are shorter than by default, since some steps wait for one to end.
pub const LEASE_SECONDS: u32 = 6;

/// The image of pods that do nothing.
const PAUSE: &str = "localhost/pause:1";

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The node with all that is on it.
pub struct Scene {
    /// The node.
    pub node: RealNode,
}

impl Scene {
    /// Starts a node that has the images, and makes the namespaces.
    pub async fn start() -> Self {
        let images = ["tools/pause/pause.tar", "image/vmcp-session.tar", "image/vmcp-server.tar"];
        let images = images.map(|image| Path::new(ROOT).join("target").join(image));
        let images: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
        let node = RealNode::start(&images).await.unwrap();
        for namespace in [OPERATOR, TEAM] {
            node.create_namespace(namespace).await.unwrap();
            let restricted = "pod-security.kubernetes.io/enforce=restricted";
            node.kubectl(&["label", "namespace", namespace, restricted]).await.unwrap();
        }
        Self { node }
    }

    /// The chart, with the values of these tests and others.
    pub async fn helm(&self, command: &[&str], chart: &Path, values: &[&str]) -> testkit::Result<String> {
        let tag = format!("image.tag={VERSION}");
        let lease = format!("controller.leaseSeconds={LEASE_SECONDS}");
        let own = [
            "image.repository=localhost/vmcp-session",
            &tag,
            &lease,
            "agents.namespaces[0].name=team-a",
            "agents.namespaces[0].serviceAccounts[0]=vmcp-server",
            // Where this test can ask how agents are.
            "injection.agent.adminListen=:8079",
        ];
        let chart = chart.display().to_string();
        let mut args = [command, &[RELEASE, &chart, "--namespace", OPERATOR, "--wait", ROLLOUT]].concat();
        args.extend(own.iter().chain(values).flat_map(|value| ["--set", value]));
        self.node.helm(&args).await
    }

    /// kubectl in the namespace of the sessions.
    pub async fn kubectl(&self, args: &[&str]) -> String {
        self.node.kubectl(&[&["--namespace", TEAM], args].concat()).await.unwrap()
    }

    /// Applies a session.
    pub async fn apply(&self, name: &str, metadata: &Value) {
        let object = json!({
            "apiVersion": "vmcp.dev/v1alpha1",
            "kind": "VmcpSession",
            "metadata": {"name": name, "namespace": TEAM},
            "spec": {"metadata": metadata},
        });
        self.node.apply_yaml(&object.to_string()).await.unwrap();
    }

    /// Changes keys of a session's metadata, as a person does.
    pub async fn patch(&self, name: &str, metadata: &Value) {
        let patch = json!({"spec": {"metadata": metadata}}).to_string();
        self.kubectl(&["patch", "vmcps", name, "--type=merge", "--patch", &patch]).await;
    }

    /// A session as it is now.
    pub async fn session(&self, name: &str) -> Value {
        self.node.get(&["vmcps", name, "--namespace", TEAM]).await.unwrap()
    }

    /// Waits until a session is as `holds` wants it.
    pub async fn session_comes_to(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        let seen = comes_to(&format!("session {name} {what}"), async || {
            let session = self.node.get(&["vmcps", name, "--namespace", TEAM]).await.ok()?;
            holds(&session).then_some(session)
        })
        .await;
        if seen.is_err() {
            last = self.session(name).await;
        }
        seen.unwrap_or_else(|error| panic!("{error}: {last:#}"))
    }

    /// Makes a pod that does nothing, waits until it runs, and deletes it.
    pub async fn idle_pod(&self, name: &str) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": TEAM},
            "spec": {
                "securityContext": {"runAsNonRoot": true, "runAsUser": 65534, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [{
                    "name": "idle", "image": PAUSE, "imagePullPolicy": "Never",
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        });
        self.node.apply_yaml(&pod.to_string()).await.unwrap();
        self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{name}"), ROLLOUT]).await;
        self.kubectl(&["delete", "pod", name, "--grace-period=1", ROLLOUT]).await;
    }

    /// Pods with this label.
    pub async fn pods(&self, namespace: &str, label: &str) -> Vec<Value> {
        let mut list = self.node.get(&["pods", "--namespace", namespace, "--selector", label]).await.unwrap();
        list["items"].as_array_mut().map(std::mem::take).unwrap_or_default()
    }
}

/// The chart of this project.
pub fn chart() -> PathBuf {
    Path::new(ROOT).join("charts/vmcp-session-operator")
}

/// Waits as long as anything may take.
pub async fn comes_to<T, F: Future<Output = Option<T>>>(what: &str, check: impl FnMut() -> F) -> Result<T, Error> {
    eventually(PATIENCE, what, check).await
}
