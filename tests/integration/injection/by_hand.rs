//! Pods that bring the agent themselves have what others get.

use serde_json::{Value, json};

use super::admitted::{Admission, agent_of, asking, container, plain, spec, with};
use crate::chart::{file, objects};

/// What the documentation and the component run, made one that is there.
const IMAGE: &str = concat!("ghcr.io/vmcp-dev/vmcp-session:", env!("CARGO_PKG_VERSION"));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_manifest_of_the_documentation_is_what_the_policy_adds() {
    let cluster = Admission::start(&[]).await;
    let text = file("docs/agent.md");
    let blocks = text.split("```yaml\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let manifest: Vec<&str> = blocks.filter(|block| block.starts_with("initContainers:")).collect();
    assert_eq!(manifest.len(), 1);
    let manifest: Value = serde_norway::from_str(manifest[0]).unwrap();
    let mut pod = plain();
    for (key, value) in manifest.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let by_hand = cluster.admit("asking", &pod).await.unwrap();
    let added = cluster.admit("asking", &asking(&[("server", "assistant"), ("key-prefix", "mcp:")])).await.unwrap();
    assert_eq!(sorted(spec(&by_hand)), sorted(spec(&added)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_component_of_kustomize_is_what_the_policy_adds() {
    let cluster = Admission::start(&[]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("agent")).unwrap();
    for name in ["kustomization.yaml", "agent.yaml"] {
        std::fs::write(path("agent").join(name), file(&format!("deploy/kustomize/agent/{name}"))).unwrap();
    }
    let (image, tag) = IMAGE.rsplit_once(':').unwrap();
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": ["workloads.yaml"], "components": ["agent"], "images": [{"name": image, "newTag": tag}],
    });
    std::fs::write(path("kustomization.yaml"), kustomization.to_string()).unwrap();
    let workload = |kind: &str, name: &str, label: &str| {
        let prepared = json!([container("prepare")]);
        let pod =
            with(&with(&plain(), "/metadata", json!({"labels": {"app": name}})), "/spec/initContainers", prepared);
        json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "asking", "labels": {"vmcp.dev/agent": label}},
            "spec": {"selector": {"matchLabels": {"app": name}}, "template": pod},
        })
    };
    let workloads = [
        workload("Deployment", "a", "enabled"),
        workload("StatefulSet", "b", "enabled"),
        workload("DaemonSet", "c", "enabled"),
        workload("Deployment", "d", "disabled"),
    ];
    let text: Vec<String> = workloads.iter().map(Value::to_string).collect();
    std::fs::write(path("workloads.yaml"), text.join("\n---\n")).unwrap();

    let built = cluster.plane.kubectl(&["kustomize", folder.path().to_str().unwrap()]).await.unwrap();
    let taken = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"];
    let taken = cluster.plane.kubectl_output(&taken, Some(&built)).await.unwrap();
    let said = format!("{}{}", taken.stdout, taken.stderr);
    assert!(taken.status.success() && !said.contains("Warning"), "{said}");

    let built = objects(&built);
    assert_eq!(built.len(), workloads.len());
    let prepared = with(&asking(&[]), "/spec/initContainers", json!([container("prepare")]));
    let added = cluster.admit("asking", &prepared).await.unwrap();
    for workload in built {
        let mut pod = workload["spec"]["template"].clone();
        pod["metadata"] = json!({"name": "server"});
        let by_hand = cluster.admit("asking", &pod).await.unwrap();
        if workload["metadata"]["labels"]["vmcp.dev/agent"] == "enabled" {
            assert_eq!(sorted(spec(&by_hand)), sorted(spec(&added)), "{}", workload["kind"]);
        } else {
            assert_eq!(agent_of(&by_hand), None);
        }
    }
}

/// Without the order of what has none: variables and volumes.
fn sorted(mut spec: Value) -> Value {
    let by_name = |list: &mut Value| list.as_array_mut().unwrap().sort_by_key(|item| item["name"].to_string());
    by_name(&mut spec["volumes"]);
    by_name(&mut spec["initContainers"][0]["env"]);
    assert_eq!(spec["initContainers"][0]["name"], "vmcp-agent", "it comes first");
    spec
}
