//! A cluster that has no such policy: its API server asks a controller.

use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use testkit::{ClusterOptions, LoopbackAddr, eventually};

use super::admitted::{
    Admission, admit, agent_of, apply, asking, container, of_agents, plain, prepare, spec, wait, with,
};
use crate::world::{PATIENCE, World};

const CONFIGURATION: &str = "vmcp-session-controller-agents";

/// A cluster with a controller that is asked, and what else it needs to go on.
struct Asked {
    world: World,
    _address: LoopbackAddr,
}

impl Asked {
    async fn start(values: &[&str], args: &[&str]) -> Self {
        let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
        let mut world = World::start(options.size(0, 0).controller_args(args)).await;
        prepare(&world.plane).await;
        let address = LoopbackAddr::claim().unwrap();
        let listen = address.free_socket().unwrap();
        let definition = world.plane.dir().join("agent.yaml");
        for mut object in of_agents(&world.plane, "webhook", values).await {
            match object["kind"].as_str().unwrap() {
                // As the kubelet puts it into a file.
                "ConfigMap" => {
                    std::fs::write(&definition, object["data"]["agent.yaml"].as_str().unwrap()).unwrap();
                    continue;
                }
                // Nobody routes the addresses of Services here.
                "MutatingWebhookConfiguration" => {
                    for webhook in object["webhooks"].as_array_mut().unwrap() {
                        assert_eq!(webhook["clientConfig"]["service"]["path"], "/pods");
                        webhook["clientConfig"] = json!({"url": format!("https://{listen}/pods")});
                    }
                }
                _ => {}
            }
            apply(&world.plane, &object).await;
        }
        let name = listen.ip();
        world.options.controller_args.extend([
            format!("--injection-listen={listen}"),
            format!("--injection-definition={}", definition.display()),
            format!("--injection-webhook={CONFIGURATION}"),
            format!("--injection-name={name}"),
        ]);
        world.add_controller().await.unwrap().wait_ready().await.unwrap();
        wait(&world.plane).await;
        Self { world, _address: address }
    }

    /// Whom the API server believes, for each webhook.
    async fn bundles(&self) -> Vec<String> {
        let get = ["get", "mutatingwebhookconfiguration", CONFIGURATION, "--output=json"];
        let configuration: Value = serde_json::from_str(&self.world.plane.kubectl(&get).await.unwrap()).unwrap();
        let webhooks = configuration["webhooks"].as_array().unwrap().iter();
        let bundle = |webhook: &Value| {
            let bundle: ByteString = serde_json::from_value(webhook["clientConfig"]["caBundle"].clone()).unwrap();
            String::from_utf8(bundle.0).unwrap()
        };
        webhooks.map(bundle).collect()
    }

    async fn admit(&self, namespace: &str, pod: &Value) -> Result<Value, String> {
        admit(&self.world.plane, namespace, pod).await
    }
}

/// All kinds of pods that get an agent, and some that do not.
fn pods() -> Vec<(&'static str, Value)> {
    let options: Vec<(&str, &str)> = vec![
        ("server", "weather"),
        ("key-prefix", "a\"\\<&>$(POD_NAME)'"),
        ("pod-local-keys", "a.*,b"),
        ("visibility", "committed"),
        ("listen", "none"),
        ("admin-listen", "[::]:9000"),
        ("unix-socket", "true"),
        ("unix-socket-mode", "660"),
        ("password-secret", "p"),
        ("password-key", "k"),
        ("hash-session-ids-secret", "h"),
        ("hash-session-ids-key", "k"),
        ("max-clients", "1"),
        ("client-timeout", "0"),
        ("client-output-limit", "65536"),
        ("clients-memory", "4194304"),
        ("tracking-table-max-keys", "1"),
        ("cache-entries", "1"),
        ("cache-bytes", "1048576"),
        ("lease-upper-bound", "1"),
        ("log-level", "debug"),
        ("log-format", "text"),
        ("image", "i"),
        ("image-pull-policy", "Never"),
        ("run-as-user", "00001"),
        ("cpu-request", "0.5"),
        ("cpu-limit", "1"),
        ("memory-request", "128Mi"),
        ("memory-limit", "2Gi"),
    ];
    let mut pods = vec![("asking", plain()), ("given", plain()), ("asking", asking(&options)), ("asking", asking(&[]))];
    for option in &options {
        let pair = [*option, ("unix-socket", "true")];
        pods.push(("asking", asking(&pair)));
    }
    let inits = with(&asking(&options), "/spec/initContainers", json!([container("a"), container("b")]));
    let volumes = json!([{"name": "vmcp-agent-socket", "emptyDir": {}}, {"name": "x", "emptyDir": {}}]);
    pods.push(("asking", inits.clone()));
    pods.push(("asking", with(&inits, "/spec/volumes", volumes)));
    pods.push(("asking", with(&asking(&[]), "/spec/automountServiceAccountToken", json!(false))));
    pods.push(("given", with(&plain(), "/spec/initContainers", json!([container("vmcp-agent")]))));
    pods.push(("given", with(&plain(), "/metadata/labels", json!({"vmcp.dev/agent": "disabled"}))));
    pods.push(("vmcp-system", asking(&[])));
    pods.push(("kube-system", plain()));
    // Refused.
    for wrong in [
        ("run-as-user", "-1"),
        ("run-as-user", "x"),
        ("run-as-user", "9999999999999999999"),
        ("servr", "x"),
        // What is made of these would be no pod.
        ("cpu-limit", "much"),
        ("image-pull-policy", "maybe"),
    ] {
        pods.push(("asking", asking(&[wrong])));
    }
    pods
}

