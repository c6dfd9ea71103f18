//! A vMCP server that speaks MCP: three pods behind a proxy without affinity, and a client of another make.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use testkit::{ClusterOptions, McpAnswer, McpClient, McpPrograms, McpScene, McpSessions};

use crate::world::{PATIENCE, World};

/// Short, so that a session whose pod was killed can be deleted everywhere without much waiting.
const LEASE: Duration = Duration::from_secs(3);
/// Requests after which every pod has had its turn, whatever else goes through the proxy.
const TURNS: usize = 30;
/// When a session ends that nobody uses, where that is what the test is about.
const IDLE: Duration = Duration::from_secs(6);
const BOTH: [&str; 2] = ["search_lookup", "weather_forecast"];
/// JSON-RPC's code for parameters that are wrong, which an unknown tool is.
const INVALID_PARAMS: i64 = -32602;
/// What the client makes of a 404, which MCP has for sessions that have ended.
const SESSION_TERMINATED: &str = "Session terminated";

/// None if this machine has no Python, which is said.
fn programs() -> Option<McpPrograms> {
    let found = McpPrograms::find(env!("CARGO_MANIFEST_DIR"), &crate::programs().session);
    let python = std::process::Command::new("python3").arg("--version").output();
    if found.is_err() && python.is_err() {
        eprintln!("SKIPPED: there is no python3, which the MCP client needs");
        return None;
    }
    Some(found.unwrap())
}

/// Asks until each of `pods` has answered. Every answer must be right.
async fn each(
    client: &mut McpClient,
    pods: &BTreeSet<String>,
    ask: impl AsyncFn(&mut McpClient) -> McpAnswer,
    right: impl Fn(&McpAnswer) -> bool,
) {
    let mut answered = BTreeSet::new();
    for _ in 0..TURNS {
        let answer = ask(client).await;
        assert!(right(&answer), "{answer:?}");
        answered.insert(answer.pod().to_owned());
        if answered == *pods {
            return;
        }
    }
    panic!("of {pods:?} only {answered:?} have answered");
}

/// Asks until each of `pods` has given the right answer, and goes on to give it.
async fn each_comes_to(
    client: &mut McpClient,
    pods: &BTreeSet<String>,
    ask: impl AsyncFn(&mut McpClient) -> McpAnswer,
    right: impl Fn(&McpAnswer) -> bool,
) {
    let mut changed = BTreeSet::new();
    let started = std::time::Instant::now();
    while changed != *pods {
        assert!(started.elapsed() < PATIENCE, "of {pods:?} only {changed:?} have changed");
        let answer = ask(client).await;
        if right(&answer) {
            changed.insert(answer.pod().to_owned());
        } else {
            assert!(!changed.contains(answer.pod()), "{} went back: {answer:?}", answer.pod());
        }
    }
    each(client, pods, ask, right).await;
}

async fn tools(client: &mut McpClient) -> McpAnswer {
    client.tools().await.unwrap()
}

async fn forecast(client: &mut McpClient) -> McpAnswer {
    client.call("weather_forecast", &json!({"city": "Bern"})).await.unwrap()
}

async fn lookup(client: &mut McpClient) -> McpAnswer {
    client.call("search_lookup", &json!({"query": "cheese"})).await.unwrap()
}

fn lists(expected: &[&str]) -> impl Fn(&McpAnswer) -> bool {
    move |answer| answer.outcome.as_ref().is_ok_and(|listed| *listed == json!(expected))
}

fn says(text: &str) -> impl Fn(&McpAnswer) -> bool {
    move |answer| answer.outcome.as_ref().is_ok_and(|said| *said == json!({"failed": false, "text": text}))
}

fn refused(answer: &McpAnswer) -> bool {
    answer.status() == 200 && answer.outcome.as_ref().is_err_and(|error| error["code"] == INVALID_PARAMS)
}

fn terminated(answer: &McpAnswer) -> bool {
    answer.status() == 404 && answer.outcome.as_ref().is_err_and(|error| error["message"] == SESSION_TERMINATED)
}

