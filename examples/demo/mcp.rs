//! The story of a session that an MCP client has with a vMCP server: the same object, seen from outside.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::{Cluster, McpAnswer, McpClient, McpPrograms, McpScene, McpSessions};

use crate::Failed;
use crate::story::Story;

/// Requests after which every pod has had its turn, whatever else goes through the proxy.
const TURNS: usize = 30;
/// Far longer than it takes until a pod has followed a change.
const PATIENCE: Duration = Duration::from_secs(20);
/// One server has the cache in its process, the others ask the agent of their pod, as they would ask Redis.
const SESSIONS: [McpSessions; 3] = [McpSessions::Library, McpSessions::Agent, McpSessions::Agent];
/// The tools of both backends, and those of the one that stays.
const BOTH: [&str; 2] = ["search_lookup", "weather_forecast"];
const WEATHER: [&str; 1] = ["weather_forecast"];

/// A real vMCP server and a real client, if this machine has what they need. `session` is the program of the operator,
/// beside which the server was built.
pub async fn server(cluster: &Cluster, session: &Path, story: &mut Story) -> Result<(), Failed> {
    story.chapter("9. A vMCP server in three pods, behind a round-robin proxy without affinity");
    let programs = match McpPrograms::find(env!("CARGO_MANIFEST_DIR"), session) {
        Ok(programs) => programs,
        Err(missing) => {
            story.text(&format!("left out: {missing}"));
            return Ok(());
        }
    };
    story.text("the server: MCP's Rust SDK, two MCP backends behind it. The client: MCP's Python SDK, as it is.");
    story.text("mcp-1 links the cache library; mcp-2 and mcp-3 ask the agent of their pod, with a Redis client.");
    let started = Instant::now();
    let scene = McpScene::start(cluster, &programs, &SESSIONS).await?;
    let mut client = scene.client(cluster).await?;
    let mut pods: BTreeSet<String> = scene.pods.iter().map(|pod| pod.name.clone()).collect();
    let id = opened(cluster, &scene, &mut client, started, story).await?;
    spread(&pods, &mut client, story).await?;
    let opener = opener(cluster, &id).await?;
    killed(&scene, &opener, &mut pods, &mut client, story).await?;
    backend_removed(cluster, &id, &pods, &mut client, story).await?;
    deleted(cluster, &scene, &id, &pods, &mut client, story).await
}

async fn opened(
    cluster: &Cluster,
    scene: &McpScene,
    client: &mut McpClient,
    started: Instant,
    story: &mut Story,
) -> Result<String, Failed> {
    let opened = client.open(&scene.url).await?;
    let id = opened.ok()?["session"].as_str().unwrap_or_default().to_owned();
    story.check_timed("the client has opened a session through the proxy", !id.is_empty(), started.elapsed());
    let jsonpath = "jsonpath={.spec.metadata.backends}";
    story.command(&format!("kubectl get vmcps {id} \\\n  -o jsonpath='{{.spec.metadata.backends}}'"));
    let backends = cluster.kubectl(&["get", "vmcps", &id, "-o", jsonpath]).await?;
    story.quote(&backends);
    story.check("its Mcp-Session-Id is the name of the object", backends == "search,weather");
    Ok(id)
}

/// Every request is another pod's.
async fn spread(pods: &BTreeSet<String>, client: &mut McpClient, story: &mut Story) -> Result<(), Failed> {
    let listed = client.tools().await?;
    story.check("it sees the tools of both backends", lists(&listed, &BOTH));
    let (mut right, mut answered) = (0, BTreeSet::new());
    for _ in 0..9 {
        let answer = forecast(client).await?;
        right += usize::from(is_forecast(&answer));
        answered.insert(answer.pod().to_owned());
    }
    let found = format!("{right} by {answered:?}");
    story.check_found("9 calls of a tool, answered by all three pods", right == 9 && answered == *pods, &found);
    Ok(())
}

