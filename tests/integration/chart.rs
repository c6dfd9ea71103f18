//! The Helm chart, as an API server takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Value, json};
use testkit::{ClusterOptions, ControlPlane, ControlPlaneOptions, eventually};

use crate::world::{PATIENCE, World};

pub(crate) const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/charts/vmcp-session-operator");
const NAMESPACES: [&str; 3] = ["vmcp-system", "team-a", "team-b"];
/// An agent of team-a, and what is watched.
const TEAM_A: [&str; 2] = ["agents.namespaces[0].name=team-a", "agents.namespaces[0].serviceAccounts[0]=vmcp-server"];
/// Kinds of other operators, whose definitions are not there.
const OF_OTHERS: [&str; 3] = ["ServiceMonitor", "PodMonitor", "PrometheusRule"];

pub(crate) fn file(path: &str) -> String {
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

/// The command that shows what the chart makes of values.
fn template<'a>(values: &'a [&'a str]) -> Vec<&'a str> {
    let sets = values.iter().flat_map(|value| ["--set", value]);
    ["template", "release", CHART, "--namespace=vmcp-system"].into_iter().chain(sets).collect()
}

/// What the chart makes of values.
pub(crate) async fn rendered(plane: &ControlPlane, values: &[&str]) -> String {
    plane.helm(&template(values)).await.unwrap()
}

/// Objects of a text with several YAML documents.
pub(crate) fn objects(text: &str) -> Vec<Value> {
    let documents = text.split("\n---").filter(|document| document.lines().any(|line| line.starts_with("kind:")));
    // With its end of line: the last thing in it may be a block of text.
    let whole = |document: &str| format!("{}\n", document.trim_start_matches("---"));
    documents.map(|document| serde_norway::from_str(&whole(document)).unwrap()).collect()
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

/// Policies about sessions and their bindings: kind and name, and what they say.
fn policies(objects: &[Value]) -> BTreeMap<String, &Value> {
    let about_agents = |o: &Value| o["metadata"]["name"].as_str().unwrap().contains("-agents");
    let these = objects.iter().filter(|o| o["kind"].as_str().unwrap().starts_with("ValidatingAdmissionPolicy"));
    let these = these.filter(|o| !about_agents(o));
    these.map(|o| (format!("{} {}", o["kind"], o["metadata"]["name"]), &o["spec"])).collect()
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
    let matrix: [&[&str]; 20] = [
        &[],
        &TEAM_A,
        &["controller.replicas=1", "crds.install=false", "serviceAccount.create=false", "serviceAccount.name=mine"],
        &["controller.namespaces={team-a,team-b}", "fullnameOverride=other", "networkPolicy.create=false"],
        &[
            "controller.namespaces={vmcp-system}",
            "policy.create=false",
            "controller.priorityClassName=system-cluster-critical",
        ],
        &["controller.priorityClass.create=true", "controller.resources=null", "controller.nodeSelector=null"],
        &["controller.runAsUser=null", "uninstall.resources=null", "networkPolicy.dnsPorts={5353}"],
        &[
            "metrics.dashboard.create=true",
            "metrics.dashboard.namespace=team-a",
            "metrics.dashboard.annotations.folder=vmcp",
        ],
        &["tls.existingSecret=mine", TEAM_A[0], TEAM_A[1], &digest],
        &["roles.aggregate=true", "controller.topologySpread=false", "podDisruptionBudget.create=false"],
        &["metrics.serviceMonitor.create=true", "metrics.podMonitor.create=true", "metrics.prometheusRule.create=true"],
        &["metrics.serviceMonitor.create=true", "metrics.auth=true", "tls.existingSecret=mine"],
        &["tls.bundle=clusterTrustBundle", TEAM_A[0], TEAM_A[1]],
        &["tls.bundle=configMap", TEAM_A[0], TEAM_A[1]],
        &["injection.mode=policy", TEAM_A[0]],
        &["injection.mode=policy", "injection.agent.runAsUser=null", "injection.agent.resources=null", digest.as_str()],
        &["injection.mode=webhook", "injection.failurePolicy=Ignore", "injection.excludedNamespaces={team-a}"],
        &[
            "injection.mode=webhook",
            "injection.webhook.keepBundle=false",
            r"injection.webhook.annotations.cert-manager\.io/inject-ca-from=a/b",
        ],
        &["injection.mode=none", "injection.agent.env[0].name=A", "enabled=true"],
        &["networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.name=monitoring", "controller.log.format=text"],
    ];
    for values in matrix {
        let all = objects(&rendered(&plane, values).await);
        assert!(all.len() >= 8, "{values:?} makes {} objects", all.len());
        // Helm 3 makes the same of it.
        let of_helm3 = objects(&plane.helm3(&template(values)).await.unwrap());
        let texts = |objects: &[Value]| objects.iter().map(Value::to_string).collect::<BTreeSet<_>>();
        assert_eq!(texts(&of_helm3), texts(&all), "{values:?}");
        all.iter().filter(|o| o["kind"] == "NetworkPolicy").for_each(ports_are_numbers);
        let ours: Vec<&Value> = all.iter().filter(|o| !OF_OTHERS.contains(&o["kind"].as_str().unwrap())).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": ours}).to_string();
        let apply = ["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename=-"];
        let taken = plane.kubectl_output(&apply, Some(&list)).await.unwrap();
        // A pod that violates pod security is taken in a Deployment, with a warning.
        let said = format!("{}{}", taken.stdout, taken.stderr);
        assert!(taken.status.success() && !said.contains("Warning"), "{values:?}:\n{said}");
    }
}

/// Some networks take a rule that names a port for one about all ports, and others for one about none.
fn ports_are_numbers(policy: &Value) {
    let rules = ["ingress", "egress"].map(|way| policy["spec"][way].as_array().cloned().unwrap_or_default());
    let ports: Vec<_> = rules.iter().flatten().flat_map(|rule| rule["ports"].as_array().unwrap()).collect();
    assert!(!ports.is_empty() && ports.iter().all(|port| port["port"].is_u64()), "{ports:?}");
}

/// Tools that install from a repository's files add the commit to the version.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_version_may_have_more_than_a_label_may() {
    let plane = plane().await;
    let folder = tempfile::tempdir().unwrap();
    let copied =
        std::process::Command::new("cp").arg("-r").arg(CHART).arg(folder.path().join("chart")).status().unwrap();
    assert!(copied.success());
    let file = folder.path().join("chart/Chart.yaml");
    let versions = |line: &str| if line.contains("ersion: 0") { format!("{line}+3f2a1c9") } else { line.to_owned() };
    let text: Vec<String> = std::fs::read_to_string(&file).unwrap().lines().map(versions).collect();
    assert!(text.iter().any(|line| line.starts_with("version: ") && line.ends_with("+3f2a1c9")), "{text:?}");
    std::fs::write(&file, text.join("\n")).unwrap();
    let chart = folder.path().join("chart").display().to_string();
    let all = objects(&plane.helm(&["template", "release", &chart]).await.unwrap());
    for object in all {
        let labels = object["metadata"]["labels"].as_object().cloned().unwrap_or_default();
        assert!(labels.values().all(|label| !label.as_str().unwrap().contains('+')), "{labels:?}");
    }
}

/// A variable that the program does not know would be passed over without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_program_knows_what_it_is_told() {
    let plane = plane().await;
    let help = std::process::Command::new(crate::programs().session).args(["controller", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut seen = 0;
    for values in [&TEAM_A[..], &["tls.existingSecret=mine", "controller.namespaces={team-a}", "metrics.auth=true"]] {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_webhooks_port_is_listened_at_let_in_and_found() {
    let plane = plane().await;
    let all = rendered(&plane, &["injection.mode=webhook", "injection.webhook.port=10250"]).await;
    assert_eq!(
        all.matches("10250").count(),
        3,
        "in the program's setting, the NetworkPolicy and the port of the Service"
    );
}

/// The controller has in an agent's namespace what it takes to tell its pods whom to believe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authorities_reach_a_namespace_of_agents() {
    let options = ClusterOptions { own_certificates: true, ..ClusterOptions::default() };
    let mut world = World::start(options.size(0, 0).controller_args(&["--ca-namespaces=vmcp"])).await;
    let values = ["agents.namespaces[0].name=vmcp", "agents.namespaces[0].serviceAccounts[0]=vmcp-server"];
    let mut objects = objects(&rendered(&world.plane, &values).await);
    objects.retain(|object| object["metadata"]["name"] == "vmcp-session-controller-ca");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    world.plane.kubectl_with_input(&["create", "--filename=-"], &list).await.unwrap();
    let account = "--as=system:serviceaccount:vmcp-system:vmcp-session-controller";
    eventually(PATIENCE, "the role is in force", async || {
        let may = ["auth", "can-i", "-q", "create", "configmaps/vmcp-session-ca", "-n", "vmcp", account];
        world.plane.kubectl_output(&may, None).await.ok()?.status.success().then_some(())
    })
    .await
    .unwrap();

    world.add_controller().await.unwrap();
    let bundle = async || {
        let get = ["get", "configmap", "vmcp-session-ca", r"--output=jsonpath={.data.ca\.crt}"];
        let bundle = world.kubectl(&get).await.ok()?;
        bundle.contains("BEGIN CERTIFICATE").then_some(())
    };
    eventually(PATIENCE, "the authorities are told", bundle).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_typing_error_in_the_values_is_refused() {
    let plane = plane().await;
    plane.helm(&["lint", "--strict", CHART]).await.unwrap();
    plane.helm3(&["lint", "--strict", CHART]).await.unwrap();
    for wrong in [
        "controler.replicas=3",
        "controller.replica=3",
        "controller.replicas=0",
        "controller.leaseSeconds=500",
        "controller.log.format=yaml",
        "controller.log.level=warning",
        "injection.agent.log.level=bogus=",
        "controller.namespaces={Team_A}",
        "agents.namespaces[0].serviceAccounts[0]=a",
        "image.digest=sha256:abc",
        "tls.existingsecret=a",
        "fullnameOverride=Other",
        "policies.create=false",
        "controller.resources.request.cpu=1",
        "controller.priorityClass.value=high",
        "metrics.dashboard.labels.grafana_dashboard=1",
        "metrics.podMonitor.interval=30",
        "tls.bundle=configmap",
        "metrics.auth=maybe",
        "injection.mode=maybe",
        "injection.failurepolicy=Fail",
        "injection.webhook.port=65536",
        "injection.webhook.port=7070",
        "injection.agent.runAsUser=0",
        "injection.agent.program=vmcp-session",
        "injection.agent.env[0].vlaue=x",
        "injection.agent.resources.limits.memroy=1Gi",
    ] {
        let refused = plane.helm(&["template", "release", CHART, "--set", wrong]).await.unwrap_err().to_string();
        assert!(refused.contains("values don't meet the specifications"), "{wrong}: {refused}");
    }
}

/// A pattern that took what the agent does not would make pods that never start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_agents_could_not_listen_at_is_refused() {
    let plane = plane().await;
    let texts = "127.0.0.1:8079 255.255.255.255:65535 [::]:9000 [::1]:1 [fe80::1:2]:80 [1:2:3:4:5:6:7:8]:80 \
                 [1:2:3:4:5:6:7::]:80 [::2:3:4:5:6:7:8]:80 300.1.1.1:80 256.0.0.1:80 1.2.3:80 1.2.3.4.5:80 01.2.3.4:80 \
                 [:::]:80 [::1::]:80 [1:2]:80 [1:2:3:4:5:6:7:8:9]:80 [12345::]:80 foo:8079 127.0.0.1:65536 127.0.0.1";
    for text in texts.split_whitespace() {
        let set = format!("injection.agent.adminListen={text}");
        let made = plane.helm(&["template", "release", CHART, "--set", &set]).await;
        let fits = text.parse::<std::net::SocketAddr>().is_ok();
        let (taken, refused) = (made.is_ok(), made.err().map(|error| error.to_string()).unwrap_or_default());
        assert_eq!(taken, fits, "{text}: {refused}");
        let says = format!("injection.agent.adminListen is '{text}': expected an address with a port, as in");
        assert!(fits || refused.contains(&says), "{text}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_do_not_fit_together_are_refused_with_what_would_be_right() {
    let plane = plane().await;
    for (wrong, right) in [
        ("tls.authorityLifetime=2592000", "tls.certificateLifetime must be at most half of tls.authorityLifetime"),
        ("injection.mode=webhook,injection.webhook.keepBundle=false", "say with injection.webhook.caBundle"),
        (
            "metrics.podMonitor.create=true,injection.agent.adminListen=127.0.0.1:8079",
            "needs agents that Prometheus can reach",
        ),
        ("serviceAccount.create=false", "serviceAccount.name must say which account"),
        ("controller.env[0].name=VMCP_LEADER_LEASE_NAME", "the right to that Lease is given by its name"),
    ] {
        let refused = plane.helm(&["template", "release", CHART, "--set", wrong]).await.unwrap_err().to_string();
        assert!(refused.contains(right), "{wrong}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_may_have_the_lease_that_its_environment_names() {
    let plane = plane().await;
    let env = ["controller.env[0].name=VMCP_LEADER_LEASE_NAME", "controller.env[0].value=mine"];
    for (values, lease) in [(&[][..], "vmcp-session-controller"), (&env, "mine")] {
        let all = objects(&rendered(&plane, values).await);
        let rules = all.iter().flat_map(|object| object["rules"].as_array().into_iter().flatten());
        let of_leases = rules.filter(|rule| rule["resources"] == json!(["leases"]) && !rule["resourceNames"].is_null());
        let names: Vec<&Value> = of_leases.map(|rule| &rule["resourceNames"]).collect();
        assert_eq!(names, [&json!([lease])]);
    }
}

/// Fails if something that Kubernetes takes as text is none.
fn names_are_texts(value: &Value, within: &str) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let names = ["name", "namespace", "secretName", "serviceAccountName"].contains(&key.as_str());
                let texts = ["labels", "matchLabels", "annotations"].contains(&within);
                assert!(!(names || texts) || !value.is_number(), "{within}.{key} is {value}");
                names_are_texts(value, key);
            }
        }
        Value::Array(items) => {
            assert!(within != "matchNames" || items.iter().all(Value::is_string), "{within}: {items:?}");
            for item in items {
                names_are_texts(item, within);
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_digits_stay_names() {
    let plane = plane().await;
    let names = "agents.namespaces[0].name=77,agents.namespaces[0].serviceAccounts[0]=78,controller.namespaces={79},\
                 tls.existingSecret=80";
    let more =
        "metrics.serviceMonitor.create=true,metrics.podMonitor.create=true,metrics.auth=true,injection.mode=webhook";
    let args = ["template", "81", CHART, "--namespace=82", "--set-string", names, "--set", more];
    let all = objects(&plane.helm(&args).await.unwrap());
    assert!(all.iter().any(|object| object["metadata"]["namespace"] == "77"));
    for object in &all {
        names_are_texts(object, "");
    }
}

/// Who chooses namespaces grants nothing beyond them, unless he says so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_uninstall_goes_beyond_chosen_namespaces_only_if_it_is_told_to() {
    let plane = plane().await;
    for (more, granted, looks_in) in [
        ("uninstall.allNamespaces=false", ["team-a", "team-b"].as_slice(), Some("team-a,team-b")),
        ("uninstall.allNamespaces=true", &[""], None),
    ] {
        let all = objects(&rendered(&plane, &["controller.namespaces={team-a,team-b}", more]).await);
        let of_hook = |object: &&Value| object["metadata"]["name"] == "vmcp-session-controller-release";
        let hook: Vec<&Value> = all.iter().filter(of_hook).collect();
        let bindings = hook.iter().filter(|o| o["kind"].as_str().unwrap().ends_with("Binding"));
        let namespaces: Vec<&str> = bindings.map(|o| o["metadata"]["namespace"].as_str().unwrap_or_default()).collect();
        assert_eq!(namespaces, granted, "{more}");
        let job = hook.iter().find(|object| object["kind"] == "Job").unwrap();
        let looks = &job["spec"]["template"]["spec"]["containers"][0]["env"][0];
        assert_eq!(looks["value"].as_str(), looks_in, "{more}: {looks}");
    }
}

/// What tests and the demo run with is what the chart grants and refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_rights_policies_and_definition_are_those_that_are_tested() {
    let plane = plane().await;
    let tested = rules(&objects(&file("deploy/rbac/controller.yaml")));
    let all = objects(&rendered(&plane, &[]).await);
    assert_eq!(policies(&all), policies(&objects(&file("deploy/policy/sessions.yaml"))));
    assert_eq!(policies(&all).len(), 4);
    let hook = |object: &Value| object["metadata"]["annotations"]["helm.sh/hook"].is_string();
    let (hooks, all): (Vec<Value>, Vec<Value>) = all.into_iter().partition(hook);
    let uninstall = json!([{"apiGroups": ["vmcp.dev"], "resources": ["vmcpsessions"], "verbs": ["list", "patch"]}]);
    let rules_of_hooks: Vec<&Value> = hooks.iter().map(|o| &o["rules"]).filter(|rules| !rules.is_null()).collect();
    assert_eq!(rules_of_hooks, [&uninstall], "no more than to take finalizers off, and no longer than the uninstall");
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