async fn object(world: &World, session: &str) -> Value {
    let args = ["get", "vmcps", session, "-o", "json", "--show-managed-fields"];
    serde_json::from_str(&world.kubectl(&args).await.unwrap()).unwrap()
}

/// A session is one object: it is opened by one pod, served by all, outlives the pod that opened it, follows what
/// kubectl makes of it, and is gone when the object is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_session_is_its_object_in_every_pod() {
    Box::pin(is_its_object_in_every_pod([McpSessions::Library; 3])).await;
}

/// The same where a server speaks to the agent of its pod, with a Redis client; beside a pod that needs none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_session_is_its_object_in_every_pod_through_agents() {
    Box::pin(is_its_object_in_every_pod([McpSessions::Agent, McpSessions::Library, McpSessions::Agent])).await;
}

async fn is_its_object_in_every_pod(sessions: [McpSessions; 3]) {
    let Some(programs) = programs() else {
        return;
    };
    let world = World::start(ClusterOptions::default().lease(LEASE).size(2, 0)).await;
    let mut scene = McpScene::start(&world, &programs, &sessions).await.unwrap();
    let mut client = scene.client(&world).await.unwrap();
    let mut pods: BTreeSet<String> = scene.pods.iter().map(|pod| pod.name.clone()).collect();

    println!("a client opens a session, and every pod serves it");
    let opened = client.open(&scene.url).await.unwrap();
    let session = opened.ok().unwrap()["session"].as_str().unwrap().to_owned();
    let stored = object(&world, &session).await;
    assert_eq!(stored["spec"]["metadata"]["backends"], "search,weather", "{stored}");
    assert_eq!(stored["spec"]["server"], "demo");
    each(&mut client, &pods, tools, lists(&BOTH)).await;
    each(&mut client, &pods, forecast, says("Bern: sunny, as always")).await;
    each(&mut client, &pods, lookup, says("cheese: nothing found, as always")).await;

    println!("the pod that opened it is killed");
    let managers = stored["metadata"]["managedFields"].as_array().unwrap();
    let opener = managers.iter().find_map(|m| m["manager"].as_str()?.strip_prefix("vmcp/")).unwrap().to_owned();
    scene.pod(&opener).unwrap().kill9().await.unwrap();
    pods.remove(&opener);
    each(&mut client, &pods, tools, lists(&BOTH)).await;
    each(&mut client, &pods, forecast, says("Bern: sunny, as always")).await;

    println!("a backend is taken away from it");
    let streams = |seen: &McpAnswer| seen.stream.as_ref().is_some_and(|pod| pods.contains(pod));
    let told = client.comes_to("have a stream from a pod that lives", streams).await.unwrap().changed;
    world.patch(&session, &json!({"backends": "weather"})).await.unwrap();
    client.comes_to("be told that its tools changed", |seen| seen.changed > told).await.unwrap();
    each_comes_to(&mut client, &pods, tools, lists(&BOTH[1..])).await;
    each(&mut client, &pods, lookup, refused).await;
    each(&mut client, &pods, forecast, says("Bern: sunny, as always")).await;

    println!("the pod that was killed comes back");
    let again = scene.pods.iter_mut().find(|pod| pod.name == opener).unwrap();
    again.restart().await.unwrap();
    pods.insert(opener);
    each(&mut client, &pods, tools, lists(&BOTH[1..])).await;

    println!("the session is deleted");
    world.kubectl(&["delete", "vmcps", &session]).await.unwrap();
    each_comes_to(&mut client, &pods, tools, terminated).await;
    each(&mut client, &pods, forecast, terminated).await;

    println!("the client begins anew");
    let opened = client.open(&scene.url).await.unwrap();
    let anew = opened.ok().unwrap()["session"].as_str().unwrap().to_owned();
    assert_ne!(anew, session);
    each(&mut client, &pods, tools, lists(&BOTH)).await;
    each(&mut client, &pods, lookup, says("cheese: nothing found, as always")).await;

    println!("and ends its session itself");
    let closed = client.close().await.unwrap();
    closed.ok().unwrap();
    let ended = closed.http.iter().find(|e| e.method == "DELETE").unwrap();
    assert_eq!(ended.status, 204, "{closed:?}");
    let left = world.kubectl(&["get", "vmcps", "-o", "name"]).await.unwrap();
    assert_eq!(left, "");

    println!("what nobody should see is in no log");
    for pod in &scene.pods {
        let log = pod.process.log();
        for value in ["search,weather", "mcp-client", "clientInfo"] {
            assert!(!log.contains(value), "{} logs {value}:\n{log}", pod.name);
        }
    }
}