/// The pod that opened the session, as the object's field managers have it.
async fn opener(cluster: &Cluster, id: &str) -> Result<String, Failed> {
    let args = ["get", "vmcps", id, "--show-managed-fields", "-o", "json"];
    let object: Value = serde_json::from_str(&cluster.kubectl(&args).await?)?;
    let managers = object["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let opener = managers.iter().find_map(|m| m["manager"].as_str()?.strip_prefix("vmcp/"));
    Ok(opener.ok_or("no pod has written the session")?.to_owned())
}

async fn killed(
    scene: &McpScene,
    opener: &str,
    pods: &mut BTreeSet<String>,
    client: &mut McpClient,
    story: &mut Story,
) -> Result<(), Failed> {
    let pod = scene.pod(opener)?;
    story.command(&format!("kill -9 {}", pod.process.pid()));
    pod.kill9().await?;
    pods.remove(opener);
    let (mut right, mut answered) = (0, BTreeSet::new());
    for _ in 0..6 {
        let answer = forecast(client).await?;
        right += usize::from(is_forecast(&answer));
        answered.insert(answer.pod().to_owned());
    }
    let claim = format!("{opener} had opened it and is dead: 6 more calls, all answered");
    story.check_found(&claim, right == 6 && answered == *pods, &format!("{right} by {answered:?}"));
    Ok(())
}

async fn backend_removed(
    cluster: &Cluster,
    id: &str,
    pods: &BTreeSet<String>,
    client: &mut McpClient,
    story: &mut Story,
) -> Result<(), Failed> {
    // If the stream to the client came from the dead pod, the client asks for another one after a moment.
    let alive = |seen: &McpAnswer| seen.stream.as_ref().is_some_and(|pod| pods.contains(pod));
    let told = client.comes_to("have a stream from a living pod", alive).await?.changed;
    let patch = json!({"spec": {"metadata": {"backends": "weather"}}}).to_string();
    story.command(&format!("kubectl patch vmcps {id} --type=merge \\\n  -p '{patch}'"));
    cluster.kubectl(&["patch", "vmcps", id, "--type=merge", "-p", &patch]).await?;
    let patched = Instant::now();
    client.comes_to("be told", |seen| seen.changed > told).await?;
    story.check_timed("the client is told that its tools changed, after kubectl", true, patched.elapsed());
    let listed = all_come_to(pods, client, Ask::Tools, |answer| lists(answer, &WEATHER)).await?;
    story.check("no pod lists the tool any more", listed);
    let refused = |answer: &McpAnswer| answer.outcome.as_ref().is_err_and(|error| error["code"] == -32602);
    story.check("called all the same, every pod refuses", all_come_to(pods, client, Ask::Lookup, refused).await?);
    story.check("the other backend's tool answers", is_forecast(&forecast(client).await?));
    Ok(())
}

async fn deleted(
    cluster: &Cluster,
    scene: &McpScene,
    id: &str,
    pods: &BTreeSet<String>,
    client: &mut McpClient,
    story: &mut Story,
) -> Result<(), Failed> {
    story.command(&format!("kubectl delete vmcps {id}"));
    cluster.kubectl(&["delete", "vmcps", id]).await?;
    let terminated =
        |answer: &McpAnswer| answer.status() == 404 && answer.outcome.as_ref().is_err_and(|e| !e["code"].is_null());
    let all = all_come_to(pods, client, Ask::Tools, terminated).await?;
    story.check("every pod answers 404, which clients take for the end of a session", all);
    let opened = client.open(&scene.url).await?;
    let anew = opened.ok()?["session"].as_str().unwrap_or_default().to_owned();
    let listed = client.tools().await?;
    let fresh = !anew.is_empty() && anew != id && lists(&listed, &BOTH);
    story.check("the client begins a new one, with both backends", fresh && is_forecast(&forecast(client).await?));
    Ok(())
}

#[derive(Clone, Copy)]
enum Ask {
    Tools,
    Lookup,
}

/// Asks until each pod has given the right answer; false if one does not come to it, or goes back.
async fn all_come_to(
    pods: &BTreeSet<String>,
    client: &mut McpClient,
    what: Ask,
    right: impl Fn(&McpAnswer) -> bool,
) -> Result<bool, Failed> {
    let (mut changed, started) = (BTreeSet::new(), Instant::now());
    for turn in 0.. {
        let answer = match what {
            Ask::Tools => client.tools().await?,
            Ask::Lookup => client.call("search_lookup", &json!({"query": "cheese"})).await?,
        };
        if right(&answer) {
            changed.insert(answer.pod().to_owned());
        } else if changed.contains(answer.pod()) {
            return Ok(false);
        }
        if changed == *pods {
            return Ok(true);
        }
        if turn > TURNS && started.elapsed() > PATIENCE {
            break;
        }
    }
    Ok(false)
}

async fn forecast(client: &mut McpClient) -> Result<McpAnswer, Failed> {
    Ok(client.call("weather_forecast", &json!({"city": "Bern"})).await?)
}

fn is_forecast(answer: &McpAnswer) -> bool {
    answer.outcome.as_ref().is_ok_and(|said| *said == json!({"failed": false, "text": "Bern: sunny, as always"}))
}

fn lists(answer: &McpAnswer, tools: &[&str]) -> bool {
    answer.outcome.as_ref().is_ok_and(|listed| *listed == json!(tools))
}
