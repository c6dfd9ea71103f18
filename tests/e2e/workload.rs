//! The pods of examples/vmcp-server with the agent beside them, and a real MCP client before their Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};
use testkit::{McpAnswer, McpClient, McpPrograms, PodClient, RespClient};

use crate::scene::{self, CONTROLLER, OPERATOR, PATIENCE, ROLLOUT, Scene, TEAM};
use crate::story::Story;

/// The Service, by its name in the cluster's DNS.
pub const URL: &str = "http://vmcp-server.team-a.svc.cluster.local:8080/mcp";
const MANIFEST: &str = "examples/vmcp-server/kubernetes.yaml";
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const BOTH: [&str; 2] = ["search_lookup", "weather_forecast"];
/// What the client makes of a 404, which MCP has for sessions that have ended.
const SESSION_TERMINATED: &str = "Session terminated";

/// What the server's keys begin with.
pub const PREFIX: &str = "mcp:";
/// Where the agents' admin endpoints are: see [`Scene::helm`].
const AGENT_ADMIN: u16 = 8079;
/// The label of its pods.
pub const PODS: &str = "app=vmcp-server";

/// A client that has no session yet.
pub async fn client(scene: &Scene, name: &str) -> McpClient {
    let programs = McpPrograms::client_only(ROOT).unwrap();
    McpClient::start(&programs, &scene.node.dir().join(format!("{name}.log"))).await.unwrap()
}

/// Pods by their names, each with where its agent tells how it is.
pub async fn agents(scene: &Scene) -> BTreeMap<String, PodClient> {
    let pods = scene.pods(TEAM, PODS).await;
    let running = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    running
        .map(|pod| {
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            let ip = pod["status"]["podIP"].as_str().unwrap().parse().unwrap();
            (name.clone(), PodClient { name, address: SocketAddr::new(ip, AGENT_ADMIN) })
        })
        .collect()
}

/// A sum over all lines of one metric of an agent.
async fn metric(agent: &PodClient, name: &str, labels: &str) -> u64 {
    let reply = agent.call("GET", "/metrics", None).await.unwrap();
    let lines = reply.text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name) && line.contains(labels));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

/// Evictions that all agents have seen so far.
pub async fn evictions(scene: &Scene) -> u64 {
    let mut all = 0;
    for agent in agents(scene).await.values() {
        all += metric(agent, "vmcp_agent_evictions_total", "").await;
    }
    all
}

/// Reads sessions in each pod, so that it has copies of them.
pub async fn hold(scene: &Scene, sessions: &[String]) {
    for name in agents(scene).await.into_keys() {
        let forward = scene.node.forward(TEAM, &name, 6379).await.unwrap();
        let mut client = RespClient::connect(forward.address()).await.unwrap();
        for session in sessions {
            let read = client.call(&["GET", &format!("{PREFIX}{session}")]).await.unwrap();
            assert!(read.text().is_some(), "{name} reads {session}: {read:?}");
        }
    }
}

/// Waits until each agent has leases of so many replicas.
pub async fn leased(scene: &Scene, replicas: u64) {
    for (name, agent) in agents(scene).await {
        scene::comes_to(&format!("{name} has {replicas} leases"), async || {
            let leasing = metric(&agent, "vmcp_agent_controllers", "state=\"leasing\"").await;
            (leasing == replicas).then_some(())
        })
        .await
        .unwrap();
    }
}

/// Asks until each pod has given the right answer, and has not gone back.
async fn each(
    client: &mut McpClient,
    pods: &BTreeSet<String>,
    what: &str,
    ask: impl AsyncFn(&mut McpClient) -> McpAnswer,
    right: impl Fn(&McpAnswer) -> bool,
) {
    let mut came = BTreeSet::new();
    let started = std::time::Instant::now();
    while came != *pods {
        let answer = ask(client).await;
        assert!(started.elapsed() < PATIENCE, "{what}: of {pods:?} only {came:?}, last {answer:?}");
        if right(&answer) {
            came.insert(answer.pod().to_owned());
        } else {
            assert!(!came.contains(answer.pod()), "{what}: {} went back: {answer:?}", answer.pod());
        }
    }
}

async fn tools(client: &mut McpClient) -> McpAnswer {
    client.tools().await.unwrap()
}

fn lists(expected: &[&str]) -> impl Fn(&McpAnswer) -> bool {
    move |answer| answer.outcome.as_ref().is_ok_and(|listed| *listed == json!(expected))
}