/// What nobody can vouch for is refused so that clients try again. A 404 would end the session for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_session_that_nobody_can_vouch_for_is_refused_and_not_called_ended() {
    Box::pin(is_refused_and_not_called_ended([McpSessions::Library; 3])).await;
}

/// The same with agents.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_session_that_no_agent_can_vouch_for_is_refused_and_not_called_ended() {
    Box::pin(is_refused_and_not_called_ended([McpSessions::Agent; 3])).await;
}

async fn is_refused_and_not_called_ended(sessions: [McpSessions; 3]) {
    let Some(programs) = programs() else {
        return;
    };
    let mut world = World::start(ClusterOptions::default().lease(LEASE).size(2, 0)).await;
    let mut scene = McpScene::start(&world, &programs, &sessions).await.unwrap();
    let mut client = scene.client(&world).await.unwrap();
    let pods: BTreeSet<String> = scene.pods.iter().map(|pod| pod.name.clone()).collect();
    client.open(&scene.url).await.unwrap().ok().unwrap();
    each(&mut client, &pods, tools, lists(&BOTH)).await;

    println!("controllers and API server are gone");
    for controller in &world.controllers {
        controller.process.kill9().await.unwrap();
    }
    world.plane.apiserver().kill9().await.unwrap();
    each_comes_to(&mut client, &pods, tools, |answer| answer.status() == 503).await;

    println!("and come back");
    world.plane.apiserver().restart().await.unwrap();
    for controller in &mut world.controllers {
        controller.restart().await.unwrap();
    }
    each_comes_to(&mut client, &pods, tools, lists(&BOTH)).await;

    if sessions == [McpSessions::Library; 3] {
        return;
    }
    println!("agents are killed, and started again");
    for agent in scene.pods.iter().filter_map(|pod| pod.agent.as_ref()) {
        agent.process.kill9().await.unwrap();
    }
    each(&mut client, &pods, tools, |answer| answer.status() == 503).await;
    for agent in scene.pods.iter_mut().filter_map(|pod| pod.agent.as_mut()) {
        agent.restart().await.unwrap();
    }
    each_comes_to(&mut client, &pods, tools, lists(&BOTH)).await;
}

/// A read renews no session in Redis, and none in the agent: the server does, with each request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_session_that_is_used_does_not_end_through_an_agent() {
    let Some(programs) = programs() else {
        return;
    };
    let world = World::start(ClusterOptions::default().lease(LEASE).size(1, 0)).await;
    let idle = format!("--idle-timeout={}", IDLE.as_secs());
    let scene = McpScene::start_with(&world, &programs, &[McpSessions::Agent], &[&idle]).await.unwrap();
    let mut client = scene.client(&world).await.unwrap();
    let opened = client.open(&scene.url).await.unwrap();
    let session = opened.ok().unwrap()["session"].as_str().unwrap().to_owned();

    println!("it is used for three times as long as it lasts unused");
    let (right, opened) = (lists(&BOTH), std::time::Instant::now());
    while opened.elapsed() < 3 * IDLE {
        let answer = tools(&mut client).await;
        assert!(right(&answer), "after {:?}: {answer:?}", opened.elapsed());
    }

    println!("and then no more");
    testkit::eventually(PATIENCE, "the session ends", async || {
        let left = world.kubectl(&["get", "vmcps", "-o", "name"]).await.ok()?;
        (!left.contains(&session)).then_some(())
    })
    .await
    .unwrap();
    assert!(terminated(&tools(&mut client).await));
}