/// The webhook is not there for clusters to be different.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_adds_what_the_policy_adds() {
    let values =
        ["injection.agent.env[0].name=MORE", "injection.agent.env[0].value=more", "injection.agent.runAsUser=7"];
    let policy = Admission::start(&values).await;
    let asked = Asked::start(&values, &[]).await;
    let (mut with_agent, mut refused) = (0, 0);
    for (namespace, pod) in pods() {
        let (one, other) = (policy.admit(namespace, &pod).await, asked.admit(namespace, &pod).await);
        with_agent += usize::from(one.as_ref().is_ok_and(|pod| agent_of(pod).is_some()));
        refused += usize::from(one.is_err());
        let spec = |admitted: &Result<Value, String>| admitted.as_ref().map(spec).map_err(Clone::clone);
        assert_eq!(spec(&other), spec(&one), "{namespace}: {pod}");
    }
    assert!(with_agent > 30 && refused == 6, "{with_agent} with an agent, {refused} refused");
}

/// Who asks for an agent does not get a pod without one; nobody else is held up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_controller_only_those_who_ask_wait() {
    let mut asked = Asked::start(&[], &[]).await;
    asked.world.controllers[0].process.kill9().await.unwrap();
    let refused = asked.admit("asking", &asking(&[])).await.unwrap_err();
    assert!(refused.contains("failed calling webhook \"labelled.agents.vmcp.dev\""), "{refused}");
    let refused = asked.admit("given", &plain()).await.unwrap_err();
    assert!(refused.contains("failed calling webhook \"by-namespace.agents.vmcp.dev\""), "{refused}");
    asked.admit("asking", &plain()).await.unwrap();
    asked.admit("vmcp-system", &asking(&[])).await.unwrap();
    asked.admit("given", &with(&plain(), "/metadata/labels", json!({"vmcp.dev/agent": "disabled"}))).await.unwrap();

    asked.world.controllers[0].restart().await.unwrap();
    wait(&asked.world.plane).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_controller_nobody_waits_if_it_is_wished_so() {
    let asked = Asked::start(&["injection.failurePolicy=Ignore"], &[]).await;
    asked.world.controllers[0].process.kill9().await.unwrap();
    let without = asked.admit("asking", &asking(&[])).await.unwrap();
    assert_eq!(agent_of(&without), None);
}

/// Somebody sets it back, as an older manifest does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_the_api_server_believes_is_kept_true() {
    let asked = Asked::start(&[], &["--ca-lifetime=300", "--tls-lifetime=30"]).await;
    let right = asked.bundles().await;
    assert!(right.len() == 2 && right[0] == right[1] && right[0].contains("BEGIN CERTIFICATE"));
    let nothing = json!([{"op": "remove", "path": "/webhooks/1/clientConfig/caBundle"}]).to_string();
    let patch = ["patch", "mutatingwebhookconfiguration", CONFIGURATION, "--type=json", "--patch", &nothing];
    asked.world.plane.kubectl(&patch).await.unwrap();
    eventually(PATIENCE, "it is set again", async || (asked.bundles().await == right).then_some(())).await.unwrap();
    wait(&asked.world.plane).await;
}

/// Authorities come and go, and no pod is refused for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_replaced_and_no_pod_waits() {
    let authority = Duration::from_mins(1);
    let asked = Asked::start(&[], &["--ca-lifetime=60", "--tls-lifetime=30"]).await;
    let first = asked.bundles().await.remove(0);
    let end = Instant::now() + authority * 3;
    let mut n = 0;
    while asked.bundles().await[0].contains(first.trim()) {
        assert!(Instant::now() < end, "the first authority is never forgotten");
        let pod = with(&asking(&[]), "/metadata/name", json!(format!("pod-{n}")));
        assert!(agent_of(&asked.admit("asking", &pod).await.unwrap()).is_some());
        n += 1;
    }
    wait(&asked.world.plane).await;
}
