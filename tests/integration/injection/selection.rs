//! Which pods get an agent, and what becomes of the rest of them.

use serde_json::{Value, json};

use super::admitted::{Admission, agent_of, asking, container, named, plain, spec, with};
use crate::chart::{objects, rendered};

fn labelled(value: &str) -> Value {
    with(&plain(), "/metadata/labels", json!({"vmcp.dev/agent": value}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_ask_and_those_in_a_namespace_that_asks_for_all() {
    let cluster = Admission::start(&[]).await;
    for (namespace, pod, wanted) in [
        ("asking", plain(), false),
        ("asking", labelled("enabled"), true),
        ("asking", labelled("disabled"), false),
        ("given", plain(), true),
        ("given", labelled("enabled"), true),
        ("given", labelled("disabled"), false),
        // The cluster's own, and the operator's.
        ("kube-system", labelled("enabled"), false),
        ("kube-system", plain(), false),
        ("vmcp-system", labelled("enabled"), false),
        ("vmcp-system", plain(), false),
    ] {
        let admitted = cluster.admit(namespace, &pod).await.unwrap();
        assert_eq!(agent_of(&admitted).is_some(), wanted, "{namespace}: {}", pod["metadata"]);
        if !wanted {
            assert_eq!(admitted["spec"].get("initContainers"), None);
        }
    }
    let mut windows = labelled("enabled");
    windows["spec"] = json!({
        "os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true},
        "containers": [{"name": "server", "image": "server"}],
    });
    for namespace in ["asking", "given"] {
        let admitted = cluster.admit(namespace, &windows).await.unwrap();
        assert_eq!(agent_of(&admitted), None, "an agent is a program for Linux");
        let refused = cluster.admit(namespace, &labelled("true")).await.unwrap_err();
        assert!(refused.contains("label vmcp.dev/agent is 'true': expected enabled or disabled"), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_is_left_out_or_not_watched_gets_none() {
    let cluster = Admission::start(&["injection.excludedNamespaces={left-out}"]).await;
    cluster.plane.create_namespace("left-out").await.unwrap();
    cluster.plane.create_service_account("left-out", "vmcp-server").await.unwrap();
    let admitted = cluster.admit("left-out", &asking(&[])).await.unwrap();
    assert_eq!(agent_of(&admitted), None);

    let cluster = Admission::start(&["controller.namespaces={asking,given}"]).await;
    cluster.plane.create_namespace("other").await.unwrap();
    cluster.plane.create_service_account("other", "vmcp-server").await.unwrap();
    let admitted = cluster.admit("other", &asking(&[])).await.unwrap();
    assert_eq!(agent_of(&admitted), None, "no controller would ever tell it anything");
}

/// Prometheus finds agents by the name of a port, whichever way a pod has come to one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_monitor_finds_each_agent_that_is_added() {
    let values = ["metrics.podMonitor.create=true", "agents.namespaces[0].name=given"];
    let cluster = Admission::start(&values).await;
    let chart = objects(&rendered(&cluster.plane, &values).await);
    let monitor = &chart.iter().find(|object| object["kind"] == "PodMonitor").unwrap()["spec"];
    assert_eq!(monitor["namespaceSelector"], json!({"matchNames": ["given"]}));
    let disabled = json!([{"key": "vmcp.dev/agent", "operator": "NotIn", "values": ["disabled"]}]);
    assert_eq!(monitor["selector"], json!({"matchExpressions": disabled}), "nothing labels a pod whose namespace asks");
    let elsewhere = ["0.0.0.0:9000", "[::]:9001", ":9002"].map(|at| (at, asking(&[("admin-listen", at)])));
    for (at, pod) in [(":8079", plain()), (":8079", labelled("enabled"))].into_iter().chain(elsewhere) {
        let admitted = cluster.admit("given", &pod).await.unwrap();
        let agent = agent_of(&admitted).unwrap();
        let port = &agent["ports"][0];
        assert_eq!(port["name"], monitor["podMetricsEndpoints"][0]["port"]);
        let listen = agent["env"].as_array().unwrap().iter().find(|env| env["name"] == "VMCP_ADMIN_LISTEN").unwrap();
        assert_eq!(listen["value"], at);
        assert!(at.ends_with(&format!(":{}", port["containerPort"])), "{at}: {port}");
    }
}

/// All but the agent and its volumes is what it is without the label.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_comes_first_of_the_init_containers_and_nothing_else_changes() {
    let cluster = Admission::start(&[]).await;
    let prepared = json!([container("prepare"), container("migrate")]);
    let volume = json!({"name": "data", "emptyDir": {}});
    let bare = plain();
    let two = with(&bare, "/spec/containers", json!([container("server"), container("other")]));
    let inits = with(&two, "/spec/initContainers", prepared);
    let volumes = with(&inits, "/spec/volumes", json!([volume.clone()]));
    let no_token = with(&volumes, "/spec/automountServiceAccountToken", json!(false));
    for pod in [bare, two, inits, volumes, no_token] {
        let without = cluster.admit("asking", &pod).await.unwrap();
        let label = json!({"vmcp.dev/agent": "enabled"});
        let mut with_agent = cluster.admit("asking", &with(&pod, "/metadata/labels", label)).await.unwrap();
        let agent = with_agent["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
        assert_eq!((&agent["name"], &agent["restartPolicy"]), (&json!("vmcp-agent"), &json!("Always")));
        // Its token for the API server is one of its own, whether or not the others have one.
        let mounts = agent["volumeMounts"].as_array().unwrap();
        let at = |path: &str| mounts.iter().find(|mount| mount["mountPath"] == path).map(|mount| mount["name"].clone());
        assert_eq!(at("/var/run/secrets/kubernetes.io/serviceaccount"), Some("vmcp-agent-api".into()));
        assert_eq!(mounts.len(), 2);
        assert_eq!(others(&with_agent), others(&without));
    }
}

/// The spec without the agent's volumes, in whatever order they come.
fn others(pod: &Value) -> Value {
    let mut spec = spec(pod);
    let mut volumes = spec["volumes"].as_array().cloned().unwrap_or_default();
    volumes.retain(|volume| !volume["name"].as_str().unwrap().starts_with("vmcp-agent-"));
    volumes.sort_by_key(|volume| volume["name"].to_string());
    spec["volumes"] = json!(volumes);
    if spec["initContainers"] == json!([]) {
        spec.as_object_mut().unwrap().remove("initContainers");
    }
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_has_an_agent_keeps_it_as_it_is() {
    let cluster = Admission::start(&[]).await;
    let mut once = cluster.admit("asking", &asking(&[("server", "weather"), ("unix-socket", "true")])).await.unwrap();
    once["metadata"] = json!({"name": "server", "labels": {"vmcp.dev/agent": "enabled"}});
    let twice = cluster.admit("asking", &once).await.unwrap();
    assert_eq!(twice["spec"], once["spec"]);

    // By hand, as it may have been before.
    for list in ["containers", "initContainers"] {
        let own = json!([container("vmcp-agent")]);
        let mut pod = with(&asking(&[]), "/spec/containers", json!([container("server")]));
        if list == "containers" {
            pod["spec"]["containers"].as_array_mut().unwrap().push(own[0].clone());
        } else {
            pod["spec"]["initContainers"] = own;
        }
        let admitted = cluster.admit("asking", &pod).await.unwrap();
        assert_eq!(named(&admitted["spec"][list], "vmcp-agent").unwrap()["image"], "none.invalid/server");
        let count = admitted.to_string().matches("\"vmcp-agent\"").count();
        assert_eq!(count, 1, "{admitted}");
    }

    // A volume of the pod's own is used: its containers mount it.
    let socket = json!([{"name": "vmcp-agent-socket", "emptyDir": {"sizeLimit": "2Mi"}}]);
    let pod = with(&asking(&[("unix-socket", "true")]), "/spec/volumes", socket);
    let admitted = cluster.admit("asking", &pod).await.unwrap();
    let volumes = admitted["spec"]["volumes"].as_array().unwrap();
    let sockets: Vec<&Value> = volumes.iter().filter(|volume| volume["name"] == "vmcp-agent-socket").collect();
    assert_eq!(sockets.len(), 1);
    assert_eq!(sockets[0]["emptyDir"]["sizeLimit"], "2Mi");
}