/// Three pods that a developer deploys.
pub async fn deploy(story: &mut Story, scene: &Scene) {
    story.step("three pods are deployed, and their label gets each an agent");
    let manifest = Path::new(ROOT).join(MANIFEST).display().to_string();
    scene.kubectl(&["apply", "--filename", &manifest]).await;
    scene.kubectl(&["rollout", "status", "deployment/vmcp-server", ROLLOUT]).await;
    let pods = scene.pods(TEAM, PODS).await;
    assert_eq!(pods.len(), 3);
    for pod in &pods {
        let sidecar = &pod["status"]["initContainerStatuses"][0];
        assert!(
            sidecar["name"] == "vmcp-agent" && sidecar["ready"] == true && sidecar["restartCount"] == 0,
            "{sidecar:#}"
        );
    }
    leased(scene, 2).await;
}

/// A session from its opening by a client to its end.
pub async fn a_client(story: &mut Story, scene: &Scene) {
    let pods: BTreeSet<String> = agents(scene).await.into_keys().collect();
    let mut client = client(scene, "mcp-client").await;

    story.step("an MCP client opens a session through the Service, and every pod serves it");
    let opened = client.open_spread(URL).await.unwrap();
    let session = opened.ok().unwrap()["session"].as_str().unwrap().to_owned();
    let stored = scene.session(&session).await;
    assert_eq!(stored["spec"]["metadata"]["backends"], "search,weather");
    each(&mut client, &pods, "both tools", tools, lists(&BOTH)).await;

    story.step("kubectl patch takes a backend away: pods drop their copies, the client is told");
    let before = evictions(scene).await;
    let told = client.comes_to("look", |_| true).await.unwrap().changed;
    scene.patch(&session, &json!({"backends": "weather"})).await;
    client.comes_to("be told that its tools changed", |seen| seen.changed > told).await.unwrap();
    each(&mut client, &pods, "one tool", tools, lists(&BOTH[1..])).await;
    let dropped = evictions(scene).await - before;
    assert_eq!(dropped, 3, "one change, three holders");

    story.step("status, event and kubectl get tell of it");
    let seen = scene
        .session_comes_to(&session, "tells of three pods", |session| {
            let status = &session["status"];
            status["lastEviction"]["pods"] == 3
                && status["conditions"][0]["status"] == "True"
                && status["observedGeneration"] == session["metadata"]["generation"]
        })
        .await;
    assert_eq!(seen["status"]["lastEviction"]["changedKeys"], json!(["backends"]));
    let table = scene.kubectl(&["get", "vmcps", &session]).await;
    assert!(table.contains("True"), "{table}");
    scene::comes_to("the event is written", async || {
        let described = scene.kubectl(&["describe", "vmcps", &session]).await;
        (described.contains("MetadataChanged") && described.contains("3 pods dropped their copies")).then_some(())
    })
    .await
    .unwrap();

    story.step("a change of labels, and one of a timeout, disturb nobody");
    let before = evictions(scene).await;
    scene.kubectl(&["label", "vmcps", &session, "seen=yes"]).await;
    let timeout = r#"{"spec": {"idleTimeoutSeconds": 7200}}"#;
    scene.kubectl(&["patch", "vmcps", &session, "--type=merge", "--patch", timeout]).await;
    each(&mut client, &pods, "one tool", tools, lists(&BOTH[1..])).await;
    assert_eq!(evictions(scene).await, before);

    story.step("kubectl delete ends it for the client");
    scene.kubectl(&["delete", "vmcps", &session]).await;
    let ended = |answer: &McpAnswer| {
        answer.status() == 404 && answer.outcome.as_ref().is_err_and(|e| e["message"] == SESSION_TERMINATED)
    };
    each(&mut client, &pods, "it has ended", tools, ended).await;

    story.step("metadata values are in no log, event or status");
    let mut told = scene.kubectl(&["get", "events", "--output=json"]).await;
    for pod in agents(scene).await.keys() {
        told += &scene.kubectl(&["logs", pod, "--all-containers"]).await;
    }
    let of_operator =
        ["logs", "--namespace", OPERATOR, "--selector=app.kubernetes.io/component=controller", "--tail=-1"];
    told += &scene.node.kubectl(&of_operator).await.unwrap();
    told += &seen["status"].to_string();
    assert!(told.contains("MetadataChanged") && told.contains(CONTROLLER));
    for value in ["search,weather", "clientInfo"] {
        assert!(!told.contains(value), "{value} is told");
    }
}

/// What a pod says of itself, for a failure's message.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
