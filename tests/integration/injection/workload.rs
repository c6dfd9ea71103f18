//! Workloads whose pods get agents, and an agent that runs as the pod says.

use std::process::Command;

use serde_json::{Value, json};
use testkit::{AgentOptions, ClusterOptions, ControlPlaneOptions, eventually};

use super::admitted::{Admission, agent_of, asking, variable};
use crate::world::{PATIENCE, World};

fn deployment(name: &str, pod: &Value) -> Value {
    let mut template = pod.clone();
    template["metadata"]["labels"]["app"] = json!(name);
    template["metadata"].as_object_mut().unwrap().remove("name");
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "asking"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": template},
    })
}

/// The pods differ from the template, and nobody minds: no template is changed, so nothing is rolled out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_has_agents_in_its_pods_and_not_in_its_template() {
    let options = ControlPlaneOptions::default().with_controller_manager();
    let cluster = Admission::start_with(options, &[]).await;
    let get = async |what: &str, app: &str| {
        let selector = format!("--selector=app={app}");
        let list =
            cluster.plane.kubectl(&["get", what, "--namespace=asking", &selector, "--output=json"]).await.unwrap();
        serde_json::from_str::<Value>(&list).unwrap()["items"].as_array().unwrap().clone()
    };
    cluster.plane.apply_yaml(&deployment("good", &asking(&[("server", "weather")])).to_string()).await.unwrap();
    let pods =
        eventually(PATIENCE, "there are pods", async || Some(get("pods", "good").await).filter(|pods| pods.len() == 2))
            .await
            .unwrap();
    for pod in &pods {
        assert_eq!(variable(pod, "VMCP_SERVER"), Some("weather"));
    }
    // It has seen its pods, and is content with them.
    eventually(PATIENCE, "the deployment counts its pods", async || {
        let deployment =
            cluster.plane.kubectl(&["get", "deployment", "good", "--namespace=asking", "--output=json"]).await;
        let deployment: Value = serde_json::from_str(&deployment.unwrap()).unwrap();
        assert!(agent_of(&deployment["spec"]["template"]).is_none());
        (deployment["status"]["updatedReplicas"] == 2).then_some(())
    })
    .await
    .unwrap();
    let sets = get("replicasets", "good").await;
    assert_eq!(sets.len(), 1);
    assert!(agent_of(&sets[0]["spec"]["template"]).is_none());

    // Who wrote the annotations finds what is wrong with them where he looks.
    cluster.plane.apply_yaml(&deployment("bad", &asking(&[("visibility", "soon")])).to_string()).await.unwrap();
    eventually(PATIENCE, "the deployment says what is wrong", async || {
        let sets = get("replicasets", "bad").await;
        let text = sets.first()?["status"]["conditions"].to_string();
        text.contains("agent-visibility is 'soon': expected committed or everywhere").then_some(())
    })
    .await
    .unwrap();
}

/// With the variables of the pod, and probed as it says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_runs_and_is_probed_as_the_pod_says() {
    let cluster = Admission::start(&["injection.agent.program=/vmcp-session"]).await;
    let world = World::start(ClusterOptions::default().size(1, 0)).await;
    let annotations = [
        ("server", "weather"),
        ("key-prefix", "mcp:"),
        ("pod-local-keys", "conn.*"),
        ("visibility", "committed"),
        ("max-clients", "10"),
        ("client-timeout", "60"),
        ("client-output-limit", "65536"),
        ("clients-memory", "4194304"),
        ("cache-bytes", "1048576"),
        ("tracking-table-max-keys", "10"),
        ("cache-entries", "10"),
        ("lease-upper-bound", "20"),
        ("log-level", "debug"),
    ];
    let pod = cluster.admit("asking", &asking(&annotations)).await.unwrap();
    let agent = agent_of(&pod).unwrap();
    let mut options = AgentOptions::default();
    for entry in agent["env"].as_array().unwrap() {
        // Where things are is another matter here than in a pod.
        if let (Some(name), Some(value)) = (entry["name"].as_str(), entry["value"].as_str())
            && !["VMCP_CONTROLLERS", "VMCP_TOKEN_FILE", "VMCP_CA_FILE", "VMCP_ADMIN_LISTEN"].contains(&name)
        {
            options = options.env(name, value);
        }
    }
    let running = world.agent("server", options).await.unwrap();
    let mut client = running.client().await.unwrap();
    client.call(&["SET", "mcp:one", r#"{"a":"1","conn.x":"2"}"#]).await.unwrap();
    let session = world.sessions().get("one").await.unwrap();
    assert_eq!(session.spec.metadata.keys().collect::<Vec<_>>(), ["a"]);

    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let command = agent[probe]["exec"]["command"].as_array().unwrap();
        let command: Vec<&str> = command.iter().map(|word| word.as_str().unwrap()).collect();
        assert_eq!(command[0], "/vmcp-session");
        // The kubelet does this with variables of the container.
        let url = command[2].replace("$(VMCP_ADMIN_LISTEN)", &running.admin.to_string());
        let probed = Command::new(crate::programs().session).args([command[1], &url]).output().unwrap();
        assert!(probed.status.success(), "{probe}: {}", String::from_utf8_lossy(&probed.stderr));
    }
}
