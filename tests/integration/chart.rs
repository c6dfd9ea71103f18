//! The Helm chart, as an API server takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use testkit::{ClusterOptions, ControlPlane, ControlPlaneOptions};

use crate::world::World;

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/vmcp-session-operator");
const NAMESPACES: [&str; 3] = ["vmcp-system", "team-a", "team-b"];
/// An agent of team-a, and what is watched.
const TEAM_A: [&str; 2] = ["agents.namespaces[0].name=team-a", "agents.namespaces[0].serviceAccounts[0]=vmcp-server"];
/// Kinds of other operators, whose definitions are not there.
const OF_OTHERS: [&str; 2] = ["ServiceMonitor", "PrometheusRule"];

fn file(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

async fn plane() -> ControlPlane {
    let plane = ControlPlane::start(ControlPlaneOptions::default()).await.unwrap();
    for namespace in NAMESPACES {
        plane.create_namespace(namespace).await.unwrap();
        let restricted = "pod-security.kubernetes.io/enforce=restricted";
        plane.kubectl(&["label", "namespace", namespace, restricted]).await.unwrap();
    }
    plane
}

/// What the chart makes of values.
async fn rendered(plane: &ControlPlane, values: &[&str]) -> String {
    let sets = values.iter().flat_map(|value| ["--set", value]);
    let args: Vec<&str> = ["template", "release", CHART, "--namespace=vmcp-system"].into_iter().chain(sets).collect();
    plane.helm(&args).await.unwrap()
}

/// Objects of a text with several YAML documents.
fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").filter(|document| document.lines().any(|line| line.starts_with("kind:")));
    documents.map(|document| serde_norway::from_str(document.trim_start_matches("---")).unwrap()).collect()
}

/// Rules by the kind of their role, each as a text that does not depend on order.
fn rules(objects: &[Value]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for object in objects {
        let kind = object["kind"].as_str().unwrap().to_owned();
        for rule in object["rules"].as_array().into_iter().flatten() {
            all.entry(kind.clone()).or_default().insert(rule.to_string());
        }
    }
    all
}

/// Each of these is taken by the API server as it is, by all of its admission and with restricted pod security.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_takes_it_with_whatever_values() {
    let plane = plane().await;
    // Others than the definition itself need it.
    let crd = rendered(&plane, &["crds.keep=false"]).await;
    let crd = objects(&crd).into_iter().find(|object| object["kind"] == "CustomResourceDefinition").unwrap();
    plane.kubectl_with_input(&["create", "--filename=-"], &crd.to_string()).await.unwrap();
    let digest = format!("image.digest=sha256:{}", "a".repeat(64));
    let matrix: [&[&str]; 8] = [
        &[],
        &TEAM_A,
        &["controller.replicas=1", "crds.install=false", "serviceAccount.create=false", "serviceAccount.name=mine"],
        &["controller.namespaces={team-a,team-b}", "fullnameOverride=other", "networkPolicy.create=false"],
        &["tls.existingSecret=mine", TEAM_A[0], TEAM_A[1], &digest],
        &["roles.aggregate=true", "controller.topologySpread=false", "podDisruptionBudget.create=false"],
        &["metrics.serviceMonitor.create=true", "metrics.prometheusRule.create=true"],
        &["networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring", "controller.log.format=text"],
    ];
    for values in matrix {
        let all = objects(&rendered(&plane, values).await);
        assert!(all.len() >= 8, "{values:?} makes {} objects", all.len());
        let ours: Vec<&Value> = all.iter().filter(|o| !OF_OTHERS.contains(&o["kind"].as_str().unwrap())).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": ours}).to_string();
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"];
        let taken = plane.kubectl_output(&apply, Some(&list)).await.unwrap();
        // A pod that violates pod security is taken in a Deployment, with a warning.
        let said = format!("{}{}", taken.stdout, taken.stderr);
        assert!(taken.status.success() && !said.contains("Warning"), "{values:?}:\n{said}");
    }
}

/// A variable that the program does not know would be passed over without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_knows_what_it_is_told() {
    let plane = plane().await;
    let help = std::process::Command::new(crate::programs().session).args(["controller", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut seen = 0;
    for values in [&TEAM_A[..], &["tls.existingSecret=mine", "controller.namespaces={team-a}"]] {
        for object in objects(&rendered(&plane, values).await).iter().filter(|object| object["kind"] == "Deployment") {
            for variable in object["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap() {
                let name = variable["name"].as_str().unwrap();
                // The pod's address is only a part of another one.
                assert!(name == "POD_IP" || help.contains(&format!("[env: {name}=")), "the program knows no {name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20);
}

/// Alerts ask for metrics that a controller has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_ask_for_metrics_that_there_are() {
    let mut world = World::start(ClusterOptions::default().size(1, 1)).await;
    world.apply("s", &json!({"n": "0"})).await.unwrap();
    world.hold("s", &[0]).await;
    world.merge("s", &json!({"n": "1"})).await;
    world.fence().await;
    let metrics = world.controllers[0].metrics().await.unwrap();
    let alerts = file("charts/vmcp-session-operator/files/alerts.yaml");
    let asked: BTreeSet<&str> = alerts
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .flat_map(|query| query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .filter(|word| word.starts_with("vmcp_"))
        .collect();
    assert!(asked.len() >= 3, "{asked:?}");
    for metric in asked {
        let there = metrics.lines().any(|line| line.split(['{', ' ']).next() == Some(metric));
        assert!(there, "there is no {metric}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typing_error_in_the_values_is_refused() {
    let plane = plane().await;
    plane.helm(&["lint", "--strict", CHART]).await.unwrap();
    for wrong in [
        "controler.replicas=3",
        "controller.replica=3",
        "controller.replicas=0",
        "controller.leaseSeconds=500",
        "controller.log.format=yaml",
        "controller.namespaces={Team_A}",
        "agents.namespaces[0].serviceAccounts[0]=a",
        "image.digest=sha256:abc",
        "tls.existingsecret=a",
    ] {
        let refused = plane.helm(&["template", "release", CHART, "--set", wrong]).await.unwrap_err().to_string();
        assert!(refused.contains("values don't meet the specifications"), "{wrong}: {refused}");
    }
}

/// What tests and the demo run with is what the chart grants.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_rights_and_its_definition_are_those_that_are_tested() {
    let plane = plane().await;
    let tested = rules(&objects(&file("deploy/rbac/controller.yaml")));
    let all = objects(&rendered(&plane, &[]).await);
    let agents = |object: &Value| object["metadata"]["name"] == "vmcp-session-agent";
    let (agents, controller): (Vec<Value>, Vec<Value>) = all.into_iter().partition(agents);
    assert_eq!(rules(&controller), tested);
    let verbs = &agents[0]["rules"][0]["verbs"];
    assert_eq!(*verbs, json!(["get", "create", "patch", "delete"]), "as the test kit grants to pods");
    let shipped = file("charts/vmcp-session-operator/files/vmcpsessions.vmcp.dev.yaml");
    assert!(
        shipped == file("crds/vmcpsessions.vmcp.dev.yaml"),
        "the chart's definition is another one: run `make crds`"
    );
}
