//! Where pods find whom to believe.

use serde_json::{Value, json};
use testkit::{AgentOptions, ClusterOptions, ControlPlaneOptions, Controller, eventually};

use crate::world::{PATIENCE, World};

const TRUST_BUNDLE: &str = "vmcp.dev:session-controller:vmcp-system";
const BEHIND: &str = "vmcp_session_bundles_behind";

/// Controllers that make their certificate, and look at it every second.
fn options(args: &[&str]) -> ClusterOptions {
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    options.controller_args(&["--ca-lifetime=3000", "--tls-lifetime=30"]).controller_args(args)
}

/// Without `ClusterTrustBundles`, as before Kubernetes 1.37.
fn older(mut options: ClusterOptions) -> ClusterOptions {
    let off = "--feature-gates=ClusterTrustBundle=false,ClusterTrustBundleProjection=false";
    options.plane = ControlPlaneOptions::default().with_apiserver_arg(off);
    options
}

/// A cluster whose controllers may write the `ConfigMap` in each namespace, be it there or not.
async fn start(options: ClusterOptions, controllers: usize) -> World {
    let mut world = World::start(options.size(0, 0)).await;
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "ca"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["vmcp-session-ca"],
            "verbs": ["get", "create", "patch"]}]});
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "ca"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ca"},
        "subjects": [{"kind": "ServiceAccount", "name": "vmcp-session-controller", "namespace": "vmcp-system"}]});
    for object in [role, binding] {
        world.plane.apply_yaml(&object.to_string()).await.unwrap();
    }
    let may = ["auth", "can-i", "-q", "patch", "configmaps/vmcp-session-ca", "-n", "vmcp"];
    let may = [&may[..], &["--as=system:serviceaccount:vmcp-system:vmcp-session-controller"]].concat();
    let allowed = async || world.plane.kubectl_output(&may, None).await.ok()?.status.success().then_some(());
    eventually(PATIENCE, "the controllers have their rights", allowed).await.unwrap();
    for _ in 0..controllers {
        world.add_controller().await.unwrap();
    }
    for controller in &world.controllers {
        controller.wait_ready().await.unwrap();
    }
    world
}

/// What a namespace's pods would find in their volume.
async fn config_map(world: &World, namespace: &str) -> Option<String> {
    let path = r"--output=jsonpath={.data.ca\.crt}";
    let get = ["get", "configmap", "vmcp-session-ca", "--namespace", namespace, path];
    world.plane.kubectl(&get).await.ok().filter(|pem| !pem.is_empty())
}

/// And what pods of all namespaces would.
async fn trust_bundle(world: &World) -> Option<Value> {
    let get = ["get", "--raw", &format!("/apis/certificates.k8s.io/v1/clustertrustbundles/{TRUST_BUNDLE}")];
    serde_json::from_str(&world.plane.kubectl(&get).await.ok()?).ok()
}

async fn metric(controller: &Controller, name: &str) -> u64 {
    let text = controller.metrics().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok()).expect(name)
}

async fn wait_behind(world: &World, places: u64) {
    let controller = &world.controllers[world.leader().await];
    let what = format!("{places} places do not hold the bundle");
    eventually(PATIENCE * 2, &what, async || (metric(controller, BEHIND).await == places).then_some(())).await.unwrap();
}

async fn wait_config_map(world: &World, namespace: &str) -> String {
    let what = format!("namespace {namespace} is told");
    eventually(PATIENCE * 2, &what, async || config_map(world, namespace).await).await.unwrap()
}

