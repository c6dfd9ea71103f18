//! An API server with what the chart installs for agents, and pods as it admits them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};
use testkit::{ControlPlane, ControlPlaneOptions, eventually};

use crate::chart::{objects, rendered};
use crate::world::PATIENCE;

/// A namespace in which pods ask for agents, and one in which all have them.
const NAMESPACES: [&str; 2] = ["asking", "given"];

/// An API server that adds agents to pods by itself.
pub(super) struct Admission {
    pub(super) plane: ControlPlane,
}

impl Admission {
    /// With these values of the chart.
    pub(super) async fn start(values: &[&str]) -> Self {
        Self::start_with(ControlPlaneOptions::default(), values).await
    }

    pub(super) async fn start_with(options: ControlPlaneOptions, values: &[&str]) -> Self {
        let plane = ControlPlane::start(options).await.unwrap();
        prepare(&plane).await;
        for object in of_agents(&plane, "policy", values).await {
            apply(&plane, &object).await;
        }
        wait(&plane).await;
        Self { plane }
    }

    /// The pod as it would be created, or why it would not.
    pub(super) async fn admit(&self, namespace: &str, pod: &Value) -> Result<Value, String> {
        admit(&self.plane, namespace, pod).await
    }
}

/// Namespaces, with accounts, restricted pod security and the label.
pub(super) async fn prepare(plane: &ControlPlane) {
    let restricted = "pod-security.kubernetes.io/enforce";
    for name in NAMESPACES {
        let labels = json!({restricted: "restricted"});
        apply(plane, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
            .await;
    }
    for name in ["given", "kube-system", "vmcp-system"] {
        let labels = json!({"vmcp.dev/agent": "enabled"});
        apply(plane, &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}))
            .await;
    }
    for namespace in NAMESPACES.iter().chain(&["kube-system", "vmcp-system"]) {
        plane.create_service_account(namespace, "vmcp-server").await.unwrap();
    }
}

/// What of the chart is about agents.
pub(super) async fn of_agents(plane: &ControlPlane, mode: &str, values: &[&str]) -> Vec<Value> {
    let mode = format!("injection.mode={mode}");
    let values: Vec<&str> = [mode.as_str()].iter().chain(values).copied().collect();
    let mut all = objects(&rendered(plane, &values).await);
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    // The API server does not know a PodMonitor.
    all.retain(|object| name(object).starts_with("vmcp-session-controller-agents") && object["kind"] != "PodMonitor");
    all
}

pub(super) async fn apply(plane: &ControlPlane, object: &Value) {
    let args =
        ["apply", "--server-side", "--force-conflicts", "--validate=strict", "--field-manager=chart", "--filename=-"];
    let said = plane.kubectl_with_input(&args, &object.to_string()).await.unwrap();
    assert!(!said.is_empty());
}

/// An API server takes a moment to go by what it has taken.
pub(super) async fn wait(plane: &ControlPlane) {
    for (namespace, pod) in [("asking", asking(&[])), ("given", plain())] {
        let added = async || agent_of(&admit(plane, namespace, &pod).await.ok()?).map(drop);
        eventually(PATIENCE, "agents are added", added).await.unwrap();
        let wrong = with(&pod, "/metadata/annotations", json!({"vmcp.dev/agent-listen": "none"}));
        let checked = async || admit(plane, namespace, &wrong).await.err();
        eventually(PATIENCE, "annotations are checked", checked).await.unwrap();
    }
}

/// The pod as it would be created, or why it would not.
pub(super) async fn admit(plane: &ControlPlane, namespace: &str, pod: &Value) -> Result<Value, String> {
    let api: Api<Pod> = Api::namespaced(plane.client(), namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let pod = serde_json::from_value(pod.clone()).unwrap();
    match api.create(&dry_run, &pod).await {
        Ok(pod) => Ok(serde_json::to_value(pod).unwrap()),
        Err(kube::Error::Api(status)) => Err(status.message),
        Err(other) => panic!("{other}"),
    }
}

/// A pod that is as restricted pod security wants it.
pub(super) fn plain() -> Value {
    json!({
        "metadata": {"name": "server"},
        "spec": {
            "serviceAccountName": "vmcp-server",
            "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [container("server")],
        },
    })
}

pub(super) fn container(name: &str) -> Value {
    json!({
        "name": name, "image": "none.invalid/server",
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    })
}

/// A pod with the label, and these annotations, without what all of their names begin with.
pub(super) fn asking(annotations: &[(&str, &str)]) -> Value {
    let annotations: BTreeMap<String, &str> =
        annotations.iter().map(|(name, value)| (format!("vmcp.dev/agent-{name}"), *value)).collect();
    let pod = with(&plain(), "/metadata/labels", json!({"vmcp.dev/agent": "enabled"}));
    with(&pod, "/metadata/annotations", json!(annotations))
}

/// The same with something else at a path. What is on the way must be there.
pub(super) fn with(object: &Value, path: &str, value: Value) -> Value {
    let mut object = object.clone();
    let (on_the_way, last) = path.rsplit_once('/').unwrap();
    object.pointer_mut(on_the_way).unwrap()[last] = value;
    object
}

/// Items of a list, by name.
pub(super) fn named<'a>(list: &'a Value, name: &str) -> Option<&'a Value> {
    list.as_array()?.iter().find(|item| item["name"] == name)
}

/// The agent of a pod.
pub(super) fn agent_of(pod: &Value) -> Option<&Value> {
    named(&pod["spec"]["initContainers"], "vmcp-agent")
}

/// What a variable of its agent says.
pub(super) fn variable<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    named(&agent_of(pod)?["env"], name)?["value"].as_str()
}

/// The spec, without the random name that the API server gives to the volume with its token.
pub(super) fn spec(pod: &Value) -> Value {
    let volumes = pod["spec"]["volumes"].as_array().map_or(&[][..], Vec::as_slice);
    let names = volumes.iter().map(|volume| volume["name"].as_str().unwrap());
    let text = pod["spec"].to_string();
    let text = match names.clone().find(|name| name.starts_with("kube-api-access-")) {
        Some(random) => text.replace(random, "kube-api-access"),
        None => text,
    };
    serde_json::from_str(&text).unwrap()
}
