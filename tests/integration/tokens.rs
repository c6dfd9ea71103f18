//! Tokens end. The kubelet puts others into the files before, and nobody may notice.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use serde_json::json;
use testkit::{AgentOptions, AgentPod, AuditMark, ClusterOptions, TokensOf, eventually};
use tokio_util::sync::CancellationToken;

use crate::world::{Evictions, PATIENCE, World};

const OPERATOR: (&str, &str) = ("vmcp-system", "vmcp-session-controller");
const PODS: (&str, &str) = ("vmcp", "vmcp-server");
/// A client of the API server reads its token again after a minute at the latest.
const REREAD: Duration = Duration::from_mins(2);

/// A process: its pod, the pod's account, and the files with its tokens.
struct Bearer<'a> {
    name: &'a str,
    account: (&'static str, &'static str),
    api: &'a Path,
    stream: &'a Path,
}

impl Bearer<'_> {
    /// Puts tokens that are bound to its own pod into its files, all at once as a kubelet does.
    async fn renew(&self, world: &World) {
        let (namespace, account) = self.account;
        let pod = Api::<Pod>::namespaced(world.plane.client(), namespace).get(self.name).await.unwrap();
        for (file, audiences) in [(self.api, &[][..]), (self.stream, &["vmcp.dev"])] {
            let hour = Duration::from_hours(1);
            let token = world.plane.token_for_pod(namespace, account, &pod, audiences, hour).await.unwrap();
            let new = file.with_extension("new");
            std::fs::write(&new, token).unwrap();
            std::fs::rename(&new, file).unwrap();
        }
    }

    /// Ends the tokens that it was started with.
    async fn end_first_tokens(&self, world: &World) {
        let name = format!("{}-tokens", self.name);
        let delete = ["delete", "pod", "-n", self.account.0, &name, "--grace-period=0", "--force", "--wait=true"];
        world.plane.kubectl(&delete).await.unwrap();
    }
}

fn bearers<'a>(world: &'a World, agent: &'a AgentPod) -> Vec<Bearer<'a>> {
    let replica = |c: &'a testkit::Controller| Bearer {
        name: &c.name,
        account: OPERATOR,
        api: &c.access.token_file,
        stream: &c.peer_token,
    };
    let pod = |p: &'a testkit::VmcpPod| Bearer {
        name: &p.name,
        account: PODS,
        api: &p.access.token_file,
        stream: &p.stream_token,
    };
    let agent = Bearer { name: &agent.name, account: PODS, api: &agent.access.token_file, stream: &agent.stream_token };
    world.controllers.iter().map(replica).chain(world.pods.iter().map(pod)).chain([agent]).collect()
}

/// Waits until the API server refuses a token.
async fn wait_refused(world: &World, token: &str) {
    let client = world.plane.client_for_token(world.plane.url(), token).await.unwrap();
    let namespaces = Api::<Namespace>::all(client);
    eventually(PATIENCE, "the first token has ended", async || {
        matches!(namespaces.get("default").await, Err(kube::Error::Api(status)) if status.code == 401).then_some(())
    })
    .await
    .unwrap();
}

/// Waits until the API server was asked with a token that is bound to this pod. `provoke` makes somebody ask it.
async fn wait_asked_as(world: &World, mark: AuditMark, pod: &str, provoke: impl AsyncFn()) {
    eventually(REREAD, &format!("the API server is asked with the new token of {pod}"), async || {
        provoke().await;
        world.plane.apiserver().audit_flush().await.ok()?;
        (world.plane.audit().count_since(mark, |entry| entry.pod == pod).ok()? > 0).then_some(())
    })
    .await
    .unwrap();
}

/// A replica, a pod with the library and a pod with the agent go on when the tokens that they were started with have ended and
/// others are in the files: no call fails, no copy is dropped, nothing is restarted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_end_and_nobody_notices() {
    let world =
        World::start(ClusterOptions { tokens: TokensOf::Another, ..ClusterOptions::default().size(2, 1) }).await;
    let agent = world.agent("agent-1", AgentOptions::default()).await.unwrap();
    agent.wait_leases(2).await.unwrap();
    let pod = &world.pods[0];
    world.apply("kept", &json!({"n": "0"})).await.unwrap();
    world.hold("kept", &[0]).await;
    let evictions = Evictions::of(pod).await;
    let first = std::fs::read_to_string(&world.controllers[0].access.token_file).unwrap();

    // Hits, and changes that are visible everywhere when they are answered: all the time.
    let over = CancellationToken::new();
    let load = async {
        let mut client = agent.client().await.unwrap();
        let mut n = 0;
        while !over.is_cancelled() {
            n += 1;
            let reply = pod.get("kept").await.unwrap();
            assert!(reply.status == 200 && reply.from() == "cache", "{reply:?}");
            let set = client.call(&["HSET", "changed", "n", &n.to_string()]).await.unwrap();
            assert_eq!(set.error(), None, "change {n}");
            let read = client.call(&["HGET", "changed", "n"]).await.unwrap();
            assert_eq!(read, n.to_string().as_str().into());
        }
        n
    };
    let renewal = async {
        let mark = world.plane.audit().mark().unwrap();
        for bearer in bearers(&world, &agent) {
            bearer.renew(&world).await;
        }
        for controller in &world.controllers {
            wait_asked_as(&world, mark, &controller.name, async || ()).await;
        }
        // Sessions that do not exist are asked for again and again.
        wait_asked_as(&world, mark, &pod.name, async || drop(pod.get("none").await)).await;
        wait_asked_as(&world, mark, &agent.name, async || ()).await;
        for bearer in bearers(&world, &agent) {
            bearer.end_first_tokens(&world).await;
        }
        wait_refused(&world, &first).await;
        // Streams that were opened with the first tokens end, and are opened anew.
        for controller in &world.controllers {
            for name in [&pod.name, &agent.name] {
                let what = format!("{name} has a stream to {} with its new token", controller.name);
                // A replica knows a pod by its token.
                let known = format!("\"{name}\"");
                eventually(REREAD, &what, async || {
                    let log = controller.process.log();
                    log.lines().any(|line| line.contains("agent connected") && line.contains(&known)).then_some(())
                })
                .await
                .unwrap();
            }
        }
        pod.wait_leases(2).await.unwrap();
        agent.wait_leases(2).await.unwrap();
        let text = pod.patch("kept", &json!({"n": "1"}), "everywhere").await.unwrap();
        assert!((200..300).contains(&text.status), "{text:?}");
        over.cancel();
    };
    let (changes, ()) = tokio::join!(load, renewal);
    println!("{changes} changes");
    assert_eq!(evictions.of_session("kept").await, [], "a copy that nobody had changed was dropped");
    let pods = world.pods.iter().map(|p| &p.process).chain([&agent.process]);
    for process in world.controllers.iter().map(|c| &c.process).chain(pods) {
        assert!(process.is_running(), "{}", process.name());
    }
}