/// A namespace that does not exist is no reason not to serve the others. When it comes, it is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_cannot_be_told_keeps_nobody_else_waiting() {
    // This returns when the replicas are ready, which they are not without a certificate.
    let world = start(options(&["--ca-namespaces=later,vmcp"]), 2).await;
    let told = wait_config_map(&world, "vmcp").await;
    wait_behind(&world, 1).await;
    world.sync_bundle().await.unwrap();
    let agent = world.agent("agent-1", AgentOptions::default()).await.unwrap();
    agent.wait_leases(2).await.unwrap();
    let leader = &world.controllers[world.leader().await];
    let log = leader.process.log();
    // The same reason again is for whoever debugs.
    let aloud = |line: &&str| line.contains("namespace later") && !line.contains("DEBUG");
    let lines: Vec<&str> = log.lines().filter(aloud).collect();
    assert!(lines.len() == 1 && lines[0].contains("cannot publish"), "{lines:#?}");
    let failed =
        async || (metric(leader, "vmcp_session_bundle_writes_total{result=\"failed\"}").await > 2).then_some(());
    eventually(PATIENCE, "it is tried again and again", failed).await.unwrap();

    world.plane.create_namespace("later").await.unwrap();
    assert_eq!(wait_config_map(&world, "later").await, told);
    wait_behind(&world, 0).await;
    assert!(leader.process.log().contains("is published here again"));
}

/// Where Kubernetes has `ClusterTrustBundles`, pods of every namespace can mount the authorities, and nobody else may say who
/// they are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_trust_bundle_tells_all_namespaces() {
    let world = start(options(&["--ca-bundle=cluster-trust-bundle", "--ca-namespaces=vmcp"]), 2).await;
    let published = async || trust_bundle(&world).await;
    let bundle = eventually(PATIENCE, "the bundle is published", published).await.unwrap();
    assert_eq!(bundle["spec"]["signerName"], "vmcp.dev/session-controller");
    wait_behind(&world, 0).await;
    let pem = bundle["spec"]["trustBundle"].as_str().unwrap();
    assert_eq!(config_map(&world, "vmcp-system").await.as_deref(), Some(pem), "for tools of the operator's namespace");
    assert_eq!(config_map(&world, "vmcp").await, None, "nobody asked for it");

    // A pod mounts it, and believes the controllers.
    let volume = json!({"projected": {"sources": [{"clusterTrustBundle": {"name": TRUST_BUNDLE, "path": "ca.crt"}}]}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "mounts", "namespace": "vmcp"},
        "spec": {"serviceAccountName": "vmcp-server", "volumes": [{"name": "ca", "projected": volume["projected"]}],
            "containers": [{"name": "agent", "image": "none.invalid/none",
                "volumeMounts": [{"name": "ca", "mountPath": "/var/run/secrets/vmcp.dev"}]}]}});
    let create = ["create", "--dry-run=server", "--validate=strict", "--filename=-"];
    let taken = world.plane.kubectl_output(&create, Some(&pod.to_string())).await.unwrap();
    assert!(taken.status.success(), "{}", taken.stderr);
    std::fs::write(&world.streams.ca, pem).unwrap();
    let agent = world.agent("agent-1", AgentOptions::default()).await.unwrap();
    agent.wait_leases(2).await.unwrap();

    // Somebody else's authorities do not stay.
    let change = json!({"spec": {"trustBundle": std::fs::read_to_string(world.plane.ca_path()).unwrap()}}).to_string();
    let patch = ["patch", "clustertrustbundle", TRUST_BUNDLE, "--type=merge", "--patch", &change];
    let as_pod = [&patch[..], &["--as=system:serviceaccount:vmcp:vmcp-server"]].concat();
    assert!(world.plane.kubectl(&as_pod).await.is_err(), "a pod's account may change it");
    world.plane.kubectl(&patch).await.unwrap();
    let restored = async || (trust_bundle(&world).await?["spec"]["trustBundle"] == pem).then_some(());
    eventually(PATIENCE, "it is what it was", restored).await.unwrap();
}

/// An older cluster has none: by default that is no failure, and asked for it is one that stops nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_cluster_trust_bundles_there_are_config_maps() {
    let world = start(older(options(&["--ca-namespaces=vmcp"])), 1).await;
    wait_config_map(&world, "vmcp").await;
    wait_behind(&world, 0).await;
    assert_eq!(trust_bundle(&world).await, None);
    drop(world);
    let world = start(older(options(&["--ca-bundle=cluster-trust-bundle"])), 1).await;
    wait_behind(&world, 1).await;
    let log = world.controllers[0].process.log();
    assert!(log.contains("does not serve ClusterTrustBundles"), "{log}");
}
